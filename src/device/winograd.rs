//! 3×3 convolutions with stride 1 by Winograd's F(4×4, 3×3): 36 products give the 16 outputs that take 144 otherwise.
//!
//! Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for a window d of 6×6 pixels, a filter g and 4×4 outputs Y. One row of G evaluates a
//! polynomial with coefficients g at one of the points 0, ±√½, ±√2, ∞, and likewise Aᵀ; B interpolates. With these
//! points, unlike with 0, ±1, ±2, ∞, the rounding is about that of the plain sums. With h = √½:
//!
//! Bᵀ = ⎡1   0  −5⁄2   0   1  0⎤   G = ⎡  1     0     0 ⎤   Aᵀ = ⎡1   1    1    1     1   0⎤
//!      ⎢0 −2h   −2    h   1  0⎥       ⎢−2⁄3 −2⁄3 h −1⁄3⎥        ⎢0   h   −h   2h   −2h   0⎥
//!      ⎢0  2h   −2   −h   1  0⎥       ⎢−2⁄3  2⁄3 h −1⁄3⎥        ⎢0  1⁄2  1⁄2   2     2   0⎥
//!      ⎢0  −h  −1⁄2  2h   1  0⎥       ⎢ 1⁄6  1⁄3 h  1⁄3⎥        ⎣0 h⁄2 −h⁄2   4h  −4h   1⎦
//!      ⎢0   h  −1⁄2 −2h   1  0⎥       ⎢ 1⁄6 −1⁄3 h  1⁄3⎥
//!      ⎣0   1    0  −5⁄2  0  1⎦       ⎣  0     0     1 ⎦
//!
//! Summed over channels ⊙ is 36 matrix products, one for each of the 6×6 *places*. The gradient of g is the adjoint,
//! Gᵀ [Σ (Bᵀ d B) ⊙ (A dY Aᵀ)] G; that of d is the convolution of dY with g turned by half a circle. Nothing depends
//! on the number of threads, and no image on the others of its batch.

#![allow(clippy::needless_range_loop)] // indices run over several small arrays at once

use rayon::prelude::*;

use super::lane::{LANES, Lane, load, store};
use super::microkernel::{Geometry, Runs, cols_run, pair, transpose};
use crate::lanes;

/// Rows and columns of a transformed window, and all of its places.
const SIDE: usize = 6;
const PLACES: usize = SIDE * SIDE;
/// Rows and columns of the outputs of a window.
const OUT: usize = 4;
/// √½
const H: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// Windows transformed at a time: whole register tiles, and a place's share is small enough for the first cache.
const TILES: usize = 64;
/// Windows of one task of a convolution: few enough for small batches of small images to keep two threads busy.
const TASK_TILES: usize = 32;
/// Channels side by side in a transformed window.
const WIDE: usize = 2 * LANES;
/// Images whose weight gradients are summed by one task, in units of [`Plan::images`]. Fixed, so that the order of the
/// sum is.
const WGRAD_UNITS: usize = 4;
/// Filters of one task of the weight gradient.
const WGRAD_FILTERS: usize = 64;

/// Whether the geometry is ours: whole registers of channels, and fewer products in spite of cut windows.
pub fn fits(g: &Geometry) -> bool {
    let (r, s) = (g.r, g.s);
    let products = PLACES * g.p.div_ceil(OUT) * g.q.div_ceil(OUT);
    (r, s, g.stride) == (3, 3, 1)
        && g.pad < 3
        && g.c.is_multiple_of(WIDE)
        && g.k.is_multiple_of(WIDE)
        && 3 * products < 2 * 9 * g.p * g.q
}

/// One window of an image among others.
#[derive(Clone, Copy)]
struct Tile {
    /// Where it starts in the padded images, and its outputs in theirs.
    x: u32,
    y: u32,
    /// Rows and columns of its outputs that exist.
    rows: u8,
    cols: u8,
}

/// How images are cut into windows, a few images at a time.
struct Plan {
    g: Geometry,
    images: usize,
    /// Height and width of a padded image.
    padded: [usize; 2],
    tiles: Vec<Tile>,
}

impl Plan {
    /// At least `tiles` windows at a time.
    fn new(g: &Geometry, tiles: usize) -> Plan {
        let (down, across) = (g.p.div_ceil(OUT), g.q.div_ceil(OUT));
        let padded = [OUT * down + 2, OUT * across + 2];
        let images = tiles.div_ceil(down * across);
        let mut tiles = Vec::with_capacity(images * down * across);
        for image in 0..images {
            for (i, j) in (0..down).flat_map(|i| (0..across).map(move |j| (OUT * i, OUT * j))) {
                tiles.push(Tile {
                    x: (image * padded[0] * padded[1] * g.c + (i * padded[1] + j) * WIDE) as u32,
                    y: (((image * g.p + i) * g.q + j) * g.k) as u32,
                    rows: (g.p - i).min(OUT) as u8,
                    cols: (g.q - j).min(OUT) as u8,
                });
            }
        }
        Plan { g: *g, images, padded, tiles }
    }

    /// The windows of so many images.
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

/// Bᵀ d B for all `tiles`. x: (panel, H, W, WIDE)
struct Input<'a> {
    v: &'a mut [Panel],
    x: &'a [f32],
    tiles: &'a [Tile],
    /// Floats of a row of pixels and of a panel of x.
    row: usize,
    panel: usize,
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
                    let mut e = [V::splat(0.0); SIDE];
                    for s in 0..SIDE {
                        e[s] = load(x, s * WIDE + half);
                    }
                    d[r] = interpolate(e);
                }
                for s in 0..SIDE {
                    let e = interpolate([d[0][s], d[1][s], d[2][s], d[3][s], d[4][s], d[5][s]]);
                    for r in 0..SIDE {
                        store(e[r], v, (r * SIDE + s) * PLACE + i * WIDE + half);
                    }
                }
            }
        }
    }
}

/// Bᵀ d
#[inline(always)]
fn interpolate<V: Lane>(d: [V; SIDE]) -> [V; SIDE] {
    let (two, half, far) = (V::splat(-2.0), V::splat(-0.5), V::splat(-2.5));
    let (even, odd) = (two.mul_add(d[2], d[4]), two.mul_add(d[1], d[3]));
    let [b, c] = plus_minus(H, odd, even);
    let (even, odd) = (half.mul_add(d[2], d[4]), half.mul_add(d[1], d[3]));
    let [e, f] = plus_minus(2.0 * H, odd, even);
    [far.mul_add(d[2], d[0].add(d[4])), b, c, e, f, far.mul_add(d[3], d[1].add(d[5]))]
}

/// even ± a · odd
#[inline(always)]
fn plus_minus<V: Lane>(a: f32, odd: V, even: V) -> [V; 2] {
    [V::splat(a).mul_add(odd, even), V::splat(-a).mul_add(odd, even)]
}

/// A dY Aᵀ for all `tiles`. dy starts with the first of the filters.
struct Cotangent<'a> {
    v: &'a mut [Panel],
    dy: &'a [f32],
    tiles: &'a [Tile],
    /// Floats of a pixel and of a row of pixels.
    k: usize,
    row: usize,
}

#[inline(always)]
fn cotangent_body<V: Lane>(t: Cotangent) {
    for (panel, v) in t.v.iter_mut().enumerate() {
        for (i, tile) in t.tiles.iter().enumerate().take(TILES) {
            for half in [0, LANES] {
                let mut d = [[V::splat(0.0); SIDE]; OUT];
                for r in 0..OUT.min(tile.rows as usize) {
                    let mut e = [V::splat(0.0); OUT];
                    for s in 0..OUT {
                        if s < tile.cols as usize {
                            e[s] = load(t.dy, tile.y as usize + r * t.row + s * t.k + panel * WIDE + half);
                        }
                    }
                    d[r] = evaluate(e);
                }
                for s in 0..SIDE {
                    let e = evaluate([d[0][s], d[1][s], d[2][s], d[3][s]]);
                    for r in 0..SIDE {
                        store(e[r], v, (r * SIDE + s) * PLACE + i * WIDE + half);
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
fn evaluate<V: Lane>([a, b, c, d]: [V; OUT]) -> [V; SIDE] {
    let (half, two) = (V::splat(0.5), V::splat(2.0));
    let [e, f] = plus_minus(H, half.mul_add(d, b), half.mul_add(c, a));
    let [g, h] = plus_minus(2.0 * H, two.mul_add(d, b), two.mul_add(c, a));
    [a, e, f, g, h, d]
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
            let mut e = [[V::splat(0.0); OUT]; SIDE];
            for r in 0..SIDE {
                let mut row = [V::splat(0.0); SIDE];
                for s in 0..SIDE {
                    row[s] = load(t.m, (r * SIDE + s) * PLACE + i * WIDE + half);
                }
                e[r] = gather(row);
            }
            let bias: V = load(t.bias, half);
            for s in 0..OUT.min(tile.cols as usize) {
                let y = gather([e[0][s], e[1][s], e[2][s], e[3][s], e[4][s], e[5][s]]);
                for r in 0..OUT {
                    if r < tile.rows as usize {
                        store(y[r].add(bias), t.y, tile.y as usize + r * t.row + s * t.k + half);
                    }
                }
            }
        }
    }
}

/// Aᵀ m
#[inline(always)]
fn gather<V: Lane>(m: [V; SIDE]) -> [V; OUT] {
    let (half, one, two, four) = (V::splat(0.5), V::splat(H), V::splat(2.0), V::splat(4.0));
    let (even, odd) = (m[1].add(m[2]), m[1].sub(m[2]));
    let (outer_even, outer_odd) = (m[3].add(m[4]), m[3].sub(m[4]));
    [
        m[0].add(even).add(outer_even),
        one.mul(two.mul_add(outer_odd, odd)),
        half.mul_add(even, two.mul(outer_even)),
        one.mul_add(four.mul_add(outer_odd, half.mul(odd)), m[5]),
    ]
}

lanes! {
    /// G g Gᵀ for the first `n` channels of a filter w (3, 3, `channels`): u (place, n), places `place` apart. `back`
    /// turns g by half a circle.
    fn filter(u: &mut [f32], place: usize, n: usize, w: &[f32], channels: usize, back: bool) = filter_body;
}

#[inline(always)]
fn filter_body<V: Lane>(u: &mut [f32], place: usize, n: usize, w: &[f32], channels: usize, back: bool) {
    for c in (0..n).step_by(LANES) {
        let mut e = [[V::splat(0.0); SIDE]; 3];
        for r in 0..3 {
            let mut row = [V::splat(0.0); 3];
            for s in 0..3 {
                let tap = if back { 8 - (r * 3 + s) } else { r * 3 + s };
                row[s] = load(w, tap * channels + c);
            }
            e[r] = grow(row);
        }
        for s in 0..SIDE {
            let column = grow([e[0][s], e[1][s], e[2][s]]);
            for r in 0..SIDE {
                store(column[r], u, (r * SIDE + s) * place + c);
            }
        }
    }
}

/// G g
#[inline(always)]
fn grow<V: Lane>([a, b, c]: [V; 3]) -> [V; SIDE] {
    let (half, two) = (V::splat(0.5), V::splat(2.0));
    let (near, far) = (V::splat(-2.0 / 3.0), V::splat(1.0 / 6.0));
    let [d, e] = plus_minus(H, b, half.mul_add(c, a));
    let [f, g] = plus_minus(2.0 * H, b, two.mul_add(c, a));
    [a, near.mul(d), near.mul(e), far.mul(f), far.mul(g), c]
}

/// The transformed filters w (K, 3, 3, C), ready for the products of the convolution: (panel, place, C, WIDE).
fn filters(w: &[f32], g: &Geometry) -> Vec<f32> {
    let mut u = vec![0.0; PLACES * g.k * g.c];
    let size = WIDE * g.c;
    u.par_chunks_mut(PLACES * size).zip(w.par_chunks(9 * size)).for_each_init(Vec::new, |turned, (u, w)| {
        turned.resize(PLACES * size, 0.0);
        for (k, w) in w.chunks_exact(9 * g.c).enumerate() {
            filter(&mut turned[k * g.c..], size, g.c, w, g.c, false);
        }
        for (u, turned) in u.chunks_exact_mut(size).zip(turned.chunks_exact(size)) {
            transpose(u, WIDE, turned, g.c);
        }
    });
    u
}

/// The same for the convolution that gives dx: (panel, place, K, WIDE).
fn filters_back(w: &[f32], g: &Geometry) -> Vec<f32> {
    let mut u = vec![0.0; PLACES * g.k * g.c];
    let size = WIDE * g.k;
    u.par_chunks_mut(PLACES * size).enumerate().for_each(|(panel, u)| {
        for (k, w) in w.chunks_exact(9 * g.c).enumerate() {
            filter(&mut u[k * WIDE..], size, WIDE, &w[panel * WIDE..], g.c, true);
        }
    });
    u
}

/// y = conv(x, w) + bias for every image.
pub fn conv_fwd(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry) {
    let none = vec![0.0; g.k];
    convolve(y, x, &filters(w, g), bias.unwrap_or(&none), g);
}

/// dx from dy: the convolution of dy with the filters turned by half a circle.
pub fn conv_dgrad(dx: &mut [f32], dy: &[f32], w: &[f32], g: &Geometry) {
    let back = Geometry { h: g.p, w: g.q, c: g.k, k: g.c, p: g.h, q: g.w, pad: 2 - g.pad, ..*g };
    convolve(dx, dy, &filters_back(w, g), &vec![0.0; g.c], &back);
}

fn convolve(y: &mut [f32], x: &[f32], filters: &[f32], bias: &[f32], g: &Geometry) {
    let plan = Plan::new(g, TASK_TILES);
    let runs = Runs { count: g.c / WIDE, len: WIDE, stride: PLACES * PLACE };
    let bases: Vec<u32> = (0..TILES).map(|i| (i * WIDE) as u32).collect();
    let (x_len, y_len) = (g.h * g.w * g.c, g.p * g.q * g.k);
    let room = || (Vec::new(), vec![[0.0; PLACES * PLACE]; g.c / WIDE], Box::new([0.0; PLACES * PLACE]));
    let groups = y.par_chunks_mut(plan.images * y_len).zip(x.par_chunks(plan.images * x_len));
    groups.for_each_init(room, |(padded, v, m), (y, x)| {
        plan.pad(padded, x);
        for tiles in plan.tiles(x.len() / x_len).chunks(TILES) {
            input(Input { v, x: padded, tiles, row: plan.row(), panel: plan.panel() });
            let v = v.as_flattened();
            let panels = filters.chunks_exact(PLACES * g.c * WIDE).zip(bias.chunks_exact(WIDE));
            for (panel, (filters, bias)) in panels.enumerate() {
                let places = m.chunks_exact_mut(PLACE).zip(filters.chunks_exact(g.c * WIDE));
                for (place, (m, filters)) in places.enumerate() {
                    pair(m, &v[place * PLACE..], &bases[..tiles.len()], runs, filters);
                }
                output(Output { y: &mut y[panel * WIDE..], m, tiles, k: g.k, row: g.q * g.k, bias });
            }
        }
    });
}

/// dw from dy and x: sums over fixed groups of images, added in order.
pub fn conv_wgrad(dw: &mut [f32], dy: &[f32], x: &[f32], g: &Geometry) {
    let plan = Plan::new(g, TILES);
    let images = WGRAD_UNITS * plan.images;
    let (x_len, y_len) = (images * g.h * g.w * g.c, images * g.p * g.q * g.k);
    let (groups, split) = (x.len().div_ceil(x_len), g.k.div_ceil(WGRAD_FILTERS));
    let parts: Vec<Vec<f32>> = (0..groups * split)
        .into_par_iter()
        .map_init(Default::default, |room, task| {
            let (group, filter) = (task / split, task % split * WGRAD_FILTERS);
            let dy = &dy[group * y_len..dy.len().min((group + 1) * y_len)];
            let x = &x[group * x_len..x.len().min((group + 1) * x_len)];
            wgrad_part(room, dy, x, &plan, [filter, g.k.min(filter + WGRAD_FILTERS)])
        })
        .collect();
    dw.par_chunks_mut(WIDE * 9 * g.c).enumerate().for_each(|(panel, dw)| {
        let (first, at) = (panel * WIDE / WGRAD_FILTERS, panel * WIDE % WGRAD_FILTERS * g.c);
        let parts: Vec<&[f32]> = parts.iter().skip(first).step_by(split).map(|p| &p[..]).collect();
        wgrad_sum(dw, &parts, at, g.c);
    });
}

/// Memory that the tasks of a thread share: padded images, and both operands of the products.
type Room = (Vec<f32>, Vec<Panel>, Vec<Panel>);

/// Σ (Bᵀ d B) ⊙ (A dY Aᵀ) for the filters from `from` to `to`: (place, panel of filters, C, WIDE).
fn wgrad_part(room: &mut Room, dy: &[f32], x: &[f32], plan: &Plan, [from, to]: [usize; 2]) -> Vec<f32> {
    let (g, size) = (&plan.g, (to - from) * plan.g.c);
    let (padded, v, e) = room;
    v.resize(g.c / WIDE, [0.0; PLACES * PLACE]);
    e.resize((to - from) / WIDE, [0.0; PLACES * PLACE]);
    let at: Vec<u32> = (0..TILES).map(|i| (i * WIDE) as u32).collect();
    let mut acc = vec![0.0; PLACES * size];
    let (x_len, y_len) = (g.h * g.w * g.c, g.p * g.q * g.k);
    for (x, dy) in x.chunks(plan.images * x_len).zip(dy.chunks(plan.images * y_len)) {
        plan.pad(padded, x);
        for tiles in plan.tiles(x.len() / x_len).chunks(TILES) {
            input(Input { v, x: padded, tiles, row: plan.row(), panel: plan.panel() });
            cotangent(Cotangent { v: e, dy: &dy[from..], tiles, k: g.k, row: g.q * g.k });
            for (place, acc) in acc.chunks_exact_mut(size).enumerate() {
                for (acc, e) in acc.chunks_exact_mut(WIDE * g.c).zip(&*e) {
                    for (acc, v) in acc.chunks_exact_mut(WIDE * WIDE).zip(&*v) {
                        let (v, e) = (&v[place * PLACE..], &e[place * PLACE..]);
                        cols_run(acc, 2, v, &at[..tiles.len()], 0, WIDE, (e, WIDE));
                    }
                }
            }
        }
    }
    acc
}

lanes! {
    /// Gᵀ (Σ over groups) G for WIDE filters, which start at `at` in each place: dw (WIDE, 3, 3, C).
    fn wgrad_sum(dw: &mut [f32], parts: &[&[f32]], at: usize, channels: usize) = wgrad_sum_body;
}

#[inline(always)]
fn wgrad_sum_body<V: Lane>(dw: &mut [f32], parts: &[&[f32]], at: usize, channels: usize) {
    for c in (0..channels).step_by(LANES) {
        for half in [0, LANES] {
            let mut taps = [[V::splat(0.0); LANES]; 9];
            for l in 0..LANES {
                let mut sum = [[V::splat(0.0); SIDE]; SIDE];
                for part in parts {
                    let part = &part[at + (c + l) * WIDE + half..];
                    for place in 0..PLACES {
                        let sum = &mut sum[place / SIDE][place % SIDE];
                        *sum = sum.add(load(part, place * (parts[0].len() / PLACES)));
                    }
                }
                let mut e = [[V::splat(0.0); 3]; SIDE];
                for r in 0..SIDE {
                    e[r] = shrink(sum[r]);
                }
                for s in 0..3 {
                    let three = shrink([e[0][s], e[1][s], e[2][s], e[3][s], e[4][s], e[5][s]]);
                    for r in 0..3 {
                        taps[r * 3 + s][l] = three[r];
                    }
                }
            }
            for tap in 0..9 {
                let filters = V::transpose(taps[tap]);
                for k in 0..LANES {
                    store(filters[k], dw, ((half + k) * 9 + tap) * channels + c);
                }
            }
        }
    }
}

/// Gᵀ m
#[inline(always)]
fn shrink<V: Lane>(m: [V; SIDE]) -> [V; 3] {
    let (near, far, third) = (V::splat(-2.0 / 3.0), V::splat(1.0 / 6.0), V::splat(1.0 / 3.0));
    let (even, odd) = (m[1].add(m[2]), m[1].sub(m[2]));
    let (outer_even, outer_odd) = (m[3].add(m[4]), m[3].sub(m[4]));
    [
        far.mul_add(outer_even, near.mul_add(even, m[0])),
        V::splat(H).mul(third.mul_add(outer_odd, near.mul(odd))),
        third.mul_add(outer_even.sub(even), m[5]),
    ]
}
