//! Max pooling: y[n][p][q][c] = max over r, s of x[n][p·stride − pad + r][q·stride − pad + s][c], with −∞ outside of x.
//! x: (N, H, W, C), y: (N, P, Q, C), P = ⌊(H + 2 pad − size) / stride⌋ + 1 and Q likewise.
//!
//! Backward: dx gets dy where the maximum was. A tie goes to the first in row-major order and a NaN wins, as in
//! PyTorch.
//!
//! Average pooling: y[n][p][q][c] = Σ_{r,s < size} x[n][p·size + r][q·size + s][c] / size², windows side by side. Backward:
//! dx = dy / size² in the window, 0 in a last row or column that is in none.

use super::{Arg, Case, rounded, scale};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Buf, Dtype, Real, Tensor};
use crate::{Error, Result, on_real, on_stored};

/// Window, step and border of a pooling; squares only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Rows and columns of the window, at most 16 for a maximum.
    pub size: usize,
    /// Rows and columns from one window to the next.
    pub stride: usize,
    /// Rows and columns of −∞ around the image, below `size`.
    pub pad: usize,
}

impl Pool {
    /// Windows side by side, no border.
    pub fn square(size: usize) -> Pool {
        Pool { size, stride: size, pad: 0 }
    }
}

/// The maximum of every window: (N, H, W, C) → (N, P, Q, C).
pub fn max_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    if x.is_rounded() {
        return rounded([x], |[x]| max_pool2d(x, pool));
    }
    let g = Geometry::new(x, pool, 16)?;
    let (y, at) = max_pool2d_fwd(x, g)?;
    Ok(y.with_grad("max_pool2d", &[x], move |dy, need| Ok(vec![need.then(0, || max_pool2d_bwd(dy, &at, g))?])))
}

/// The mean of every size × size window, side by side: (N, H, W, C) → (N, ⌊H / size⌋, ⌊W / size⌋, C).
pub fn avg_pool2d(x: &Tensor, size: usize) -> Result<Tensor> {
    if x.is_rounded() {
        return rounded([x], |[x]| avg_pool2d(x, size));
    }
    let g = Geometry::new(x, Pool::square(size), usize::MAX)?;
    let y = avg_pool2d_fwd(x, g)?;
    Ok(y.with_grad("avg_pool2d", &[x], move |dy, need| Ok(vec![need.then(0, || avg_pool2d_bwd(dy, g))?])))
}

/// All sizes of one pooling.
#[derive(Clone, Copy)]
struct Geometry {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    p: usize,
    q: usize,
    pool: Pool,
}

impl Geometry {
    /// `largest`: the largest window.
    fn new(x: &Tensor, pool: Pool, largest: usize) -> Result<Geometry> {
        let [n, h, w, c] = x.shape().nhwc("max_pool2d")?;
        let Pool { size, stride, pad } = pool;
        if !(1..=largest).contains(&size) || stride == 0 || pad >= size {
            let why = format!("{pool:?}: wants 1 to {largest} for the size, a stride above 0 and a pad below the size");
            return Err(Error::Config { key: "max_pool2d".into(), why });
        }
        if h.min(w) + 2 * pad < size {
            return Err(x
                .shape()
                .refuse("max_pool2d", format!("images of at least {} rows and columns", size - 2 * pad)));
        }
        let out = |len: usize| (len + 2 * pad - size) / stride + 1;
        Ok(Geometry { n, h, w, c, p: out(h), q: out(w), pool })
    }

    /// Elements of one input image.
    fn image(&self) -> usize {
        self.h * self.w * self.c
    }

    /// Elements of one output image.
    fn pooled(&self) -> usize {
        self.p * self.q * self.c
    }

    /// Where windows lie side by side and their rows are all rows of the images, a GPU's block takes whole rows of
    /// windows: all of them, and those of a block. None where too few fit.
    fn together(&self) -> Option<(Launch, [i32; 2])> {
        let Pool { size, stride, pad } = self.pool;
        let (rows, wide, out) = (self.n * self.p, size * self.w * self.c, self.q * self.c);
        // As many as make whole sectors of every array, down to the bytes, and an output for each thread.
        let least = (1..=32).find(|rows| (rows * out).is_multiple_of(32) && (rows * wide).is_multiple_of(32))?;
        let per = least * 256usize.div_ceil((out * least).max(1));
        let fits = size == stride && pad == 0 && self.h == self.p * size && per * wide <= POOL_TILE;
        fits.then(|| (Launch::grid(rows.div_ceil(per), 1, 1, 256), [rows as i32, per as i32]))
    }

    /// True for the pooling that has vectorised code.
    fn is_fast(&self, dtype: Dtype) -> bool {
        dtype == Dtype::F32 && self.pool == Pool::square(2) && self.c >= fast::LANES
    }
}

/// Elements of a block's rows; the same number in kernels/pool.cu.
const POOL_TILE: usize = 4096;

fn max_pool2d_fwd(x: &Tensor, g: Geometry) -> Result<(Tensor, Buf<u8>)> {
    let op = "max_pool2d";
    let mut y = x.stale_like([g.n, g.p, g.q, g.c])?;
    let mut at = Buf::<u8>::stale(x.device(), y.len())?;
    match x.device() {
        Device::Cpu if g.is_fast(x.dtype()) => {
            cpu::fwd(y.host_mut(op)?, at.host_mut(op)?, x.host::<f32>(op)?, g, fast::image_fwd);
        }
        Device::Cpu => on_real!(op, x, T => {
            cpu::fwd(y.host_mut::<T>(op)?, at.host_mut(op)?, x.host::<T>(op)?, g, cpu::image_fwd);
            Ok(())
        })?,
        Device::Cuda(cuda) => on_stored!(op, x, S => {
            let (m, [h, w, c, p, q]) = (y.len(), [g.h, g.w, g.c, g.p, g.q].map(|v| v as i32));
            let [size, stride, pad] = [g.pool.size, g.pool.stride, g.pool.pad].map(|v| v as i32);
            let (l, y, x) = (Launch::elements(m), y.buf_mut::<S>(op)?, x.buf(op)?);
            if let Some((l, [rows, per])) = g.together() {
                launch::max_pool2d_side_fwd(cuda, l, y, &mut at, x, rows, per, w, c, q, size)
            } else {
                launch::max_pool2d_fwd(cuda, l, y, &mut at, x, m as i32, h, w, c, p, q, size, stride, pad)
            }
        })?,
    }
    Ok((y, at))
}

fn max_pool2d_bwd(dy: &Tensor, at: &Buf<u8>, g: Geometry) -> Result<Tensor> {
    let op = "max_pool2d_bwd";
    let mut dx = dy.stale_like([g.n, g.h, g.w, g.c])?;
    match dy.device() {
        Device::Cpu if g.is_fast(dy.dtype()) => {
            cpu::bwd(dx.host_mut(op)?, dy.host::<f32>(op)?, at.host(op)?, g, fast::image_bwd);
        }
        Device::Cpu => on_real!(op, dy, T => {
            cpu::bwd(dx.host_mut::<T>(op)?, dy.host::<T>(op)?, at.host(op)?, g, cpu::image_bwd);
            Ok(())
        })?,
        Device::Cuda(cuda) => on_stored!(op, dy, S => {
            let (m, [h, w, c, p, q]) = (dx.len(), [g.h, g.w, g.c, g.p, g.q].map(|v| v as i32));
            let [size, stride, pad] = [g.pool.size, g.pool.stride, g.pool.pad].map(|v| v as i32);
            let (l, dx, dy) = (Launch::elements(m), dx.buf_mut::<S>(op)?, dy.buf(op)?);
            if let Some((l, [rows, per])) = g.together() {
                launch::max_pool2d_side_bwd(cuda, l, dx, dy, at, rows, per, w, c, q, size)
            } else {
                launch::max_pool2d_bwd(cuda, l, dx, dy, at, m as i32, h, w, c, p, q, size, stride, pad)
            }
        })?,
    }
    Ok(dx)
}

fn avg_pool2d_fwd(x: &Tensor, g: Geometry) -> Result<Tensor> {
    let op = "avg_pool2d";
    let mut y = x.stale_like([g.n, g.p, g.q, g.c])?;
    match x.device() {
        Device::Cpu => on_real!(op, x, T => {
            cpu::avg_fwd(y.host_mut::<T>(op)?, x.host::<T>(op)?, g);
            Ok(())
        })?,
        Device::Cuda(cuda) => on_stored!(op, x, S => {
            let (m, [h, w, c, p, q, size]) = (y.len(), [g.h, g.w, g.c, g.p, g.q, g.pool.size].map(|v| v as i32));
            let (l, y, x) = (Launch::elements(m), y.buf_mut::<S>(op)?, x.buf(op)?);
            launch::avg_pool2d_fwd(cuda, l, y, x, m as i32, h, w, c, p, q, size)
        })?,
    }
    Ok(y)
}

fn avg_pool2d_bwd(dy: &Tensor, g: Geometry) -> Result<Tensor> {
    let op = "avg_pool2d_bwd";
    let mut dx = dy.stale_like([g.n, g.h, g.w, g.c])?;
    match dy.device() {
        Device::Cpu => on_real!(op, dy, T => {
            cpu::avg_bwd(dx.host_mut::<T>(op)?, dy.host::<T>(op)?, g);
            Ok(())
        })?,
        Device::Cuda(cuda) => on_stored!(op, dy, S => {
            let (m, [h, w, c, p, q, size]) = (dx.len(), [g.h, g.w, g.c, g.p, g.q, g.pool.size].map(|v| v as i32));
            let (l, dx, dy) = (Launch::elements(m), dx.buf_mut::<S>(op)?, dy.buf(op)?);
            launch::avg_pool2d_bwd(cuda, l, dx, dy, m as i32, h, w, c, p, q, size)
        })?,
    }
    Ok(dx)
}

mod cpu {
    use rayon::prelude::*;

    use crate::device::cpu as threads;

    use super::{Geometry, Real};

    /// Elements of one task.
    const TASK: usize = 1 << 15;

    /// Images of one task; depends on the sizes only.
    fn images(g: Geometry) -> usize {
        (TASK / g.image().max(1)).max(1)
    }

    /// `f` on every image.   y, at: (N, P, Q, C), x: (N, H, W, C)
    pub fn fwd<T: Real>(
        y: &mut [T],
        at: &mut [u8],
        x: &[T],
        g: Geometry,
        f: impl Fn(&mut [T], &mut [u8], &[T], Geometry) + Sync,
    ) {
        let (image, pooled) = (g.image(), g.pooled());
        if y.is_empty() {
            return;
        }
        let task = |((y, at), x): ((&mut [T], &mut [u8]), &[T])| {
            let outputs = y.chunks_exact_mut(pooled).zip(at.chunks_exact_mut(pooled));
            outputs.zip(x.chunks_exact(image)).for_each(|((y, at), x)| f(y, at, x, g));
        };
        let k = images(g);
        if k >= g.n {
            return task(((y, at), x));
        }
        y.par_chunks_mut(k * pooled).zip(at.par_chunks_mut(k * pooled)).zip(x.par_chunks(k * image)).for_each(task);
    }

    /// `f` on every image.   dx: (N, H, W, C), dy, at: (N, P, Q, C)
    pub fn bwd<T: Real>(
        dx: &mut [T],
        dy: &[T],
        at: &[u8],
        g: Geometry,
        f: impl Fn(&mut [T], &[T], &[u8], Geometry) + Sync,
    ) {
        let (image, pooled) = (g.image(), g.pooled());
        if dx.is_empty() {
            return;
        }
        let task = |((dx, dy), at): ((&mut [T], &[T]), &[u8])| {
            let inputs = dy.chunks_exact(pooled).zip(at.chunks_exact(pooled));
            dx.chunks_exact_mut(image).zip(inputs).for_each(|(dx, (dy, at))| f(dx, dy, at, g));
        };
        let k = images(g);
        if k >= g.n {
            return task(((dx, dy), at));
        }
        dx.par_chunks_mut(k * image).zip(dy.par_chunks(k * pooled)).zip(at.par_chunks(k * pooled)).for_each(task);
    }

    /// One image.   y, at: (P, Q, C), x: (H, W, C)
    pub fn image_fwd<T: Real>(y: &mut [T], at: &mut [u8], x: &[T], g: Geometry) {
        let c = g.c;
        for (window, (y, at)) in y.chunks_exact_mut(c).zip(at.chunks_exact_mut(c)).enumerate() {
            let mut first = true;
            inside(g, window, |position, pixel| {
                for ((y, at), x) in y.iter_mut().zip(at.iter_mut()).zip(&x[pixel * c..][..c]) {
                    if first || x.f64() > y.f64() || x.f64().is_nan() {
                        (*y, *at) = (*x, position);
                    }
                }
                first = false;
            });
        }
    }

    /// One image.   dx: (H, W, C), dy, at: (P, Q, C)
    pub fn image_bwd<T: Real>(dx: &mut [T], dy: &[T], at: &[u8], g: Geometry) {
        let c = g.c;
        dx.fill(T::default());
        for (window, (dy, at)) in dy.chunks_exact(c).zip(at.chunks_exact(c)).enumerate() {
            inside(g, window, |position, pixel| {
                for ((dx, dy), at) in dx[pixel * c..][..c].iter_mut().zip(dy).zip(at) {
                    if *at == position {
                        *dx = T::of(dx.f64() + dy.f64());
                    }
                }
            });
        }
    }

    /// y: (N, P, Q, C), x: (N, H, W, C)
    pub fn avg_fwd<T: Real>(y: &mut [T], x: &[T], g: Geometry) {
        let (c, area) = (g.c.max(1), (g.pool.size * g.pool.size) as f64);
        threads::chunks(y, c, |at, y| {
            let mut sums = vec![0.0; c];
            for (window, y) in (at / c..).zip(y.chunks_exact_mut(c)) {
                sums.fill(0.0);
                let image = &x[window / (g.p * g.q) * g.image()..];
                inside(g, window % (g.p * g.q), |_, pixel| {
                    sums.iter_mut().zip(&image[pixel * c..]).for_each(|(s, x)| *s += x.f64());
                });
                y.iter_mut().zip(&sums).for_each(|(y, s)| *y = T::of(s / area));
            }
        });
    }

    /// dx: (N, H, W, C), dy: (N, P, Q, C)
    pub fn avg_bwd<T: Real>(dx: &mut [T], dy: &[T], g: Geometry) {
        let (c, size) = (g.c.max(1), g.pool.size);
        let area = (size * size) as f64;
        threads::chunks(dx, c, |at, dx| {
            for (pixel, dx) in (at / c..).zip(dx.chunks_exact_mut(c)) {
                let (q, p, n) = (pixel % g.w / size, pixel / g.w % g.h / size, pixel / g.w / g.h);
                if p >= g.p || q >= g.q {
                    dx.fill(T::default());
                    continue;
                }
                let dy = &dy[((n * g.p + p) * g.q + q) * c..];
                dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = T::of(dy.f64() / area));
            }
        });
    }

    /// `f(position in the window, pixel of the image)` for the part of a window that is inside, row by row.
    fn inside(g: Geometry, window: usize, mut f: impl FnMut(u8, usize)) {
        let s = g.pool;
        let (top, left) = (window / g.q * s.stride, window % g.q * s.stride);
        for r in 0..s.size {
            for q in 0..s.size {
                let (i, j) = ((top + r).wrapping_sub(s.pad), (left + q).wrapping_sub(s.pad));
                if i < g.h && j < g.w {
                    f((r * s.size + q) as u8, i * g.w + j);
                }
            }
        }
    }
}

/// Windows of 2×2 side by side, f32. Channels are taken eight at a time and the last eight overlap the ones before,
/// so 10 and 20 channels need no remainder; writing the same value twice does no harm.
mod fast {
    use super::Geometry;

    /// Channels taken together; fewer have no fast path.
    pub const LANES: usize = 8;

    type Lanes = [f32; LANES];

    /// Eight channels at `i`.
    #[inline(always)]
    fn get(x: &[f32], i: usize) -> Lanes {
        let mut v = [0.0; LANES];
        v.copy_from_slice(&x[i..i + LANES]);
        v
    }

    crate::simd! {
        /// One image.   y, at: (P, Q, C), x: (H, W, C)
        pub fn image_fwd(y: &mut [f32], at: &mut [u8], x: &[f32], g: Geometry) {
            let (row, c) = (g.w * g.c, g.c);
            let outputs = y.chunks_exact_mut(g.q * c).zip(at.chunks_exact_mut(g.q * c));
            for ((y, at), x) in outputs.zip(x.chunks_exact(2 * row)) {
                let (upper, lower) = x.split_at(row);
                for q in 0..g.q {
                    let mut j = 0;
                    while j < c {
                        let ch = j.min(c - LANES);
                        let (o, i) = (q * c + ch, 2 * q * c + ch);
                        let mut best = get(upper, i);
                        let mut position = [0u8; LANES];
                        for (k, v) in [get(upper, i + c), get(lower, i), get(lower, i + c)].into_iter().enumerate() {
                            for l in 0..LANES {
                                // Without `||`, which would be a branch.
                                let wins = (v[l] > best[l]) | v[l].is_nan();
                                best[l] = if wins { v[l] } else { best[l] };
                                position[l] = if wins { k as u8 + 1 } else { position[l] };
                            }
                        }
                        y[o..o + LANES].copy_from_slice(&best);
                        at[o..o + LANES].copy_from_slice(&position);
                        j += LANES;
                    }
                }
            }
        }
    }

    crate::simd! {
        /// One image. Every input is in at most one window, so it is written once, zeros included.
        ///   dx: (H, W, C), dy, at: (P, Q, C)
        pub fn image_bwd(dx: &mut [f32], dy: &[f32], at: &[u8], g: Geometry) {
            let (row, c) = (g.w * g.c, g.c);
            let rows = dx.chunks_mut(2 * row);
            let mut inputs = dy.chunks_exact(g.q * c).zip(at.chunks_exact(g.q * c));
            for dx in rows {
                // A last row or column without a partner is in no window.
                let Some((dy, at)) = inputs.next() else {
                    dx.fill(0.0);
                    continue;
                };
                let (upper, lower) = dx.split_at_mut(row);
                for q in 0..g.q {
                    let mut j = 0;
                    while j < c {
                        let ch = j.min(c - LANES);
                        let (o, i) = (q * c + ch, 2 * q * c + ch);
                        let v = get(dy, o);
                        let mut position = [0u8; LANES];
                        position.copy_from_slice(&at[o..o + LANES]);
                        for k in 0..4 {
                            let mut d = [0.0f32; LANES];
                            for l in 0..LANES {
                                d[l] = if position[l] == k as u8 { v[l] } else { 0.0 };
                            }
                            let line = if k < 2 { &mut *upper } else { &mut *lower };
                            let i = i + k % 2 * c;
                            line[i..i + LANES].copy_from_slice(&d);
                        }
                        j += LANES;
                    }
                }
                upper[2 * g.q * c..].fill(0.0);
                lower[2 * g.q * c..].fill(0.0);
            }
        }
    }
}

macro_rules! case {
    ($name:literal, [$($d:literal),*], $pool:expr, $sum:expr, $out:expr) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$($d),*], -2.0, 2.0)],
            run: |x| max_pool2d(&x[0], $pool),
            sum: $sum,
            flops: 1 $(* $d)*,
            bytes: 4 $(* $d)* + 5 * $out,
        }
    };
}

const OVERLAP: Pool = Pool { size: 3, stride: 2, pad: 1 };

macro_rules! avg_case {
    ($name:literal, [$n:literal, $h:literal, $w:literal, $c:literal], $size:literal) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$n, $h, $w, $c], -2.0, 2.0)],
            run: |x| avg_pool2d(&x[0], $size),
            sum: $size * $size,
            flops: $n * $h * $w * $c,
            bytes: 4 * $n * $c * ($h * $w + ($h / $size) * ($w / $size)),
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("max_pool2d/1x1x1x1", [1, 1, 1, 1], Pool::square(1), 1, 1),
    case!("max_pool2d/2x4x4x10", [2, 4, 4, 10], Pool::square(2), 1, 80),
    case!("max_pool2d/1x5x3x20", [1, 5, 3, 20], Pool::square(2), 1, 40),
    case!("max_pool2d/2x6x6x3", [2, 6, 6, 3], Pool::square(2), 1, 54),
    case!("max_pool2d/2x7x5x4/3s2p1", [2, 7, 5, 4], OVERLAP, 4, 96),
    case!("max_pool2d/1x3x3x33/3s1p2", [1, 3, 3, 33], Pool { size: 3, stride: 1, pad: 2 }, 9, 825),
    case!("max_pool2d/1x7x7x3/2s3", [1, 7, 7, 3], Pool { size: 2, stride: 3, pad: 0 }, 1, 12),
    case!("max_pool2d/0x4x4x10", [0, 4, 4, 10], Pool::square(2), 1, 0),
    avg_case!("avg_pool2d/2x4x4x5", [2, 4, 4, 5], 4),
    avg_case!("avg_pool2d/1x5x7x3", [1, 5, 7, 3], 2),
];

/// Real sizes, too large for a gradient check: device agreement and benchmarks.
pub(super) const LARGE: &[Case] = &[
    case!("max_pool2d/128x24x24x10", [128, 24, 24, 10], Pool::square(2), 1, 184320),
    case!("max_pool2d/128x8x8x20", [128, 8, 8, 20], Pool::square(2), 1, 40960),
    case!("max_pool2d/70x6x5x8", [70, 6, 5, 8], Pool::square(2), 1, 3360),
    case!("max_pool2d/9x6x7x4/3s3", [9, 6, 7, 4], Pool::square(3), 1, 144),
    case!("max_pool2d/3x33x31x17/3s2p1", [3, 33, 31, 17], OVERLAP, 4, 13872),
    avg_case!("avg_pool2d/64x4x4x128", [64, 4, 4, 128], 4),
    // The whole map, times its area: gradients of a mean would be as small as their tolerance.
    Case {
        name: "global_avg/8x32x32x16",
        inputs: &[Arg::Diff(&[8, 32, 32, 16], -2.0, 2.0)],
        run: |x| scale(&avg_pool2d(&x[0], 32)?, 1024.0),
        sum: 1024,
        flops: 8 * 32 * 32 * 16,
        bytes: 4 * 8 * 16 * (32 * 32 + 1),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(x: &[f32], shape: [usize; 4], pool: Pool) -> (Vec<f32>, Vec<f32>) {
        let x = Tensor::new(&Device::Cpu, shape, x).unwrap().tracked();
        let y = max_pool2d(&x, pool).unwrap();
        let dy: Vec<f32> = (1..=y.len()).map(|v| v as f32).collect();
        let dy = Tensor::new(&Device::Cpu, y.shape().clone(), &dy).unwrap();
        let g = y.grad_from(&dy, &[&x]).unwrap();
        (y.to_vec().unwrap(), g.of(&x).unwrap().to_vec().unwrap())
    }

    #[test]
    fn ties_take_the_first_and_a_nan_wins() {
        // Eight channels take the fast path, one the plain one.
        for c in [1, 8] {
            let spread = |v: [f32; 4]| v.iter().flat_map(|v| vec![*v; c]).collect::<Vec<_>>();
            for (v, at) in [
                ([5.0, 5.0, 5.0, 5.0], 0),
                ([1.0, 5.0, 5.0, 2.0], 1),
                ([f32::NEG_INFINITY; 4], 0),
                ([1.0, 2.0, f32::NAN, 3.0], 2),
                ([f32::NAN, 2.0, 1.0, 3.0], 0),
                ([1.0, 2.0, 1.0, 3.0], 3),
            ] {
                let (y, dx) = pooled(&spread(v), [1, 2, 2, c], Pool::square(2));
                assert!(y.iter().all(|y| y.to_bits() == v[at].to_bits()), "{v:?}: {y:?}");
                for (p, dx) in dx.chunks_exact(c).enumerate() {
                    assert!(dx.iter().all(|d| (*d != 0.0) == (p == at)), "{v:?}: {dx:?}");
                }
            }
        }
    }

    #[test]
    fn fast_and_plain_agree_to_the_bit() {
        let r = crate::rng::Rng::new(5);
        for (n, h, w, c) in [(3, 24, 24, 10), (2, 8, 8, 20), (1, 5, 7, 8), (2, 3, 2, 9), (70, 6, 6, 33)] {
            let x = Tensor::zeros(&Device::Cpu, [n, h, w, c], Dtype::F32).unwrap();
            let g = Geometry::new(&x, Pool::square(2), 16).unwrap();
            // Few different values, so that there are ties.
            let x: Vec<f32> = (0..x.len() as u64).map(|e| (r.u32(e) >> 29) as f32).collect();
            let m = n * g.pooled();
            let (mut y, mut z, mut at, mut bt) = (vec![0.0; m], vec![9.0; m], vec![0; m], vec![9; m]);
            cpu::fwd(&mut y, &mut at, &x, g, cpu::image_fwd);
            cpu::fwd(&mut z, &mut bt, &x, g, fast::image_fwd);
            assert!(y == z && at == bt);
            let (mut dx, mut dz) = (vec![0.0; x.len()], vec![9.0; x.len()]);
            cpu::bwd(&mut dx, &y, &at, g, cpu::image_bwd);
            cpu::bwd(&mut dz, &y, &at, g, fast::image_bwd);
            assert!(dx == dz);
        }
    }

    #[test]
    fn impossible_windows_are_refused() {
        let x = Tensor::zeros(&Device::Cpu, [1, 2, 2, 1], Dtype::F32).unwrap();
        for pool in [Pool::square(0), Pool::square(3), Pool::square(17), Pool { size: 2, stride: 0, pad: 0 }] {
            assert!(max_pool2d(&x, pool).is_err(), "{pool:?}");
        }
        assert!(max_pool2d(&x, Pool { size: 2, stride: 1, pad: 2 }).is_err());
    }
}
