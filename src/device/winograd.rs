//! 3×3 convolutions with stride 1 by Winograd's F(2×2, 3×3): 16 products give the 4 outputs that take 36 otherwise.
//!
//! Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for a window d of 4×4 pixels, a filter g and 2×2 outputs Y, where
//!
//! Bᵀ = ⎡1  0 −1  0⎤   G = ⎡1  0  0⎤   Aᵀ = ⎡1 1  1  0⎤
//!      ⎢0  1  1  0⎥       ⎢½  ½  ½⎥        ⎣0 1 −1 −1⎦
//!      ⎢0 −1  1  0⎥       ⎢½ −½  ½⎥
//!      ⎣0  1  0 −1⎦       ⎣0  0  1⎦
//!
//! Summed over channels ⊙ is 16 matrix products, one for each of the 4×4 *places*. The gradient of g is the adjoint,
//! Gᵀ [Σ (Bᵀ d B) ⊙ (A dY Aᵀ)] G; that of d is the convolution of dY with g turned by half a circle. All entries are
//! 0, ±½ and ±1, so the rounding is that of the plain sums. Nothing depends on the batch or the number of threads.

#![allow(clippy::needless_range_loop)] // indices run over several small arrays at once

use rayon::prelude::*;

use super::lane::{LANES, Lane, load, store};
use super::microkernel::{Geometry, Panels, Runs, cols_run};
use crate::lanes;

/// Rows and columns of a transformed window, and all of its places.
const SIDE: usize = 4;
const PLACES: usize = SIDE * SIDE;
/// Windows transformed at a time: whole register tiles, and a place's share is small enough for the first cache.
const TILES: usize = 64;
/// Channels side by side in a transformed window.
const WIDE: usize = 2 * LANES;
/// Windows summed by one task of the weight gradient. Fixed, so that the order of the sum is.
const WGRAD_TILES: usize = 512;
/// Fewer groups than this share their places out among tasks too.
const FEW_GROUPS: usize = 8;

/// Whether the geometry is ours: whole registers of channels, and fewer products in spite of cut windows.
pub fn fits(g: &Geometry) -> bool {
    let (r, s) = (g.r, g.s);
    let products = PLACES * g.p.div_ceil(2) * g.q.div_ceil(2);
    (r, s, g.stride) == (3, 3, 1) && g.pad < 3 && g.c % WIDE == 0 && g.k % WIDE == 0 && 3 * products < 2 * 9 * g.p * g.q
}

/// One window of an image among others.
#[derive(Clone, Copy)]
struct Tile {
    /// Where it starts in the padded images, and its outputs in theirs.
    x: u32,
    y: u32,
    /// Rows and columns of its outputs that exist: 1 or 2.
    rows: u8,
    cols: u8,
}

/// How the images of one task are cut into windows.
struct Plan {
    g: Geometry,
    images: usize,
    /// Height and width of a padded image.
    padded: [usize; 2],
    tiles: Vec<Tile>,
}

impl Plan {
    /// Tasks of at least `least` windows.
    fn new(g: &Geometry, least: usize) -> Plan {
        let (down, across) = (g.p.div_ceil(2), g.q.div_ceil(2));
        let padded = [2 * down + 2, 2 * across + 2];
        let images = least.div_ceil(down * across);
        let mut tiles = Vec::with_capacity(images * down * across);
        for image in 0..images {
            for (i, j) in (0..down).flat_map(|i| (0..across).map(move |j| (2 * i, 2 * j))) {
                tiles.push(Tile {
                    x: (image * padded[0] * padded[1] * g.c + (i * padded[1] + j) * WIDE) as u32,
                    y: (((image * g.p + i) * g.q + j) * g.k) as u32,
                    rows: (g.p - i).min(2) as u8,
                    cols: (g.q - j).min(2) as u8,
                });
            }
        }
        Plan { g: *g, images, padded, tiles }
    }

    /// The windows of the images of a task, of which the last may have fewer.
    fn tiles(&self, images: usize) -> &[Tile] {
        &self.tiles[..self.tiles.len() / self.images * images]
    }

    /// Floats of a row of pixels of a padded image, and of all its rows.
    fn row(&self) -> usize {
        self.padded[1] * WIDE
    }

    fn panel(&self) -> usize {
        self.padded[0] * self.row()
    }

    /// Copies images into `to`, (image, panel of channels, H, W, WIDE), whose borders are zeros and stay so.
    fn pad(&self, to: &mut Vec<f32>, x: &[f32]) {
        let g = &self.g;
        let panels = g.c / WIDE;
        to.resize(self.images * panels * self.panel(), 0.0);
        for (i, x) in x.chunks_exact(g.w * g.c).enumerate() {
            let (image, row) = (i / g.h, i % g.h);
            for panel in 0..panels {
                let at = (image * panels + panel) * self.panel() + (row + g.pad) * self.row() + g.pad * WIDE;
                let to = &mut to[at..at + g.w * WIDE];
                for (to, x) in to.chunks_exact_mut(WIDE).zip(x.chunks_exact(g.c)) {
                    to.copy_from_slice(&x[panel * WIDE..][..WIDE]);
                }
            }
        }
    }
}

/// WIDE channels of TILES transformed windows: (place, tile, WIDE).
type Panel = [f32; PLACES * PLACE];

/// Floats from one place to the next; a line more than a power of two, which would put all places into the same sets
/// of the cache.
const PLACE: usize = TILES * WIDE + WIDE;

/// Bᵀ d B for the rows `rows` of the places of all `tiles`. x: (panel, H, W, WIDE)
struct Input<'a> {
    v: &'a mut [Panel],
    x: &'a [f32],
    tiles: &'a [Tile],
    /// Floats of a row of pixels and of a panel of x.
    row: usize,
    panel: usize,
    rows: [usize; 2],
}

lanes! {
    fn input(t: Input) = input_body;
}

#[inline(always)]
fn input_body<V: Lane>(t: Input) {
    for (panel, v) in t.v.iter_mut().enumerate() {
        for (i, tile) in t.tiles.iter().enumerate().take(TILES) {
            let x = &t.x[tile.x as usize + panel * t.panel..];
            for half in [0, LANES] {
                let mut d = [[V::splat(0.0); SIDE]; SIDE];
                for r in 0..SIDE {
                    let x = &x[r * t.row..][..SIDE * WIDE];
                    for s in 0..SIDE {
                        d[r][s] = load(x, s * WIDE + half);
                    }
                }
                for r in 0..SIDE {
                    if r < t.rows[0] || r >= t.rows[1] {
                        continue;
                    }
                    let mut e = [V::splat(0.0); SIDE];
                    for s in 0..SIDE {
                        e[s] = differences([d[0][s], d[1][s], d[2][s], d[3][s]])[r];
                    }
                    let e = differences(e);
                    for s in 0..SIDE {
                        store(e[s], v, (r * SIDE + s) * PLACE + i * WIDE + half);
                    }
                }
            }
        }
    }
}

/// Bᵀ d
#[inline(always)]
fn differences<V: Lane>([a, b, c, d]: [V; SIDE]) -> [V; SIDE] {
    [a.sub(c), b.add(c), c.sub(b), b.sub(d)]
}

/// A dY Aᵀ for the rows `rows` of the places of all `tiles`.
struct Cotangent<'a> {
    v: &'a mut [Panel],
    dy: &'a [f32],
    tiles: &'a [Tile],
    /// Floats of a pixel and of a row of pixels.
    k: usize,
    row: usize,
    rows: [usize; 2],
}

#[inline(always)]
fn cotangent_body<V: Lane>(t: Cotangent) {
    for (panel, v) in t.v.iter_mut().enumerate() {
        for (i, tile) in t.tiles.iter().enumerate().take(TILES) {
            for half in [0, LANES] {
                let mut d = [[V::splat(0.0); 2]; 2];
                for r in 0..2 {
                    for s in 0..2 {
                        if r < tile.rows as usize && s < tile.cols as usize {
                            d[r][s] = load(t.dy, tile.y as usize + r * t.row + s * t.k + panel * WIDE + half);
                        }
                    }
                }
                for r in 0..SIDE {
                    if r < t.rows[0] || r >= t.rows[1] {
                        continue;
                    }
                    let e = spread([spread([d[0][0], d[1][0]])[r], spread([d[0][1], d[1][1]])[r]]);
                    for s in 0..SIDE {
                        store(e[s], v, (r * SIDE + s) * PLACE + i * WIDE + half);
                    }
                }
            }
        }
    }
}

lanes! {
    fn cotangent(t: Cotangent) = cotangent_body;
}

/// A y
#[inline(always)]
fn spread<V: Lane>([a, b]: [V; 2]) -> [V; SIDE] {
    [a, a.add(b), a.sub(b), V::splat(0.0).sub(b)]
}

/// Aᵀ m A + bias for WIDE filters, of which y starts with the first: pixels of `k` and rows of `row` floats.
struct Output<'a> {
    y: &'a mut [f32],
    m: &'a Panel,
    tiles: &'a [Tile],
    k: usize,
    row: usize,
    bias: &'a [f32],
}

lanes! {
    fn output(t: Output) = output_body;
}

#[inline(always)]
fn output_body<V: Lane>(t: Output) {
    for (i, tile) in t.tiles.iter().enumerate().take(TILES) {
        for half in [0, LANES] {
            let mut e = [[V::splat(0.0); 2]; SIDE];
            for s in 0..SIDE {
                let mut column = [V::splat(0.0); SIDE];
                for r in 0..SIDE {
                    column[r] = load(t.m, (r * SIDE + s) * PLACE + i * WIDE + half);
                }
                e[s] = gather(column);
            }
            let bias: V = load(t.bias, half);
            for r in 0..2 {
                let y = gather([e[0][r], e[1][r], e[2][r], e[3][r]]);
                for s in 0..2 {
                    if r < tile.rows as usize && s < tile.cols as usize {
                        store(y[s].add(bias), t.y, tile.y as usize + r * t.row + s * t.k + half);
                    }
                }
            }
        }
    }
}

/// Aᵀ m
#[inline(always)]
fn gather<V: Lane>([a, b, c, d]: [V; SIDE]) -> [V; 2] {
    [a.add(b).add(c), b.sub(c).sub(d)]
}

lanes! {
    /// Row `row` of G g Gᵀ for all filters w (K, 3, 3, C): u (4, K, C).
    fn filters(u: &mut [f32], w: &[f32], row: usize, channels: usize) = filters_body;
}

#[inline(always)]
fn filters_body<V: Lane>(u: &mut [f32], w: &[f32], row: usize, channels: usize) {
    let place = w.len() / 9;
    for (k, w) in w.chunks_exact(9 * channels).enumerate() {
        for c in (0..channels).step_by(LANES) {
            let mut e = [V::splat(0.0); 3];
            for s in 0..3 {
                let mut column = [V::splat(0.0); 3];
                for r in 0..3 {
                    column[r] = load(w, (r * 3 + s) * channels + c);
                }
                e[s] = halves(column)[row];
            }
            let e = halves(e);
            for s in 0..SIDE {
                store(e[s], u, s * place + k * channels + c);
            }
        }
    }
}

/// G g
#[inline(always)]
fn halves<V: Lane>([a, b, c]: [V; 3]) -> [V; SIDE] {
    let half = V::splat(0.5);
    let (zero, outer) = (V::splat(0.0), a.add(c));
    let (b, outer) = (half.mul_add(b, zero), half.mul_add(outer, zero));
    [a, outer.add(b), outer.sub(b), c]
}

/// The transformed filters w (K, 3, 3, C), ready for the products: of the convolution, or of the one that gives dx.
fn panels(w: &[f32], g: &Geometry, back: bool) -> Vec<Panels<'static>> {
    let place = g.k * g.c;
    let mut u = vec![0.0; PLACES * place];
    u.par_chunks_mut(SIDE * place).enumerate().for_each(|(row, u)| filters(u, w, row, g.c));
    (0..PLACES)
        .into_par_iter()
        .map(|at| {
            // Half a turn of the filter exchanges the outer rows, and the outer columns.
            let turn = |i: usize| if back && i % 3 == 0 { 3 - i } else { i };
            let u = &u[(turn(at / SIDE) * SIDE + turn(at % SIDE)) * place..][..place];
            if back { Panels::from_rows(u, g.k, g.c) } else { Panels::from_cols(u, g.c, g.k) }
        })
        .collect()
}

/// y = conv(x, w) + bias for every image.
pub fn conv_fwd(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry) {
    let none = vec![0.0; g.k];
    convolve(y, x, &panels(w, g, false), bias.unwrap_or(&none), g);
}

/// dx from dy: the convolution of dy with the filters turned by half a circle.
pub fn conv_dgrad(dx: &mut [f32], dy: &[f32], w: &[f32], g: &Geometry) {
    let back = Geometry { h: g.p, w: g.q, c: g.k, k: g.c, p: g.h, q: g.w, pad: 2 - g.pad, ..*g };
    convolve(dx, dy, &panels(w, g, true), &vec![0.0; g.c], &back);
}

fn convolve(y: &mut [f32], x: &[f32], filters: &[Panels], bias: &[f32], g: &Geometry) {
    let plan = Plan::new(g, TILES);
    let runs = Runs { count: g.c / WIDE, len: WIDE, stride: PLACES * PLACE };
    let bases: Vec<u32> = (0..TILES).map(|i| (i * WIDE) as u32).collect();
    let (x_len, y_len) = (g.h * g.w * g.c, g.p * g.q * g.k);
    let room = || (Vec::new(), vec![[0.0; PLACES * PLACE]; g.c / WIDE], Box::new([0.0; PLACES * PLACE]));
    let groups = y.par_chunks_mut(plan.images * y_len).zip(x.par_chunks(plan.images * x_len));
    groups.for_each_init(room, |(padded, v, m), (y, x)| {
        plan.pad(padded, x);
        for tiles in plan.tiles(x.len() / x_len).chunks(TILES) {
            input(Input { v, x: padded, tiles, row: plan.row(), panel: plan.panel(), rows: [0, SIDE] });
            let v = v.as_flattened();
            for (at, bias) in (0..g.k).step_by(WIDE).zip(bias.chunks_exact(WIDE)) {
                for (place, (m, filters)) in m.chunks_exact_mut(PLACE).zip(filters).enumerate() {
                    filters.pair(m, at, &v[place * PLACE..], &bases[..tiles.len()], runs);
                }
                output(Output { y: &mut y[at..], m, tiles, k: g.k, row: g.q * g.k, bias });
            }
        }
    });
}

/// dw from dy and x: sums over fixed groups of images, added in order.
pub fn conv_wgrad(dw: &mut [f32], dy: &[f32], x: &[f32], g: &Geometry) {
    let plan = Plan::new(g, WGRAD_TILES);
    let (x_len, y_len) = (plan.images * g.h * g.w * g.c, plan.images * g.p * g.q * g.k);
    let groups = x.len().div_ceil(x_len);
    // A place's sum is the same whoever computes it.
    let split = if groups < FEW_GROUPS { SIDE } else { 1 };
    let rows = SIDE / split;
    let parts: Vec<Vec<f32>> = (0..groups * split)
        .into_par_iter()
        .map_init(Default::default, |room, task| {
            let of = |all: &'_ [f32], len: usize| task / split * len..all.len().min((task / split + 1) * len);
            let first = task % split * rows;
            wgrad_part(room, &dy[of(dy, y_len)], &x[of(x, x_len)], &plan, [first, first + rows])
        })
        .collect();
    let parts: Vec<&[f32]> = parts.iter().map(|p| &p[..]).collect();
    dw.par_chunks_mut(WIDE * 9 * g.c).enumerate().for_each(|(panel, dw)| {
        let parts = Parts { parts: &parts, split, at: panel * WIDE * g.c, place: g.k * g.c, channels: g.c };
        wgrad_sum(dw, parts);
    });
}

/// Memory that the tasks of a thread share: padded images, and both operands of the products.
type Room = (Vec<f32>, Vec<Panel>, Vec<Panel>);

/// Σ (Bᵀ d B) ⊙ (A dY Aᵀ) for some rows of the places: (place, panel of filters, C, WIDE).
fn wgrad_part(room: &mut Room, dy: &[f32], x: &[f32], plan: &Plan, rows: [usize; 2]) -> Vec<f32> {
    let g = &plan.g;
    let (padded, v, e) = room;
    plan.pad(padded, x);
    v.resize(g.c / WIDE, [0.0; PLACES * PLACE]);
    e.resize(g.k / WIDE, [0.0; PLACES * PLACE]);
    let at: Vec<u32> = (0..TILES).map(|i| (i * WIDE) as u32).collect();
    let mut acc = vec![0.0; (rows[1] - rows[0]) * SIDE * g.k * g.c];
    for tiles in plan.tiles(x.len() / (g.h * g.w * g.c)).chunks(TILES) {
        input(Input { v, x: padded, tiles, row: plan.row(), panel: plan.panel(), rows });
        cotangent(Cotangent { v: e, dy, tiles, k: g.k, row: g.q * g.k, rows });
        for (place, acc) in acc.chunks_exact_mut(g.k * g.c).enumerate() {
            let place = (rows[0] * SIDE + place) * PLACE;
            for (acc, e) in acc.chunks_exact_mut(WIDE * g.c).zip(&*e) {
                for (acc, v) in acc.chunks_exact_mut(WIDE * WIDE).zip(&*v) {
                    cols_run(acc, 2, &v[place..], &at[..tiles.len()], 0, WIDE, (&e[place..], WIDE));
                }
            }
        }
    }
    acc
}

/// What all groups found for one panel of filters.
struct Parts<'a> {
    parts: &'a [&'a [f32]],
    /// Parts of a group.
    split: usize,
    /// Where the panel starts in each place, and the floats of a place.
    at: usize,
    place: usize,
    channels: usize,
}

lanes! {
    /// Gᵀ (Σ over groups) G: dw (WIDE, 3, 3, C).
    fn wgrad_sum(dw: &mut [f32], parts: Parts) = wgrad_sum_body;
}

#[inline(always)]
fn wgrad_sum_body<V: Lane>(dw: &mut [f32], t: Parts) {
    let places = PLACES / t.split;
    for c in (0..t.channels).step_by(LANES) {
        for half in (0..WIDE).step_by(LANES) {
            let mut taps = [[V::splat(0.0); LANES]; 9];
            for l in 0..LANES {
                let mut sum = [V::splat(0.0); PLACES];
                for group in t.parts.chunks_exact(t.split) {
                    for place in 0..PLACES {
                        let at = place % places * t.place + t.at + (c + l) * WIDE + half;
                        sum[place] = sum[place].add(load(group[place / places], at));
                    }
                }
                let mut e = [[V::splat(0.0); 3]; SIDE];
                for s in 0..SIDE {
                    e[s] = thirds([sum[s], sum[SIDE + s], sum[2 * SIDE + s], sum[3 * SIDE + s]]);
                }
                for r in 0..3 {
                    let three = thirds([e[0][r], e[1][r], e[2][r], e[3][r]]);
                    for s in 0..3 {
                        taps[r * 3 + s][l] = three[s];
                    }
                }
            }
            for tap in 0..9 {
                let filters = V::transpose(taps[tap]);
                for k in 0..LANES {
                    store(filters[k], dw, ((half + k) * 9 + tap) * t.channels + c);
                }
            }
        }
    }
}

/// Gᵀ m
#[inline(always)]
fn thirds<V: Lane>([a, b, c, d]: [V; SIDE]) -> [V; 3] {
    let (half, zero) = (V::splat(0.5), V::splat(0.0));
    let (sum, difference) = (half.mul_add(b.add(c), zero), half.mul_add(b.sub(c), zero));
    [a.add(sum), difference, sum.add(d)]
}
