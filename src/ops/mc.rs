//! What T stochastic passes over the same rows say together, p^t (n, C) being the probabilities of pass t. Sums are
//! kept pass by pass, so that T×n×C numbers are never stored.
//!
//! BALD: I = H(p̄) − Σ_t H(p^t) / T, p̄ = Σ_t p^t / T, H = −Σ_c p ln p; from Σ p (n, C) and Σ H (n). The largest
//! probability is taken as one minus the others, H = −(1 − s) log1p(−s) − Σ over the others of p ln p, which keeps its
//! resolution near certainty. Mean standard deviation: Σ_c std_t p_c / C (of the population), and variance: Σ_c var_t p_c,
//! by Welford's sums. Variation ratio: 1 − votes of the modal class / T. Not differentiable.

use crate::device::{Device, Launch, launch};
use crate::tensor::{Dtype, Tensor};
use crate::{Error, Result};

/// What is made of the passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum McRule {
    /// The mutual information between prediction and weights, in nats: 0 to ln C.
    Bald,
    /// The mean over the classes of the standard deviation over the passes.
    MeanStd,
    /// The sum over the classes of the variance over the passes.
    Variance,
    /// The share of the passes that do not vote for the class with most votes.
    VarRatio,
}

/// The sums over the passes so far. Memory: n·C + n, of the standard deviation 2·n·C.
pub struct McSums {
    rule: McRule,
    passes: usize,
    /// (n, C): sums of probabilities, their means, or votes.
    first: Tensor,
    /// Sums of entropies (n), or of squared deviations (n, C); nothing for votes.
    second: Tensor,
}

impl McSums {
    /// No pass yet over `n` rows of `c` classes.
    pub fn new(rule: McRule, device: &Device, [n, c]: [usize; 2]) -> Result<McSums> {
        let second = match rule {
            McRule::Bald => [n, 1],
            McRule::MeanStd | McRule::Variance => [n, c],
            McRule::VarRatio => [0, 1],
        };
        let first = Tensor::stale(device, [n, c], Dtype::F32)?;
        if c == 0 {
            return Err(first.shape().refuse(OP, "(n, C) with C above 0"));
        }
        Ok(McSums { rule, passes: 0, first, second: Tensor::stale(device, second, Dtype::F32)? })
    }

    /// Takes in a pass: probabilities (n, C), whose rows sum to one.
    pub fn add(&mut self, p: &Tensor) -> Result<()> {
        let [n, c] = self.first.shape().matrix(OP)?;
        if p.dims() != [n, c] {
            return Err(p.shape().refuse(OP, format!("({n}, {c}), as the other passes")));
        }
        let t = self.passes;
        self.passes += 1;
        match p.device() {
            Device::Cpu => {
                let (a, b, p) = (self.first.host_mut(OP)?, self.second.host_mut(OP)?, p.host(OP)?);
                if t == 0 {
                    a.fill(0.0);
                    b.fill(0.0);
                }
                match self.rule {
                    McRule::Bald => cpu::bald_add(a, b, p, c),
                    McRule::MeanStd | McRule::Variance => cpu::std_add(a, b, p, t),
                    McRule::VarRatio => cpu::votes_add(a, p, c),
                }
                Ok(())
            }
            Device::Cuda(cuda) => {
                let (l, ni, ci, t) = (Launch::warps(n, 256), n as i32, c as i32, t as i32);
                let (a, b, p) = (self.first.buf_mut(OP)?, self.second.buf_mut(OP)?, p.buf(OP)?);
                match self.rule {
                    McRule::Bald => launch::mc_bald_add_f32(cuda, l, a, b, p, ni, ci, t),
                    McRule::MeanStd | McRule::Variance => {
                        launch::mc_std_add_f32(cuda, Launch::elements(n * c), a, b, p, (n * c) as i32, t)
                    }
                    McRule::VarRatio => launch::mc_votes_add_f32(cuda, l, a, p, ni, ci, t),
                }
            }
        }
    }

    /// The scores (n) of the passes so far; no pass at all is an error.
    pub fn scores(&self) -> Result<Tensor> {
        let [n, c] = self.first.shape().matrix(OP)?;
        if self.passes == 0 {
            return Err(Error::Shape { op: OP, want: "at least one pass".into(), got: "none".into() });
        }
        let mut y = self.first.stale_like([n])?;
        match y.device().clone() {
            Device::Cpu => {
                let (y, a, b) = (y.host_mut(OP)?, self.first.host(OP)?, self.second.host(OP)?);
                let t = self.passes as f64;
                match self.rule {
                    McRule::Bald => cpu::bald(y, a, b, c, t),
                    McRule::MeanStd => cpu::std(y, b, c, t),
                    McRule::Variance => cpu::variance(y, b, c, t),
                    McRule::VarRatio => cpu::votes(y, a, c, t),
                }
            }
            Device::Cuda(cuda) => {
                let (l, n, c, t) = (Launch::warps(n, 256), n as i32, c as i32, self.passes as f32);
                let (y, a, b) = (y.buf_mut(OP)?, self.first.buf(OP)?, self.second.buf(OP)?);
                match self.rule {
                    McRule::Bald => launch::mc_bald_f32(&cuda, l, y, a, b, n, c, t)?,
                    McRule::MeanStd => launch::mc_std_f32(&cuda, l, y, b, n, c, t)?,
                    McRule::Variance => launch::mc_variance_f32(&cuda, l, y, b, n, c, t)?,
                    McRule::VarRatio => launch::mc_votes_f32(&cuda, l, y, a, n, c, t)?,
                }
            }
        }
        Ok(y)
    }
}

const OP: &str = "mc";

/// The scores (n) of stored passes (T, n, C): probabilities whose rows sum to one. Rows do not depend on each other, so a
/// long matrix can be given in blocks of rows.
pub fn mc_scores(rule: McRule, passes: &Tensor) -> Result<Tensor> {
    let &[t, n, c] = passes.dims() else {
        return Err(passes.shape().refuse(OP, "(T, n, C)"));
    };
    let all = passes.buf::<f32>(OP)?;
    let mut sums = McSums::new(rule, passes.device(), [n, c])?;
    for pass in 0..t {
        sums.add(&Tensor::from_buf(passes.device(), [n, c], all.window(pass * n * c, n * c)?)?)?;
    }
    sums.scores()
}

mod cpu {
    use rayon::prelude::*;

    /// Rows of a task: fewer are not worth another thread.
    const ROWS: usize = 256;

    /// sums += p, entropies += H(p);   sums, p: (n, C), entropies: (n)
    pub fn bald_add(sums: &mut [f32], entropies: &mut [f32], p: &[f32], c: usize) {
        let rows = sums.par_chunks_exact_mut(c).zip(entropies).zip(p.par_chunks_exact(c));
        rows.with_min_len(ROWS).for_each(|((sums, h), p)| {
            sums.iter_mut().zip(p).for_each(|(s, p)| *s += p);
            *h += entropy(p, 1.0) as f32;
        });
    }

    /// y = H(sums / T) − entropies / T, not below zero.
    pub fn bald(y: &mut [f32], sums: &[f32], entropies: &[f32], c: usize, t: f64) {
        let rows = y.par_iter_mut().zip(sums.par_chunks_exact(c)).zip(entropies);
        rows.with_min_len(ROWS).for_each(|((y, sums), h)| {
            let i = entropy(sums, 1.0 / t) - f64::from(*h) / t;
            *y = if i < 0.0 { 0.0 } else { i as f32 };
        });
    }

    /// −Σ p ln p of p[j] · scale, the largest being one minus the others.
    fn entropy(p: &[f32], scale: f64) -> f64 {
        let at = top(p);
        let (mut others, mut spread) = (0.0, 0.0);
        for (_, p) in p.iter().enumerate().filter(|(j, _)| *j != at) {
            let v = f64::from(*p) * scale;
            others += v;
            spread -= if v == 0.0 { 0.0 } else { v * v.ln() };
        }
        spread - (1.0 - others) * (-others).ln_1p() + 0.0 * f64::from(p[at])
    }

    /// Where the largest stands, the lowest at a tie.
    fn top(p: &[f32]) -> usize {
        (1..p.len()).fold(0, |best, j| if p[j] > p[best] { j } else { best })
    }

    /// Welford: mean += d / (t + 1), squares += d · (p − mean), d = p − the old mean.
    pub fn std_add(mean: &mut [f32], squares: &mut [f32], p: &[f32], t: usize) {
        for ((m, s), p) in mean.iter_mut().zip(squares).zip(p) {
            let d = p - *m;
            *m += d / (t + 1) as f32;
            *s += d * (p - *m);
        }
    }

    /// y = Σ_c √(squares / T) / C
    pub fn std(y: &mut [f32], squares: &[f32], c: usize, t: f64) {
        for (y, s) in y.iter_mut().zip(squares.chunks_exact(c)) {
            *y = (s.iter().map(|s| (f64::from(*s) / t).sqrt()).sum::<f64>() / c as f64) as f32;
        }
    }

    /// y = Σ_c squares / T
    pub fn variance(y: &mut [f32], squares: &[f32], c: usize, t: f64) {
        for (y, s) in y.iter_mut().zip(squares.chunks_exact(c)) {
            *y = (s.iter().map(|s| f64::from(*s)).sum::<f64>() / t) as f32;
        }
    }

    /// One more vote for the largest class of each row; a NaN instead where p is one.
    pub fn votes_add(votes: &mut [f32], p: &[f32], c: usize) {
        for (votes, p) in votes.chunks_exact_mut(c).zip(p.chunks_exact(c)) {
            votes[top(p)] += 1.0;
            votes.iter_mut().zip(p).filter(|(_, p)| p.is_nan()).for_each(|(v, _)| *v = f32::NAN);
        }
    }

    /// y = 1 − most votes / T
    pub fn votes(y: &mut [f32], votes: &[f32], c: usize, t: f64) {
        for (y, votes) in y.iter_mut().zip(votes.chunks_exact(c)) {
            let most = votes.iter().fold(0.0, |m: f32, v| if v.is_nan() || *v > m { *v } else { m });
            *y = (1.0 - f64::from(most) / t) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn scores(rule: McRule, shape: [usize; 3], p: &[f32]) -> Vec<f32> {
        mc_scores(rule, &Tensor::new(&Device::Cpu, shape, p).unwrap()).unwrap().to_vec().unwrap()
    }

    /// METHODS 6.19: two views of four examples.
    #[test]
    fn variances_are_summed_over_classes() {
        let a = [0.6, 0.3, 0.1, 0.5, 0.4, 0.1, 0.9, 0.05, 0.05, 0.8, 0.1, 0.1];
        let b = [0.3, 0.6, 0.1, 0.5, 0.4, 0.1, 0.2, 0.7, 0.1, 0.8, 0.1, 0.1];
        let got = scores(McRule::Variance, [2, 4, 3], &[a, b].concat());
        for (got, want) in got.iter().zip([0.045, 0.0, 0.228_75, 0.0]) {
            assert!((got - want).abs() < 1e-7, "{got} {want}");
        }
        assert_eq!(scores(McRule::Variance, [1, 4, 3], &a), [0.0; 4], "one view");
    }

    fn binary(first: &[f32]) -> Vec<f32> {
        first.iter().flat_map(|p| [*p, 1.0 - p]).collect()
    }

    /// METHODS 6.5: two passes, four binary examples. 9.1: p = (.9, .1), (.1, .9) has mean std .4.
    #[test]
    fn worked_examples() {
        let p = binary(&[0.9, 0.5, 0.9, 0.8, 0.1, 0.5, 0.9, 0.4]);
        let bald = scores(McRule::Bald, [2, 4, 2], &p);
        for (got, want) in bald.iter().zip([0.368_064, 0.0, 0.0, 0.086_305]) {
            assert!((got - want).abs() < 1e-6, "{bald:?}");
        }
        let std = scores(McRule::MeanStd, [2, 4, 2], &p);
        for (got, want) in std.iter().zip([0.4, 0.0, 0.0, 0.2]) {
            assert!((got - want).abs() < 1e-6, "{std:?}");
        }
        assert_eq!(scores(McRule::VarRatio, [2, 4, 2], &p), [0.5, 0.0, 0.0, 0.5]);
    }

    /// Against the definitions in f64 on all passes at once.
    #[test]
    fn equals_the_definitions() {
        for [t, n, c] in [[1, 5, 3], [10, 33, 10], [7, 300, 2], [4, 9, 40]] {
            let r = Rng::new(3).lane(c as u32);
            let e: Vec<f64> = (0..(t * n * c) as u64).map(|e| f64::from(6.0 * r.uniform(e)).exp()).collect();
            let p: Vec<f64> = e.chunks_exact(c).flat_map(|r| r.iter().map(|v| v / r.iter().sum::<f64>())).collect();
            let narrow: Vec<f32> = p.iter().map(|p| *p as f32).collect();
            let of = |t: usize, i: usize, j: usize| p[(t * n + i) * c + j];
            let h = |p: &[f64]| -p.iter().map(|p| p * p.ln()).sum::<f64>();
            let (bald, std) = (scores(McRule::Bald, [t, n, c], &narrow), scores(McRule::MeanStd, [t, n, c], &narrow));
            let ratio = scores(McRule::VarRatio, [t, n, c], &narrow);
            for i in 0..n {
                let mean: Vec<f64> = (0..c).map(|j| (0..t).map(|t| of(t, i, j)).sum::<f64>() / t as f64).collect();
                let rows = (0..t).map(|t| h(&p[(t * n + i) * c..][..c])).sum::<f64>() / t as f64;
                assert!((f64::from(bald[i]) - (h(&mean) - rows)).abs() < 2e-6);
                let var = |j: usize| (0..t).map(|t| (of(t, i, j) - mean[j]).powi(2)).sum::<f64>() / t as f64;
                let want = (0..c).map(|j| var(j).sqrt()).sum::<f64>() / c as f64;
                assert!((f64::from(std[i]) - want).abs() < 1e-6);
                let mut votes = vec![0usize; c];
                (0..t).for_each(|t| {
                    let top = (0..c).fold(0, |b, j| if of(t, i, j) > of(t, i, b) { j } else { b });
                    votes[top] += 1;
                });
                let most = votes.into_iter().max().unwrap();
                assert!((f64::from(ratio[i]) - (1.0 - most as f64 / t as f64)).abs() < 1e-6);
            }
        }
    }

    /// Where every pass is sure, the passes still differ: the order of what is left is that of the definition.
    #[test]
    fn bald_does_not_saturate_near_certainty() {
        let others = [1e-9f32, 1e-12, 1e-15, 1e-20];
        let p: Vec<f32> = [others, others.map(|q| q / 4.0)].iter().flatten().flat_map(|q| [1.0 - q, *q]).collect();
        let got = scores(McRule::Bald, [2, 4, 2], &p);
        for (got, q) in got.iter().zip(others.map(f64::from)) {
            // To first order Σ q_t ln (q_t / q̄) / T with the sure class giving nothing.
            let mean = 0.625 * q;
            let want = 0.5 * (q * (q / mean).ln() + q / 4.0 * (q / 4.0 / mean).ln());
            assert!((f64::from(*got) / want - 1.0).abs() < 1e-4, "{got} {want}");
        }
    }

    #[test]
    fn nans_are_reported_and_shapes_checked() {
        for rule in [McRule::Bald, McRule::MeanStd, McRule::VarRatio] {
            let p = [0.5, 0.5, f32::NAN, 1.0, 0.5, 0.5, 0.0, 1.0];
            let got = scores(rule, [2, 2, 2], &p);
            assert!(got[0] == 0.0 && got[1].is_nan(), "{rule:?}: {got:?}");
            assert!(scores(rule, [1, 1, 2], &[1.0, f32::NAN])[0].is_nan());
            let of = |shape: &[usize]| mc_scores(rule, &Tensor::zeros(&Device::Cpu, shape, Dtype::F32).unwrap());
            assert!(of(&[2, 3]).is_err() && of(&[0, 3, 2]).is_err() && of(&[2, 3, 0]).is_err());
            assert_eq!(of(&[2, 0, 3]).unwrap().len(), 0);
            let mut sums = McSums::new(rule, &Device::Cpu, [2, 3]).unwrap();
            assert!(sums.add(&Tensor::zeros(&Device::Cpu, [3, 2], Dtype::F32).unwrap()).is_err());
        }
    }
}
