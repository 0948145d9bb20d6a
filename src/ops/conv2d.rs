//! 2-d convolution (cross-correlation, as in PyTorch): any filter, stride and zero padding.
//!
//! y[n, p, q, k] = b[k] + Σ_{r,s,c} x[n, p·stride + r − pad, q·stride + s − pad, c] · w[k, r, s, c], with
//! x (N, H, W, C), w (K, R, S, C), y (N, P, Q, K), P = (H + 2·pad − R) / stride + 1.
//!
//! dx[n, i, j, c] = Σ over (p, r) with p·stride + r − pad = i, (q, s) likewise, and k of dy · w (dgrad);
//! dw[k, r, s, c] = Σ_{n,p,q} dy[n, p, q, k] · x[…] (wgrad); db = Σ_{n,p,q} dy. A transposed convolution is dgrad
//! with the roles swapped.

use super::matmul::{TILE_ROWS, tile_cols};
use super::reduce::sum_chunks;
use super::{Arg, Case, ChunkSums, add_bias, cast, longest, sum_rows, widen_weights};
use crate::device::microkernel::{self as fast, Geometry};
use crate::device::winograd::GROWTH;
use crate::device::{Cuda, Device, Launch, launch};
use crate::tensor::{Buf, Dtype, Real, Tensor};
use crate::{Error, Result, on_real};

/// Stride and zero padding, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Pixels between windows.
    pub stride: usize,
    /// Zeros around the image.
    pub pad: usize,
}

impl Default for Conv {
    /// Stride 1, no padding.
    fn default() -> Conv {
        Conv { stride: 1, pad: 0 }
    }
}

const OP: &str = "conv2d";

/// Rows and columns of a filter in bf16: the kernels keep which of them lie inside of the image in 15 bits.
const MAX_TAPS: usize = 15;

/// Channels in bf16, unless they are a multiple of eight: a block fills up whole pixels.
const MAX_ODD_CHANNELS: usize = 2048;

/// x (N, H, W, C), w (K, R, S, C), b (K) → (N, P, Q, K). x and w are of one type; for bf16 the bias and the gradients
/// of w and b are f32.
pub fn conv2d(x: &Tensor, w: &Tensor, b: Option<&Tensor>, conv: Conv) -> Result<Tensor> {
    Ok(convolve(x, w, b, conv, false)?.0)
}

/// The same without bias, and what the normalisation of the result wants to know about it, where that comes at no
/// cost.
pub fn conv2d_with_sums(x: &Tensor, w: &Tensor, conv: Conv) -> Result<(Tensor, Option<ChunkSums>)> {
    convolve(x, w, None, conv, true)
}

fn convolve(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    conv: Conv,
    with_sums: bool,
) -> Result<(Tensor, Option<ChunkSums>)> {
    let (n, g) = geometry(x.dims(), w, conv)?;
    if let Some(b) = b.filter(|b| b.dims() != [g.k]) {
        return Err(b.shape().refuse(OP, format!("a bias of ({})", g.k)));
    }
    if x.dtype() == Dtype::Bf16 && g.r.max(g.s) > MAX_TAPS {
        return Err(w.shape().refuse(OP, format!("filters of at most {MAX_TAPS} x {MAX_TAPS} in bf16; use f32")));
    }
    if let (Dtype::Bf16, Some(c)) =
        (x.dtype(), [g.c, g.k].into_iter().find(|c| !c.is_multiple_of(8) && *c > MAX_ODD_CHANNELS))
    {
        let want = format!("a multiple of eight channels above {MAX_ODD_CHANNELS} in bf16, not {c}; use f32");
        return Err(w.shape().refuse(OP, want));
    }
    if x.is_rounded() {
        let y = tracked(&cast(x, Dtype::F32)?, &widen_weights(w)?, b, n, Geometry { plain: true, ..g }, false)?.0;
        return Ok((cast(&y, Dtype::Bf16)?, None));
    }
    tracked(x, w, b, n, g, with_sums)
}

/// The convolution with its backward rule.
fn tracked(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    n: usize,
    g: Geometry,
    with_sums: bool,
) -> Result<(Tensor, Option<ChunkSums>)> {
    let (y, sums, sx) = match (x.device(), x.dtype()) {
        (Device::Cuda(cuda), Dtype::Bf16) => {
            let x = tensor::wide(cuda, x, g.pad)?;
            let (y, sums) = tensor::forward(cuda, &x, w, b, n, &g, with_sums)?;
            (y, sums, x)
        }
        _ => (forward(x, w, b, n, &g)?, None, x.detach()),
    };
    let sw = w.detach();
    let inputs: Vec<&Tensor> = [x, w].into_iter().chain(b).collect();
    let bias = b.is_some();
    let y = y.with_grad(OP, &inputs, move |dy, need| {
        let dx = need.then(0, || dgrad(dy, &sw, n, &g))?;
        let mut grads = vec![dx, need.then(1, || wgrad(dy, &sx, n, &g))?];
        if bias {
            grads.push(need.then(2, || sum_rows(&dy.detach().reshape([n * g.p * g.q, g.k])?))?);
        }
        Ok(grads)
    });
    Ok((y, sums))
}

/// The gradient of a convolution's input: dy (N, P, Q, K), w (K, R, S, C) → (N, H, W, C) = `x_dims`.
pub fn conv2d_dgrad(dy: &Tensor, w: &Tensor, x_dims: [usize; 4], conv: Conv) -> Result<Tensor> {
    let (n, g) = geometry(&x_dims, w, conv)?;
    if dy.dims() != [n, g.p, g.q, g.k] {
        return Err(dy.shape().refuse("conv2d_dgrad", format!("({n}, {}, {}, {})", g.p, g.q, g.k)));
    }
    if dy.is_rounded() {
        let g = Geometry { plain: true, ..g };
        return cast(&dgrad(&cast(dy, Dtype::F32)?, &cast(w, Dtype::F32)?, n, &g)?, Dtype::Bf16);
    }
    dgrad(dy, w, n, &g)
}

fn geometry(x: &[usize], w: &Tensor, Conv { stride, pad }: Conv) -> Result<(usize, Geometry)> {
    let [k, r, s, cw] = w.shape().nhwc(OP)?;
    let &[n, h, wx, c] = x else {
        return Err(crate::tensor::Shape::from(x).refuse(OP, "images (N, H, W, C)"));
    };
    if c != cw || stride == 0 || h + 2 * pad < r || wx + 2 * pad < s || k * r * s * c == 0 {
        let got = format!("{:?}, stride {stride}, padding {pad}", w.shape());
        let want = format!("filters (K, R, S, {c}) that fit into {h} x {wx} images with their padding, stride above 0");
        return Err(Error::Shape { op: OP, want, got });
    }
    let (p, q) = ((h + 2 * pad - r) / stride + 1, (wx + 2 * pad - s) / stride + 1);
    Ok((n, Geometry { h, w: wx, c, k, r, s, p, q, stride, pad, plain: false }))
}

fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>, n: usize, g: &Geometry) -> Result<Tensor> {
    let mut y = x.stale_like([n, g.p, g.q, g.k])?;
    match x.device() {
        Device::Cpu if x.dtype() == Dtype::F32 => {
            let b = b.map(|t| t.host::<f32>(OP)).transpose()?;
            fast::conv_fwd(y.host_mut(OP)?, x.host(OP)?, w.host(OP)?, b, g);
        }
        Device::Cpu => on_real!(OP, x, T => {
            let b = b.map(|t| t.host::<T>(OP)).transpose()?;
            cpu::forward(y.host_mut::<T>(OP)?, x.host::<T>(OP)?, w.host::<T>(OP)?, b, n, g);
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let l = Launch::grid(g.k.div_ceil(tile_cols(g.k)), (n * g.p * g.q).div_ceil(TILE_ROWS), 1, 256);
            let (x, w) = (x.buf(OP)?, w.buf(OP)?);
            let (on, b) = (i32::from(b.is_some()), b.map_or(Ok(w), |t| t.buf(OP))?);
            let [h, wi, c, k, r, s, p, q, stride, pad] = ints(g);
            let y = y.buf_mut(OP)?;
            launch::conv2d_fwd_f32(cuda, l, y, x, w, b, n as i32, h, wi, c, k, r, s, p, q, stride, pad, on)?;
        }
    }
    Ok(y)
}

fn dgrad(dy: &Tensor, w: &Tensor, n: usize, g: &Geometry) -> Result<Tensor> {
    let mut dx = dy.stale_like([n, g.h, g.w, g.c])?;
    match dy.device() {
        Device::Cpu if dy.dtype() == Dtype::F32 => {
            fast::conv_dgrad(dx.host_mut(OP)?, dy.host(OP)?, w.host(OP)?, g);
        }
        Device::Cpu => on_real!(OP, dy, T => {
            cpu::dgrad(dx.host_mut::<T>(OP)?, dy.host::<T>(OP)?, w.host::<T>(OP)?, n, g);
            Ok(())
        })?,
        Device::Cuda(cuda) if dy.dtype() == Dtype::Bf16 => return tensor::dgrad(cuda, dy, w, n, g),
        Device::Cuda(cuda) => {
            let l = Launch::grid(g.c.div_ceil(tile_cols(g.c)), (n * g.h * g.w).div_ceil(TILE_ROWS), 1, 256);
            let [h, wi, c, k, r, s, p, q, stride, pad] = ints(g);
            let (dx, dy, w) = (dx.buf_mut(OP)?, dy.buf(OP)?, w.buf(OP)?);
            launch::conv2d_dgrad_f32(cuda, l, dx, dy, w, n as i32, h, wi, c, k, r, s, p, q, stride, pad)?;
        }
    }
    Ok(dx)
}

fn wgrad(dy: &Tensor, x: &Tensor, n: usize, g: &Geometry) -> Result<Tensor> {
    let mut dw = Tensor::stale(dy.device(), [g.k, g.r, g.s, g.c], dy.sum_dtype())?;
    match dy.device() {
        Device::Cpu if dy.dtype() == Dtype::F32 => {
            fast::conv_wgrad(dw.host_mut(OP)?, dy.host(OP)?, x.host(OP)?, g);
        }
        Device::Cpu => on_real!(OP, dy, T => {
            cpu::wgrad(dw.host_mut::<T>(OP)?, dy.host::<T>(OP)?, x.host::<T>(OP)?, n, g);
            Ok(())
        })?,
        Device::Cuda(cuda) if dy.dtype() == Dtype::Bf16 => tensor::wgrad(cuda, dw.buf_mut(OP)?, dy, x, n, g)?,
        Device::Cuda(cuda) => wgrad_cuda(cuda, dw.buf_mut(OP)?, dy, x, n, g)?,
    }
    Ok(dw)
}

/// Output pixels summed by one block of the weight gradient. Fixed, so that the order of the sum is.
const WGRAD_PIXELS: usize = 512;

fn wgrad_cuda(cuda: &Cuda, dw: &mut Buf<f32>, dy: &Tensor, x: &Tensor, n: usize, g: &Geometry) -> Result<()> {
    let (len, places) = (dw.len(), g.r * g.s * g.c);
    let pixels = n * g.p * g.q;
    // Longer chunks only where there would be more of them than a grid has layers.
    let chunk = WGRAD_PIXELS.max(pixels.div_ceil(65_535));
    let chunks = pixels.div_ceil(chunk);
    let mut part: Buf<f32> = Buf::stale(dy.device(), chunks * len)?;
    let l = Launch::grid(g.k.div_ceil(tile_cols(g.k)), places.div_ceil(TILE_ROWS), chunks, 256);
    let [h, w, c, k, r, s, p, q, stride, pad] = ints(g);
    let (dy, x, chunk) = (dy.buf(OP)?, x.buf(OP)?, chunk as i32);
    launch::conv2d_wgrad_f32(cuda, l, &mut part, dy, x, n as i32, h, w, c, k, r, s, p, q, stride, pad, chunk)?;
    sum_chunks(cuda, dw, &part, [1, len, len], chunks)
}

fn ints(g: &Geometry) -> [i32; 10] {
    [g.h, g.w, g.c, g.k, g.r, g.s, g.p, g.q, g.stride, g.pad].map(|v| v as i32)
}

/// bf16 on tensor cores: `kernels/conv2d_tensor.cu` and `conv2d_wgrad_tensor.cu`.
mod tensor {
    use super::{Buf, ChunkSums, Cuda, Geometry, Launch, OP, Result, Tensor, ints, launch, sum_chunks};

    /// Rows and columns of a block.
    type Tile = [usize; 2];
    /// The variants of the forward pass and the gradient of the input, in the kernels' order.
    const TILES: [Tile; 5] = [[128, 16], [128, 32], [128, 64], [128, 128], [64, 64]];
    /// What a variant gives way to where its grid is too small.
    const SMALLER: [Option<usize>; 5] = [None, None, Some(4), Some(2), None];
    /// The variants of the weight gradient.
    const WGRAD_TILES: [Tile; 4] = [[64, 16], [64, 32], [192, 64], [128, 128]];
    /// Threads of a block.
    const THREADS: u32 = 128;
    /// A grid of fewer blocks is made of smaller ones: about the multiprocessors of a large GPU. The sums are the same
    /// for all variants, so nothing but speed depends on it.
    const ENOUGH_BLOCKS: usize = 100;
    /// Blocks a weight gradient is cut into, about: two for each multiprocessor of a large GPU, since each writes as
    /// much as the whole gradient. Fixed, because the cut decides the order of the sum.
    const WGRAD_BLOCKS: usize = 264;

    /// The narrowest of the first four variants that has as many columns, or the widest.
    fn narrowest(tiles: &[Tile], cols: usize) -> usize {
        tiles.iter().take(4).position(|t| t[1] >= cols).unwrap_or(3)
    }

    /// The variant for `cols` columns and `z` times `rows` rows, the rows of its blocks, and the launch.
    fn tiles(cols: usize, rows: usize, z: usize) -> (usize, usize, Launch) {
        let grid = |v: usize| (cols.div_ceil(TILES[v][1]), rows.div_ceil(TILES[v][0]));
        let mut v = narrowest(&TILES, cols);
        while let (Some(smaller), true) = (SMALLER[v], grid(v).0 * grid(v).1 * z < ENOUGH_BLOCKS) {
            v = smaller;
        }
        let (across, down) = grid(v);
        (v, TILES[v][0], Launch::grid(across, down, z, THREADS).with_shared(shared(TILES[v])))
    }

    /// Bytes of shared memory: three stages of 64 of the depth.
    fn shared([rows, cols]: Tile) -> usize {
        3 * 64 * (rows + cols) * 2
    }

    /// `x` (N, H, W, C) as the 16-byte copies want it: with a multiple of eight channels. Where they have to be filled
    /// up, the `pad` zeros around the images go in as well: windows of few channels then begin where a sector does.
    pub fn wide(cuda: &Cuda, x: &Tensor, pad: usize) -> Result<Tensor> {
        let [n, h, w, c] = x.shape().nhwc(OP)?;
        let to = [n, h + 2 * pad, w + 2 * pad, c.next_multiple_of(8)];
        if to[3] == c {
            return Ok(x.detach());
        }
        let mut y = x.stale_like(to)?;
        let l = Launch::grid((n * to[1] * to[2]).div_ceil(256 / (to[3] / 8)), 1, 1, 256);
        let [n, h, w, c, wide, pad] = [n, h, w, c, to[3], pad].map(|v| v as i32);
        launch::pad_images_bf16(cuda, l, y.buf_mut(OP)?, x.buf(OP)?, n, h, w, c, wide, pad)?;
        Ok(y)
    }

    /// Height, width and channels of [`wide`] images, and the padding that is not in them.
    fn windows(x: &Tensor, g: &Geometry) -> Result<[i32; 4]> {
        let [_, h, w, c] = x.shape().nhwc(OP)?;
        Ok([h, w, c, g.pad - (h - g.h) / 2].map(|v| v as i32))
    }

    /// `x` is [`wide`].
    pub fn forward(
        cuda: &Cuda,
        x: &Tensor,
        w: &Tensor,
        b: Option<&Tensor>,
        n: usize,
        g: &Geometry,
        with_sums: bool,
    ) -> Result<(Tensor, Option<ChunkSums>)> {
        let mut y = x.stale_like([n, g.p, g.q, g.k])?;
        let (w, [h, wi, c, pad]) = (wide(cuda, w, 0)?, windows(x, g)?);
        let (v, rows, l) = tiles(g.k, n * g.p * g.q, 1);
        let chunks = (n * g.p * g.q).div_ceil(rows);
        let mut part: Buf<f32> = Buf::stale(y.device(), if with_sums { chunks * 2 * g.k } else { 1 })?;
        let none = Buf::<f32>::stale(y.device(), 1)?;
        let (bias_on, b) = (i32::from(b.is_some()), b.map_or(Ok(&none), |t| t.buf(OP))?);
        let [_, _, _, k, r, s, p, q, stride, _] = ints(g);
        let (to, x, w, n, part_on) = (y.buf_mut(OP)?, x.buf(OP)?, w.buf(OP)?, n as i32, i32::from(with_sums));
        launch::conv2d_fwd_bf16(
            cuda, l, v, to, &mut part, x, w, b, n, h, wi, c, k, r, s, p, q, stride, pad, bias_on, part_on,
        )?;
        Ok((y, with_sums.then_some(ChunkSums { part, rows })))
    }

    pub fn dgrad(cuda: &Cuda, dy: &Tensor, w: &Tensor, n: usize, g: &Geometry) -> Result<Tensor> {
        let mut dx = dy.stale_like([n, g.h, g.w, g.c])?;
        let (dy, w) = (wide(cuda, dy, 0)?, wide(cuda, w, 0)?);
        let class = n * g.h.div_ceil(g.stride) * g.w.div_ceil(g.stride);
        // Pixels between those that a filter of one tap reaches are zeros, written by the blocks of their neighbours.
        let alone = g.r == 1 && g.s == 1 && g.pad == 0 && g.h.is_multiple_of(g.stride) && g.w.is_multiple_of(g.stride);
        let (v, _, l) = tiles(g.c, class, if alone { 1 } else { g.stride * g.stride });
        let [h, wi, c, k, r, s, p, q, stride, pad] = ints(g);
        let [n, cw, kd] = [n, w.dims()[3], dy.dims()[3]].map(|v| v as i32);
        let (to, dy, w) = (dx.buf_mut(OP)?, dy.buf(OP)?, w.buf(OP)?);
        launch::conv2d_dgrad_bf16(cuda, l, v, to, dy, w, n, h, wi, c, cw, k, kd, r, s, p, q, stride, pad)?;
        Ok(dx)
    }

    /// `x` is [`wide`].
    pub fn wgrad(cuda: &Cuda, dw: &mut Buf<f32>, dy: &Tensor, x: &Tensor, n: usize, g: &Geometry) -> Result<()> {
        let (dy, [h, wi, c, pad]) = (wide(cuda, dy, 0)?, windows(x, g)?);
        let v = narrowest(&WGRAD_TILES, g.k);
        let [rows, cols] = WGRAD_TILES[v];
        let (places, pixels) = (g.r * g.s * c as usize, n * g.p * g.q);
        let (across, down) = (places.div_ceil(rows), g.k.div_ceil(cols));
        // Whole steps of 64 pixels, and at least six of them: what a block does and writes only once is then the lesser
        // part.
        let chunk = pixels.div_ceil((WGRAD_BLOCKS / (across * down)).max(1)).next_multiple_of(64).max(384);
        let chunks = pixels.div_ceil(chunk);
        let mut part: Buf<f32> = Buf::stale(dy.device(), chunks * g.k * places)?;
        let l = Launch::grid(across, down, chunks, THREADS).with_shared(shared([rows, cols]));
        let [_, _, _, k, r, s, p, q, stride, _] = ints(g);
        let [n, kd, chunk] = [n, dy.dims()[3], chunk].map(|v| v as i32);
        let (x, dy) = (x.buf(OP)?, dy.buf(OP)?);
        launch::conv2d_wgrad_bf16(cuda, l, v, &mut part, x, dy, n, h, wi, c, k, kd, r, s, p, q, stride, pad, chunk)?;
        sum_chunks(cuda, dw, &part, [g.k * g.r * g.s, g.c, places / (g.r * g.s)], chunks)
    }
}

mod cpu {
    use super::{Geometry, Real};

    /// Calls f(output element, input element, filter element) for every product of the convolution.
    fn products(n: usize, g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
        for y in 0..n * g.p * g.q * g.k {
            let (k, q, p, i) = (y % g.k, y / g.k % g.q, y / g.k / g.q % g.p, y / g.k / g.q / g.p);
            for r in 0..g.r {
                for s in 0..g.s {
                    let row = (p * g.stride + r).wrapping_sub(g.pad);
                    let col = (q * g.stride + s).wrapping_sub(g.pad);
                    if row >= g.h || col >= g.w {
                        continue;
                    }
                    let x = ((i * g.h + row) * g.w + col) * g.c;
                    let w = ((k * g.r + r) * g.s + s) * g.c;
                    for c in 0..g.c {
                        f(y, x + c, w + c);
                    }
                }
            }
        }
    }

    fn store<T: Real>(to: &mut [T], sums: &[f64]) {
        for (t, s) in to.iter_mut().zip(sums) {
            *t = T::of(*s);
        }
    }

    pub fn forward<T: Real>(y: &mut [T], x: &[T], w: &[T], b: Option<&[T]>, n: usize, g: &Geometry) {
        let mut sums: Vec<f64> = (0..y.len()).map(|i| b.map_or(0.0, |b| b[i % g.k].f64())).collect();
        products(n, g, |yi, xi, wi| sums[yi] += x[xi].f64() * w[wi].f64());
        store(y, &sums);
    }

    pub fn dgrad<T: Real>(dx: &mut [T], dy: &[T], w: &[T], n: usize, g: &Geometry) {
        let mut sums = vec![0.0; dx.len()];
        products(n, g, |yi, xi, wi| sums[xi] += dy[yi].f64() * w[wi].f64());
        store(dx, &sums);
    }

    pub fn wgrad<T: Real>(dw: &mut [T], dy: &[T], x: &[T], n: usize, g: &Geometry) {
        let mut sums = vec![0.0; dw.len()];
        products(n, g, |yi, xi, wi| sums[wi] += dy[yi].f64() * x[xi].f64());
        store(dw, &sums);
    }
}

const fn case(
    name: &'static str,
    inputs: &'static [Arg],
    run: fn(&[Tensor]) -> Result<Tensor>,
    [n, p, q, k, rs, c]: [u64; 6],
    x: u64,
) -> Case {
    let (y, w) = (n * p * q * k, k * rs * c);
    let sum = longest([rs * c, rs * k, n * p * q]);
    Case { name, inputs, run, sum, flops: 2 * y * rs * c, bytes: 4 * (y + w + n * x) }
}

/// A case that the CPU does by Winograd's algorithm.
const fn winograd(case: Case) -> Case {
    Case { sum: case.sum * GROWTH as usize, ..case }
}

fn plain(x: &[Tensor], stride: usize, pad: usize) -> Result<Tensor> {
    conv2d(&x[0], &x[1], x.get(2), Conv { stride, pad })
}

/// Shapes every suite runs these operations on.
pub const CASES: &[Case] = &[
    case(
        "conv2d/2x6x5x1-3x3x3",
        &[Arg::Diff(&[2, 6, 5, 1], -1.0, 1.0), Arg::Diff(&[3, 3, 3, 1], -1.0, 1.0), Arg::Diff(&[3], -1.0, 1.0)],
        |x| plain(x, 1, 0),
        [2, 4, 3, 3, 9, 1],
        30,
    ),
    case(
        "conv2d/1x7x7x3-2x5x5-pad2",
        &[Arg::Diff(&[1, 7, 7, 3], -1.0, 1.0), Arg::Diff(&[2, 5, 5, 3], -1.0, 1.0)],
        |x| plain(x, 1, 2),
        [1, 7, 7, 2, 25, 3],
        147,
    ),
    case(
        "conv2d/2x6x7x4-5x3x2-stride2-pad1",
        &[Arg::Diff(&[2, 6, 7, 4], -1.0, 1.0), Arg::Diff(&[5, 3, 2, 4], -1.0, 1.0), Arg::Diff(&[5], -1.0, 1.0)],
        |x| plain(x, 2, 1),
        [2, 3, 4, 5, 6, 4],
        168,
    ),
    case(
        "conv2d/3x4x4x3-1x1x1-stride2",
        &[Arg::Diff(&[3, 4, 4, 3], -1.0, 1.0), Arg::Diff(&[1, 1, 1, 3], -1.0, 1.0)],
        |x| plain(x, 2, 0),
        [3, 2, 2, 1, 1, 3],
        48,
    ),
];

/// Real shapes and tile borders, for device agreement and benchmarks.
pub const LARGE: &[Case] = &[
    case(
        "conv2d/16x28x28x1-10x5x5",
        &[Arg::Diff(&[16, 28, 28, 1], -1.0, 1.0), Arg::Diff(&[10, 5, 5, 1], -0.2, 0.2), Arg::Diff(&[10], -0.2, 0.2)],
        |x| plain(x, 1, 0),
        [16, 24, 24, 10, 25, 1],
        784,
    ),
    case(
        "conv2d/16x12x12x10-20x5x5",
        &[Arg::Diff(&[16, 12, 12, 10], -1.0, 1.0), Arg::Diff(&[20, 5, 5, 10], -0.1, 0.1), Arg::Diff(&[20], -0.1, 0.1)],
        |x| plain(x, 1, 0),
        [16, 8, 8, 20, 25, 10],
        1440,
    ),
    case(
        "conv2d/2x9x9x17-65x3x3-stride2-pad1",
        &[Arg::Diff(&[2, 9, 9, 17], -1.0, 1.0), Arg::Diff(&[65, 3, 3, 17], -0.1, 0.1)],
        |x| plain(x, 2, 1),
        [2, 5, 5, 65, 9, 17],
        1377,
    ),
    winograd(case(
        "conv2d/2x80x80x8-128x3x3-pad1",
        &[Arg::Diff(&[2, 80, 80, 8], -1.0, 1.0), Arg::Diff(&[128, 3, 3, 8], -0.1, 0.1)],
        |x| plain(x, 1, 1),
        [2, 80, 80, 128, 9, 8],
        51_200,
    )),
    winograd(case(
        "conv2d/2x80x80x128-8x3x3-pad1",
        &[Arg::Diff(&[2, 80, 80, 128], -1.0, 1.0), Arg::Diff(&[8, 3, 3, 128], -0.1, 0.1)],
        |x| plain(x, 1, 1),
        [2, 80, 80, 8, 9, 128],
        819_200,
    )),
    case(
        "conv2d/2x81x81x56-33x1x1",
        &[Arg::Diff(&[2, 81, 81, 56], -1.0, 1.0), Arg::Diff(&[33, 1, 1, 56], -0.1, 0.1), Arg::Diff(&[33], -0.2, 0.2)],
        |x| plain(x, 1, 0),
        [2, 81, 81, 33, 1, 56],
        367_416,
    ),
    case(
        "conv2d/3x17x15x24-40x3x3-stride2-pad1",
        &[Arg::Diff(&[3, 17, 15, 24], -1.0, 1.0), Arg::Diff(&[40, 3, 3, 24], -0.1, 0.1)],
        |x| plain(x, 2, 1),
        [3, 9, 8, 40, 9, 24],
        6120,
    ),
    case(
        "conv2d/3x14x16x64-72x1x1-stride2",
        &[Arg::Diff(&[3, 14, 16, 64], -1.0, 1.0), Arg::Diff(&[72, 1, 1, 64], -0.1, 0.1)],
        |x| plain(x, 2, 0),
        [3, 7, 8, 72, 1, 64],
        14_336,
    ),
    case(
        "conv2d/3x15x14x64-72x1x1-stride2",
        &[Arg::Diff(&[3, 15, 14, 64], -1.0, 1.0), Arg::Diff(&[72, 1, 1, 64], -0.1, 0.1)],
        |x| plain(x, 2, 0),
        [3, 8, 7, 72, 1, 64],
        13_440,
    ),
    winograd(case(
        "conv2d/2x4x4x512-32x3x3-pad1",
        &[Arg::Diff(&[2, 4, 4, 512], -1.0, 1.0), Arg::Diff(&[32, 3, 3, 512], -0.05, 0.05)],
        |x| plain(x, 1, 1),
        [2, 4, 4, 32, 9, 512],
        8192,
    )),
    case(
        "conv2d/1x8x9x33-33x1x1",
        &[Arg::Diff(&[1, 8, 9, 33], -1.0, 1.0), Arg::Diff(&[33, 1, 1, 33], -0.1, 0.1)],
        |x| plain(x, 1, 0),
        [1, 8, 9, 33, 1, 33],
        2376,
    ),
];

/// x (N, P, Q, K), w (K, R, S, C), b (C) → (N, H, W, C) with H = (P − 1)·stride + R − 2·pad: the input gradient of the
/// convolution of `w` as an operation of its own. PyTorch's weight (K, C, R, S) is permuted.
///
/// y = dgrad(x, w) + b; dx = conv2d(dy, w), dw = wgrad(x, dy): the roles of x and dy are swapped.
pub fn conv_transpose2d(x: &Tensor, w: &Tensor, b: Option<&Tensor>, conv: Conv) -> Result<Tensor> {
    const OP: &str = "conv_transpose2d";
    let ([n, p, q, k], [kw, r, s, c]) = (x.shape().nhwc(OP)?, w.shape().nhwc(OP)?);
    let side =
        |p: usize, r: usize| p.checked_sub(1)?.checked_mul(conv.stride)?.checked_add(r)?.checked_sub(2 * conv.pad);
    let refused =
        || x.shape().refuse(OP, format!("images (N, P, Q, {kw}) that {:?} with {conv:?} enlarges", w.shape()));
    let (Some(h), Some(wx)) = (side(p, r), side(q, s)) else { return Err(refused()) };
    let (n, g) = geometry(&[n, h, wx, c], w, conv)?;
    if k != kw || p * q == 0 || (g.p, g.q) != (p, q) {
        return Err(refused());
    }
    let y = dgrad(x, w, n, &g)?;
    let (sx, sw) = (x.detach(), w.detach());
    let y = y.with_grad(OP, &[x, w], move |dy, need| {
        Ok(vec![need.then(0, || forward(dy, &sw, None, n, &g))?, need.then(1, || wgrad(&sx, dy, n, &g))?])
    });
    b.map_or(Ok(y.clone()), |b| add_bias(&y, b))
}

const fn transposed(
    name: &'static str,
    inputs: &'static [Arg],
    run: fn(&[Tensor]) -> Result<Tensor>,
    [n, p, q, k, rs, c]: [u64; 6],
    y: u64,
) -> Case {
    let (x, w) = (n * p * q * k, k * rs * c);
    Case {
        name,
        inputs,
        run,
        sum: longest([rs * k, rs * c, n * p * q]),
        flops: 2 * x * rs * c,
        bytes: 4 * (x + w + n * y),
    }
}

fn enlarged(x: &[Tensor], stride: usize, pad: usize) -> Result<Tensor> {
    conv_transpose2d(&x[0], &x[1], x.get(2), Conv { stride, pad })
}

/// Shapes every suite runs the transposed convolution on.
pub const TRANSPOSED: &[Case] = &[
    transposed(
        "conv_transpose2d/2x3x2x5-4x4x3-stride2-pad1",
        &[Arg::Diff(&[2, 3, 2, 5], -1.0, 1.0), Arg::Diff(&[5, 4, 4, 3], -1.0, 1.0), Arg::Diff(&[3], -1.0, 1.0)],
        |x| enlarged(x, 2, 1),
        [2, 3, 2, 5, 16, 3],
        72,
    ),
    transposed(
        "conv_transpose2d/1x3x4x2-3x2x4",
        &[Arg::Diff(&[1, 3, 4, 2], -1.0, 1.0), Arg::Diff(&[2, 3, 2, 4], -1.0, 1.0)],
        |x| enlarged(x, 1, 0),
        [1, 3, 4, 2, 6, 4],
        100,
    ),
    transposed(
        "conv_transpose2d/3x4x4x8-1x1x3",
        &[Arg::Diff(&[3, 4, 4, 8], -1.0, 1.0), Arg::Diff(&[8, 1, 1, 3], -1.0, 1.0), Arg::Diff(&[3], -1.0, 1.0)],
        |x| enlarged(x, 1, 0),
        [3, 4, 4, 8, 1, 3],
        48,
    ),
];

/// A layer of VAAL's decoder, narrower.
pub const TRANSPOSED_LARGE: &[Case] = &[transposed(
    "conv_transpose2d/4x8x8x64-4x4x32-stride2-pad1",
    &[Arg::Diff(&[4, 8, 8, 64], -1.0, 1.0), Arg::Diff(&[64, 4, 4, 32], -0.1, 0.1)],
    |x| enlarged(x, 2, 1),
    [4, 8, 8, 64, 16, 32],
    8192,
)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_do_not_fit_are_refused() {
        let t = |s: [usize; 4]| Tensor::zeros(&Device::Cpu, s, Dtype::F32).unwrap();
        for (x, w, conv) in [
            ([1, 4, 4, 2], [3, 3, 3, 1], Conv::default()),
            ([1, 4, 4, 1], [3, 5, 3, 1], Conv::default()),
            ([1, 4, 4, 1], [3, 3, 3, 1], Conv { stride: 0, pad: 0 }),
        ] {
            let e = conv2d(&t(x), &t(w), None, conv).unwrap_err().to_string();
            assert!(e.contains("conv2d") && e.contains("stride"), "{e}");
        }
    }

    #[test]
    fn what_the_kernels_in_bf16_cannot_do_is_refused_everywhere() {
        let t = |s: [usize; 4]| Tensor::zeros(&Device::Cpu, s, Dtype::Bf16).unwrap();
        for (x, w, says) in [
            ([1, 16, 1, 1], [1, 16, 1, 1], "15 x 15"),
            ([1, 1, 1, 2049], [1, 1, 1, 2049], "not 2049"),
            ([1, 1, 1, 8], [2050, 1, 1, 8], "not 2050"),
        ] {
            let e = conv2d(&t(x), &t(w), None, Conv::default()).unwrap_err().to_string();
            assert!(e.contains(says) && e.contains("use f32"), "{e}");
        }
        assert!(conv2d(&t([1, 1, 1, 2056]), &t([1, 1, 1, 2056]), None, Conv::default()).is_ok());
    }

    /// They stand for tensor cores, which form plain sums.
    #[test]
    fn rounded_runs_keep_the_plain_sums() {
        let values = |n: usize, lane| {
            let r = crate::rng::Rng::new(3).lane(lane);
            let v: Vec<f32> = (0..n as u64).map(|e| half::bf16::from_f32(r.uniform(e) - 0.5).to_f32()).collect();
            v
        };
        let t = |dims: [usize; 4], v: &[f32]| Tensor::new(&Device::Cpu, dims, v).unwrap();
        let bf16 = |t: &Tensor| cast(t, Dtype::Bf16).unwrap();
        let conv = Conv { stride: 1, pad: 1 };
        let (x, w) = (t([2, 8, 8, 16], &values(2048, 1)), t([8, 3, 3, 16], &values(1152, 2)));
        let (_, g) = geometry(x.dims(), &w, conv).unwrap();
        let g = Geometry { plain: true, ..g };
        let (dy, bits) = (t([2, 8, 8, 8], &values(1024, 3)), |t: &Tensor| t.to_vec::<half::bf16>().unwrap());
        let want = forward(&x, &w, None, 2, &g).unwrap();
        assert_ne!(want.to_vec::<f32>().unwrap(), conv2d(&x, &w, None, conv).unwrap().to_vec::<f32>().unwrap());
        assert_eq!(bits(&conv2d(&bf16(&x), &bf16(&w), None, conv).unwrap()), bits(&bf16(&want)));
        let (xs, ws) = (bf16(&x).tracked(), bf16(&w).tracked());
        let grads = conv2d(&xs, &ws, None, conv).unwrap().grad_from(&bf16(&dy), &[&xs, &ws]).unwrap();
        let want = dgrad(&dy, &w, 2, &g).unwrap();
        assert_eq!(bits(grads.of(&xs).unwrap()), bits(&bf16(&want)));
        assert_eq!(bits(&conv2d_dgrad(&bf16(&dy), &bf16(&w), [2, 8, 8, 16], conv).unwrap()), bits(&bf16(&want)));
        let want = wgrad(&dy, &x, 2, &g).unwrap();
        assert_eq!(grads.of(&ws).unwrap().to_vec::<f32>().unwrap(), want.to_vec::<f32>().unwrap());
    }

    #[test]
    fn an_empty_batch_gives_an_empty_result() {
        // The second is done by Winograd's algorithm.
        for (c, k) in [(2, 3), (8, 16)] {
            let x = Tensor::zeros(&Device::Cpu, [0, 6, 6, c], Dtype::F32).unwrap();
            let w = Tensor::zeros(&Device::Cpu, [k, 3, 3, c], Dtype::F32).unwrap().tracked();
            let y = conv2d(&x, &w, None, Conv::default()).unwrap();
            assert_eq!(y.dims(), [0, 4, 4, k]);
            let g = y.grad_from(&y.detach(), &[&w]).unwrap();
            assert!(g.of(&w).unwrap().to_vec::<f32>().unwrap().iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn images_that_cannot_be_enlarged_are_refused() {
        let t = |s: [usize; 4]| Tensor::zeros(&Device::Cpu, s, Dtype::F32).unwrap();
        for (x, w, conv) in [
            ([1, 4, 4, 3], [2, 4, 4, 1], Conv { stride: 2, pad: 1 }),
            ([1, 0, 4, 2], [2, 4, 4, 1], Conv { stride: 1, pad: 1 }),
            ([1, 1, 1, 2], [2, 1, 1, 1], Conv { stride: 1, pad: 1 }),
            ([1, 4, 4, 2], [2, 4, 4, 1], Conv { stride: 0, pad: 1 }),
        ] {
            let e = conv_transpose2d(&t(x), &t(w), None, conv);
            assert!(e.is_err(), "{x:?} {w:?} {conv:?}");
        }
        let y = conv_transpose2d(&t([0, 4, 4, 2]), &t([2, 4, 4, 1]), None, Conv { stride: 2, pad: 1 }).unwrap();
        assert_eq!(y.dims(), [0, 8, 8, 1]);
    }
}
