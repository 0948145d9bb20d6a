//! Figures 2 and 3 of the paper: what the four methods that MixMatch trains pick from the same model, METHODS 7.7.
//!
//! From a random start each method selects once and is trained again, as by `bench`. Of what it selected three numbers are
//! taken, all by the averaged model that it was selected with: diversity, the mean distance between two picks in the
//! penultimate features; uncertainty, the mean of one minus the largest probability; inconsistency, the mean over the picks
//! of the variance of their probabilities over the clean image and 50 random views, summed over the classes.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::config::Config;
use super::metrics::{Rule, Stat, stat};
use super::runner::{self, Plan};
use super::store;
use crate::data::Verify;
use crate::device::Choice;
use crate::methods;
use crate::nn::checkpoint;
use crate::ops::{self, McRule, McSums, View};
use crate::pick::Plane;
use crate::report::study as drawing;
use crate::report::table::Table;
use crate::rng::{Purpose, Rng};
use crate::tensor::Tensor;
use crate::train::{DeviceData, Model, Pass, Trainer, TrainerKind, extract, sweep};
use crate::{Error, Result};

/// The methods, in the order of the figures.
pub const METHODS: [&str; 4] = ["ssl-random", "ssl-consistency", "ssl-diff2aug-direct", "ssl-diff2aug-kmeans"];

/// 2 % labelled, 1 % picked.
pub const BUDGET: [(&str, f64); 3] = [("budget.start", 2.0), ("budget.query", 1.0), ("budget.end", 3.0)];

/// Random views beside the clean image.
const VIEWS: u32 = 50;
/// The first lane of their streams: neither training nor a selection has seen them.
const LANE: u32 = 0x1000;
/// Images of the pool that the map's axes are taken from.
const DOTS: usize = 10_000;

/// What one method picked with one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// Its id.
    pub method: &'static str,
    /// The seed.
    pub seed: u64,
    /// Mean distance between two picks.
    pub diversity: f64,
    /// Mean of 1 − p_max.
    pub uncertainty: f64,
    /// Mean of Σ_c Var p_c.
    pub inconsistency: f64,
    /// Test accuracy after training with the picks.
    pub accuracy: f64,
}

/// Pool and picks of the first seed on the plane of the pool's principal components.
pub struct Places {
    /// A random part of the pool, in random order: its beginning is a random part as well.
    pub pool: Vec<[f32; 2]>,
    /// The picks of each method.
    pub picked: Vec<[f32; 2]>,
    /// The method.
    pub method: &'static str,
}

/// Runs what is not on disk yet; writes `selection.csv`, `figure2.svg` and `figure3.svg` beside the runs, and returns the
/// table.
pub fn run(plan: &Plan, choice: Choice) -> Result<String> {
    runner::run(plan, choice)?;
    let device = &choice.open()?;
    let mut text = String::new();
    for set in &plan.datasets {
        let config = plan.config(set)?;
        let host = set.load(&plan.data_dir, Verify::Official)?;
        let data = DeviceData::new(device, &host)?.with_model(config.network());
        drop(host);
        let folder = store::dataset_dir(&plan.out, plan.preset_id, plan.profile.name(), &data.spec.id);
        let study = Study { plan, config: &config, data: &data, folder };
        let (mut all, mut places) = (Vec::new(), Vec::new());
        for seed in &plan.seeds {
            let model = study.model(*seed)?;
            for method in METHODS {
                all.push(study.selected(&model, method, *seed)?);
            }
            if places.is_empty() {
                places = study.places(&model, *seed)?;
            }
        }
        let _ = write!(text, "{}", study.write(&all, &places)?);
    }
    Ok(text)
}

struct Study<'a> {
    plan: &'a Plan,
    config: &'a Config,
    data: &'a DeviceData,
    folder: PathBuf,
}

impl Study<'_> {
    /// The averaged model that all methods selected with.
    fn model(&self, seed: u64) -> Result<Model> {
        let folder = store::run_dir(&self.folder, &store::start_id(TrainerKind::MixMatch), seed);
        let mut model = Model::fresh(self.data, 0, 0)?;
        model.params.set_precision(self.config.train.precision)?;
        checkpoint::from_bytes(&mut model.params, &store::read_model(&folder)?)?;
        Ok(model)
    }

    fn picks(&self, method: &str, seed: u64) -> Result<(Vec<u32>, f64)> {
        let folder = store::run_dir(&self.folder, method, seed);
        let run = store::read_run(&folder)?;
        let accuracy = run.rounds.get(1).and_then(|r| Rule::of(self.plan.profile.name()).ok()?.accuracy(r));
        match (run.picks.get(1), accuracy) {
            (Some(picks), Some(accuracy)) => Ok((picks.ids.clone(), accuracy)),
            _ => Err(Error::Data {
                path: folder.display().to_string(),
                why: "has no second round: the study wants budget.end one query above budget.start".into(),
            }),
        }
    }

    fn trainer(&self, seed: u64) -> Trainer<'_> {
        let (eval_batch, graphs) = (self.config.eval.batch, self.plan.graphs);
        let (on_epoch, check) = (&|_: &_| Ok(()), &|| Ok(()));
        let recipe = &self.config.train;
        Trainer { data: self.data, recipe, eval_batch, graphs, seed, on_epoch, check, mixmatch: None }
    }

    fn pass<'v>(&self, view: &'v View) -> Pass<'v> {
        Pass { view, batch: self.config.eval.batch, graphs: self.plan.graphs }
    }

    fn selected(&self, model: &Model, method: &'static str, seed: u64) -> Result<Selected> {
        let (ids, accuracy) = self.picks(method, seed)?;
        let trainer = self.trainer(seed);
        let plain = trainer.plain_view()?;
        let found = extract(model, &self.data.train, &ids, self.pass(&plain))?;
        let (n, c) = (ids.len(), model.classes);
        let mut sums = McSums::new(McRule::Variance, &self.data.device, [n, c])?;
        let p = ops::softmax(&found.logits)?;
        sums.add(&p)?;
        for v in 0..VIEWS {
            let view = trainer.train_view(1)?.lane(LANE + v).stored_as(trainer.recipe.precision.dtype());
            let step = |x: &Tensor, clock: &_| Ok([model.output(x, clock)?.logits]);
            let [logits] = sweep(&self.data.train, &ids, self.pass(&view), [c], step)?;
            sums.add(&ops::softmax(&logits)?)?;
        }
        let mean = |v: &[f32]| v.iter().map(|v| f64::from(*v)).sum::<f64>() / v.len().max(1) as f64;
        let tops: Vec<f32> =
            p.to_vec::<f32>()?.chunks_exact(c).map(|p| 1.0 - p.iter().fold(0.0f32, |m, v| m.max(*v))).collect();
        Ok(Selected {
            method,
            seed,
            diversity: mean_distance(&found.embeddings.to_vec::<f32>()?, found.embeddings.dims()[1]),
            uncertainty: mean(&tops),
            inconsistency: mean(&sums.scores()?.to_vec::<f32>()?),
            accuracy,
        })
    }

    fn places(&self, model: &Model, seed: u64) -> Result<Vec<Places>> {
        let trainer = self.trainer(seed);
        let plain = trainer.plain_view()?;
        let d = model.net.embedding_width();
        let rows = |ids: &[u32]| extract(model, &self.data.train, ids, self.pass(&plain))?.embeddings.to_vec::<f32>();
        let n = self.data.train.len();
        let mut some = Rng::new(seed).at(Purpose::Select, 0, 0).permutation(n);
        some.truncate(DOTS);
        let pool = rows(&some)?;
        let plane = Plane::of(&pool, d);
        let place = |rows: &[f32]| rows.chunks_exact(d).map(|row| plane.place(row)).collect::<Vec<_>>();
        let of =
            |method| Ok(Places { pool: place(&pool), picked: place(&rows(&self.picks(method, seed)?.0)?), method });
        METHODS.into_iter().map(of).collect()
    }

    /// The files, and the table for people.
    fn write(&self, all: &[Selected], places: &[Places]) -> Result<String> {
        let mut csv = String::from("seed,method,diversity,uncertainty,inconsistency,accuracy\n");
        for s in all {
            let Selected { method, seed, diversity, uncertainty, inconsistency, accuracy } = s;
            let _ = writeln!(csv, "{seed},{method},{diversity},{uncertainty},{inconsistency},{accuracy}");
        }
        let figures = [drawing::numbers(all)?, drawing::places(places)?];
        let files = [("selection.csv", &csv), ("figure2.svg", &figures[0]), ("figure3.svg", &figures[1])];
        for (name, text) in files {
            store::replace(&self.folder, name, &format!("{name}.tmp"), text.as_bytes())?;
        }
        let mut table = Table::new(["method", "diversity", "uncertainty", "inconsistency", "accuracy %"]);
        for method in METHODS {
            let cell = |of: fn(&Selected) -> f64, scale: f64, digits: usize| {
                let found: Option<Stat> = stat(all.iter().filter(|s| s.method == method).map(|s| Some(scale * of(s))));
                let spread = |s: Stat| s.se.map_or(String::new(), |e| format!(" ± {e:.digits$}"));
                found.map_or(String::new(), |s| format!("{:.digits$}{}", s.mean, spread(s)))
            };
            table.rows.push(vec![
                methods::paper_name(method),
                cell(|s| s.diversity, 1.0, 3),
                cell(|s| s.uncertainty, 1.0, 4),
                cell(|s| s.inconsistency, 1.0, 5),
                cell(|s| s.accuracy, 100.0, 2),
            ]);
        }
        let seeds = self.plan.seeds.len();
        Ok(format!(
            "{}: what each method picked, by the model before, {seeds} seeds (± standard error)\n\n{}\nfigures: {}, figure3.svg\n",
            self.data.spec.id,
            table.plain(100),
            self.folder.join("figure2.svg").display()
        ))
    }
}

/// The mean Euclidean distance over all pairs of rows (N, d); 0 for fewer than two.
fn mean_distance(x: &[f32], d: usize) -> f64 {
    let rows: Vec<&[f32]> = x.chunks_exact(d).collect();
    let distance = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
    };
    let pairs = rows.iter().enumerate().flat_map(|(i, a)| rows[..i].iter().map(move |b| distance(a, b)));
    let n = rows.len() * rows.len().saturating_sub(1) / 2;
    pairs.sum::<f64>() / n.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_averaged_over_pairs() {
        assert_eq!(mean_distance(&[0.0, 0.0, 3.0, 4.0, 0.0, 8.0], 2), (5.0 + 8.0 + 5.0) / 3.0);
        assert_eq!((mean_distance(&[1.0, 2.0], 2), mean_distance(&[], 2)), (0.0, 0.0));
    }
}
