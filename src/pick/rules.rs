//! The rules that need nothing but arrays, and what each of them needs.

use super::{Form, Input, Inputs, Picked, Query, Sizes};
use crate::bench::config::Profile;
use crate::device::Device;
use crate::error::human_bytes;
use crate::methods::cluster_margin::{self, round_robin};
use crate::methods::kmeans as kmeans_method;
use crate::ops::McRule;
use crate::select::{
    Points, Stops, average_linkage, half_matrix, kcenter, kmeans, kmeans_pp, label_gradients, max_cover, purity_radius,
};
use crate::tensor::Tensor;
use crate::{Error, Result, methods, ops};

/// A row of [`RULES`].
pub struct Rule {
    /// The method it is, by its id in [`methods::METHODS`].
    pub id: &'static str,
    /// What it is computed from, beside the labelled rows.
    pub wants: &'static [Input],
    /// What its scores are; empty when it has none.
    pub score: &'static str,
    /// What it holds, in bytes.
    pub(super) memory: fn(&Sizes) -> Vec<(&'static str, u64)>,
    pub(super) run: fn(&Query, usize) -> Result<Picked>,
}

/// Every rule, in the order of [`methods::METHODS`]. How to add one: its row here, with all it holds as a whole in
/// `memory`; what it scores block by block is counted already.
pub static RULES: &[Rule] = &[
    Rule { id: "random", wants: &[], score: "", memory: |_| Vec::new(), run: random },
    Rule {
        id: "bald",
        wants: &[Input::Passes],
        score: "mutual information in nats",
        memory: |_| Vec::new(),
        run: |q, k| top(q, q.passes(McRule::Bald)?, k),
    },
    Rule { id: "badge", wants: &[Input::Embeddings, Input::Predictions], score: "", memory: badge_memory, run: badge },
    Rule {
        id: "cluster-margin",
        wants: &[Input::Embeddings, Input::Predictions],
        score: "largest − second largest probability",
        memory: linkage_memory,
        run: cluster_margin,
    },
    Rule {
        id: "coreset",
        wants: &[Input::Embeddings],
        score: "distance to the nearest row labelled or picked before",
        memory: kcenter_memory,
        run: coreset,
    },
    Rule { id: "kmeans", wants: &[Input::Embeddings], score: "", memory: kmeans_memory, run: cluster_centres },
    Rule {
        id: "least-confidence",
        wants: &[Input::Predictions],
        score: "1 − largest probability",
        memory: |_| Vec::new(),
        run: least_confidence,
    },
    Rule {
        id: "entropy",
        wants: &[Input::Predictions],
        score: "entropy in nats",
        memory: |_| Vec::new(),
        run: entropy,
    },
    Rule {
        id: "margin",
        wants: &[Input::Predictions],
        score: "largest − second largest probability",
        memory: |_| Vec::new(),
        run: margin,
    },
    Rule {
        id: "mean-std",
        wants: &[Input::Passes],
        score: "mean over the classes of the standard deviation over the passes",
        memory: |_| Vec::new(),
        run: |q, k| top(q, q.passes(McRule::MeanStd)?, k),
    },
    Rule {
        id: "var-ratio",
        wants: &[Input::Passes],
        score: "share of the passes that vote against the majority",
        memory: |_| Vec::new(),
        run: |q, k| top(q, q.passes(McRule::VarRatio)?, k),
    },
    Rule {
        id: "power-bald",
        wants: &[Input::Passes],
        score: "mutual information in nats, by which is drawn",
        memory: |_| Vec::new(),
        run: power_bald,
    },
    Rule {
        id: "probcover",
        wants: &[Input::Embeddings, Input::Predictions],
        score: "rows covered that were not covered before",
        memory: probcover_memory,
        run: probcover,
    },
    Rule {
        id: "typiclust",
        wants: &[Input::Embeddings],
        score: "mean distance to the nearest rows of its cluster, of length one",
        memory: typiclust_memory,
        run: typiclust,
    },
];

/// The rule of a method that was named. A method that needs more than arrays is refused with those that do not.
pub fn find(name: &str) -> Result<&'static Rule> {
    let entry = methods::find(name)?;
    RULES.iter().find(|r| r.id == entry.id).ok_or_else(|| Error::Config {
        key: "--method".into(),
        why: format!(
            "{} needs a model in training ({}), so it cannot choose from arrays; dalcore bench runs it. From arrays \
             choose {}",
            entry.id,
            entry.needs,
            RULES.iter().map(|r| r.id).collect::<Vec<_>>().join(", ")
        ),
    })
}

/// What a user should know before a rule is run on these arrays: that the memory bound changes what it computes.
pub fn note(inputs: &Inputs, rule: &Rule) -> Option<String> {
    if rule.id != "cluster-margin" || !inputs.has(Input::Embeddings) {
        return None;
    }
    let (needs, half) = (linkage_memory(&inputs.sizes(0, 0)), half_matrix(inputs.rows()));
    inputs.left(&needs).filter(|left| half > *left).map(|_| {
        format!(
            "cluster-margin clusters by squared distances, which other clusters come of: the distances between {} rows \
             ({}) do not fit the bound of {}; --mem {}MiB holds them",
            inputs.rows(),
            human_bytes(half as usize),
            human_bytes(inputs.memory() as usize),
            inputs.enough(half + needs.iter().map(|(_, bytes)| bytes).sum::<u64>())
        )
    })
}

/// What `dalcore select` needs to run a method, in few words.
pub fn usable(id: &str) -> String {
    match RULES.iter().find(|r| r.id == id) {
        None => "no".into(),
        Some(rule) if rule.wants.is_empty() => "yes".into(),
        Some(rule) => rule.wants.iter().map(|i| i.options()).collect::<Vec<_>>().join(" and "),
    }
}

fn random(q: &Query, k: usize) -> Result<Picked> {
    let order = q.rng.permutation(q.candidates.len());
    Ok(Picked { ids: order.into_iter().take(k).map(|i| q.candidates[i as usize]).collect(), ..Picked::default() })
}

/// Embeddings; centres, labelled and picked; the candidates of a front at most; bounds and keys.
fn kcenter_memory(s: &Sizes) -> Vec<(&'static str, u64)> {
    let row = 4 * s.d;
    vec![
        ("embeddings", s.n * row),
        ("centres", (s.l + s.k + 8) * row),
        ("front", (s.n - s.l + 16) * (row + 8) + 24 * s.n),
    ]
}

fn coreset(q: &Query, k: usize) -> Result<Picked> {
    let picks = kcenter(&q.embeddings()?, q.labelled, q.candidates, k)?;
    Ok(Picked { ids: picks.ids, scores: picks.radius, candidates: Vec::new() })
}

/// The k candidates with the largest of their scores, the lowest id of equals first.
fn top(q: &Query, candidates: Vec<f32>, k: usize) -> Result<Picked> {
    let rows = ops::top_k(&Tensor::new(&Device::Cpu, [candidates.len()], &candidates)?, k)?.to_vec::<u32>()?;
    let (ids, scores) = rows.iter().map(|r| (q.candidates[*r as usize], candidates[*r as usize])).unzip();
    Ok(Picked { ids, scores, candidates })
}

/// Scores of predictions: of probabilities by `of_row`, which leaves ties as they are in the file; of logits by the
/// operation that the method uses, which has full resolution near certainty.
fn predicted(
    q: &Query,
    of_row: impl Fn(&[f32]) -> f32,
    of_logits: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Vec<f32>> {
    q.predictions(1, |form, values, c| match form {
        Form::Probabilities => Ok(values.chunks_exact(c).map(&of_row).collect()),
        Form::Logits => of_logits(&Tensor::new(q.device, [values.len() / c, c], values)?)?.to_vec(),
    })
}

fn largest(p: &[f32]) -> f32 {
    p.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v))
}

fn least_confidence(q: &Query, k: usize) -> Result<Picked> {
    // Ranked by −p or by −ln p; both are shown as 1 − p, which near p = 1 is too coarse to rank by.
    let shown: fn(f32) -> f32 = match q.form() {
        Some(Form::Logits) => |s| -(-s).exp_m1(),
        _ => |s| 1.0 + s,
    };
    let mut picked = top(q, predicted(q, |p| -largest(p), ops::least_confidence)?, k)?;
    picked.scores.iter_mut().chain(&mut picked.candidates).for_each(|s| *s = shown(*s));
    Ok(picked)
}

fn margin(q: &Query, k: usize) -> Result<Picked> {
    let of_row = |p: &[f32]| {
        let [first, second] = p.iter().fold([f32::NEG_INFINITY; 2], |[a, b], v| match *v {
            v if v > a => [v, a],
            v => [a, b.max(v)],
        });
        second - first
    };
    // Ranked by −(p1 − p2) or by −ln (p1 − p2); both are shown as p1 − p2.
    let shown: fn(f32) -> f32 = match q.form() {
        Some(Form::Logits) => |s| (-s).exp(),
        _ => |s| 0.0 - s,
    };
    let mut picked = top(q, predicted(q, of_row, ops::margin)?, k)?;
    picked.scores.iter_mut().chain(&mut picked.candidates).for_each(|s| *s = shown(*s));
    Ok(picked)
}

fn entropy(q: &Query, k: usize) -> Result<Picked> {
    let of_row = |p: &[f32]| {
        let terms = p.iter().filter(|v| **v > 0.0).map(|v| f64::from(*v) * f64::from(*v).ln());
        (0.0 - terms.sum::<f64>()) as f32 // not −0 of a certain row
    };
    top(q, predicted(q, of_row, ops::entropy)?, k)
}

/// Embeddings; of clusters at least their means, scatters and a row of distances.
fn linkage_memory(s: &Sizes) -> Vec<(&'static str, u64)> {
    // A quarter, half, three quarters and all as wide, see average_linkage.
    let blocks = 10 * 256 * s.n + 4 * 256 * s.d;
    vec![("embeddings", 4 * s.n * s.d), ("clusters", (4 * s.n * s.d + 64 * s.n).max(blocks + 64 * s.n))]
}

/// With the settings of the method in the profile `clean`. Distances between clusters may take what the bound leaves.
fn cluster_margin(q: &Query, k: usize) -> Result<Picked> {
    let settings = cluster_margin::Settings::of(Profile::Clean);
    let left = q.inputs.left(&linkage_memory(&q.sizes(k))).unwrap_or(0);
    let clusters = average_linkage(&q.embeddings()?, left, &|| Ok(()))?.cut(settings.n_clusters);
    let ranked = margin(q, k.saturating_mul(settings.candidates).min(q.candidates.len()))?;
    let each: Vec<(u32, f32)> = ranked.ids.into_iter().zip(ranked.scores).collect();
    let (ids, scores) = round_robin(&each, |(id, _)| clusters[id as usize], k).into_iter().unzip();
    Ok(Picked { ids, scores, candidates: ranked.candidates })
}

/// Features; centres, the ones before them and their sums; labels, distances and bounds.
fn kmeans_memory(s: &Sizes) -> Vec<(&'static str, u64)> {
    let u = s.n - s.l + 128;
    vec![("features", 8 * u * s.d), ("centres", 24 * (s.k + 16) * s.d), ("labels", 64 * u)]
}

/// With the settings of the method in the profile `clean`.
fn cluster_centres(q: &Query, k: usize) -> Result<Picked> {
    let x = q.features()?;
    let kmeans_method::Settings { restarts, iterations, tolerance } = kmeans_method::Settings::of(Profile::Clean);
    let rows = match k == q.candidates.len() {
        true => (0..k as u32).collect(),
        false => kmeans(&x, k, Stops { restarts, iterations, tolerance }, q.rng)?.central(&x)?,
    };
    Ok(Picked { ids: rows.into_iter().map(|r| q.candidates[r as usize]).collect(), ..Picked::default() })
}

/// Features; gradients, as they are read, on the device and turned; norms and weights.
fn badge_memory(s: &Sizes) -> Vec<(&'static str, u64)> {
    let u = s.n - s.l + 128;
    vec![("features", 4 * u * s.d), ("gradients", 12 * u * s.c), ("weights", 40 * u)]
}

fn badge(q: &Query, k: usize) -> Result<Picked> {
    let delta = q.predictions(q.classes(), |form, values, c| match form {
        Form::Logits => label_gradients(&Tensor::new(q.device, [values.len() / c, c], values)?)?.to_vec(),
        Form::Probabilities => Ok(values.chunks_exact(c).flat_map(gradient).collect()),
    })?;
    let delta = Tensor::new(q.device, [q.candidates.len(), q.classes()], &delta)?;
    let rows = kmeans_pp(Points::Gradients { delta: &delta, h: &q.features()? }, k, q.rng)?;
    Ok(Picked { ids: rows.into_iter().map(|r| q.candidates[r as usize]).collect(), ..Picked::default() })
}

/// e_ŷ − p of a row of probabilities, ŷ the lowest of the largest, its entry summed from the other classes.
fn gradient(p: &[f32]) -> Vec<f32> {
    let top = p.iter().enumerate().fold(0, |best, (i, v)| if *v > p[best] { i } else { best });
    let others = p.iter().enumerate().filter(|(i, _)| *i != top).map(|(_, v)| f64::from(*v)).sum::<f64>();
    p.iter().enumerate().map(|(i, v)| if i == top { others as f32 } else { -v }).collect()
}

/// Embeddings, as they are and normalised; tiles of distances and of the rows they are between; classes and gains.
fn probcover_memory(s: &Sizes) -> Vec<(&'static str, u64)> {
    vec![("embeddings", 8 * s.n * s.d), ("tiles", (64 << 20) + 4 * 9216 * s.d), ("classes", 32 * s.n)]
}

/// With the default settings of the method, under the classes that the predictions name, also of labelled rows: their
/// labels are not known here.
fn probcover(q: &Query, k: usize) -> Result<Picked> {
    let mut classes = Vec::new();
    q.blocks(|_, _, values, c| {
        let top = |p: &[f32]| p.iter().enumerate().fold(0, |best, (i, v)| if *v > p[best] { i } else { best });
        classes.extend(values.chunks_exact(c).map(|p| top(p) as u32));
        Ok(())
    })?;
    let x = ops::normalize_rows(&q.embeddings()?)?;
    let radius = purity_radius(&x, &classes, q.classes(), methods::ProbCoverSettings::default().purity)?;
    let cover = max_cover(&x, q.labelled, q.candidates, k, radius)?;
    Ok(Picked { ids: cover.ids, scores: cover.gain.iter().map(|g| *g as f32).collect(), candidates: Vec::new() })
}

/// Embeddings, as they are and normalised, and the rows of a cluster; a tile of distances; of k-means its centres, their
/// sums, labels and bounds.
fn typiclust_memory(s: &Sizes) -> Vec<(&'static str, u64)> {
    let clusters = (s.l + s.k).min(methods::TypiClustSettings::default().clusters as u64) + 16;
    vec![
        ("embeddings", 16 * s.n * s.d),
        ("tile", 4 * (s.n * s.n).min(8 << 20) + 4 * s.n.min(9216) * (s.d + 32)),
        ("clusters", 24 * clusters * s.d + 96 * s.n),
    ]
}

/// With the default settings of the method.
fn typiclust(q: &Query, k: usize) -> Result<Picked> {
    let settings = methods::TypiClustSettings::default();
    let picked = methods::typical_rows(&q.embeddings()?, q.candidates, k, settings, q.rng)?;
    Ok(Picked { ids: picked.ids, scores: picked.distance, candidates: Vec::new() })
}

/// The draw of the method with its default power.
fn power_bald(q: &Query, k: usize) -> Result<Picked> {
    let information = q.passes(McRule::Bald)?;
    let beta = methods::PowerBaldSettings::default().beta;
    let noisy = information.iter().zip(q.candidates).map(|(i, id)| methods::noisy(*i, beta, q.rng, *id)).collect();
    let ids = top(q, noisy, k)?.ids;
    // Both ascend: the place of a pick among the candidates.
    let score = |id: &u32| q.candidates.binary_search(id).map_or(0.0, |at| information[at]);
    Ok(Picked { scores: ids.iter().map(score).collect(), ids, candidates: information })
}
