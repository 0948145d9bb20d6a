//! source says:            a blend of density, similarity and uncertainty whose weights follow the accuracy; pixels for the
//!                         former two (MCADL).
//! reference code does:    all of the similarity matrix; for uncertainty the dispersion of the top probabilities, by which
//!                         confident examples look most uncertain; of equal similarities one neighbour twice.
//! dalcore does:           exact products of pixels, tile by tile; best versus second best; the dispersion in `repro`.

use serde::{Deserialize, Serialize};

use super::{Method, Query};
use crate::bench::config::{Config, Profile};
use crate::data::PoolIdx;
use crate::select::{Labelled, unlikeness};
use crate::tensor::Tensor;
use crate::{Error, Result, ops};

/// Keys under `mcadl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// α₀ = β₀: how much the data count beside the model, and uncertainty beside the need of a class, at accuracy 0.
    pub blend: f64,
    /// What uncertainty is.
    pub unc: Uncertainty,
}

/// What uncertainty is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Uncertainty {
    /// 1 − (p₁ − p₂), of the two largest probabilities.
    Bvsb,
    /// 1 − mean |z − mean z| of the fewest largest probabilities whose sum is above one half.
    TopkDispersion,
}

impl Settings {
    /// Those of a profile.
    pub fn of(profile: Profile) -> Settings {
        let unc = match profile {
            Profile::Clean => Uncertainty::Bvsb,
            Profile::Repro => Uncertainty::TopkDispersion,
        };
        Settings { blend: 0.9, unc }
    }

    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.blend) {
            return Ok(());
        }
        Err(Error::Config { key: "mcadl.blend".into(), why: "must be in 0 to 1; 0.9 is the default".into() })
    }

    /// The score of an example from its data term, its uncertainty and the need of its class, at an accuracy.
    fn score(&self, accuracy: f64, data: f64, uncertainty: f64, need: f64) -> f64 {
        let blend = self.blend * (-accuracy).exp();
        blend * data + (1.0 - blend) * (blend * uncertainty + (1.0 - blend) * need)
    }
}

impl Uncertainty {
    /// Of probabilities, which are sorted.
    fn of(self, p: &mut [f64]) -> f64 {
        p.sort_by(|a, b| b.total_cmp(a));
        match self {
            Uncertainty::Bvsb => 1.0 - (p[0] - p.get(1).copied().unwrap_or(0.0)),
            Uncertainty::TopkDispersion => {
                let below = |sum: &mut f64, p: &f64| {
                    let before = *sum;
                    *sum += p;
                    (before <= 0.5).then_some(())
                };
                let few = p.iter().scan(0.0, below).count();
                let mean = p[..few].iter().sum::<f64>() / few as f64;
                1.0 - p[..few].iter().map(|p| (p - mean).abs()).sum::<f64>() / few as f64
            }
        }
    }
}

/// O(U·L·P) for images of P values, and a pass over U and L. Memory U·C.
pub struct Mcadl {
    settings: Settings,
    /// Accuracy on the labelled examples of each class at the last query.
    before: Vec<f64>,
}

impl Mcadl {
    /// With the settings of a run.
    pub fn new(config: &Config) -> Mcadl {
        Mcadl { settings: config.mcadl, before: Vec::new() }
    }
}

impl Method for Mcadl {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        if q.labelled().is_empty() {
            let why =
                "nothing is labelled, and neighbours are looked for among what is; label a start set first".into();
            return Err(Error::Data { path: "method mcadl".into(), why });
        }
        let (labels, classes) = (q.labels()?, q.classes());
        let predicted = ops::argmax_rows(q.labelled_logits()?)?.to_vec::<u32>()?;
        let (accuracy, each) = accuracies(&labels, &predicted, classes);
        let needs = needs(&each, &self.before);
        let p = ops::softmax(q.logits()?)?.to_vec::<f32>()?;
        let ids = |of: &[PoolIdx]| of.iter().map(|i| i.0).collect::<Vec<_>>();
        let (rows, of) = (ids(q.labelled()), ids(q.unlabelled()));
        let labelled = Labelled { rows: &rows, labels: &labels, predicted: &predicted, classes };
        let unlike = unlikeness(&q.trainer.data.train.pixels, &of, &labelled, q.trainer.check)?;
        let score = |((class, data), p): ((&u32, &f32), &[f32])| {
            let mut p: Vec<f64> = p.iter().map(|p| f64::from(*p)).collect();
            let uncertainty = self.settings.unc.of(&mut p);
            self.settings.score(accuracy, f64::from(*data), uncertainty, needs[*class as usize]) as f32
        };
        let scores: Vec<f32> = unlike.class.iter().zip(&unlike.data).zip(p.chunks_exact(classes)).map(score).collect();
        let picks = q.top("mcadl", &Tensor::new(q.logits()?.device(), [scores.len()], &scores)?, n)?;
        self.before = each;
        Ok(picks)
    }

    fn save(&self) -> serde_json::Value {
        self.before.clone().into()
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        self.before = serde_json::from_value(state.clone())
            .map_err(|e| Error::Data { path: "the accuracies of mcadl".into(), why: e.to_string() })?;
        Ok(())
    }
}

/// The accuracy on labelled examples, and that of each class, 0 for a class without any.
fn accuracies(labels: &[u32], predicted: &[u32], classes: usize) -> (f64, Vec<f64>) {
    let (mut all, mut right) = (vec![0u32; classes], vec![0u32; classes]);
    for (y, p) in labels.iter().zip(predicted) {
        all[*y as usize] += 1;
        right[*y as usize] += u32::from(y == p);
    }
    let each = all.iter().zip(&right).map(|(n, r)| if *n == 0 { 0.0 } else { f64::from(*r) / f64::from(*n) });
    (f64::from(right.iter().sum::<u32>()) / labels.len() as f64, each.collect())
}

/// How much each class is needed, of sum 1: by what it has gained since `before` (nothing: 0) while one is below one half,
/// otherwise by 1 / accuracy.
fn needs(accuracy: &[f64], before: &[f64]) -> Vec<f64> {
    let gain = |(c, a): (usize, &f64)| (a - before.get(c).copied().unwrap_or(0.0)).max(0.0);
    let needs: Vec<f64> = match accuracy.iter().any(|a| *a < 0.5) {
        true => accuracy.iter().enumerate().map(gain).collect(),
        false => accuracy.iter().map(|a| 1.0 / a).collect(),
    };
    let sum: f64 = needs.iter().sum();
    needs.iter().map(|n| if sum > 0.0 { n / sum } else { 1.0 / needs.len() as f64 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-6, "{got}, not {want}");
    }

    /// METHODS 6.11.
    #[test]
    fn the_worked_examples() {
        let needs = needs(&[1.0, 0.5], &[]);
        close(needs[0], 1.0 / 3.0);
        close(needs[1], 2.0 / 3.0);
        let clean = Settings::of(Profile::Clean);
        close(clean.score(0.75, 0.13, 0.6, needs[0]), 0.312_062);
        close(clean.score(0.75, 0.05, 0.15, needs[0]), 0.168_074);
        let unc = |p: [f64; 3]| [Uncertainty::Bvsb, Uncertainty::TopkDispersion].map(|u| u.of(&mut p.clone()));
        for (p, want) in [([0.2, 0.5, 0.3], [0.8, 0.9]), ([0.05, 0.9, 0.05], [0.15, 1.0])] {
            unc(p).iter().zip(want).for_each(|(got, want)| close(*got, want));
        }
        assert_eq!(Settings::of(Profile::Repro).unc, Uncertainty::TopkDispersion);
    }

    #[test]
    fn accuracies_and_what_a_class_gained() {
        let (all, each) = accuracies(&[0, 0, 1, 1], &[0, 0, 0, 1], 3);
        assert_eq!((all, each.clone()), (0.75, vec![1.0, 0.5, 0.0]));
        // A class is below one half.
        assert_eq!(needs(&each, &[0.5, 0.0, 0.9]), [0.5, 0.5, 0.0]);
        assert_eq!(needs(&each, &each), [1.0 / 3.0; 3]);
    }
}
