//! The selection methods: one file each, one row each in [`METHODS`]. A method is thin; the mathematics is in
//! [`crate::select`], the heavy lifting in kernels.

pub mod adversarial_bim;
mod albl;
mod badge;
pub mod bald;
pub mod cluster_margin;
mod coreset;
mod entropy;
pub mod gcn;
pub mod kmeans;
pub mod learning_loss;
mod least_confidence;
mod margin;
pub mod mcadl;
mod mean_std;
pub mod power_bald;
pub mod probcover;
mod query;
mod random;
pub mod ssl_consistency;
pub mod ssl_diff2aug;
mod ssl_random;
pub mod typiclust;
pub mod vaal;
mod var_ratio;
pub mod waal;

pub(crate) use power_bald::{Settings as PowerBaldSettings, noisy};
pub(crate) use probcover::Settings as ProbCoverSettings;
pub use query::Query;
pub(crate) use typiclust::{Settings as TypiClustSettings, choose as typical_rows};

use crate::bench::config::Config;
use crate::data::PoolIdx;
use crate::names;
use crate::train::{DeviceData, Fit, Model, Trainer, TrainerKind};
use crate::{Error, Result};

/// One round's training task.
pub struct Round<'a> {
    /// The run's trainer.
    pub trainer: &'a Trainer<'a>,
    /// 0 is the random start set.
    pub number: u32,
    /// Labelled examples, ascending, with their labels.
    pub labelled: &'a [(PoolIdx, u32)],
}

/// A way to choose what to label next.
pub trait Method {
    /// Trains a fresh model on what is labelled, by the run's trainer. Overridden when the method changes training.
    fn fit(&mut self, round: &Round) -> Result<Fit> {
        round.trainer.fit(round.number, round.labelled)
    }

    /// False when [`Method::fit`] is another training than the plain one, so that not even the first round can be shared
    /// with other methods.
    fn trains_plainly(&self) -> bool {
        true
    }

    /// The trainer that the method is defined with; none where any will do.
    fn trainer(&self) -> Option<TrainerKind> {
        None
    }

    /// The network with fresh weights from the stream (seed, round). Overridden together with [`Method::fit`] when the
    /// method adds to the network.
    fn model(&self, data: &DeviceData, seed: u64, round: u32) -> Result<Model> {
        Model::fresh(data, seed, round)
    }

    /// Chooses `n` distinct unlabelled examples (all of them if there are fewer).
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>>;

    /// State that must survive between rounds.
    fn save(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Takes up the state that [`Method::save`] gave.
    fn restore(&mut self, _state: &serde_json::Value) -> Result<()> {
        Ok(())
    }
}

/// Which group of the study a method belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Supervised active learning, in the paper.
    Sal,
    /// Semi-supervised active learning, in the paper.
    Ssal,
    /// Beyond the paper: never in its tables.
    Extra,
}

/// A row of [`METHODS`].
pub struct Entry {
    /// Name on the command line and in results.
    pub id: &'static str,
    /// Name in the paper.
    pub paper_name: &'static str,
    /// Its group.
    pub kind: Kind,
    /// One line for help and README.
    pub about: &'static str,
    /// What a selection asks for, in few words: `embeddings of the pool`, `logits`, `10 dropout passes`, `a VAE trained
    /// each round`; `nothing` when it asks for nothing.
    pub needs: &'static str,
    /// Time of a selection and, after a comma, its working memory, in the letters of METHODS 0.2: `U·C, U`.
    pub costs: &'static str,
    /// What [`Method::save`] keeps from round to round in few words; `nothing` when that is nothing.
    pub remembers: &'static str,
    /// Makes a fresh instance with the settings under the method's id.
    pub make: fn(&Config) -> Box<dyn Method>,
}

/// Every method: the paper's in its order, then those beyond it. Command line, help, conformance tests and reports read this table.
pub static METHODS: &[Entry] = &[
    Entry {
        id: "random",
        paper_name: "RandomSampling",
        kind: Kind::Sal,
        about: "uniform draw; the reference of every comparison",
        needs: "nothing",
        costs: "U, U",
        remembers: "nothing",
        make: |_| Box::new(random::Random),
    },
    Entry {
        id: "albl",
        paper_name: "ALBL",
        kind: Kind::Sal,
        about: "a bandit draws least-confidence or coreset each round, paid by weighted training accuracy",
        needs: "what the arm drawn needs, logits of the labelled",
        costs: "that of the arm drawn + L·C, N·D",
        remembers: "weights of the arms, the last arm, the probability of each query",
        make: |_| Box::new(albl::Albl::default()),
    },
    Entry {
        id: "adversarial-bim",
        paper_name: "AdversarialBIM",
        kind: Kind::Sal,
        about: "the smallest perturbation, by steps of the gradient's sign, that changes the predicted class",
        needs: "logits, up to 100 passes forward and backward",
        costs: "steps·U·(network), batch",
        remembers: "nothing",
        make: |c| Box::new(adversarial_bim::AdversarialBim(c.adversarial_bim)),
    },
    Entry {
        id: "bald",
        paper_name: "BALDDropout",
        kind: Kind::Sal,
        about: "what passes with dropout disagree about: their mutual information with the weights",
        needs: "T passes with dropout",
        costs: "T·U·(rest of the network), U",
        remembers: "nothing",
        make: |c| Box::new(bald::Bald(c.bald)),
    },
    Entry {
        id: "badge",
        paper_name: "BadgeSampling",
        kind: Kind::Sal,
        about: "k-means++ draws over hypothetical gradients of the last layer: uncertain and unlike each other",
        needs: "embeddings and logits",
        costs: "K·U·(C + D), U·(C + D)",
        remembers: "nothing",
        make: |_| Box::new(badge::Badge),
    },
    Entry {
        id: "cluster-margin",
        paper_name: "ClusterMargin",
        kind: Kind::Sal,
        about: "small margins, spread over average-linkage clusters of the pool",
        needs: "embeddings of the pool (once), logits",
        costs: "N²·D once, then U·C; N² or N·D once",
        remembers: "the cluster of every example",
        make: |config| Box::new(cluster_margin::ClusterMargin::new(config)),
    },
    Entry {
        id: "coreset",
        paper_name: "CoreSet",
        kind: Kind::Sal,
        about: "farthest-first traversal (k-center greedy) of the penultimate features",
        needs: "embeddings of the pool",
        costs: "(L + K)·U·D, N·D",
        remembers: "nothing",
        make: |_| Box::new(coreset::CoreSet),
    },
    Entry {
        id: "kmeans",
        paper_name: "KMeansSampling",
        kind: Kind::Sal,
        about: "the examples nearest to the centres of as many clusters of the penultimate features",
        needs: "embeddings of the pool",
        costs: "restarts·iterations·U·K·D, U·D",
        remembers: "nothing",
        make: |c| Box::new(kmeans::KMeans(c.kmeans)),
    },
    Entry {
        id: "learning-loss",
        paper_name: "LearningLoss",
        kind: Kind::Sal,
        about: "the largest losses, as predicted by a head trained with the network",
        needs: "a loss head trained with the network, its predictions",
        costs: "U, U",
        remembers: "nothing",
        make: |config| Box::new(learning_loss::LearningLoss::new(config)),
    },
    Entry {
        id: "least-confidence",
        paper_name: "LeastConfidence",
        kind: Kind::Sal,
        about: "the smallest top-class probability",
        needs: "logits",
        costs: "U·C, U·C",
        remembers: "nothing",
        make: |_| Box::new(least_confidence::LeastConfidence),
    },
    Entry {
        id: "mcadl",
        paper_name: "MCADL",
        kind: Kind::Sal,
        about: "unlike labelled pixels, uncertain, and of a class in need, blended by accuracy",
        needs: "pixels, logits of labelled and unlabelled",
        costs: "U·L·P for images of P values, U·C",
        remembers: "accuracy per class",
        make: |config| Box::new(mcadl::Mcadl::new(config)),
    },
    Entry {
        id: "core-gcn",
        paper_name: "CoreGCN",
        kind: Kind::Sal,
        about: "k-center on the features of a graph network that tells labelled from unlabelled",
        needs: "embeddings of the pool, a graph network trained each round",
        costs: "200·(M+L)·D·128 + (L+K)·M·128, (M+L)·D",
        remembers: "nothing",
        make: |config| Box::new(gcn::CoreGcn::new(config)),
    },
    Entry {
        id: "uncertain-gcn",
        paper_name: "UncertainGCN",
        kind: Kind::Sal,
        about: "where a graph network that tells labelled from unlabelled is least sure",
        needs: "embeddings of the pool, a graph network trained each round",
        costs: "200·(M+L)·D·128, (M+L)·D",
        remembers: "nothing",
        make: |config| Box::new(gcn::UncertainGcn::new(config)),
    },
    Entry {
        id: "vaal",
        paper_name: "VAAL",
        kind: Kind::Sal,
        about: "what a discriminator, trained against an auto-encoder, takes least for labelled",
        needs: "a VAE and a discriminator trained each round",
        costs: "the VAE's training, the VAE",
        remembers: "nothing",
        make: |config| Box::new(vaal::Vaal::new(config)),
    },
    Entry {
        id: "waal",
        paper_name: "WAAL",
        kind: Kind::Ssal,
        about: "uncertain and, to a critic trained with the network on labelled and unlabelled, unlabelled-looking",
        needs: "a critic trained with the network, logits",
        costs: "U·(C + 50·D), U",
        remembers: "nothing",
        make: |config| Box::new(waal::Waal::new(config)),
    },
    Entry {
        id: "ssl-consistency",
        paper_name: "SSLConsistency",
        kind: Kind::Ssal,
        about: "MixMatch; predictions that vary most over random views",
        needs: "V random views of the pool",
        costs: "V·U·(network), U·C",
        remembers: "nothing",
        make: |c| Box::new(ssl_consistency::SslConsistency(c.ssl_consistency)),
    },
    Entry {
        id: "ssl-diff2aug-direct",
        paper_name: "SSLDiff2AugDirect",
        kind: Kind::Ssal,
        about: "MixMatch; small margins of the mean prediction over the clean and a random view",
        needs: "logits of both views",
        costs: "2·U·(network), U·C",
        remembers: "nothing",
        make: |_| Box::new(ssl_diff2aug::Direct),
    },
    Entry {
        id: "ssl-diff2aug-kmeans",
        paper_name: "SSLDiff2AugKmeans",
        kind: Kind::Ssal,
        about: "the same margins, spread over clusters of the features by their size",
        needs: "logits of both views, embeddings",
        costs: "2·U·(network) + iterations·U·20·D, U·D",
        remembers: "nothing",
        make: |c| Box::new(ssl_diff2aug::KMeans(c.ssl_diff2aug_kmeans)),
    },
    Entry {
        id: "ssl-random",
        paper_name: "SSLRandom",
        kind: Kind::Ssal,
        about: "MixMatch with random queries; the reference of the semi-supervised methods",
        needs: "nothing",
        costs: "U, U",
        remembers: "nothing",
        make: |_| Box::new(ssl_random::SslRandom),
    },
    Entry {
        id: "entropy",
        paper_name: "EntropySampling",
        kind: Kind::Extra,
        about: "the largest entropy of the predicted probabilities",
        needs: "logits",
        costs: "U·C, U·C",
        remembers: "nothing",
        make: |_| Box::new(entropy::Entropy),
    },
    Entry {
        id: "margin",
        paper_name: "MarginSampling",
        kind: Kind::Extra,
        about: "the smallest difference between the two largest probabilities",
        needs: "logits",
        costs: "U·C, U·C",
        remembers: "nothing",
        make: |_| Box::new(margin::Margin),
    },
    Entry {
        id: "mean-std",
        paper_name: "MeanSTD",
        kind: Kind::Extra,
        about: "the largest mean standard deviation of the probabilities over passes with dropout",
        needs: "T passes with dropout",
        costs: "T·U·(rest of the network), U",
        remembers: "nothing",
        make: |c| Box::new(mean_std::MeanStd(c.mean_std)),
    },
    Entry {
        id: "var-ratio",
        paper_name: "VarRatio",
        kind: Kind::Extra,
        about: "the smallest vote for the modal class over passes with dropout",
        needs: "T passes with dropout",
        costs: "T·U·(rest of the network), U",
        remembers: "nothing",
        make: |c| Box::new(var_ratio::VarRatio(c.var_ratio)),
    },
    Entry {
        id: "power-bald",
        paper_name: "PowerBALD",
        kind: Kind::Extra,
        about: "a draw without replacement, with probability in proportion to a power of BALD's information",
        needs: "T passes with dropout",
        costs: "T·U·(rest of the network), U",
        remembers: "nothing",
        make: |c| Box::new(power_bald::PowerBald(c.power_bald)),
    },
    Entry {
        id: "probcover",
        paper_name: "ProbCover",
        kind: Kind::Extra,
        about: "for few labels: the point whose ball covers most of what no labelled point's ball covers",
        needs: "embeddings of the pool, logits",
        costs: "N²·D, N·D",
        remembers: "nothing",
        make: |c| Box::new(probcover::ProbCover(c.probcover)),
    },
    Entry {
        id: "typiclust",
        paper_name: "TypiClust",
        kind: Kind::Extra,
        about: "for few labels: the point amid most neighbours in the largest cluster with the fewest labels",
        needs: "embeddings of the pool",
        costs: "iterations·N·500·D + N²·D / clusters, N·D",
        remembers: "nothing",
        make: |c| Box::new(typiclust::TypiClust(c.typiclust)),
    },
];

/// Looks a method up by its id or its name in the paper.
pub fn find(name: &str) -> Result<&'static Entry> {
    METHODS
        .iter()
        .find(|m| names::same(m.id, name) || names::same(m.paper_name, name))
        .ok_or_else(|| names::unknown("--method", name, METHODS.iter().map(|m| m.id)))
}

/// The name in the paper of a method's id, with the trainer behind a `+` where the id has one; an id that is in no table
/// names itself.
pub fn paper_name(id: &str) -> String {
    let (method, trainer) = id.split_once('+').map_or((id, ""), |(m, t)| (m, t));
    let name = METHODS.iter().find(|m| m.id == method).map_or(method, |m| m.paper_name);
    if trainer.is_empty() { name.into() } else { format!("{name} + {trainer}") }
}

/// A method as it is run: with its trainer.
#[derive(Clone, Copy)]
pub struct Run {
    /// The method.
    pub entry: &'static Entry,
    /// What trains its models, unless it brings a training of its own.
    pub trainer: TrainerKind,
    /// Not the trainer that belongs to it: never in the paper's tables.
    pub combined: bool,
}

impl Run {
    /// The method by the trainer that belongs to it.
    pub fn plain(entry: &'static Entry, config: &Config) -> Run {
        let trainer = (entry.make)(config).trainer().unwrap_or(TrainerKind::Supervised);
        Run { entry, trainer, combined: false }
    }

    /// The method by another trainer than its own, where that makes sense.
    pub fn with(entry: &'static Entry, trainer: TrainerKind, config: &Config) -> Result<Run> {
        let (method, plain) = ((entry.make)(config), Run::plain(entry, config));
        let refuse = |why: String| Err(Error::Config { key: "--trainer".into(), why });
        match trainer {
            _ if !method.trains_plainly() => refuse(format!("{} brings a training of its own", entry.id)),
            same if same == plain.trainer => Ok(plain),
            _ if method.trainer().is_some() => {
                refuse(format!("{} is defined with {}: leave --trainer out", entry.id, plain.trainer.name()))
            }
            _ => Ok(Run { trainer, combined: true, ..plain }),
        }
    }

    /// Name in results: the method's id, and the trainer where it is not the method's own.
    pub fn id(&self) -> String {
        if self.combined { format!("{}+{}", self.entry.id, self.trainer.name()) } else { self.entry.id.into() }
    }
}

/// Checks what every selection must be: `n` distinct ids (or all, if there are fewer), all unlabelled.
pub fn check_picks(id: &str, picks: &[PoolIdx], unlabelled: &[PoolIdx], n: usize) -> Result<()> {
    let mut sorted = picks.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let known = sorted.iter().all(|p| unlabelled.binary_search(p).is_ok());
    if picks.len() != n.min(unlabelled.len()) || sorted.len() != picks.len() || !known {
        let why = format!("chose {} of {n} examples, {} distinct, all unlabelled: {known}", picks.len(), sorted.len());
        return Err(Error::Data { path: format!("method {id}"), why });
    }
    Ok(())
}
