//! Winograd's convolution on the CPU, F(4 × 4, 3 × 3): 36 products give the 16 outputs of a tile, where the sum over
//! the window takes 144. f32 only, filters 3 × 3 with stride 1; `microkernel.rs` sends the shapes here for which it
//! pays.
//!
//! With the filter g, the 6 × 6 inputs d of a tile and its 4 × 4 outputs y, ∘ element by element: y = Aᵀ [(G g Gᵀ) ∘
//! (Bᵀ d B)] A. Summed over channels each of the 36 places is a dense product. The gradient of d is the same with
//! turned filters; the gradient of g is Gᵀ [Σ (A dy Aᵀ) ∘ (Bᵀ d B)] G over the tiles.
//!
//! The matrices come from the points 0, ±3/4, ±3/2, ∞. *Error*, for independent terms of size t over C channels: 9 C
//! terms added in order leave about 9 C / √2 roundings of t. Here C terms, added in order at each of 36 places, leave
//! growth · 3 C / √2, where growth = max over the rows of Aᵀ of Σ_i A_i² ‖G_i‖² ‖B_i‖² / 3 = 8.8 (31 for the customary
//! points 0, ±1, ±2). That is growth / 3 = 2.9 times the plain sum: [`GROWTH`]. It is a size to be expected, not a
//! bound. f64, for gradient checks, and bf16, which stands for tensor cores, keep the plain sums.
//!
//! Every output is one in-order sum, whatever the batch and the number of threads. An infinity or a NaN reaches all
//! outputs of the tiles that touch it.

#![allow(clippy::needless_range_loop)] // indices run over several small arrays at once

use std::ops::Range;

use rayon::prelude::*;

use super::lane::{LANES, Lane, load, prefetch, store};
use super::microkernel::{self, Geometry, MOST, Panels, Runs, cols_run, plan};
use crate::lanes;

/// How many times the rounding error of the plain sum Winograd's is, see above.
pub const GROWTH: u64 = 3;

/// Inputs of a tile in one direction, and its outputs.
const IN: usize = 6;
const OUT: usize = 4;
/// Places of a transformed tile.
const PLACES: usize = IN * IN;
/// The points ±p and ±q.
const P: f32 = 0.75;
const Q: f32 = 1.5;
/// Row i: the values of 1, x, x² at point i, divided by the product of its distances from the others.
const G: [[f64; 3]; IN] = {
    let (p, q) = (P as f64, Q as f64);
    let (p2, q2) = (p * p, q * q);
    let (np, nq) = (2.0 * p2 * (p2 - q2), 2.0 * q2 * (q2 - p2));
    [
        [1.0 / (p2 * q2), 0.0, 0.0],
        [1.0 / np, p / np, p2 / np],
        [1.0 / np, -p / np, p2 / np],
        [1.0 / nq, q / nq, q2 / nq],
        [1.0 / nq, -q / nq, q2 / nq],
        [0.0, 0.0, 1.0],
    ]
};

/// Taps of a filter.
const TAPS: usize = 9;

/// G g Gᵀ at each place as a sum over the taps of g.
const SCALES: [[f32; TAPS]; PLACES] = {
    let mut scales = [[0.0; TAPS]; PLACES];
    let mut e = 0;
    while e < PLACES * TAPS {
        let (place, tap) = (e / TAPS, e % TAPS);
        scales[place][tap] = (G[place / IN][tap / 3] * G[place % IN][tap % 3]) as f32;
        e += 1;
    }
    scales
};

/// a · s + b
#[inline(always)]
fn fma<V: Lane>(a: V, s: f32, b: V) -> V {
    a.mul_add(V::splat(s), b)
}

/// Bᵀ x
#[inline(always)]
fn into_places<V: Lane>(x: [V; IN]) -> [V; IN] {
    let (even_p, odd_p) = (fma(x[2], -Q * Q, x[4]), fma(x[1], -Q * Q, x[3]));
    let (even_q, odd_q) = (fma(x[2], -P * P, x[4]), fma(x[1], -P * P, x[3]));
    [
        fma(x[0], P * P * Q * Q, fma(x[2], -P * P - Q * Q, x[4])),
        fma(odd_p, P, even_p),
        fma(odd_p, -P, even_p),
        fma(odd_q, Q, even_q),
        fma(odd_q, -Q, even_q),
        fma(x[1], P * P * Q * Q, fma(x[3], -P * P - Q * Q, x[5])),
    ]
}

/// Aᵀ m
#[inline(always)]
fn outputs<V: Lane>(m: [V; IN]) -> [V; OUT] {
    let (sum_p, dif_p) = (fma(m[1], 1.0, m[2]), fma(m[2], -1.0, m[1]));
    let (sum_q, dif_q) = (fma(m[3], 1.0, m[4]), fma(m[4], -1.0, m[3]));
    let zero = V::splat(0.0);
    [
        fma(fma(sum_p, 1.0, sum_q), 1.0, m[0]),
        fma(dif_p, P, fma(dif_q, Q, zero)),
        fma(sum_p, P * P, fma(sum_q, Q * Q, zero)),
        fma(dif_p, P * P * P, fma(dif_q, Q * Q * Q, m[5])),
    ]
}

/// A y
#[inline(always)]
fn spread<V: Lane>(y: [V; OUT]) -> [V; IN] {
    let (even_p, odd_p) = (fma(y[2], P * P, y[0]), fma(y[3], P * P, y[1]));
    let (even_q, odd_q) = (fma(y[2], Q * Q, y[0]), fma(y[3], Q * Q, y[1]));
    [y[0], fma(odd_p, P, even_p), fma(odd_p, -P, even_p), fma(odd_q, Q, even_q), fma(odd_q, -Q, even_q), y[3]]
}

/// The pixels of a square of an image.
struct Square<'a, const SIDE: usize> {
    /// Of `c` floats each, of the columns inside only.
    rows: [&'a [f32]; SIDE],
    /// Those of the square that are inside the image; the others are zero.
    inside: Range<usize>,
}

impl<const SIDE: usize> Square<'_, SIDE> {
    /// A register of channels of row i from `at` on. `EDGE`: some column may be outside.
    #[inline(always)]
    fn row<V: Lane, const EDGE: bool>(&self, i: usize, c: usize, at: usize) -> [V; SIDE] {
        let mut row = [V::splat(0.0); SIDE];
        for j in 0..SIDE {
            if !EDGE {
                row[j] = load(self.rows[i], j * c + at);
            } else if self.inside.contains(&j) {
                row[j] = load(self.rows[i], (j - self.inside.start) * c + at);
            }
        }
        row
    }

    fn at_an_edge(&self) -> bool {
        self.inside.len() < SIDE
    }
}

lanes! {
    widest:
    /// Bᵀ d B for every channel, the places of the result `step` apart.
    fn input_tile<const EDGE: bool>(v: &mut [f32], step: usize, d: &Square<IN>, c: usize) = input_tile_body;
}

#[inline(always)]
fn input_tile_body<V: Lane, const EDGE: bool>(v: &mut [f32], step: usize, d: &Square<IN>, c: usize) {
    if c.is_multiple_of(V::N) { input::<V, EDGE>(v, step, d, c) } else { input::<V::Half, EDGE>(v, step, d, c) }
}

#[inline(always)]
fn input<V: Lane, const EDGE: bool>(v: &mut [f32], step: usize, d: &Square<IN>, c: usize) {
    for at in (0..c).step_by(V::N) {
        let mut t = [[V::splat(0.0); IN]; IN];
        for i in 0..IN {
            t[i] = into_places(d.row::<V, EDGE>(i, c, at));
        }
        for j in 0..IN {
            let mut column = [V::splat(0.0); IN];
            for i in 0..IN {
                column[i] = t[i][j];
            }
            let column = into_places(column);
            for i in 0..IN {
                store(column[i], v, (i * IN + j) * step + at);
            }
        }
    }
}

lanes! {
    widest:
    /// A dy Aᵀ for every channel, as above.
    fn gradient_tile<const EDGE: bool>(v: &mut [f32], step: usize, dy: &Square<OUT>, c: usize) = gradient_tile_body;
}

#[inline(always)]
fn gradient_tile_body<V: Lane, const EDGE: bool>(v: &mut [f32], step: usize, dy: &Square<OUT>, c: usize) {
    if c.is_multiple_of(V::N) { gradient::<V, EDGE>(v, step, dy, c) } else { gradient::<V::Half, EDGE>(v, step, dy, c) }
}

#[inline(always)]
fn gradient<V: Lane, const EDGE: bool>(v: &mut [f32], step: usize, dy: &Square<OUT>, c: usize) {
    for at in (0..c).step_by(V::N) {
        let mut t = [[V::splat(0.0); IN]; OUT];
        for i in 0..OUT {
            t[i] = spread(dy.row::<V, EDGE>(i, c, at));
        }
        for j in 0..IN {
            let mut column = [V::splat(0.0); OUT];
            for i in 0..OUT {
                column[i] = t[i][j];
            }
            let column = spread(column);
            for i in 0..IN {
                store(column[i], v, (i * IN + j) * step + at);
            }
        }
    }
}

/// Floats of a line of the cache.
const LINE: usize = 16;

/// No pixel.
const OUTSIDE: usize = usize::MAX;

lanes! {
    widest:
    /// Aᵀ m A + bias for every channel, to the pixels of the image `y` that start at `to`.
    fn output_tile(y: &mut [f32], to: &[usize; OUT * OUT], m: &[f32], step: usize, bias: &[f32]) = output_tile_body;
}

#[inline(always)]
fn output_tile_body<V: Lane>(y: &mut [f32], to: &[usize; OUT * OUT], m: &[f32], step: usize, bias: &[f32]) {
    let whole = bias.len().is_multiple_of(V::N);
    if whole { output::<V>(y, to, m, step, bias) } else { output::<V::Half>(y, to, m, step, bias) }
}

#[inline(always)]
fn output<V: Lane>(y: &mut [f32], to: &[usize; OUT * OUT], m: &[f32], step: usize, bias: &[f32]) {
    for at in (0..bias.len()).step_by(V::N) {
        let bias: V = load(bias, at);
        let mut t = [[V::splat(0.0); IN]; OUT];
        for j in 0..IN {
            let mut column = [V::splat(0.0); IN];
            for i in 0..IN {
                column[i] = load(m, (i * IN + j) * step + at);
            }
            let column = outputs(column);
            for i in 0..OUT {
                t[i][j] = column[i];
            }
        }
        for i in 0..OUT {
            let row = outputs(t[i]);
            for j in 0..OUT {
                if to[i * OUT + j] != OUTSIDE {
                    store(fma(row[j], 1.0, bias), y, to[i * OUT + j] + at);
                }
            }
        }
    }
}

lanes! {
    /// u(row, ..) = Σ over nine taps of s[tap] w(row, tap, ..), rows of `c`.
    fn combine(u: &mut [f32], w: &[f32], s: &[f32; TAPS], c: usize) = combine_body;
}

#[inline(always)]
fn combine_body<V: Lane>(u: &mut [f32], w: &[f32], s: &[f32; TAPS], c: usize) {
    for (u, w) in u.chunks_exact_mut(c).zip(w.chunks_exact(TAPS * c)) {
        for at in (0..c).step_by(LANES) {
            let mut sum = V::splat(0.0);
            for t in 0..TAPS {
                sum = fma(load(w, t * c + at), s[t], sum);
            }
            store(sum, u, at);
        }
    }
}

lanes! {
    /// Gᵀ s G for one filter: its taps, in rows of `c`, from the places, `step` apart, of a panel of `width` columns.
    fn filter_gradient(dw: &mut [f32], c: usize, s: &[f32], step: usize, width: usize) = filter_gradient_body;
}

#[inline(always)]
fn filter_gradient_body<V: Lane>(dw: &mut [f32], c: usize, s: &[f32], step: usize, width: usize) {
    for at in (0..width).step_by(LANES) {
        for t in 0..TAPS {
            let mut sum = V::splat(0.0);
            for place in 0..PLACES {
                sum = fma(load(s, place * step + at), SCALES[place][t], sum);
            }
            store(sum, dw, t * c + at);
        }
    }
}

/// The filters at each place: (C, K) for the convolution, (K, C) and turned by half a circle for the gradient of its
/// input.
fn filters(w: &[f32], c: usize, k: usize, turned: bool) -> Vec<Panels<'static>> {
    let at_place = |place: usize| {
        let (mut u, mut s) = (vec![0.0; k * c], SCALES[place]);
        if turned {
            s.reverse();
        }
        combine(&mut u, w, &s, c);
        if turned { Panels::from_rows(&u, k, c) } else { Panels::from_cols(&u, c, k) }
    };
    (0..PLACES).into_par_iter().map(at_place).collect()
}

/// The square of an image (h, w, c) from `top`, `left`. `zeros` (SIDE · c) are the rows outside.
fn square<'a, const SIDE: usize>(
    x: &'a [f32],
    zeros: &'a [f32],
    [h, w, c]: [usize; 3],
    [top, left]: [isize; 2],
) -> Square<'a, SIDE> {
    let (from, to) = (left.max(0), (left + SIDE as isize).min(w as isize));
    let columns = from as usize * c..to as usize * c;
    let rows = std::array::from_fn(|i| {
        let row = top + i as isize;
        let inside = (0..h as isize).contains(&row);
        if inside { &x[row as usize * w * c..][columns.clone()] } else { zeros }
    });
    Square { rows, inside: (from - left) as usize..(to - left) as usize }
}

/// The tiles of the outputs of a batch, image after image.
struct Tiles<'a> {
    g: &'a Geometry,
    across: usize,
    each: usize,
}

impl Tiles<'_> {
    fn of(g: &Geometry) -> Tiles<'_> {
        let across = g.q.div_ceil(OUT);
        Tiles { g, across, each: g.p.div_ceil(OUT) * across }
    }

    /// Image, and first row and column of the outputs, of a tile.
    fn at(&self, tile: usize) -> (usize, [usize; 2]) {
        let within = tile % self.each;
        (tile / self.each, [within / self.across * OUT, within % self.across * OUT])
    }

    /// Fetches a tile's share of the rows of an image, `row` floats each, that the tiles below are the first to touch;
    /// these begin `more` rows below the tile's outputs. A tile touches a few pixels of each of several rows, which no
    /// processor foresees: without this a convolution of few channels spends half of its time waiting.
    fn foresee(&self, image: &[f32], row: usize, [top, left]: [usize; 2], more: usize) {
        let share = OUT * row / self.across;
        let from = (top + OUT + more) * row + left / OUT * share;
        for line in (from..from + share).step_by(LINE) {
            prefetch(image, line);
        }
    }

    /// Transforms the inputs of a tile.
    fn input(&self, v: &mut [f32], step: usize, x: &[f32], zeros: &[f32], tile: usize) {
        let (g, (image, corner)) = (self.g, self.at(tile));
        let x = &x[image * g.x_len()..];
        self.foresee(x, g.w * g.c, corner, IN - OUT - g.pad);
        let d = square(x, zeros, [g.h, g.w, g.c], corner.map(|v| v as isize - g.pad as isize));
        match d.at_an_edge() {
            false => input_tile::<false>(v, step, &d, g.c),
            true => input_tile::<true>(v, step, &d, g.c),
        }
    }

    /// Spreads the gradients of the outputs of a tile.
    fn gradient(&self, v: &mut [f32], step: usize, dy: &[f32], zeros: &[f32], tile: usize) {
        let (g, (image, corner)) = (self.g, self.at(tile));
        let dy = &dy[image * g.y_len()..];
        self.foresee(dy, g.q * g.k, corner, 0);
        let dy = square(dy, zeros, [g.p, g.q, g.k], corner.map(|v| v as isize));
        match dy.at_an_edge() {
            false => gradient_tile::<false>(v, step, &dy, g.k),
            true => gradient_tile::<true>(v, step, &dy, g.k),
        }
    }

    /// Forms the outputs of a tile.
    fn output(&self, y: &mut [f32], m: &[f32], step: usize, bias: &[f32], tile: usize) {
        let (g, (image, [top, left])) = (self.g, self.at(tile));
        let y = &mut y[image * g.y_len()..];
        self.foresee(y, g.q * g.k, [top, left], 0);
        let mut to = [OUTSIDE; OUT * OUT];
        for i in 0..OUT {
            for j in 0..OUT {
                if top + i < g.p && left + j < g.q {
                    to[i * OUT + j] = ((top + i) * g.q + left + j) * g.k;
                }
            }
        }
        output_tile(y, &to, m, step, bias);
    }
}

/// Tiles that are transformed at a time: whole register tiles of the products, and few enough for the cache next to the
/// core.
const BLOCK: usize = 36;

/// The places of a block of tiles are this many floats further apart than they need be: not a power of two, which would
/// send all of them to the same lines of the cache.
const APART: usize = 16;

/// y = conv(x, w) + bias.
pub fn fwd(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry) {
    convolve(y, x, &filters(w, g.c, g.k, false), bias, g);
}

/// dx from dy: the convolution with the turned filters.
pub fn dgrad(dx: &mut [f32], dy: &[f32], w: &[f32], g: &Geometry) {
    let back = Geometry { h: g.p, w: g.q, c: g.k, k: g.c, p: g.h, q: g.w, pad: 2 - g.pad, ..*g };
    convolve(dx, dy, &filters(w, g.c, g.k, true), None, &back);
}

fn convolve(y: &mut [f32], x: &[f32], filters: &[Panels], bias: Option<&[f32]>, g: &Geometry) {
    let tiles = Tiles::of(g);
    let zeros = vec![0.0; g.k.max(IN * g.c)];
    let bias = bias.unwrap_or(&zeros[..g.k]);
    let bases: Vec<u32> = (0..BLOCK).map(|t| (t * g.c) as u32).collect();
    let (step_v, step_m) = (BLOCK * g.c + APART, BLOCK * g.k + APART);
    // A few tasks to a thread; no sum depends on it.
    let tasks = 4 * rayon::current_num_threads();
    let group = (y.len() / g.y_len()).div_ceil(tasks).max(BLOCK.div_ceil(tiles.each));
    y.par_chunks_mut(group * g.y_len()).zip(x.par_chunks(group * g.x_len())).for_each(|(y, x)| {
        let (mut v, mut m) = (vec![0.0; PLACES * step_v], vec![0.0; PLACES * step_m]);
        let total = y.len() / g.y_len() * tiles.each;
        for first in (0..total).step_by(BLOCK) {
            let count = BLOCK.min(total - first);
            for t in 0..count {
                tiles.input(&mut v[t * g.c..], step_v, x, &zeros, first + t);
            }
            for (place, b) in filters.iter().enumerate() {
                let v = &v[place * step_v..];
                b.rows(&mut m[place * step_m..], g.k, v, &bases[..count], Runs::one(g.c), None);
            }
            for t in 0..count {
                tiles.output(y, &m[t * g.k..], step_m, bias, first + t);
            }
        }
    });
}

/// Floats of the transformed tiles that are summed at a time in a weight gradient: they and the sums stay in the cache.
const SUMMED: usize = 1 << 20;

/// Filters whose sums are formed together where all sums would not fit into a cache.
const FILTERS: usize = 32;

/// dw from dy and x. Each place's sum runs over all tiles in order.
pub fn wgrad(dw: &mut [f32], dy: &[f32], x: &[f32], g: &Geometry) {
    let (tiles, registers) = (Tiles::of(g), microkernel::Registers::here());
    let plan = plan(g.c, registers);
    let total = dy.len() / g.y_len() * tiles.each;
    let (step_v, step_z) = (BLOCK * g.c + APART, BLOCK * g.k + APART);
    let size = PLACES * (step_v + step_z);
    // Sums that are larger than all tiles together are formed a few at a time, of all tiles at once.
    let by_filter = total > 0 && g.k * g.c >= total * (g.k + g.c);
    // As many for each thread; no sum depends on it.
    let blocks = (SUMMED / size).max(1).next_multiple_of(rayon::current_num_threads());
    let blocks = if by_filter { total.div_ceil(BLOCK) } else { blocks };
    let zeros = vec![0.0; IN * g.c.max(g.k)];
    let bases: Vec<u32> = (0..BLOCK).map(|t| (t * g.k) as u32).collect();
    let mut transformed = vec![0.0; size * blocks.min(total.div_ceil(BLOCK))];
    // For each place panels (K, width) over the columns of C.
    let mut sums = vec![0.0; if by_filter { 0 } else { PLACES * g.k * g.c }];
    for chunk in (0..total).step_by(BLOCK * blocks) {
        let counts: Vec<usize> =
            (chunk..total.min(chunk + BLOCK * blocks)).step_by(BLOCK).map(|first| BLOCK.min(total - first)).collect();
        transformed.par_chunks_mut(size).zip(&counts).enumerate().for_each(|(b, (block, count))| {
            let (v, z) = block.split_at_mut(PLACES * step_v);
            for t in 0..*count {
                tiles.input(&mut v[t * g.c..], step_v, x, &zeros, chunk + b * BLOCK + t);
                tiles.gradient(&mut z[t * g.k..], step_z, dy, &zeros, chunk + b * BLOCK + t);
            }
        });
        // Adds to the sums of a place: a panel of columns, and the filters from `first` on.
        let add = |sums: &mut [f32], place: usize, (column, nv): (usize, usize), first: usize| {
            for (block, count) in transformed.chunks_exact(size).zip(&counts) {
                let (v, z) = block.split_at(PLACES * step_v);
                let (v, rows) = (&v[place * step_v + column..], sums.len() / (nv * LANES));
                cols_run(sums, (nv, registers), &z[place * step_z..], &bases[..*count], first, rows, (v, g.c));
            }
        };
        if by_filter {
            dw.par_chunks_mut(FILTERS * TAPS * g.c).enumerate().for_each(|(part, dw)| {
                let rows = dw.len() / (TAPS * g.c);
                let mut sums = vec![0.0; PLACES * rows * MOST * LANES];
                for &(column, nv) in &plan {
                    let (width, each) = (nv * LANES, rows * nv * LANES);
                    sums.fill(0.0);
                    for (place, sums) in sums.chunks_exact_mut(each).take(PLACES).enumerate() {
                        add(sums, place, (column, nv), part * FILTERS);
                    }
                    for (k, dw) in dw.chunks_exact_mut(TAPS * g.c).enumerate() {
                        filter_gradient(&mut dw[column..], g.c, &sums[k * width..], each, width);
                    }
                }
            });
            return;
        }
        sums.par_chunks_mut(g.k * g.c).enumerate().for_each(|(place, sums)| {
            for &(column, nv) in &plan {
                add(&mut sums[column * g.k..(column + nv * LANES) * g.k], place, (column, nv), 0);
            }
        });
    }
    dw.par_chunks_mut(TAPS * g.c).enumerate().for_each(|(k, dw)| {
        for &(column, nv) in &plan {
            let width = nv * LANES;
            filter_gradient(&mut dw[column..], g.c, &sums[column * g.k + k * width..], g.k * g.c, width);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::lane::{Pair, Plain};
    use super::*;

    /// The rows of the matrix of a linear function of N numbers.
    fn matrix<const N: usize, const M: usize>(f: impl Fn([Plain; N]) -> [Plain; M]) -> [[f64; N]; M] {
        let mut rows = [[0.0; N]; M];
        for j in 0..N {
            let y = f(std::array::from_fn(|i| Plain::splat(f32::from(i == j))));
            for i in 0..M {
                let mut eight = [0.0; LANES];
                y[i].store(&mut eight);
                rows[i][j] = f64::from(eight[0]);
            }
        }
        rows
    }

    /// The three transforms of tiles of `c` channels, whole and cut at an edge.
    fn transformed<V: Lane>(c: usize) -> Vec<Vec<f32>> {
        let x: Vec<f32> = (0..IN * IN * c).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
        let (zeros, step) = (vec![0.0; IN * c], c + 3);
        let mut results = Vec::new();
        for corner in [[0, 0], [-1, -1]] {
            let mut v = vec![f32::NAN; PLACES * step];
            let d = square(&x, &zeros, [IN, IN, c], corner);
            match d.at_an_edge() {
                false => input_tile_body::<V, false>(&mut v, step, &d, c),
                true => input_tile_body::<V, true>(&mut v, step, &d, c),
            }
            let mut z = vec![f32::NAN; PLACES * step];
            let dy = square(&x[..OUT * OUT * c], &zeros, [OUT, OUT, c], corner);
            match dy.at_an_edge() {
                false => gradient_tile_body::<V, false>(&mut z, step, &dy, c),
                true => gradient_tile_body::<V, true>(&mut z, step, &dy, c),
            }
            let mut y = vec![f32::NAN; OUT * OUT * c];
            let mut to: [usize; OUT * OUT] = std::array::from_fn(|i| i * c);
            to[3] = OUTSIDE;
            output_tile_body::<V>(&mut y, &to, &v, step, &x[..c]);
            results.extend([v, z, y]);
        }
        // A gap is NaN, which equals nothing.
        results.into_iter().map(|r| r.into_iter().map(|v| if v.is_nan() { 1e30 } else { v }).collect()).collect()
    }

    #[test]
    fn transforms_do_not_depend_on_the_register() {
        for c in [8, 16, 24, 32] {
            assert!(transformed::<Plain>(c) == transformed::<Pair<Plain>>(c), "{c} channels");
        }
    }

    #[test]
    fn the_matrices_convolve_and_their_growth_is_as_said() {
        let (b, a) = (matrix(into_places), matrix(outputs));
        // y(o) = Σ_t g(t) d(o + t) for every pair of a tap and an input.
        for o in 0..OUT {
            for tap in 0..3 {
                for d in 0..IN {
                    let y: f64 = (0..IN).map(|i| a[o][i] * G[i][tap] * b[i][d]).sum();
                    assert!(
                        (y - f64::from(u8::from(d == o + tap))).abs() < 1e-15,
                        "output {o}, tap {tap}, input {d}: {y}"
                    );
                }
            }
        }
        let transposed = matrix(spread);
        assert!((0..IN).all(|i| (0..OUT).all(|o| transposed[i][o] == a[o][i])));
        let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>();
        let row = |o: usize| (0..IN).map(|i| a[o][i].powi(2) * norm(&G[i]) * norm(&b[i])).sum::<f64>() / 3.0;
        let growth = (0..OUT).map(row).fold(0.0, f64::max);
        assert!((8.7..8.8).contains(&growth) && growth / 3.0 <= GROWTH as f64, "{growth}");
    }
}
