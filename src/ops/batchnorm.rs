//! Batch normalisation over all but the last axis, fused with an optional residual r and relu:
//! z = (x − μ) σ⁻¹ γ + β (+ r), y = relu(z) or z.   x, r, y: (…, C), γ, β, μ, σ⁻¹: (C), M = rows of x.
//!
//! Training: μ = Σ x / M, σ⁻¹ = 1 / √(Σ (x − μ)² / M + ε) over the batch; evaluation: the running statistics, as
//! constants. The running statistics take the unbiased variance Σ (x − μ)² / (M − 1), as in PyTorch.
//!
//! Backward, with dz = dy where relu did not cut (else 0) and x̂ = (x − μ) σ⁻¹: dβ = Σ dz, dγ = Σ dz x̂, dr = dz,
//! dx = γ σ⁻¹ (dz − (dβ + x̂ dγ) / M); without the last two terms in evaluation.

use super::{Arg, Case, cast};
use crate::device::{Cuda, Device, Launch, launch};
use crate::tensor::{Buf, Dtype, Real, Tensor};
use crate::{Result, on_real, on_stored};

const OP: &str = "batch_norm";

/// Rows of one partial sum on the device; the same number in `kernels/batchnorm.cu`.
const ROWS: usize = 512;

/// What happens after the normalisation in the same pass.
#[derive(Clone, Copy, Default)]
pub struct Then<'a> {
    /// Added to the normalised value.
    pub residual: Option<&'a Tensor>,
    /// Then cut at zero.
    pub relu: bool,
}

impl Then<'_> {
    /// Calls `f` with the residual as f32.
    fn widened<R>(self, f: impl FnOnce(Then) -> Result<R>) -> Result<R> {
        let residual = self.residual.map(|r| cast(r, Dtype::F32)).transpose()?;
        f(Then { residual: residual.as_ref(), relu: self.relu })
    }
}

/// Statistics of one batch, for the running ones.
#[derive(Clone)]
pub struct BatchStats {
    /// μ (C)
    pub mean: Tensor,
    /// Σ (x − μ)² / (M − 1)   (C)
    pub var: Tensor,
}

/// Sums over the channels of chunks of rows, which a convolution leaves behind for the normalisation of its result:
/// for each chunk Σ x, then Σ (x − its own mean)².
pub struct ChunkSums {
    /// (chunks, 2, C)
    pub(super) part: Buf<f32>,
    /// Rows of a chunk; the last one may be shorter.
    pub(super) rows: usize,
}

/// Normalises with the statistics of the batch and returns them: x (…, C), γ, β (C). `sums`: those of x, if known.
pub fn batch_norm(
    x: &Tensor,
    sums: Option<ChunkSums>,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
    then: Then,
) -> Result<(Tensor, BatchStats)> {
    check(x, [gamma, beta], then)?;
    if x.is_empty() {
        return Err(x.shape().refuse(OP, "at least one row: an empty batch has no statistics"));
    }
    if x.is_rounded() {
        let (y, stats) = then.widened(|then| batch_norm(&cast(x, Dtype::F32)?, None, gamma, beta, eps, then))?;
        return Ok((cast(&y, Dtype::Bf16)?, stats));
    }
    let (moments, var) = moments(x, sums, eps)?;
    let mean = moments.mean.clone();
    Ok((normalise(x, gamma, beta, moments, then, true)?, BatchStats { mean, var }))
}

/// Normalises with given statistics, which are constants: x (…, C), the others (C).
pub fn batch_norm_eval(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    stats: &BatchStats,
    eps: f32,
    then: Then,
) -> Result<Tensor> {
    check(x, [gamma, beta], then)?;
    check(x, [&stats.mean, &stats.var], then)?;
    if x.is_rounded() {
        let y = then.widened(|then| batch_norm_eval(&cast(x, Dtype::F32)?, gamma, beta, stats, eps, then))?;
        return cast(&y, Dtype::Bf16);
    }
    let moments = Moments { mean: stats.mean.detach(), rstd: rstd(&stats.var, eps)? };
    normalise(x, gamma, beta, moments, then, false)
}

/// running ← (1 − momentum) · running + momentum · batch, for the mean and the variance that start at `at` in `running`.
pub fn batch_norm_update(
    running: &mut Buf<f32>,
    at: [usize; 2],
    batch: &BatchStats,
    device: &Device,
    momentum: f32,
) -> Result<()> {
    let c = batch.mean.len();
    match device {
        Device::Cpu => {
            let running = running.host_mut(OP)?;
            for (at, batch) in at.into_iter().zip([&batch.mean, &batch.var]) {
                for (r, b) in running[at..at + c].iter_mut().zip(batch.host::<f32>(OP)?) {
                    *r = (1.0 - momentum) * *r + momentum * b;
                }
            }
            Ok(())
        }
        Device::Cuda(cuda) => {
            let [mut to_mean, mut to_var] = [running.window(at[0], c)?, running.window(at[1], c)?];
            let (mean, var) = (batch.mean.buf(OP)?, batch.var.buf(OP)?);
            let l = Launch::elements(c);
            launch::batch_norm_update_f32(cuda, l, &mut to_mean, &mut to_var, mean, var, c as i32, momentum)
        }
    }
}

fn check(x: &Tensor, of_channels: [&Tensor; 2], then: Then) -> Result<()> {
    let (_, c) = x.shape().rows(OP)?;
    if let Some(t) = of_channels.into_iter().find(|t| t.dims() != [c]) {
        return Err(t.shape().refuse(OP, format!("({c})")));
    }
    match then.residual {
        Some(r) if r.shape() != x.shape() => Err(r.shape().refuse(OP, format!("a residual of {:?}", x.shape()))),
        _ => Ok(()),
    }
}

/// μ and σ⁻¹, each (C).
struct Moments {
    mean: Tensor,
    rstd: Tensor,
}

/// μ and σ⁻¹ of x, and its unbiased variance.
fn moments(x: &Tensor, sums: Option<ChunkSums>, eps: f32) -> Result<(Moments, Tensor)> {
    let (m, c) = x.shape().rows(OP)?;
    let of_channels = || Tensor::stale(x.device(), [c], x.sum_dtype());
    let [mut mean, mut rstd, mut var] = [of_channels()?, of_channels()?, of_channels()?];
    match x.device() {
        Device::Cpu if x.dtype() == Dtype::F32 => {
            let (mean, rstd, var) = (mean.host_mut(OP)?, rstd.host_mut(OP)?, var.host_mut(OP)?);
            fast::moments(mean, rstd, var, x.host(OP)?, eps);
        }
        Device::Cpu => on_real!(OP, x, T => {
            let (mean, rstd, var) = (mean.host_mut::<T>(OP)?, rstd.host_mut::<T>(OP)?, var.host_mut::<T>(OP)?);
            cpu::moments(mean, rstd, var, x.host::<T>(OP)?, eps);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let ChunkSums { part, rows } = match sums {
                Some(s) => s,
                None => chunk_sums(cuda, x)?,
            };
            let (mean, rstd, var) = (mean.buf_mut(OP)?, rstd.buf_mut(OP)?, var.buf_mut(OP)?);
            let (l, chunks) = (fold_launch(c), m.div_ceil(rows) as i32);
            launch::batch_norm_stats_last_f32(
                cuda,
                l,
                mean,
                rstd,
                var,
                &part,
                m as i32,
                c as i32,
                chunks,
                rows as i32,
                eps,
            )?;
        }
    }
    Ok((Moments { mean, rstd }, var))
}

fn chunk_sums(cuda: &Cuda, x: &Tensor) -> Result<ChunkSums> {
    let (m, c) = x.shape().rows(OP)?;
    let chunks = m.div_ceil(ROWS);
    let mut part = Buf::stale(x.device(), chunks * 2 * c)?;
    let l = over_rows(m, c, Some(ROWS));
    on_stored!(OP, x, S => launch::batch_norm_stats_part(cuda, l, &mut part, x.buf::<S>(OP)?, m as i32, c as i32))?;
    Ok(ChunkSums { part, rows: ROWS })
}

/// A block for `rows` rows, or for as many as eight to a thread make, and for 256 threads' columns.
fn over_rows(m: usize, c: usize, rows: Option<usize>) -> Launch {
    let each = if c.is_multiple_of(4) { 4 } else { 1 };
    let width = (c / each).clamp(1, 256);
    Launch::grid(m.div_ceil(rows.unwrap_or(256 / width * 8)), c.div_ceil(width * each), 1, 256)
}

/// For the kernels that add up chunks: up to 32 columns to a block.
fn fold_launch(c: usize) -> Launch {
    Launch::grid(c.div_ceil(c.clamp(1, 32)), 1, 1, 1024)
}

/// 1 / √(var + ε)
fn rstd(var: &Tensor, eps: f32) -> Result<Tensor> {
    let mut y = var.like()?;
    let c = var.len();
    match var.device() {
        Device::Cpu => on_real!(OP, var, T => {
            cpu::rstd(y.host_mut::<T>(OP)?, var.host::<T>(OP)?, eps);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            launch::batch_norm_rstd_f32(cuda, Launch::elements(c), y.buf_mut(OP)?, var.buf(OP)?, c as i32, eps)?;
        }
    }
    Ok(y)
}

fn normalise(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    moments: Moments,
    then: Then,
    training: bool,
) -> Result<Tensor> {
    let y = forward(x, gamma, beta, &moments, then)?;
    let (sx, sg) = (x.detach(), gamma.detach());
    let sy = then.relu.then(|| y.detach());
    let inputs: Vec<&Tensor> = [x, gamma, beta].into_iter().chain(then.residual).collect();
    let with_residual = then.residual.is_some();
    Ok(y.with_grad(OP, &inputs, move |dy, need| {
        let (dgamma, dbeta) = sums(dy, sy.as_ref(), &sx, &moments)?;
        let m = if training { sx.shape().rows(OP)?.0 as f64 } else { f64::INFINITY };
        let (mut dx, mut dres) = (None, None);
        if need.wants(0) || need.wants(3) {
            let wants = with_residual && need.wants(3);
            let g = Grad { dy, y: sy.as_ref(), x: &sx, gamma: &sg, moments: &moments, dgamma: &dgamma, dbeta: &dbeta };
            let (a, b) = backward(&g, 1.0 / m, wants)?;
            (dx, dres) = (Some(a).filter(|_| need.wants(0)), b);
        }
        let mut grads = vec![dx, Some(dgamma).filter(|_| need.wants(1)), Some(dbeta).filter(|_| need.wants(2))];
        if with_residual {
            grads.push(dres);
        }
        Ok(grads)
    }))
}

fn forward(x: &Tensor, gamma: &Tensor, beta: &Tensor, moments: &Moments, then: Then) -> Result<Tensor> {
    let (m, c) = x.shape().rows(OP)?;
    let mut y = x.stale_like(x.shape().clone())?;
    let Moments { mean, rstd } = moments;
    match x.device() {
        Device::Cpu if x.dtype() == Dtype::F32 => {
            let r = then.residual.map(|t| t.host::<f32>(OP)).transpose()?;
            let of_channels = [mean.host(OP)?, rstd.host(OP)?, gamma.host(OP)?, beta.host(OP)?];
            fast::forward(y.host_mut(OP)?, x.host(OP)?, of_channels, r, then.relu);
        }
        Device::Cpu => on_real!(OP, x, T => {
            let r = then.residual.map(|t| t.host::<T>(OP)).transpose()?;
            let of_channels = [mean.host::<T>(OP)?, rstd.host::<T>(OP)?, gamma.host::<T>(OP)?, beta.host::<T>(OP)?];
            cpu::forward(y.host_mut::<T>(OP)?, x.host::<T>(OP)?, of_channels, r, then.relu);
            Ok(())
        })?,
        Device::Cuda(cuda) => on_stored!(OP, x, S => {
            let x = x.buf::<S>(OP)?;
            let (on, r) = (i32::from(then.residual.is_some()), then.residual.map_or(Ok(x), |t| t.buf(OP))?);
            let (mean, rstd, gamma, beta) = (mean.buf(OP)?, rstd.buf(OP)?, gamma.buf(OP)?, beta.buf(OP)?);
            let (l, y, relu) = (over_rows(m, c, None), y.buf_mut(OP)?, i32::from(then.relu));
            launch::batch_norm_fwd(cuda, l, y, x, mean, rstd, gamma, beta, r, m as i32, c as i32, relu, on)
        })?,
    }
    Ok(y)
}

/// dγ and dβ.
fn sums(dy: &Tensor, y: Option<&Tensor>, x: &Tensor, moments: &Moments) -> Result<(Tensor, Tensor)> {
    let (m, c) = x.shape().rows(OP)?;
    let of_channels = || Tensor::stale(x.device(), [c], x.sum_dtype());
    let [mut dgamma, mut dbeta] = [of_channels()?, of_channels()?];
    let Moments { mean, rstd } = moments;
    match x.device() {
        Device::Cpu if x.dtype() == Dtype::F32 => {
            let y = y.map(|t| t.host::<f32>(OP)).transpose()?;
            let (dg, db) = (dgamma.host_mut(OP)?, dbeta.host_mut(OP)?);
            fast::sums(dg, db, dy.host(OP)?, y, x.host(OP)?, mean.host(OP)?, rstd.host(OP)?);
        }
        Device::Cpu => on_real!(OP, x, T => {
            let y = y.map(|t| t.host::<T>(OP)).transpose()?;
            let (dg, db) = (dgamma.host_mut::<T>(OP)?, dbeta.host_mut::<T>(OP)?);
            cpu::sums(dg, db, dy.host::<T>(OP)?, y, x.host::<T>(OP)?, mean.host::<T>(OP)?, rstd.host::<T>(OP)?);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let chunks = m.div_ceil(ROWS);
            let mut part: Buf<f32> = Buf::stale(x.device(), chunks * 2 * c)?;
            on_stored!(OP, x, S => {
                let (x, dy, mi, ci) = (x.buf::<S>(OP)?, dy.buf(OP)?, m as i32, c as i32);
                let (on, y) = (i32::from(y.is_some()), y.map_or(Ok(dy), |t| t.buf(OP))?);
                let l = over_rows(m, c, Some(ROWS));
                let (mean, rstd) = (mean.buf(OP)?, rstd.buf(OP)?);
                launch::batch_norm_bwd_part(cuda, l, &mut part, dy, y, x, mean, rstd, mi, ci, on)
            })?;
            let (dg, db) = (dgamma.buf_mut(OP)?, dbeta.buf_mut(OP)?);
            launch::batch_norm_bwd_last_f32(cuda, fold_launch(c), dg, db, &part, chunks as i32, c as i32)?;
        }
    }
    Ok((dgamma, dbeta))
}

/// What the gradient of x is made of.
struct Grad<'a> {
    dy: &'a Tensor,
    /// Where relu cut.
    y: Option<&'a Tensor>,
    x: &'a Tensor,
    gamma: &'a Tensor,
    moments: &'a Moments,
    dgamma: &'a Tensor,
    dbeta: &'a Tensor,
}

/// dx, and dz if it is wanted. `inverse` is 1 / M, or 0 where the statistics are constants.
fn backward(g: &Grad, inverse: f64, wants_dz: bool) -> Result<(Tensor, Option<Tensor>)> {
    let (m, c) = g.x.shape().rows(OP)?;
    let mut dx = g.x.stale_like(g.x.shape().clone())?;
    let mut dz = if wants_dz { Some(g.x.stale_like(g.x.shape().clone())?) } else { None };
    let of_channels = [&g.moments.mean, &g.moments.rstd, g.gamma, g.dgamma, g.dbeta];
    match g.x.device() {
        Device::Cpu if g.x.dtype() == Dtype::F32 => {
            let y = g.y.map(|t| t.host::<f32>(OP)).transpose()?;
            let dz = dz.as_mut().map(|t| t.host_mut::<f32>(OP)).transpose()?;
            let mut a = [&[][..]; 5];
            for (a, t) in a.iter_mut().zip(of_channels) {
                *a = t.host::<f32>(OP)?;
            }
            fast::backward(dx.host_mut(OP)?, dz, g.dy.host(OP)?, y, g.x.host(OP)?, a, inverse as f32);
        }
        Device::Cpu => on_real!(OP, g.x, T => {
            let y = g.y.map(|t| t.host::<T>(OP)).transpose()?;
            let dz = dz.as_mut().map(|t| t.host_mut::<T>(OP)).transpose()?;
            let mut a = [&[][..]; 5];
            for (a, t) in a.iter_mut().zip(of_channels) {
                *a = t.host::<T>(OP)?;
            }
            cpu::backward(dx.host_mut::<T>(OP)?, dz, g.dy.host::<T>(OP)?, y, g.x.host::<T>(OP)?, a, inverse);
            Ok(())
        })?,
        Device::Cuda(cuda) => on_stored!(OP, g.x, S => {
            let (dy, x, dx) = (g.dy.buf::<S>(OP)?, g.x.buf(OP)?, dx.buf_mut(OP)?);
            let (relu, y) = (i32::from(g.y.is_some()), g.y.map_or(Ok(dy), |t| t.buf(OP))?);
            let mut unused: Buf<S> = Buf::stale(g.x.device(), 1)?;
            let (on, dz) = match dz.as_mut() {
                Some(t) => (1, t.buf_mut(OP)?),
                None => (0, &mut unused),
            };
            let [mean, rstd, gamma, dg, db] = of_channels;
            let (mean, rstd, gamma, dg, db) = (mean.buf(OP)?, rstd.buf(OP)?, gamma.buf(OP)?, dg.buf(OP)?, db.buf(OP)?);
            let (l, m, c, inverse) = (over_rows(m, c, None), m as i32, c as i32, inverse as f32);
            launch::batch_norm_bwd(cuda, l, dx, dz, dy, y, x, mean, rstd, gamma, dg, db, m, c, inverse, relu, on)
        })?,
    }
    Ok((dx, dz))
}

mod cpu {
    use super::Real;

    /// mean, rstd, var: (C), x: (M, C)
    pub fn moments<T: Real>(mean: &mut [T], rstd: &mut [T], var: &mut [T], x: &[T], eps: f32) {
        let c = mean.len();
        let m = (x.len() / c) as f64;
        for j in 0..c {
            let column = || x.iter().skip(j).step_by(c).map(|v| v.f64());
            let mu = column().sum::<f64>() / m;
            let squares = column().map(|v| (v - mu) * (v - mu)).sum::<f64>();
            mean[j] = T::of(mu);
            rstd[j] = T::of(1.0 / (squares / m + f64::from(eps)).sqrt());
            var[j] = T::of(squares / (m - 1.0).max(1.0));
        }
    }

    /// rstd, var: (C)
    pub fn rstd<T: Real>(rstd: &mut [T], var: &[T], eps: f32) {
        for (y, v) in rstd.iter_mut().zip(var) {
            *y = T::of(1.0 / (v.f64() + f64::from(eps)).sqrt());
        }
    }

    /// y, x, r: (M, C), then μ, σ⁻¹, γ, β: (C)
    pub fn forward<T: Real>(y: &mut [T], x: &[T], a: [&[T]; 4], r: Option<&[T]>, relu: bool) {
        let c = a[0].len();
        for (e, y) in y.iter_mut().enumerate() {
            let [mean, rstd, gamma, beta] = a.map(|a| a[e % c].f64());
            let z = (x[e].f64() - mean) * rstd * gamma + beta + r.map_or(0.0, |r| r[e].f64());
            *y = T::of(if relu && z < 0.0 { 0.0 } else { z });
        }
    }

    /// dz of element e.
    fn dz<T: Real>(dy: &[T], y: Option<&[T]>, e: usize) -> f64 {
        if y.is_some_and(|y| y[e].f64() <= 0.0) { 0.0 } else { dy[e].f64() }
    }

    /// dgamma, dbeta, mean, rstd: (C), dy, y, x: (M, C)
    pub fn sums<T: Real>(
        dgamma: &mut [T],
        dbeta: &mut [T],
        dy: &[T],
        y: Option<&[T]>,
        x: &[T],
        mean: &[T],
        rstd: &[T],
    ) {
        let c = mean.len();
        for j in 0..c {
            let (mut g, mut b) = (0.0, 0.0);
            for e in (j..x.len()).step_by(c) {
                let dz = dz(dy, y, e);
                b += dz;
                g += dz * (x[e].f64() - mean[j].f64()) * rstd[j].f64();
            }
            (dgamma[j], dbeta[j]) = (T::of(g), T::of(b));
        }
    }

    /// dx, dres, dy, y, x: (M, C), then μ, σ⁻¹, γ, dγ, dβ: (C)
    pub fn backward<T: Real>(
        dx: &mut [T],
        mut dres: Option<&mut [T]>,
        dy: &[T],
        y: Option<&[T]>,
        x: &[T],
        a: [&[T]; 5],
        inverse: f64,
    ) {
        let c = a[0].len();
        for (e, dx) in dx.iter_mut().enumerate() {
            let [mean, rstd, gamma, dgamma, dbeta] = a.map(|a| a[e % c].f64());
            let dz = dz(dy, y, e);
            *dx = T::of(gamma * rstd * (dz - inverse * (dbeta + (x[e].f64() - mean) * rstd * dgamma)));
            if let Some(dres) = &mut dres {
                dres[e] = T::of(dz);
            }
        }
    }
}

/// The same in f32 over rows repeated side by side, so that few channels fill the registers too.
mod fast {
    use rayon::prelude::*;

    use crate::device::simd::mul_add;

    /// Floats side by side: a multiple of any vector's width, small enough for the first-level cache.
    const WIDE: usize = 256;
    /// Floats of one task.
    const TASK: usize = 1 << 15;

    /// Floats of whole rows side by side.
    fn width(c: usize) -> usize {
        (WIDE / c).max(1) * c
    }

    /// Floats of one task: whole repetitions of `width`.
    fn task(c: usize) -> usize {
        (TASK / width(c)).max(1) * width(c)
    }

    /// f(j) for the channels, repeated over the width.
    fn repeat(c: usize, f: impl Fn(usize) -> f32) -> Vec<f32> {
        (0..width(c)).map(|i| f(i % c)).collect()
    }

    /// Σ over tasks in order, in f64, of the two halves of each part folded to C channels.
    fn fold(parts: &[f32], c: usize) -> Vec<[f64; 2]> {
        let w = width(c);
        let mut sums = vec![[0.0; 2]; c];
        for part in parts.chunks_exact(2 * w) {
            for (half, part) in part.chunks_exact(w).enumerate() {
                for (i, v) in part.iter().enumerate() {
                    sums[i % c][half] += f64::from(*v);
                }
            }
        }
        sums
    }

    pub fn moments(mean: &mut [f32], rstd: &mut [f32], var: &mut [f32], x: &[f32], eps: f32) {
        let c = mean.len();
        let m = (x.len() / c) as f64;
        let shift = repeat(c, |j| x[j]);
        let mut parts = vec![0.0; x.len().div_ceil(task(c)) * 2 * width(c)];
        parts.par_chunks_exact_mut(2 * width(c)).zip(x.par_chunks(task(c))).for_each(|(p, x)| {
            let (a, b) = p.split_at_mut(width(c));
            stats_task(a, b, x, &shift);
        });
        for (j, [a, b]) in fold(&parts, c).into_iter().enumerate() {
            let d = a / m;
            let squares = (b - d * a).max(0.0);
            mean[j] = (f64::from(x[j]) + d) as f32;
            rstd[j] = (1.0 / (squares / m + f64::from(eps)).sqrt()) as f32;
            var[j] = (squares / (m - 1.0).max(1.0)) as f32;
        }
    }

    crate::simd! {
        fn stats_task(a: &mut [f32], b: &mut [f32], x: &[f32], shift: &[f32]) {
            for x in x.chunks(shift.len()) {
                for (((a, b), x), s) in a.iter_mut().zip(b.iter_mut()).zip(x).zip(shift) {
                    let d = x - s;
                    *a += d;
                    *b = mul_add::<FMA>(d, d, *b);
                }
            }
        }
    }

    pub fn forward(y: &mut [f32], x: &[f32], [mean, rstd, gamma, beta]: [&[f32]; 4], r: Option<&[f32]>, relu: bool) {
        let c = mean.len().max(1);
        let scale = repeat(c, |j| rstd[j] * gamma[j]);
        let shift = repeat(c, |j| beta[j] - mean[j] * rstd[j] * gamma[j]);
        let t = task(c);
        y.par_chunks_mut(t).zip(x.par_chunks(t)).enumerate().for_each(|(i, (y, x))| {
            let r = r.map_or(&[][..], |r| &r[i * t..][..y.len()]);
            match (r.is_empty(), relu) {
                (true, true) => forward_task::<false, true>(y, x, r, &scale, &shift),
                (true, false) => forward_task::<false, false>(y, x, r, &scale, &shift),
                (false, true) => forward_task::<true, true>(y, x, r, &scale, &shift),
                (false, false) => forward_task::<true, false>(y, x, r, &scale, &shift),
            }
        });
    }

    crate::simd! {
        fn forward_task<const RES: bool, const RELU: bool>(
            y: &mut [f32], x: &[f32], r: &[f32], scale: &[f32], shift: &[f32],
        ) {
            let w = scale.len();
            for (i, (y, x)) in y.chunks_mut(w).zip(x.chunks(w)).enumerate() {
                let r = if RES { &r[i * w..][..y.len()] } else { x };
                for ((((y, x), r), a), b) in y.iter_mut().zip(x).zip(r).zip(scale).zip(shift) {
                    let mut z = mul_add::<FMA>(*x, *a, *b);
                    if RES {
                        z += r;
                    }
                    *y = if RELU && z < 0.0 { 0.0 } else { z };
                }
            }
        }
    }

    pub fn sums(
        dgamma: &mut [f32],
        dbeta: &mut [f32],
        dy: &[f32],
        y: Option<&[f32]>,
        x: &[f32],
        mean: &[f32],
        rstd: &[f32],
    ) {
        let (c, t) = (mean.len(), task(mean.len()));
        let mu = repeat(c, |j| mean[j]);
        let mut parts = vec![0.0; x.len().div_ceil(t) * 2 * width(c)];
        let tasks = parts.par_chunks_exact_mut(2 * width(c)).zip(dy.par_chunks(t)).zip(x.par_chunks(t));
        tasks.enumerate().for_each(|(i, ((p, dy), x))| {
            let (a, b) = p.split_at_mut(width(c));
            match y {
                Some(y) => sums_task::<true>(a, b, dy, &y[i * t..][..x.len()], x, &mu),
                None => sums_task::<false>(a, b, dy, dy, x, &mu),
            }
        });
        for (j, [a, b]) in fold(&parts, c).into_iter().enumerate() {
            dbeta[j] = a as f32;
            dgamma[j] = (b * f64::from(rstd[j])) as f32;
        }
    }

    crate::simd! {
        fn sums_task<const RELU: bool>(a: &mut [f32], b: &mut [f32], dy: &[f32], y: &[f32], x: &[f32], mean: &[f32]) {
            let w = mean.len();
            for ((dy, y), x) in dy.chunks(w).zip(y.chunks(w)).zip(x.chunks(w)) {
                for (((((a, b), dy), y), x), mu) in a.iter_mut().zip(b.iter_mut()).zip(dy).zip(y).zip(x).zip(mean) {
                    let dz = if RELU && *y <= 0.0 { 0.0 } else { *dy };
                    *a += dz;
                    *b = mul_add::<FMA>(dz, x - mu, *b);
                }
            }
        }
    }

    pub fn backward(
        dx: &mut [f32],
        dz: Option<&mut [f32]>,
        dy: &[f32],
        y: Option<&[f32]>,
        x: &[f32],
        [mean, rstd, gamma, dgamma, dbeta]: [&[f32]; 5],
        inverse: f32,
    ) {
        let c = mean.len().max(1);
        // dx = p dz + q x + s
        let p = repeat(c, |j| gamma[j] * rstd[j]);
        let q = repeat(c, |j| -gamma[j] * rstd[j] * rstd[j] * dgamma[j] * inverse);
        let s = repeat(c, |j| gamma[j] * rstd[j] * (mean[j] * rstd[j] * dgamma[j] - dbeta[j]) * inverse);
        let t = task(c);
        let one = |i: usize, dx: &mut [f32], dz: &mut [f32]| {
            let (dy, x) = (&dy[i * t..][..dx.len()], &x[i * t..][..dx.len()]);
            let mask = y.map_or(dy, |y| &y[i * t..][..dx.len()]);
            match (y.is_some(), dz.is_empty()) {
                (true, true) => backward_task::<true, false>(dx, dz, dy, mask, x, &p, &q, &s),
                (true, false) => backward_task::<true, true>(dx, dz, dy, mask, x, &p, &q, &s),
                (false, true) => backward_task::<false, false>(dx, dz, dy, mask, x, &p, &q, &s),
                (false, false) => backward_task::<false, true>(dx, dz, dy, mask, x, &p, &q, &s),
            }
        };
        match dz {
            None => dx.par_chunks_mut(t).enumerate().for_each(|(i, dx)| one(i, dx, &mut [])),
            Some(dz) => {
                dx.par_chunks_mut(t).zip(dz.par_chunks_mut(t)).enumerate().for_each(|(i, (dx, dz))| one(i, dx, dz));
            }
        }
    }

    crate::simd! {
        fn backward_task<const RELU: bool, const RES: bool>(
            dx: &mut [f32], dz: &mut [f32], dy: &[f32], y: &[f32], x: &[f32], p: &[f32], q: &[f32], s: &[f32],
        ) {
            let w = p.len();
            for (i, (((dx, dy), y), x)) in dx.chunks_mut(w).zip(dy.chunks(w)).zip(y.chunks(w)).zip(x.chunks(w)).enumerate() {
                if RES {
                    for ((dz, dy), y) in dz[i * w..][..dx.len()].iter_mut().zip(dy).zip(y) {
                        *dz = if RELU && *y <= 0.0 { 0.0 } else { *dy };
                    }
                }
                for ((((((dx, dy), y), x), p), q), s) in dx.iter_mut().zip(dy).zip(y).zip(x).zip(p).zip(q).zip(s) {
                    let dz = if RELU && *y <= 0.0 { 0.0 } else { *dy };
                    *dx = mul_add::<FMA>(*p, dz, mul_add::<FMA>(*q, *x, *s));
                }
            }
        }
    }
}

const EPS: f32 = 1e-5;

/// Training, with everything `then` that the inputs allow: x, γ, β (, residual).
fn train(x: &[Tensor], relu: bool) -> Result<Tensor> {
    Ok(batch_norm(&x[0], None, &x[1], &x[2], EPS, Then { residual: x.get(3), relu })?.0)
}

/// Evaluation: x, γ, β, mean, var (, residual).
fn eval(x: &[Tensor], relu: bool) -> Result<Tensor> {
    let stats = BatchStats { mean: x[3].clone(), var: x[4].clone() };
    batch_norm_eval(&x[0], &x[1], &x[2], &stats, EPS, Then { residual: x.get(5), relu })
}

macro_rules! case {
    ($name:literal, $m:expr, $c:literal, [$($d:literal),*], $run:expr $(, $more:expr)*) => {
        Case {
            name: $name,
            inputs: &[
                Arg::Diff(&[$($d),*], -2.0, 2.0),
                Arg::Diff(&[$c], 0.5, 1.5),
                Arg::Diff(&[$c], -0.5, 0.5)
                $(, $more)*
            ],
            run: $run,
            sum: $m,
            flops: 8 * $m * $c,
            bytes: 4 * 2 * $m * $c,
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("batch_norm/3x3x2x5", 18, 5, [3, 3, 2, 5], |x| train(x, false)),
    case!("batch_norm/4x1", 4, 1, [4, 1], |x| train(x, false)),
    case!("batch_norm_relu/7x9", 7, 9, [7, 9], |x| train(x, true)),
    case!(
        "batch_norm_add_relu/2x3x3x16",
        18,
        16,
        [2, 3, 3, 16],
        |x| train(x, true),
        Arg::Diff(&[2, 3, 3, 16], -2.0, 2.0)
    ),
    case!("batch_norm_add/5x3", 5, 3, [5, 3], |x| train(x, false), Arg::Diff(&[5, 3], -2.0, 2.0)),
    case!(
        "batch_norm_eval/4x6",
        4,
        6,
        [4, 6],
        |x| eval(x, false),
        Arg::Fixed(&[6], -1.0, 1.0),
        Arg::Fixed(&[6], 0.5, 2.0)
    ),
    case!(
        "batch_norm_eval_add_relu/2x2x2x8",
        8,
        8,
        [2, 2, 2, 8],
        |x| eval(x, true),
        Arg::Fixed(&[8], -1.0, 1.0),
        Arg::Fixed(&[8], 0.5, 2.0),
        Arg::Diff(&[2, 2, 2, 8], -2.0, 2.0)
    ),
];

/// Real shapes, for device agreement and benchmarks.
pub(super) const LARGE: &[Case] = &[
    case!(
        "batch_norm_add_relu/4x32x32x16",
        4096,
        16,
        [4, 32, 32, 16],
        |x| train(x, true),
        Arg::Diff(&[4, 32, 32, 16], -2.0, 2.0)
    ),
    case!("batch_norm_relu/3x16x16x33", 768, 33, [3, 16, 16, 33], |x| train(x, true)),
    case!("batch_norm/2x4x4x300", 32, 300, [2, 4, 4, 300], |x| train(x, false)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_batch() {
        // A mean far from zero: a naive variance would lose all its digits.
        let x: Vec<f32> = (0..600).map(|i| 1000.0 + (i % 3) as f32 * 0.5 + (i % 2) as f32).collect();
        let t = Tensor::new(&Device::Cpu, [200, 3], &x).unwrap();
        let one = Tensor::new(&Device::Cpu, [3], &[1.0f32; 3]).unwrap();
        let (y, stats) = batch_norm(&t, None, &one, &one, EPS, Then::default()).unwrap();
        let (mean, var) = (stats.mean.to_vec::<f32>().unwrap(), stats.var.to_vec::<f32>().unwrap());
        for j in 0..3 {
            assert!((f64::from(mean[j]) - (1000.5 + 0.5 * j as f64)).abs() < 1e-3, "{mean:?}");
            assert!((f64::from(var[j]) - 0.25 * 200.0 / 199.0).abs() < 1e-4, "{var:?}");
        }
        let y = y.to_vec::<f32>().unwrap();
        assert!(y.iter().all(|v| (v - 2.0).abs() < 1e-3 || v.abs() < 1e-3), "{:?}", &y[..6]);
        let mut running = Buf::from_host(&Device::Cpu, &[0.0f32, 1.0, 2.0, 4.0, 9.0]).unwrap();
        let of = |v: [f32; 2]| Tensor::new(&Device::Cpu, [2], &v).unwrap();
        let batch = BatchStats { mean: of([10.0, 1.0]), var: of([0.0, 14.0]) };
        batch_norm_update(&mut running, [0, 2], &batch, &Device::Cpu, 0.1).unwrap();
        assert_eq!(running.to_host().unwrap(), [1.0, 1.0, 1.8, 5.0, 9.0]);
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let t = |s: &[usize]| Tensor::zeros(&Device::Cpu, s, Dtype::F32).unwrap();
        let c = t(&[3]);
        assert!(batch_norm(&t(&[2, 3]), None, &c, &t(&[2]), EPS, Then::default()).is_err());
        assert!(batch_norm(&t(&[0, 3]), None, &c, &c, EPS, Then::default()).is_err());
        let r = t(&[3, 3]);
        assert!(batch_norm(&t(&[2, 3]), None, &c, &c, EPS, Then { residual: Some(&r), relu: false }).is_err());
    }
}
