//! source says:            draw without replacement with probability in proportion to I(x)^β: the best by BALD are alike
//!                         (Kirsch et al. 2021).
//! reference code does:    the K largest of β ln I + Gumbel noise, which is the same draw.
//! dalcore does:           that, with noise by pool id; I = 0 is never drawn before the others, the lowest id first.

use serde::{Deserialize, Serialize};

use super::bald::{check_passes, passes};
use super::{Method, Query};
use crate::data::PoolIdx;
use crate::ops::McRule;
use crate::rng::Rng;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Keys under `power-bald`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// T, passes with dropout.
    pub passes: u32,
    /// β: 0 draws uniformly among those with I above 0, large values come to BALD.
    pub beta: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { passes: 10, beta: 1.0 }
    }
}

impl Settings {
    /// Refuses what no query can use.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1e6).contains(&self.beta) {
            let why = format!("{} is not between 0 and 1000000; 1 is the default", self.beta);
            return Err(Error::Config { key: "power-bald.beta".into(), why });
        }
        check_passes("power-bald", self.passes)
    }
}

/// The passes of BALD, then O(U) on the host. Memory U.
pub struct PowerBald(pub Settings);

impl Method for PowerBald {
    fn select(&mut self, q: &Query, n: usize) -> Result<Vec<PoolIdx>> {
        if n == 0 || q.unlabelled().is_empty() {
            return Ok(Vec::new());
        }
        let information = passes("power-bald", q, self.0.passes, McRule::Bald)?;
        let noisy: Vec<f32> = information
            .to_vec::<f32>()?
            .iter()
            .zip(q.unlabelled())
            .map(|(i, id)| noisy(*i, self.0.beta, q.rng(), id.0))
            .collect();
        q.top("power-bald", &Tensor::new(information.device(), [noisy.len()], &noisy)?, n)
    }
}

/// β ln I + Gumbel noise of example `id`: −∞ for I = 0, NaN for NaN.
pub(crate) fn noisy(information: f32, beta: f64, rng: Rng, id: u32) -> f32 {
    if information == 0.0 {
        return f32::NEG_INFINITY;
    }
    // u in (0, 1): half a step of the 24 bits from either end.
    let u = f64::from(rng.uniform(u64::from(id))) + 0.5 / 16_777_216.0;
    (beta * f64::from(information).ln() - (-u.ln()).ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    /// First picks of many draws, I = 1, 2, 5 with β = 1 and 2: each within 5 standard deviations of its share.
    #[test]
    fn first_draws_are_in_proportion_to_the_power() {
        let information = [1.0f32, 2.0, 5.0, 0.0];
        for beta in [0.0, 1.0, 2.0] {
            let powers: Vec<f64> = information[..3].iter().map(|i| f64::from(*i).powf(beta)).collect();
            let (draws, mut count) = (20_000u32, [0usize; 4]);
            for b in 0..draws {
                let rng = Rng::new(7).at(Purpose::Select, 1, b);
                let of = |i: &usize| noisy(information[*i], beta, rng, *i as u32);
                count[(0..4).max_by(|a, b| of(a).total_cmp(&of(b))).unwrap()] += 1;
            }
            for (n, p) in count.iter().zip(powers.iter().map(|p| p / powers.iter().sum::<f64>())) {
                let (mean, sd) = (f64::from(draws) * p, (f64::from(draws) * p * (1.0 - p)).sqrt());
                assert!((*n as f64 - mean).abs() < 5.0 * sd, "β {beta}: {count:?}");
            }
            assert_eq!(count[3], 0);
        }
        assert!(noisy(f32::NAN, 1.0, Rng::new(1), 0).is_nan());
    }
}
