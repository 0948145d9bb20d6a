//! source says:            a bandit (EXP4.P) picks a strategy for every single query and is rewarded by an importance-weighted
//!                         accuracy (Hsu & Lin 2015).
//! reference code does:    one arm per round for the whole batch, least confidence or coreset; only the arm drawn learns.
//! dalcore does:           the same, in f64. Training accuracy is near 1, so the arm drawn nearly always gains: it locks in.

use serde::{Deserialize, Serialize};

use super::coreset::CoreSet;
use super::least_confidence::LeastConfidence;
use super::{Method, Query};
use crate::data::PoolIdx;
use crate::select::first_non_finite;
use crate::{Error, Result, ops};

/// δ, the chance that the bound behind the bonus fails.
const DELTA: f64 = 0.1;

/// What the bandit knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Of each arm; the largest is 1.
    weights: Vec<f64>,
    /// The last query: arm, and its probability.
    last: Option<(usize, f64)>,
    /// The probability with which each example was queried, by pool id; any other was in the start set.
    queried: Vec<(u32, f64)>,
}

/// That of the arm drawn, and a pass over L; memory likewise.
pub struct Albl {
    arms: Vec<Box<dyn Method>>,
    state: State,
}

impl Default for Albl {
    fn default() -> Albl {
        let arms: Vec<Box<dyn Method>> = vec![Box::new(LeastConfidence), Box::new(CoreSet)];
        let state = State { weights: vec![1.0; arms.len()], last: None, queried: Vec::new() };
        Albl { arms, state }
    }
}

impl State {
    fn p_min(&self) -> f64 {
        1.0 / (10.0 * self.weights.len() as f64)
    }

    /// π, the probability of each arm.
    fn probabilities(&self) -> Vec<f64> {
        let (n, p_min, sum) = (self.weights.len() as f64, self.p_min(), self.weights.iter().sum::<f64>());
        self.weights.iter().map(|w| (1.0 - n * p_min) * w / sum + p_min).collect()
    }

    /// ρ: the accuracy on labelled examples, (pool id, correct) each, weighted by 1 / the probability of the query.
    fn reward(&self, labelled: &[(u32, bool)]) -> f64 {
        let queried: std::collections::HashMap<u32, f64> = self.queried.iter().copied().collect();
        let gain = |(id, correct): &(u32, bool)| if *correct { 1.0 / queried.get(id).unwrap_or(&1.0) } else { 0.0 };
        labelled.iter().map(gain).sum::<f64>() / labelled.len().max(1) as f64
    }

    /// The arm of the last query is paid.
    fn learn(&mut self, reward: f64) {
        let (n, p_min) = (self.weights.len() as f64, self.p_min());
        if let Some((arm, q)) = self.last.take() {
            self.weights[arm] *= (p_min / 2.0 * (reward + ((n / DELTA).ln() / n).sqrt() / q)).exp();
            let most = self.weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
            self.weights.iter_mut().for_each(|w| *w /= most);
        }
    }
}

/// The arm whose share of [0, 1) holds u.
fn draw(probabilities: &[f64], u: f64) -> usize {
    let mut end = 0.0;
    let within = |p: &f64| {
        end += p;
        u < end
    };
    // Rounding may leave the last share a little short.
    probabilities.iter().position(within).unwrap_or(probabilities.len() - 1)
}

impl Method for Albl {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        if self.state.last.is_some() {
            let logits = q.labelled_logits()?;
            if let Some(row) = first_non_finite(logits)? {
                let id = q.labelled()[row as usize].0;
                let what = format!("albl: the logits of pool id {id} hold a NaN or an infinity; nothing was selected");
                return Err(Error::NonFinite { what });
            }
            let predicted = ops::argmax_rows(logits)?.to_vec::<u32>()?;
            let correct = predicted.iter().zip(q.labels()?).map(|(p, l)| *p == l);
            let labelled: Vec<(u32, bool)> = q.labelled().iter().map(|id| id.0).zip(correct).collect();
            let reward = self.state.reward(&labelled);
            self.state.learn(reward);
        }
        let probabilities = self.state.probabilities();
        let arm = draw(&probabilities, f64::from(q.rng().uniform(0)));
        let picks = self.arms[arm].select(q, n)?;
        self.state.last = Some((arm, probabilities[arm]));
        self.state.queried.extend(picks.iter().map(|id| (id.0, probabilities[arm])));
        Ok(picks)
    }

    fn save(&self) -> serde_json::Value {
        serde_json::json!(self.state)
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        let broken = |why: String| Error::Data { path: "state of albl".into(), why };
        let state: State = serde_json::from_value(state.clone()).map_err(|e| broken(e.to_string()))?;
        let arms = self.arms.len();
        if state.weights.len() != arms || state.last.is_some_and(|(arm, _)| arm >= arms) {
            return Err(broken(format!("is of {} arms, not of {arms}", state.weights.len())));
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// METHODS 6.3: arm 0 drawn at .5, labelled a = (1, 1, .5, .5), correct (1, 0, 1, 1).
    #[test]
    fn worked_example() {
        let mut s = State { last: Some((0, 0.5)), queried: vec![(7, 0.5), (8, 0.5)], ..Albl::default().state };
        let reward = s.reward(&[(1, true), (2, false), (7, true), (8, true)]);
        assert_eq!(reward, 1.25);
        s.learn(reward);
        let p = s.probabilities();
        assert!((s.weights[0] / s.weights[1] - 1.096851).abs() < 1e-6, "{:?}", s.weights);
        assert!((p[0] - 0.520785).abs() < 1e-6 && (p[1] - 0.479215).abs() < 1e-6, "{p:?}");
        assert_eq!(s.last, None);
        let before = s.clone();
        s.learn(9.0);
        assert_eq!(s, before, "nobody is paid twice");
    }

    #[test]
    fn weights_stay_finite_and_every_arm_keeps_its_least_share() {
        let mut s = Albl::default().state;
        for _ in 0..10_000 {
            s.last = Some((0, 0.5));
            s.learn(20.0);
        }
        let p = s.probabilities();
        assert!((p[0] - 0.95).abs() < 1e-12 && (p[1] - 0.05).abs() < 1e-12, "{p:?}");
    }

    #[test]
    fn draws() {
        let p = [0.52, 0.48];
        assert_eq!([0.0, 0.519, 0.521, 0.999_999].map(|u| draw(&p, u)), [0, 0, 1, 1]);
        assert_eq!(draw(&[0.3, 0.3], 0.9), 1);
    }
}
