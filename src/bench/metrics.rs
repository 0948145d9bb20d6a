//! What is derived from the stored rounds: accuracy, API, cost.
//!
//! * accuracy = correct / test images; which epoch's is decided by [`Rule`].
//! * API = mean over all points, round 0 included, of (accuracy of the method - accuracy of random), in percentage
//!   points, paired by seed, then averaged over seeds.
//! * cost = mean over the rounds from 1 on of selection + training seconds, test passes included in `repro`.
//!
//! A missing round makes whatever contains it undefined (`None`), never 0: averaging a missing accuracy as 0 is how
//! a crashed run once became a published result.

use crate::bench::store::{RoundRecord, Run, TimingRecord};
use crate::error::{Error, Result};

/// Which epoch's accuracy counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The last epoch in every round: no selection on the test set.
    Last,
    /// The best epoch in rounds from 1 on, the last one in round 0: what the published numbers most probably are.
    Best,
}

impl Rule {
    /// The rule of a profile.
    pub fn of(profile: &str) -> Result<Rule> {
        match profile {
            "clean" => Ok(Rule::Last),
            "repro" => Ok(Rule::Best),
            other => Err(Error::Config {
                key: "profile".into(),
                why: format!("{other:?} has no accuracy rule; the profiles are clean and repro"),
            }),
        }
    }

    /// The rule in words, to stand beside every number.
    pub fn words(self) -> &'static str {
        match self {
            Rule::Last => "test accuracy after the last epoch of each round",
            Rule::Best => {
                "best test accuracy over the epochs of each round (a choice made on the test set); round 0: \
                           last epoch"
            }
        }
    }

    /// Accuracy of a round as a fraction; none without an epoch or a test image.
    pub fn accuracy(self, round: &RoundRecord) -> Option<f64> {
        let correct = match self {
            Rule::Best if round.round > 0 => round.correct.iter().max(),
            _ => round.correct.last(),
        }?;
        (round.test_size > 0).then(|| f64::from(*correct) / f64::from(round.test_size))
    }

    /// Accuracy at each planned point; `None` where the round is missing.
    pub fn curve(self, run: &Run) -> Vec<Option<f64>> {
        let at = |r: u32| run.rounds.iter().find(|x| x.round == r).and_then(|x| self.accuracy(x));
        (0..run.manifest.targets.len() as u32).map(at).collect()
    }
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stat {
    /// The mean.
    pub mean: f64,
    /// Its standard error, sample deviation / sqrt(n); none for one seed, because one run says nothing about spread.
    pub se: Option<f64>,
    /// Seeds.
    pub n: usize,
}

/// Mean and standard error; none when a value is missing or there is no value.
pub fn stat(values: impl IntoIterator<Item = Option<f64>>) -> Option<Stat> {
    let all: Vec<f64> = values.into_iter().collect::<Option<_>>()?;
    let n = all.len();
    if n == 0 {
        return None;
    }
    let mean = all.iter().sum::<f64>() / n as f64;
    let squares: f64 = all.iter().map(|v| (v - mean) * (v - mean)).sum();
    let se = (n > 1).then(|| (squares / (n - 1) as f64 / n as f64).sqrt());
    Some(Stat { mean, se, n })
}

/// API of one run in percentage points: the mean difference of two curves over the same points.
pub fn api(method: &[Option<f64>], random: &[Option<f64>]) -> Option<f64> {
    if method.len() != random.len() {
        return None;
    }
    Some(100.0 * stat(method.iter().zip(random).map(|(m, r)| Some((*m)? - (*r)?)))?.mean)
}

/// API over seeds. Undefined when a seed has no finished random run beside it.
pub fn api_over_seeds(method: &[&Run], random: &[&Run], rule: Rule) -> Option<Stat> {
    stat(method.iter().map(|m| api(&rule.curve(m), &rule.curve(partner(m, random)?))))
}

/// Mean accuracy over seeds at each planned point.
pub fn mean_curve(runs: &[&Run], rule: Rule) -> Vec<Option<Stat>> {
    let curves: Vec<_> = runs.iter().map(|r| rule.curve(r)).collect();
    let points = curves.iter().map(Vec::len).max().unwrap_or(0);
    (0..points).map(|i| stat(curves.iter().map(|c| c.get(i).copied().flatten()))).collect()
}

/// Mean seconds of a round from 1 on, over a run's planned rounds; undefined when one is missing, because later
/// rounds take longer.
pub fn seconds(run: &Run, of: impl Fn(&TimingRecord) -> f64) -> Option<f64> {
    let at = |r: u32| run.timing.iter().find(|t| t.round == r).map(&of);
    Some(stat((1..run.manifest.targets.len() as u32).map(at))?.mean)
}

/// Cost of a run: seconds of a round, by the profile's definition.
pub fn cost(run: &Run, rule: Rule) -> Option<f64> {
    seconds(run, |t| {
        t.selection_s
            + t.training_s
            + match rule {
                Rule::Best => t.evaluation_s,
                Rule::Last => 0.0,
            }
    })
}

/// Cost of a method / cost of random over the same seeds.
pub fn cost_ratio(method: &[&Run], random: &[&Run], rule: Rule) -> Option<f64> {
    let own = stat(method.iter().map(|m| cost(m, rule)))?.mean;
    let reference = stat(method.iter().map(|m| cost(partner(m, random)?, rule)))?.mean;
    (reference > 0.0).then(|| own / reference)
}

fn partner<'a>(run: &Run, random: &[&'a Run]) -> Option<&'a Run> {
    random.iter().find(|r| r.manifest.seed == run.manifest.seed).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn api_of_the_worked_example() {
        let method = [0.80, 0.85, 0.90].map(Some);
        let mut random = [0.80, 0.83, 0.89].map(Some);
        assert!(near(api(&method, &random).unwrap(), 1.0));
        random[1] = None;
        assert_eq!(api(&method, &random), None);
        assert_eq!(api(&method, &random[..2]), None);
        assert_eq!(api(&[], &[]), None);
    }

    #[test]
    fn standard_error_by_hand() {
        // 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, deviation sqrt(7), divided by sqrt(3).
        let s = stat([1.0, 2.0, 6.0].map(Some)).unwrap();
        assert!(near(s.mean, 3.0) && near(s.se.unwrap(), (7.0f64 / 3.0).sqrt()) && s.n == 3);
        assert_eq!(stat([Some(4.0)]), Some(Stat { mean: 4.0, se: None, n: 1 }));
        assert_eq!(stat([Some(4.0), None]), None);
        assert_eq!(stat([]), None);
    }

    #[test]
    fn the_rule_decides_on_the_epoch() {
        let mut r = RoundRecord {
            round: 1,
            labelled: 4,
            picked: 2,
            test_size: 1000,
            correct: vec![400, 700, 600],
            loss: vec![1.0; 3],
        };
        assert_eq!((Rule::Last.accuracy(&r), Rule::Best.accuracy(&r)), (Some(0.6), Some(0.7)));
        r.round = 0;
        assert_eq!(Rule::Best.accuracy(&r), Some(0.6));
        r.correct.clear();
        assert_eq!(Rule::Best.accuracy(&r), None);
        assert!(Rule::of("other").is_err());
    }
}
