//! The dense heart of the CPU path: small register tiles over packed panels, shared by matrix products and
//! convolutions. f32 only; the plain loops next to each operation are the specification.
//!
//! Every output is one in-order sum (bias first, then the depth ascending), whatever the tile, the batch or the
//! number of threads, so results repeat bit for bit. Two forms cover everything:
//!
//! * *rows*: y(i, j) = Σ_k A(i, k) B(k, j), where row i of A is a sequence of contiguous runs in memory. A run is
//!   a whole row for a matrix, and one filter row for a convolution: NHWC needs no im2col.
//! * *columns*: y(i, j) = Σ_p A(p, i) B(p, j), where A(p, i..) is contiguous: weight gradients.

#![allow(clippy::needless_range_loop)] // indices run over several small arrays at once

use rayon::prelude::*;

use super::lane::{Eight, LANES, Lane, load, store};
use super::simd::{Level, level};
use super::{sparse, winograd};
use crate::{lanes, simd};

/// B cut into column panels of 8, 16, 24 or 32 columns. Packed panels are (depth, width) contiguous and padded with
/// zeros; a matrix that is used only once is better read where it is, except for a last panel that it does not fill.
pub struct Panels<'a> {
    data: Vec<f32>,
    /// B itself, when its whole panels are not packed.
    direct: Option<&'a [f32]>,
    /// First column, and width in units of 8 lanes.
    plan: Vec<(usize, usize)>,
    depth: usize,
    cols: usize,
    registers: Registers,
}

/// What register tiles are cut for. No sum depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registers {
    /// Sixteen registers of eight floats.
    Sixteen,
    /// Thirty-two of sixteen.
    ThirtyTwo,
}

impl Registers {
    /// For this processor.
    pub(super) fn here() -> Registers {
        if level() == Level::Avx512 { Registers::ThirtyTwo } else { Registers::Sixteen }
    }
}

/// Most registers of 8 lanes in a panel.
pub(super) const MOST: usize = 4;

/// Panel widths for `cols` columns. Of sixteen registers pairs are the best shape, three where a pair would leave one;
/// of thirty-two that are twice as wide two of those, also where the last columns of a cut panel leave one half empty.
pub(super) fn plan(cols: usize, registers: Registers) -> Vec<(usize, usize)> {
    let mut left = cols.div_ceil(LANES);
    let mut at = 0;
    let mut plan = Vec::new();
    while left > 0 {
        let nv = match (left, registers) {
            (3, Registers::ThirtyTwo) if !cols.is_multiple_of(LANES) => left + 1,
            (1 | 3, _) => left,
            (4.., Registers::ThirtyTwo) => 4,
            _ => 2,
        };
        plan.push((at, nv));
        at += nv * LANES;
        left = left.saturating_sub(nv);
    }
    plan
}

/// Columns `at` to `at` + 8 nv of the rows of b, each of `cols` floats, with zeros beyond them.
fn pack(panel: &mut [f32], nv: usize, b: &[f32], cols: usize, at: usize) {
    match (nv, cols - at >= nv * LANES) {
        (1, true) => copy::<LANES>(panel, b, cols, at),
        (2, true) => copy::<{ 2 * LANES }>(panel, b, cols, at),
        (3, true) => copy::<{ 3 * LANES }>(panel, b, cols, at),
        (4, true) => copy::<{ 4 * LANES }>(panel, b, cols, at),
        _ => {
            let valid = cols - at;
            for (to, from) in panel.chunks_exact_mut(nv * LANES).zip(b.chunks_exact(cols)) {
                to[valid..].fill(0.0);
                to[..valid].iter_mut().zip(&from[at..]).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

/// W columns of every row; a width known to the compiler is a few moves and not a call for each row.
fn copy<const W: usize>(panel: &mut [f32], b: &[f32], cols: usize, at: usize) {
    for (to, from) in panel.chunks_exact_mut(W).zip(b.chunks_exact(cols)) {
        to.copy_from_slice(&from[at..at + W]);
    }
}

impl<'a> Panels<'a> {
    fn new(depth: usize, cols: usize, registers: Registers) -> Panels<'a> {
        let plan = plan(cols, registers);
        let width: usize = plan.iter().map(|p| p.1 * LANES).sum();
        Panels { data: vec![0.0; depth * width], direct: None, plan, depth, cols, registers }
    }

    /// From B (depth, cols) row-major, read in place as far as its columns fill panels.
    pub fn in_place(b: &'a [f32], depth: usize, cols: usize) -> Panels<'a> {
        let registers = Registers::here();
        let plan = plan(cols, registers);
        let mut data = Vec::new();
        if let Some(&(at, nv)) = plan.last().filter(|p| p.0 + p.1 * LANES > cols) {
            data = vec![0.0; depth * nv * LANES];
            pack(&mut data, nv, b, cols, at);
        }
        Panels { data, direct: Some(b), plan, depth, cols, registers }
    }

    /// From B (depth, cols) row-major.
    pub fn from_rows(b: &[f32], depth: usize, cols: usize) -> Panels<'a> {
        Panels::for_registers(b, depth, cols, Registers::here())
    }

    fn for_registers(b: &[f32], depth: usize, cols: usize, registers: Registers) -> Panels<'a> {
        let mut p = Panels::new(depth, cols, registers);
        for &(at, nv) in &p.plan {
            pack(&mut p.data[at * depth..(at + nv * LANES) * depth], nv, b, cols, at);
        }
        p
    }

    /// From Bᵀ (cols, depth) row-major.
    pub fn from_cols(b: &[f32], depth: usize, cols: usize) -> Panels<'a> {
        let mut p = Panels::new(depth, cols, Registers::here());
        for &(at, nv) in &p.plan {
            let (w, valid) = (nv * LANES, (cols - at).min(nv * LANES));
            transpose(&mut p.data[at * depth..(at + w) * depth], w, &b[at * depth..(at + valid) * depth], depth);
        }
        p
    }

    /// Columns with padding.
    fn width(&self) -> usize {
        self.plan.iter().map(|p| p.1 * LANES).sum()
    }

    /// A panel, and how far apart its rows are.
    fn panel(&self, at: usize, nv: usize) -> (&[f32], usize) {
        let w = nv * LANES;
        match self.direct {
            Some(b) if at + w <= self.cols => (&b[at..], self.cols),
            Some(_) => (&self.data, w),
            None => (&self.data[at * self.depth..(at + w) * self.depth], w),
        }
    }

    /// y(i, ..) = bias + A(i, ..) B for the rows of `x` that start at `bases`, one after the other in y.
    pub fn some_rows(&self, y: &mut [f32], x: &[f32], bases: &[u32], bias: &[f32]) {
        self.rows(y, self.cols, x, bases, Runs::one(self.depth), Some(bias));
    }

    /// y(i, ..) = bias + A(i, ..) B for the rows that start at `bases`. y: rows of `ld` floats.
    pub(super) fn rows(&self, y: &mut [f32], ld: usize, x: &[f32], bases: &[u32], runs: Runs, bias: Option<&[f32]>) {
        for &(at, nv) in &self.plan {
            let mut start = [0.0; MOST * LANES];
            let valid = (self.cols - at).min(nv * LANES);
            if let Some(b) = bias {
                start[..valid].copy_from_slice(&b[at..at + valid]);
            }
            let run_over = self.plan.len() == 1;
            let (b, ldb) = self.panel(at, nv);
            let t = Rows { y: &mut y[at..], ld, valid, run_over, x, bases, runs, b, ldb, start };
            // Rows of a tile: what leaves the fewest over and each row a pointer.
            let (five, eight) = (tile(bases.len()) == 5, bases.len().is_multiple_of(8));
            match (nv, self.registers) {
                (1, _) => rows_panel::<6, 1, 0>(t),
                // The first layer of a network on grey images: runs this short must be unrolled.
                (2, _) if runs.len == 5 => rows_panel_16::<6, 1, 5>(t),
                (2, Registers::ThirtyTwo) if eight => rows_panel_16::<8, 1, 0>(t),
                (2, _) if five => rows_panel_16::<5, 1, 0>(t),
                (2, _) => rows_panel_16::<6, 1, 0>(t),
                // Twelve sums and three columns leave one of AVX2's sixteen registers: it spills.
                (3, Registers::Sixteen) => rows_panel::<3, 3, 0>(t),
                (3, Registers::ThirtyTwo) => rows_panel::<4, 3, 0>(t),
                _ if eight => rows_panel_16::<8, 2, 0>(t),
                _ if five => rows_panel_16::<5, 2, 0>(t),
                _ => rows_panel_16::<6, 2, 0>(t),
            }
        }
    }
}

/// How a row of A lies in memory: `count` runs of `len` floats, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    count: usize,
    len: usize,
    stride: usize,
}

impl Runs {
    /// A whole row of `len` floats.
    pub(super) fn one(len: usize) -> Runs {
        Runs { count: 1, len, stride: 0 }
    }
}

/// One panel of the *rows* form.
struct Rows<'a> {
    /// Rows of `ld` floats, of which the first `valid` are written.
    y: &'a mut [f32],
    ld: usize,
    valid: usize,
    /// Whole registers may be stored: what they cover beyond `valid` is the next row, which is written later.
    run_over: bool,
    x: &'a [f32],
    bases: &'a [u32],
    runs: Runs,
    /// The panel, its rows `ldb` apart.
    b: &'a [f32],
    ldb: usize,
    /// Where the sums start: the bias, or zeros.
    start: [f32; MOST * LANES],
}

/// One tile of the *columns* form: acc(i, ..) += Σ_p x[at_p + row0 + i] b(p, ..), acc in rows of NV·8. The first
/// `skip` rows belong to the tile before and are left alone.
struct Cols<'a> {
    acc: &'a mut [f32],
    skip: usize,
    x: &'a [f32],
    at: &'a [u32],
    row0: usize,
    /// The panel, its rows `ldb` apart.
    b: &'a [f32],
    ldb: usize,
}

/// Rows beyond the last whole tile are computed on copies of the last row and dropped. RUN is the length of the runs
/// when it is known at compile time, otherwise 0. Plain loops throughout: closures do not inherit the instruction
/// set of the function they end up in.
#[inline(always)]
fn rows_panel_body<V: Lane, const MR: usize, const NV: usize, const RUN: usize>(t: Rows) {
    let mut first = [V::splat(0.0); NV];
    for j in 0..NV {
        first[j] = load(&t.start, j * V::N);
    }
    let len = if RUN > 0 { RUN } else { t.runs.len };
    for (tile, group) in t.bases.chunks(MR).enumerate() {
        let mut acc = [first; MR];
        let mut base = [0usize; MR];
        for i in 0..MR {
            base[i] = group[i.min(group.len() - 1)] as usize;
        }
        for r in 0..t.runs.count {
            let mut a = [t.x; MR];
            for i in 0..MR {
                a[i] = &t.x[base[i] + r * t.runs.stride..][..len];
            }
            let b = &t.b[r * len * t.ldb..];
            for (k, b) in b.chunks(t.ldb).take(len).enumerate() {
                let mut columns = [V::splat(0.0); NV];
                for j in 0..NV {
                    columns[j] = load(b, j * V::N);
                }
                for i in 0..MR {
                    let a = V::splat(a[i][k]);
                    for j in 0..NV {
                        acc[i][j] = a.mul_add(columns[j], acc[i][j]);
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate().take(group.len()) {
            let out = &mut t.y[(tile * MR + i) * t.ld..];
            if t.valid == NV * V::N || (t.run_over && out.len() >= NV * V::N) {
                for j in 0..NV {
                    store(acc[j], out, j * V::N);
                }
            } else {
                let mut row = [0.0; MOST * LANES];
                for j in 0..NV {
                    store(acc[j], &mut row, j * V::N);
                }
                out[..t.valid].copy_from_slice(&row[..t.valid]);
            }
        }
    }
}

#[inline(always)]
fn cols_tile_body<V: Lane, const MR: usize, const NV: usize>(t: Cols) {
    let mut sum = [[V::splat(0.0); NV]; MR];
    for i in 0..MR {
        for j in 0..NV {
            sum[i][j] = load(t.acc, (i * NV + j) * V::N);
        }
    }
    let x = &t.x[t.row0..];
    for (p, b) in t.at.iter().zip(t.b.chunks(t.ldb)) {
        let a = &x[*p as usize..][..MR];
        let mut columns = [V::splat(0.0); NV];
        for j in 0..NV {
            columns[j] = load(b, j * V::N);
        }
        for i in 0..MR {
            let a = V::splat(a[i]);
            for j in 0..NV {
                sum[i][j] = a.mul_add(columns[j], sum[i][j]);
            }
        }
    }
    for i in t.skip..MR {
        for j in 0..NV {
            store(sum[i][j], t.acc, (i * NV + j) * V::N);
        }
    }
}

lanes! {
    fn rows_panel<const MR: usize, const NV: usize, const RUN: usize>(t: Rows) = rows_panel_body;
}

lanes! {
    sixteen: fn rows_panel_16<const MR: usize, const NV: usize, const RUN: usize>(t: Rows) = rows_panel_body;
}

lanes! {
    fn cols_tile<const MR: usize, const NV: usize>(t: Cols) = cols_tile_body;
}

lanes! {
    sixteen: fn cols_tile_16<const MR: usize, const NV: usize>(t: Cols) = cols_tile_body;
}

/// Adds Σ_p x[at_p + off + i] b(p, ..) for i in 0..run to `acc` (run rows of nv·8).
pub(super) fn cols_run(
    acc: &mut [f32],
    (nv, registers): (usize, Registers),
    x: &[f32],
    at: &[u32],
    off: usize,
    run: usize,
    (b, ldb): (&[f32], usize),
) {
    let w = nv * LANES;
    let most = match (nv, registers) {
        (2, Registers::ThirtyTwo) if run.is_multiple_of(16) => 16,
        (2 | 4, Registers::ThirtyTwo) if run.is_multiple_of(8) => 8,
        (1 | 2, Registers::ThirtyTwo) if run.is_multiple_of(10) => 10,
        (3, Registers::ThirtyTwo) => 4,
        (3, Registers::Sixteen) => 3,
        _ => 6,
    };
    let mr = if run >= 6 { most } else { run.min(most) };
    let mut i = 0;
    while i < run {
        // The last tile starts early enough to be whole; `skip` keeps what it covers twice from being added twice.
        let from = i.min(run - mr);
        let t = Cols { acc: &mut acc[from * w..(from + mr) * w], skip: i - from, x, at, row0: off + from, b, ldb };
        macro_rules! tile {
            ($tile:ident, $nv:literal: $($mr:literal)*) => {
                match mr {
                    $($mr => $tile::<$mr, $nv>(t),)*
                    _ => $tile::<1, $nv>(t),
                }
            };
        }
        match nv {
            1 => tile!(cols_tile, 1: 10 6 5 4 3 2),
            2 => tile!(cols_tile_16, 1: 16 10 8 6 5 4 3 2),
            3 => tile!(cols_tile, 3: 4 3 2),
            _ => tile!(cols_tile_16, 2: 8 6 5 4 3 2),
        }
        i = from + mr;
    }
}

/// Rows of a tile: five where that leaves none over and six would.
fn tile(rows: usize) -> usize {
    if rows.is_multiple_of(5) && !rows.is_multiple_of(6) { 5 } else { 6 }
}

/// Multiply-adds below which a second thread costs more than it brings.
const WORTH_A_THREAD: usize = 1 << 18;

/// y = A B + bias: y (M, N), A (M, K) row-major, B in panels, bias (N).
pub fn product(y: &mut [f32], a: &[f32], b: &Panels, bias: Option<&[f32]>) {
    let (n, k) = (b.cols, b.depth);
    if n == 0 || y.is_empty() {
        return;
    }
    let m = y.len() / n;
    let runs = Runs::one(k);
    let part = |rows: usize, first: usize, y: &mut [f32]| {
        let bases: Vec<u32> = (0..rows).map(|i| (i * k) as u32).collect();
        b.rows(y, n, &a[first * k..(first + rows) * k], &bases, runs, bias);
    };
    if m * n * k < WORTH_A_THREAD {
        return part(m, 0, y);
    }
    // As few groups as there are threads, so that a panel that is in the cache meets many rows. No sum depends on it.
    let least = WORTH_A_THREAD.div_ceil(n * k.max(1));
    let group = m.div_ceil(rayon::current_num_threads()).max(least).next_multiple_of(tile(m));
    y.par_chunks_mut(group * n).enumerate().for_each(|(g, y)| part(y.len() / n, g * group, y));
}

/// y = Aᵀ B: y (M, N), A (K, M), B (K, N), all row-major. Turning A first costs less than reading it in columns.
pub fn product_tn(y: &mut [f32], a: &[f32], b: &[f32], m: usize, n: usize, k: usize) {
    let mut turned = vec![0.0; m * k];
    transpose(&mut turned, k, a, m);
    product(y, &turned, &Panels::in_place(b, k, n), None);
}

lanes! {
    /// The transpose of `from` (rows, `from_ld`), its rows `to_ld` apart.
    fn transpose(to: &mut [f32], to_ld: usize, from: &[f32], from_ld: usize) = transpose_body;
}

#[inline(always)]
fn transpose_body<V: Eight>(to: &mut [f32], to_ld: usize, from: &[f32], from_ld: usize) {
    let rows = from.len() / from_ld.max(1);
    for k in (0..rows).step_by(LANES) {
        for i in (0..from_ld).step_by(LANES) {
            if k + LANES <= rows && i + LANES <= from_ld {
                let mut square = [V::splat(0.0); LANES];
                for p in 0..LANES {
                    square[p] = load(from, (k + p) * from_ld + i);
                }
                square = V::transpose(square);
                for p in 0..LANES {
                    store(square[p], to, (i + p) * to_ld + k);
                }
                continue;
            }
            for k in k..rows.min(k + LANES) {
                for i in i..from_ld.min(i + LANES) {
                    to[i * to_ld + k] = from[k * from_ld + i];
                }
            }
        }
    }
}

/// Sizes of a convolution: x (N, H, W, C), w (K, R, S, C), y (N, P, Q, K).
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Geometry {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub p: usize,
    pub q: usize,
    pub stride: usize,
    pub pad: usize,
    /// Every output is the plain sum over its window, as on tensor cores; no Winograd.
    pub plain: bool,
}

impl Geometry {
    /// Whether `winograd.rs` does it, for which it must pay: whole registers of channels, and a border of tiles that
    /// adds less than half to the outputs.
    fn winograd(&self) -> bool {
        let g = self;
        let covered = g.p.next_multiple_of(4) * g.q.next_multiple_of(4);
        !g.plain
            && (g.r, g.s, g.stride) == (3, 3, 1)
            && g.pad < 3
            && g.c.is_multiple_of(LANES)
            && g.k.is_multiple_of(LANES)
            && 2 * covered < 3 * g.p * g.q
    }

    pub(super) fn x_len(&self) -> usize {
        self.h * self.w * self.c
    }

    pub(super) fn y_len(&self) -> usize {
        self.p * self.q * self.k
    }

    /// Height and width with padding.
    fn padded(&self) -> (usize, usize) {
        (self.h + 2 * self.pad, self.w + 2 * self.pad)
    }

    /// Where the window of each output pixel starts in the padded image.
    fn windows(&self) -> Vec<u32> {
        let (_, w) = self.padded();
        let at = |p, q| ((p * self.stride * w + q * self.stride) * self.c) as u32;
        (0..self.p).flat_map(|p| (0..self.q).map(move |q| at(p, q))).collect()
    }

    fn runs(&self) -> Runs {
        Runs { count: self.r, len: self.s * self.c, stride: self.padded().1 * self.c }
    }

    /// The image with its zero border, in `scratch`; the image itself when there is no border.
    fn pad<'a>(&self, x: &'a [f32], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        if self.pad == 0 {
            return x;
        }
        self.pad_with_room(x, scratch)
    }

    /// The image with its zero border and a register of zeros behind it, in `scratch`.
    fn pad_with_room<'a>(&self, x: &[f32], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let (h, w) = self.padded();
        scratch.clear();
        scratch.resize(h * w * self.c + LANES, 0.0);
        for (row, src) in x.chunks_exact(self.w * self.c).enumerate() {
            let at = ((row + self.pad) * w + self.pad) * self.c;
            scratch[at..at + src.len()].copy_from_slice(src);
        }
        scratch
    }

    /// The image without its border.
    fn unpad(&self, x: &mut [f32], padded: &[f32]) {
        let (_, w) = self.padded();
        for (row, dst) in x.chunks_exact_mut(self.w * self.c).enumerate() {
            let at = ((row + self.pad) * w + self.pad) * self.c;
            dst.copy_from_slice(&padded[at..at + dst.len()]);
        }
    }

    /// The convolution of dy that gives dx, and its filters (C, R, S, K): those of w turned by half a circle. None
    /// where more than a fifth of its products would be with padding.
    fn flipped(&self, w: &[f32]) -> Option<(Geometry, Vec<f32>)> {
        let g = self;
        if g.stride != 1 || g.r != g.s || g.pad >= g.r || 4 * g.h * g.w > 5 * g.p * g.q {
            return None;
        }
        let taps = g.r * g.s;
        let mut turned = vec![0.0; w.len()];
        for (k, w) in w.chunks_exact(taps * g.c).enumerate() {
            for (tap, w) in w.chunks_exact(g.c).enumerate() {
                for (c, w) in w.iter().enumerate() {
                    turned[(c * taps + taps - 1 - tap) * g.k + k] = *w;
                }
            }
        }
        let back = Geometry { h: g.p, w: g.q, c: g.k, k: g.c, p: g.h, q: g.w, pad: g.r - 1 - g.pad, ..*g };
        Some((back, turned))
    }

    fn macs(&self) -> usize {
        self.p * self.q * self.k * self.r * self.s * self.c
    }

    /// Images that make one task: enough work for a thread, independent of the number of threads.
    fn group(&self) -> usize {
        (1usize << 20).div_ceil(self.macs().max(1)).max(1)
    }
}

/// y = conv(x, w) + bias for every image.
pub fn conv_fwd(y: &mut [f32], x: &[f32], w: &[f32], bias: Option<&[f32]>, g: &Geometry) {
    if y.is_empty() {
        return;
    }
    if g.winograd() {
        return winograd::fwd(y, x, w, bias, g);
    }
    let b = Panels::from_cols(w, g.r * g.s * g.c, g.k);
    let (windows, runs, group) = (g.windows(), g.runs(), g.group());
    y.par_chunks_mut(group * g.y_len()).zip(x.par_chunks(group * g.x_len())).for_each(|(y, x)| {
        let mut scratch = Vec::new();
        for (y, x) in y.chunks_exact_mut(g.y_len()).zip(x.chunks_exact(g.x_len())) {
            b.rows(y, g.k, g.pad(x, &mut scratch), &windows, runs, bias);
        }
    });
}

/// Output pixels whose window gradients are formed at a time: whole register tiles, and small enough for L1.
const PIXELS: usize = 24;

/// dx from dy: for each output pixel its window gradient dy(pixel, ..) W, a short dense product, added into place.
/// Unlike a convolution with the flipped filter this multiplies no padding and no zeros between strides; where there is
/// little of both, that convolution is the faster form. Images whose dy is mostly zeros take the short way.
pub fn conv_dgrad(dx: &mut [f32], dy: &[f32], w: &[f32], g: &Geometry) {
    if dx.is_empty() {
        return;
    }
    if dy.is_empty() {
        return dx.fill(0.0);
    }
    if g.winograd() {
        return winograd::dgrad(dx, dy, w, g);
    }
    let depth = g.r * g.s * g.c;
    let mut b = Panels::from_rows(w, g.k, depth);
    b.cols = b.width(); // window gradients are stored with the padding of the panels: whole registers only
    let ld = b.cols;
    let (windows, group, (ph, pw)) = (g.windows(), g.group(), g.padded());
    let (run, row) = (g.s * g.c, pw * g.c);
    let one = Runs::one(g.k);
    let short = sparse::Window { runs: g.r, len: run, stride: row };
    let packed = short.pack(w);
    let flipped = g.flipped(w).map(|(g, w)| (g.windows(), Panels::from_cols(&w, g.r * g.s * g.c, g.k), g));
    dx.par_chunks_mut(group * g.x_len()).zip(dy.par_chunks(group * g.y_len())).for_each(|(dx, dy)| {
        let mut window = vec![0.0; PIXELS * ld];
        let mut border = vec![0.0; ph * pw * g.c + LANES];
        let (mut entries, mut scratch) = (Vec::new(), Vec::new());
        for (dx, dy) in dx.chunks_exact_mut(g.x_len()).zip(dy.chunks_exact(g.y_len())) {
            entries.clear();
            if sparse::entries(&mut entries, dy, &windows, g.k) {
                border.fill(0.0);
                sparse::dgrad(&mut border, &entries, &packed, short);
                g.unpad(dx, &border);
                continue;
            }
            if let Some((windows, b, g)) = &flipped {
                b.rows(dx, g.k, g.pad(dy, &mut scratch), windows, g.runs(), None);
                continue;
            }
            let into = if g.pad > 0 { &mut border[..] } else { &mut *dx };
            into.fill(0.0);
            for (at, dy) in windows.chunks(PIXELS).zip(dy.chunks(PIXELS * g.k)) {
                let mut bases = [0; PIXELS];
                for (i, base) in bases.iter_mut().enumerate() {
                    *base = (i * g.k) as u32;
                }
                b.rows(&mut window, ld, dy, &bases[..at.len()], one, None);
                for (at, window) in at.iter().zip(window.chunks_exact(ld)) {
                    for (r, part) in window[..depth].chunks_exact(run).enumerate() {
                        add_to(&mut into[*at as usize + r * row..][..run], part);
                    }
                }
            }
            if g.pad > 0 {
                g.unpad(dx, &border);
            }
        }
    });
}

simd! {
    /// y += x
    fn add_to(y: &mut [f32], x: &[f32]) {
        let _ = FMA;
        for (y, x) in y.iter_mut().zip(x) {
            *y += *x;
        }
    }
}

/// Images whose weight gradients are summed by one task. Fixed, so that the order of the sum never depends on the
/// number of threads.
const WGRAD_IMAGES: usize = 8;

/// dw from dy and x: partial sums over fixed groups of images, added in order. Groups whose dy is mostly zeros take
/// the short way to the same sums.
pub fn conv_wgrad(dw: &mut [f32], dy: &[f32], x: &[f32], g: &Geometry) {
    if g.winograd() {
        return winograd::wgrad(dw, dy, x, g);
    }
    let depth = g.r * g.s * g.c;
    let registers = Registers::here();
    let plan = plan(g.k, registers);
    let width: usize = plan.iter().map(|p| p.1 * LANES).sum();
    let (windows, runs) = (g.windows(), g.runs());
    let short = sparse::Window { runs: runs.count, len: runs.len, stride: runs.stride };
    let groups = dy.par_chunks(WGRAD_IMAGES * g.y_len().max(1)).zip(x.par_chunks(WGRAD_IMAGES * g.x_len().max(1)));
    let parts: Vec<Vec<f32>> = groups
        .map(|(dy, x)| {
            let mut scratch = Vec::new();
            if let Some(part) = sparse_wgrad(dy, x, g, &windows, short, &mut scratch) {
                return part;
            }
            let mut acc = vec![0.0; depth * width];
            let mut columns = vec![0.0; g.p * g.q * MOST * LANES];
            for (dy, x) in dy.chunks_exact(g.y_len()).zip(x.chunks_exact(g.x_len())) {
                let x = g.pad(x, &mut scratch);
                for &(col, nv) in &plan {
                    let w = nv * LANES;
                    let b = &mut columns[..g.p * g.q * w];
                    pack(b, nv, dy, g.k, col);
                    let acc = &mut acc[col * depth..(col + w) * depth];
                    for (r, acc) in acc.chunks_exact_mut(runs.len * w).enumerate() {
                        cols_run(acc, (nv, registers), x, &windows, r * runs.stride, runs.len, (b, w));
                    }
                }
            }
            let mut part = vec![0.0; depth * g.k];
            for &(col, nv) in &plan {
                let (w, valid) = (nv * LANES, (g.k - col).min(nv * LANES));
                for (d, acc) in acc[col * depth..(col + w) * depth].chunks_exact(w).enumerate() {
                    for j in 0..valid {
                        part[(col + j) * depth + d] = acc[j];
                    }
                }
            }
            part
        })
        .collect();
    dw.fill(0.0);
    for part in &parts {
        add_to(dw, part);
    }
}

/// One group's part of dw (K, R, S, C); none when dy has too few zeros.
fn sparse_wgrad(
    dy: &[f32],
    x: &[f32],
    g: &Geometry,
    windows: &[u32],
    short: sparse::Window,
    scratch: &mut Vec<f32>,
) -> Option<Vec<f32>> {
    let (mut entries, mut ends) = (Vec::new(), Vec::new());
    for dy in dy.chunks_exact(g.y_len()) {
        if !sparse::entries(&mut entries, dy, windows, g.k) {
            return None;
        }
        ends.push(entries.len());
    }
    let mut acc = vec![0.0; g.k * short.size()];
    let mut from = 0;
    for (end, x) in ends.into_iter().zip(x.chunks_exact(g.x_len())) {
        sparse::wgrad(&mut acc, &entries[from..end], g.pad_with_room(x, scratch), short);
        from = end;
    }
    Some(short.unpack(&acc))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn noise(n: usize, lane: u32) -> Vec<f32> {
        let r = Rng::new(3).lane(lane);
        (0..n as u64).map(|e| r.uniform(e) - 0.5).collect()
    }

    /// How many times the plain sum's the rounding error is.
    fn growth(g: &Geometry) -> usize {
        if g.winograd() { winograd::GROWTH as usize } else { 1 }
    }

    /// Equal within the rounding of a sum of `terms` products of numbers below a half.
    fn close(what: &str, got: &[f32], want: &[f64], terms: usize) {
        let most = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        assert!(most > 0.005, "{what}: the reference is degenerate");
        let tolerance = terms as f64 * 0.25 * f64::from(f32::EPSILON) / 2.0 + 1e-7;
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() <= tolerance, "{what}[{i}]: {g} is not {w} (± {tolerance:e})");
        }
        assert_eq!(got.len(), want.len());
    }

    #[test]
    fn products_of_every_tile_remainder() {
        for (m, n, k) in [
            (1, 1, 1),
            (5, 7, 3),
            (6, 8, 16),
            (7, 9, 17),
            (13, 24, 5),
            (12, 50, 33),
            (130, 10, 50),
            (61, 41, 120),
            (50, 320, 128),
        ] {
            let (a, b, bias) = (noise(m * k, 1), noise(k * n, 2), noise(n, 3));
            let mut want = vec![0.0; m * n];
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
                    want[i * n + j] = sum + f64::from(bias[j]);
                }
            }
            let transposed = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|i| x[(i % rows) * cols + i / rows]).collect()
            };
            let mut y = vec![f32::NAN; m * n];
            product(&mut y, &a, &Panels::from_rows(&b, k, n), Some(&bias));
            close("nn", &y, &want, k + 1);
            let nn = y.clone();
            product(&mut y, &a, &Panels::in_place(&b, k, n), Some(&bias));
            assert_eq!(y, nn, "B in place gives the same sums");
            product(&mut y, &a, &Panels::from_cols(&transposed(&b, k, n), k, n), Some(&bias));
            assert_eq!(y, nn, "nt gives the same sums");
            product(&mut y[..n], &a, &Panels::from_rows(&b, k, n), Some(&bias));
            assert_eq!(y[..n], nn[..n], "a row does not depend on the batch");
            product_tn(&mut y, &transposed(&a, m, k), &b, m, n, k);
            let plain: Vec<f64> = want.iter().enumerate().map(|(i, w)| w - f64::from(bias[i % n])).collect();
            close("tn", &y, &plain, k);
        }
    }

    #[test]
    fn the_sums_do_not_depend_on_the_registers() {
        let both = [Registers::Sixteen, Registers::ThirtyTwo];
        for m in [1, 5, 6, 8, 9, 10, 16, 20, 26, 36, 50] {
            for n in [8, 10, 16, 20, 24, 32, 40, 50, 56, 64] {
                let k = 37;
                let (a, b) = (noise(m * k, 1), noise(k * n, 2));
                let [y, z] = both.map(|r| {
                    let mut y = vec![f32::NAN; m * n];
                    let bases: Vec<u32> = (0..m).map(|i| (i * k) as u32).collect();
                    Panels::for_registers(&b, k, n, r).rows(&mut y, n, &a, &bases, Runs::one(k), None);
                    y
                });
                assert_eq!(y, z, "rows ({m} {n} {k})");
                // (k, m)ᵀ (k, n): the same sums.
                let turned: Vec<f32> = (0..m * k).map(|i| a[i % m * k + i / m]).collect();
                let at: Vec<u32> = (0..k).map(|p| (p * m) as u32).collect();
                for r in both {
                    for (column, nv) in plan(n, r) {
                        let w = nv * LANES;
                        let (mut panel, mut acc) = (vec![0.0; k * w], vec![0.0; m * w]);
                        pack(&mut panel, nv, &b, n, column);
                        cols_run(&mut acc, (nv, r), &turned, &at, 0, m, (&panel, w));
                        for (acc, y) in acc.chunks_exact(w).zip(y.chunks_exact(n)) {
                            let y = &y[column..n.min(column + w)];
                            assert_eq!(&acc[..y.len()], y, "columns ({m} {n} {k}), {nv} of {r:?}");
                        }
                    }
                }
            }
        }
    }

    /// Calls f(output, input, filter element) for every product of the convolution, from its definition.
    fn products(n: usize, g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
        let taps = g.r * g.s * g.c;
        for at in 0..n * g.y_len() {
            let (k, q, p, i) = (at % g.k, at / g.k % g.q, at / g.k / g.q % g.p, at / g.y_len());
            for tap in 0..taps {
                let (c, s, r) = (tap % g.c, tap / g.c % g.s, tap / g.c / g.s);
                let (h, w) = ((p * g.stride + r).wrapping_sub(g.pad), (q * g.stride + s).wrapping_sub(g.pad));
                if h < g.h && w < g.w {
                    f(at, ((i * g.h + h) * g.w + w) * g.c + c, k * taps + tap);
                }
            }
        }
    }

    #[test]
    fn convolutions_of_every_shape() {
        for (n, h, w, c, k, r, s, stride, pad) in [
            (2, 5, 6, 1, 3, 3, 3, 1, 0),
            (1, 7, 7, 3, 10, 5, 5, 1, 2),
            (3, 8, 6, 4, 9, 3, 2, 2, 1),
            (2, 12, 12, 10, 20, 5, 5, 1, 0),
            (2, 6, 6, 16, 17, 1, 1, 2, 0),
            (9, 4, 5, 2, 26, 4, 3, 1, 3),
            (17, 9, 9, 5, 8, 3, 3, 3, 1),
            (2, 8, 9, 16, 24, 3, 3, 1, 1),
            (2, 8, 8, 5, 3, 1, 1, 1, 0),
            // Winograd: whole tiles and cut ones, blocks that end in an image, every padding.
            (3, 16, 16, 8, 16, 3, 3, 1, 1),
            (40, 4, 4, 16, 32, 3, 3, 1, 1),
            (2, 13, 9, 24, 8, 3, 3, 1, 0),
            (1, 9, 10, 8, 40, 3, 3, 1, 2),
            // Fewer tiles than filters: their gradients a part of them at a time.
            (5, 4, 4, 48, 40, 3, 3, 1, 1),
            (3, 4, 4, 24, 72, 3, 3, 1, 1),
        ] {
            let (p, q) = ((h + 2 * pad - r) / stride + 1, (w + 2 * pad - s) / stride + 1);
            let g = Geometry { h, w, c, k, r, s, p, q, stride, pad, plain: false };
            let (x, f, dy, bias) =
                (noise(n * h * w * c, 1), noise(k * r * s * c, 2), noise(n * p * q * k, 3), noise(k, 4));
            let mut y = vec![0.0f64; n * p * q * k];
            let (mut dx, mut dw) = (vec![0.0f64; x.len()], vec![0.0f64; f.len()]);
            y.iter_mut().enumerate().for_each(|(i, y)| *y = f64::from(bias[i % k]));
            products(n, &g, |yi, xi, fi| {
                y[yi] += f64::from(x[xi]) * f64::from(f[fi]);
                dx[xi] += f64::from(dy[yi]) * f64::from(f[fi]);
                dw[fi] += f64::from(dy[yi]) * f64::from(x[xi]);
            });
            let name = format!("{g:?} x {n}");
            let mut got = vec![f32::NAN; y.len()];
            conv_fwd(&mut got, &x, &f, Some(&bias), &g);
            close(&name, &got, &y, growth(&g) * (r * s * c + 1));
            let mut got = vec![f32::NAN; x.len()];
            conv_dgrad(&mut got, &dy, &f, &g);
            close(&name, &got, &dx, growth(&g) * r * s * k);
            let mut got = vec![f32::NAN; f.len()];
            conv_wgrad(&mut got, &dy, &x, &g);
            close(&name, &got, &dw, growth(&g) * n * p * q);
        }
    }

    #[test]
    fn a_dy_of_mostly_zeros_gives_the_same_gradients() {
        for (n, h, w, c, k, r, s, stride, pad) in [
            (9, 12, 12, 10, 20, 5, 5, 1, 0),
            (9, 14, 13, 1, 10, 5, 5, 1, 0),
            (2, 7, 7, 3, 10, 5, 5, 1, 2),
            (3, 8, 6, 16, 9, 3, 2, 2, 1),
            (2, 40, 40, 2, 9, 1, 1, 1, 0),
        ] {
            let (p, q) = ((h + 2 * pad - r) / stride + 1, (w + 2 * pad - s) / stride + 1);
            let g = Geometry { h, w, c, k, r, s, p, q, stride, pad, plain: false };
            let (x, f) = (noise(n * h * w * c, 1), noise(k * r * s * c, 2));
            let mut dy = noise(n * p * q * k, 3);
            let keep = noise(dy.len(), 4);
            dy.iter_mut().zip(&keep).for_each(|(d, k)| *d *= f32::from(*k > 0.28));
            let windows = g.windows();
            let mut entries = Vec::new();
            for dy in dy.chunks_exact(g.y_len()) {
                let from = entries.len();
                assert!(sparse::entries(&mut entries, dy, &windows, k), "{g:?} is sparse");
                assert_eq!(entries.len() - from, dy.iter().filter(|d| **d != 0.0).count());
            }
            // In f64, from the definition; the dense forms are held against the same in the test above.
            let (mut dx, mut dw) = (vec![0.0f64; x.len()], vec![0.0f64; f.len()]);
            products(n, &g, |yi, xi, fi| {
                dx[xi] += f64::from(dy[yi]) * f64::from(f[fi]);
                dw[fi] += f64::from(dy[yi]) * f64::from(x[xi]);
            });
            let name = format!("sparse {g:?} x {n}");
            let mut got = vec![f32::NAN; x.len()];
            conv_dgrad(&mut got, &dy, &f, &g);
            close(&name, &got, &dx, r * s * k);
            let mut got = vec![f32::NAN; f.len()];
            conv_wgrad(&mut got, &dy, &x, &g);
            close(&name, &got, &dw, n * p * q);
        }
        let mut entries = Vec::new();
        assert!(!sparse::entries(&mut entries, &[1.0; 64], &[0; 8], 8) && entries.is_empty());
    }
}
