//! k-means++ seeding: each pick drawn with a probability proportional to the squared distance to the picks before it,
//! on plain features or on BADGE's hypothetical gradients g_i = δ_i ⊗ h_i, which are never formed:
//! |g_i − g_j|² = |δ_i|²|h_i|² + |δ_j|²|h_j|² − 2 (δ_i·δ_j)(h_i·h_j).
//!
//! **Canonical order.** A sum over features has 32 lanes, lane l with the features l, l + 32, … (fma, ascending), which
//! are added as a tree: 16 apart, 8, 4, 2, 1; a warp on the device, two registers here. The three products above are
//! those of two floats and exact in f64, so copies are at distance 0 exactly. Weights are added in f64: the 128 rows of
//! a block in 32 lanes and a tree, then blocks in at most 256 runs, all ascending. The draw walks down the same sums: the
//! run, the block, then the row at which the inclusive sum exceeds u · total. Both devices draw the same rows.
//!
//! A pick is never taken twice; when all weights are 0 the lowest rows left are taken.

use std::rc::Rc;

use super::kcenter::non_finite;
use crate::Result;
use crate::device::{Cuda, Device, Launch, cuda::Replay, launch};
use crate::ops;
use crate::rng::Rng;
use crate::tensor::{Buf, Tensor};

/// What is seeded.
#[derive(Clone, Copy)]
pub enum Points<'a> {
    /// The rows of x (N, D). The first pick is drawn uniformly.
    Plain(&'a Tensor),
    /// δ_i ⊗ h_i for the rows of δ (N, C) and h (N, D). The first pick is the longest, the lowest row of equals.
    Gradients {
        /// Derivatives by the logits, see [`label_gradients`].
        delta: &'a Tensor,
        /// Features before the last layer.
        h: &'a Tensor,
    },
}

/// `k` distinct rows (all of them, if there are fewer), in the order they are drawn, with the words of `rng`: block i for
/// pick i. f32, all on one device. Holds N·(C + D) numbers; a row with a NaN or an infinity is an error that names it.
pub fn kmeans_pp(points: Points, k: usize, rng: Rng) -> Result<Vec<u32>> {
    let (first, rest) = match points {
        Points::Plain(x) => (x, None),
        Points::Gradients { delta, h } => (delta, Some(h)),
    };
    let [n, c] = first.shape().matrix(OP)?;
    if c == 0 {
        return Err(first.shape().refuse(OP, "rows of at least one value"));
    }
    if let Some(h) = rest {
        let [rows, d] = h.shape().matrix(OP)?;
        if rows != n || d == 0 {
            return Err(h.shape().refuse(OP, format!("({n}, D), a row for each of {:?}", first.shape())));
        }
    }
    let k = k.min(n);
    if k == 0 {
        return Ok(Vec::new());
    }
    for x in [Some(first), rest].into_iter().flatten() {
        if let Some(row) = first_non_finite(x)? {
            return Err(non_finite(row));
        }
    }
    let squares = match points {
        Points::Plain(_) => None,
        Points::Gradients { delta, h } => Some((squares(delta)?, squares(h)?)),
    };
    let start = match &squares {
        None => ((uniform(rng, 0) * n as f64) as u32).min(n as u32 - 1),
        Some((dd, hh)) => ops::argmax(&ops::mul(dd, hh)?)?,
    };
    match first.device() {
        Device::Cpu => cpu::seed(points, squares.as_ref(), n, k, start, rng),
        Device::Cuda(cuda) => on_cuda(cuda, points, squares.as_ref(), n, k, start, rng),
    }
}

const OP: &str = "kmeans_pp";

/// δ = e_ŷ − p (N, C) of logits (N, C): the derivative of the cross-entropy with the predicted label ŷ by the logits, with
/// the other sign. ŷ is the lowest of the largest; its entry is summed from the other classes, with full resolution near
/// certainty. Equal on both devices to about 1e-6, not to the bit.
pub fn label_gradients(logits: &Tensor) -> Result<Tensor> {
    let [n, c] = logits.shape().matrix("label_gradients")?;
    if c == 0 {
        return Err(logits.shape().refuse("label_gradients", "at least one class"));
    }
    let mut delta = logits.stale_like([n, c])?;
    match logits.device() {
        Device::Cpu => cpu::label_gradients(delta.host_mut(OP)?, logits.host(OP)?, c),
        Device::Cuda(cuda) => {
            let (l, to) = (Launch::warps(n, 256), delta.buf_mut(OP)?);
            launch::seeding_delta_f32(cuda, l, to, logits.buf(OP)?, n as i32, c as i32)?;
        }
    }
    Ok(delta)
}

/// The lowest row of x (N, D) with a NaN or an infinity.
pub(crate) fn first_non_finite(x: &Tensor) -> Result<Option<u32>> {
    let [n, d] = x.shape().matrix("first_non_finite")?;
    match x.device() {
        Device::Cpu => {
            let bad = |row: &[f32]| row.iter().any(|v| !v.is_finite());
            Ok(x.host::<f32>(OP)?.chunks_exact(d.max(1)).position(bad).map(|row| row as u32))
        }
        Device::Cuda(cuda) => {
            let mask = Buf::from_host(x.device(), &vec![1u8; n])?;
            let mut bad = Buf::from_host(x.device(), &[u32::MAX])?;
            let l = Launch::warps(n, 256);
            launch::kcenter_check_f32(cuda, l, &mut bad, x.buf(OP)?, &mask, n as i32, d as i32)?;
            Ok(bad.to_host()?.first().copied().filter(|row| *row != u32::MAX))
        }
    }
}

/// |x_i|² (N) of x (N, D), in the canonical order.
pub(super) fn squares(x: &Tensor) -> Result<Tensor> {
    let [n, d] = x.shape().matrix(OP)?;
    let mut y = x.stale_like([n])?;
    match x.device() {
        Device::Cpu => cpu::squares(y.host_mut(OP)?, x.host(OP)?, d),
        Device::Cuda(cuda) => {
            let l = Launch::warps(n.div_ceil(4), 256);
            launch::seeding_squares_f32(cuda, l, y.buf_mut(OP)?, x.buf(OP)?, n as i32, d as i32)?;
        }
    }
    Ok(y)
}

/// The number in [0, 1) of a pick: 53 bits of its block.
fn uniform(rng: Rng, pick: u32) -> f64 {
    let w = rng.block(pick);
    ((u64::from(w[0]) << 32 | u64::from(w[1])) >> 11) as f64 * 2f64.powi(-53)
}

/// Rows whose weights are summed together, and runs of such blocks.
const BLOCK: usize = 128;
const RUNS: usize = 256;

/// Picks per submission. Nothing happens in those beyond the last.
const PICKS: usize = 8;

fn on_cuda(
    cuda: &Rc<Cuda>,
    points: Points,
    squares: Option<&(Tensor, Tensor)>,
    n: usize,
    k: usize,
    start: u32,
    rng: Rng,
) -> Result<Vec<u32>> {
    let device = &Device::Cuda(cuda.clone());
    let blocks = n.div_ceil(BLOCK);
    let mut low = vec![f32::INFINITY; n];
    low[start as usize] = -1.0;
    let mut best = Buf::from_host(device, &low)?;
    let mut ids = Buf::from_host(device, &vec![start; k])?;
    let mut state = Buf::from_host(device, &[1, start])?;
    let mut part = Buf::<f64>::stale(device, blocks)?;
    let (l, draw) = (Launch::grid(blocks, 1, 1, 256), Launch::grid(1, 1, 1, 256));
    let [lo, hi, lane, a, b] = rng.all_words();
    let (n, k, blocks) = (n as i32, k as i32, blocks as i32);
    let mut pick = || {
        let (best, part) = (&mut best, &mut part);
        match (points, squares) {
            (Points::Gradients { delta, h }, Some((dd, hh))) => {
                let (c, d) = (delta.shape().matrix(OP)?[1] as i32, h.shape().matrix(OP)?[1] as i32);
                let (delta, h, dd, hh) = (delta.buf(OP)?, h.buf(OP)?, dd.buf(OP)?, hh.buf(OP)?);
                launch::seeding_gradients_f32(cuda, l, best, part, delta, h, dd, hh, &state, n, c, d, k)?;
            }
            (Points::Plain(x) | Points::Gradients { h: x, .. }, _) => {
                let d = x.shape().matrix(OP)?[1] as i32;
                launch::seeding_plain_f32(cuda, l, best, part, x.buf(OP)?, &state, n, d, k)?;
            }
        }
        launch::seeding_draw_f32(cuda, draw, &mut ids, best, &mut state, part, n, blocks, k, lo, hi, lane, a, b)
    };
    let mut replay = Replay::new(true);
    for _ in 0..(k as usize - 1).div_ceil(PICKS) {
        replay.run(device, || (0..PICKS).try_for_each(|_| pick()))?;
    }
    ids.to_host()
}

mod cpu {
    use rayon::prelude::*;

    use super::{BLOCK, OP, Points, RUNS, uniform};
    use crate::device::cpu as threads;
    use crate::device::lane::{LANES as EIGHT, Lane as Register, load, store};
    use crate::device::simd::mul_add;
    use crate::rng::Rng;
    use crate::tensor::Tensor;
    use crate::{Result, lanes, simd};

    /// Rows of a tile, and one feature of them.
    const ROWS: usize = 16;
    type Lane = [f32; ROWS];
    /// 2⁻²⁴
    const U: f32 = 1.0 / 16_777_216.0;
    /// Lanes of a sum.
    const LANES: usize = 32;
    /// Blocks of a task.
    const TASK: usize = 8;

    pub fn label_gradients(delta: &mut [f32], logits: &[f32], c: usize) {
        threads::chunks(delta, c, |at, delta| {
            for (delta, x) in delta.chunks_exact_mut(c).zip(logits[at..].chunks_exact(c)) {
                // With a NaN in the row everything in it becomes NaN.
                let top = (0..c).fold(0, |t, i| if x[i] > x[t] { i } else { t });
                let exp = |i: usize| f64::from(x[i] - x[top]).exp();
                let others: f64 = (0..c).filter(|i| *i != top).map(exp).sum();
                for (i, delta) in delta.iter_mut().enumerate() {
                    *delta = (if i == top { others } else { -exp(i) } / (1.0 + others)) as f32;
                }
            }
        });
    }

    /// The last features of a row, and zeros behind them: those add nothing.
    #[inline(always)]
    fn padded(rest: &[f32]) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        lanes.iter_mut().zip(rest).for_each(|(l, v)| *l = *v);
        lanes
    }

    /// (a − c)², or a c, to each lane.
    #[inline(always)]
    fn add<V: Register, const DIFFERENCES: bool>(acc: &mut [V; LANES / EIGHT], a: &[f32; LANES], c: &[f32; LANES]) {
        for (i, acc) in acc.iter_mut().enumerate() {
            let (a, c): (V, V) = (load(a, i * EIGHT), load(c, i * EIGHT));
            if DIFFERENCES {
                // c · −1 + a is a − c, rounded once.
                let t = c.mul_add(V::splat(-1.0), a);
                *acc = t.mul_add(t, *acc);
            } else {
                *acc = a.mul_add(c, *acc);
            }
        }
    }

    /// Σ (a − c)², or Σ a c, in the canonical order: the 32 lanes are four registers.
    #[inline(always)]
    fn sum<V: Register, const DIFFERENCES: bool>(a: &[f32], c: &[f32]) -> f32 {
        let mut acc = [V::splat(0.0); LANES / EIGHT];
        let (a, rest_a) = a.as_chunks::<LANES>();
        let (c, rest_c) = c.as_chunks::<LANES>();
        for (a, c) in a.iter().zip(c) {
            add::<V, DIFFERENCES>(&mut acc, a, c);
        }
        if !rest_a.is_empty() {
            let (a, c) = (padded(rest_a), padded(rest_c));
            add::<V, DIFFERENCES>(&mut acc, &a, &c);
        }
        let mut lanes = [0.0; LANES];
        for (i, acc) in acc.into_iter().enumerate() {
            store(acc, &mut lanes, i * EIGHT);
        }
        for half in [16, 8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    fn squares_body<V: Register>(y: &mut [f32], x: &[f32], d: usize) {
        for (y, x) in y.iter_mut().zip(x.chunks_exact(d)) {
            *y = sum::<V, false>(x, x);
        }
    }

    lanes! {
        fn squares_of(y: &mut [f32], x: &[f32], d: usize) = squares_body;
    }

    pub fn squares(y: &mut [f32], x: &[f32], d: usize) {
        threads::chunks(y, 1, |at, y| squares_of(y, &x[at * d..], d));
    }

    #[inline(always)]
    fn lower_plain_body<V: Register>(best: &mut [f32], x: &[f32], d: usize, from: usize, last: usize) -> bool {
        let centre = &x[last * d..][..d];
        let mut changed = false;
        for (best, row) in best.iter_mut().zip(x[from * d..].chunks_exact(d)) {
            let d2 = sum::<V, true>(row, centre);
            if d2 < *best {
                *best = d2;
                changed = true;
            }
        }
        changed
    }

    lanes! {
        /// best = min(best, distance to row `last`) for the rows of x from `from` on; whether one became smaller.
        fn lower_plain(best: &mut [f32], x: &[f32], d: usize, from: usize, last: usize) -> bool = lower_plain_body;
    }

    #[inline(always)]
    fn products_body<V: Register>(y: &mut [f32], h: &[f32], d: usize, rows: &[usize], last: usize) {
        let pick = &h[last * d..][..d];
        for (y, i) in y.iter_mut().zip(rows) {
            *y = sum::<V, false>(&h[*i * d..][..d], pick);
        }
    }

    lanes! {
        /// y = products of some rows of h with row `last`.
        fn products(y: &mut [f32], h: &[f32], d: usize, rows: &[usize], last: usize) = products_body;
    }

    /// Gradients, and what bounds their distances from below.
    struct Gradients<'a> {
        delta: &'a [f32],
        h: &'a [f32],
        c: usize,
        d: usize,
        dd: &'a [f32],
        hh: &'a [f32],
        /// δ in tiles of 16 rows, turned: a lane is a row.
        tiles: Vec<Lane>,
        /// |g|² and |h|, of whole blocks.
        norm: Vec<f32>,
        root: Vec<f32>,
        /// No feature is negative: neither is a product of two rows.
        positive: bool,
    }

    impl<'a> Gradients<'a> {
        fn new(delta: &'a Tensor, h: &'a Tensor, dd: &'a Tensor, hh: &'a Tensor) -> Result<Gradients<'a>> {
            let ([n, c], [_, d]) = (delta.shape().matrix(OP)?, h.shape().matrix(OP)?);
            let (delta, h, dd, hh) = (delta.host::<f32>(OP)?, h.host::<f32>(OP)?, dd.host(OP)?, hh.host(OP)?);
            let padded = n.next_multiple_of(BLOCK);
            let mut tiles = vec![[0.0; ROWS]; padded / ROWS * c];
            tiles.par_chunks_exact_mut(c).zip(delta.par_chunks(ROWS * c)).for_each(|(tile, rows)| {
                for (r, row) in rows.chunks_exact(c).enumerate() {
                    tile.iter_mut().zip(row).for_each(|(t, v)| t[r] = *v);
                }
            });
            let mut norm: Vec<f32> = dd.iter().zip(hh).map(|(a, b): (&f32, &f32)| a * b).collect();
            let mut root: Vec<f32> = hh.iter().map(|v: &f32| v.sqrt()).collect();
            norm.resize(padded, 0.0);
            root.resize(padded, 0.0);
            let positive = h.par_iter().all(|v| *v >= 0.0);
            Ok(Gradients { delta, h, c, d, dd, hh, tiles, norm, root, positive })
        }
    }

    #[inline(always)]
    fn add_scaled<const FMA: bool>(acc: &mut Lane, x: &Lane, y: f32) {
        for r in 0..ROWS {
            acc[r] = mul_add::<FMA>(x[r], y, acc[r]);
        }
    }

    /// Products of the rows of a tile with δ, in the canonical order. `lanes` is scratch, zeros at first: those of a small C
    /// stay, and adding them would change nothing.
    #[inline(always)]
    fn tile_dots<const FMA: bool>(lanes: &mut [Lane; LANES], tile: &[Lane], delta: &[f32]) -> Lane {
        let used = tile.len().min(LANES);
        for (l, lane) in lanes[..used].iter_mut().enumerate() {
            let mut acc = [0.0; ROWS];
            for (x, y) in tile[l..].iter().step_by(LANES).zip(delta[l..].iter().step_by(LANES)) {
                add_scaled::<FMA>(&mut acc, x, *y);
            }
            *lane = acc;
        }
        let mut half = used.next_power_of_two() / 2;
        while half > 0 {
            let (to, from) = lanes.split_at_mut(half);
            for (to, from) in to.iter_mut().zip(&*from) {
                for r in 0..ROWS {
                    to[r] += from[r];
                }
            }
            half /= 2;
        }
        lanes[0]
    }

    /// Bit r is set where a bound does not prove that row r stays as near as it is: one that is NaN proves nothing.
    #[inline(always)]
    fn not_at_least(low: &Lane, best: &Lane) -> u32 {
        let mut open = 0u32;
        for r in 0..ROWS {
            let stays = low[r] >= best[r];
            open |= u32::from(!stays) << r;
        }
        open
    }

    /// Lower bounds of the squared distances of the rows of a tile.
    #[inline(always)]
    fn lower_bounds(dots: &Lane, norm: &Lane, root: &Lane, positive: bool, last: f32, reach: f32) -> Lane {
        let mut low = [0.0; ROWS];
        for r in 0..ROWS {
            let most = if positive { dots[r].max(0.0) } else { dots[r].abs() };
            low[r] = (norm[r] + last) * (1.0 - 8.0 * U) - most * reach * root[r];
        }
        low
    }

    simd! {
        /// Products δ·δ of the rows of a block with row `last`; puts the rows into `open` that those do not prove to stay
        /// nearer to an earlier pick, whatever their h, and returns how many: |h_i·h_j| ≤ |h_i||h_j|. A sum over D features of
        /// products is off by at most (D + 1) u Σ|ab| with u = 2⁻²⁴, so the computed h·h is at most
        /// √(hh_i hh_j) (1 + 4 (D + 16) u) with room for the roots; the sum of the norms is lowered by 8 u for its own
        /// rounding.
        fn undecided(
            open: &mut [usize; BLOCK],
            dots: &mut [f32; BLOCK],
            best: &[f32],
            g: &Gradients,
            from: usize,
            last: usize,
        ) -> usize {
            let (c, d) = (g.c, g.d);
            let delta = &g.delta[last * c..][..c];
            let reach = 2.0 * g.root[last] * (1.0 + 4.0 * (d as f32 + 16.0) * U);
            let mut lanes = [[0.0f32; ROWS]; LANES];
            let mut count = 0;
            let (norm, root) = (g.norm[from..].as_chunks::<ROWS>().0, g.root[from..].as_chunks::<ROWS>().0);
            let tiles = g.tiles[from / ROWS * c..].chunks_exact(c);
            let near = best.as_chunks::<ROWS>().0.iter().zip(dots.as_chunks_mut::<ROWS>().0).zip(tiles);
            for (t, (((best, dots), tile), (norm, root))) in near.zip(norm.iter().zip(root)).enumerate() {
                *dots = tile_dots::<FMA>(&mut lanes, tile, delta);
                let low = lower_bounds(dots, norm, root, g.positive, g.norm[last], reach);
                let mut left = not_at_least(&low, best);
                while left != 0 {
                    let i = from + t * ROWS + left.trailing_zeros() as usize;
                    left &= left - 1;
                    if i < g.dd.len() {
                        open[count] = i;
                        count += 1;
                    }
                }
            }
            count
        }
    }

    /// The same as [`lower_plain`] for the gradients of a block.
    fn lower_gradients(best: &mut [f32], g: &Gradients, from: usize, last: usize) -> bool {
        let (mut open, mut dots, mut hh) = ([0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        let count = undecided(&mut open, &mut dots, best, g, from, last);
        products(&mut hh[..count], g.h, g.d, &open[..count], last);
        let own = f64::from(g.dd[last]) * f64::from(g.hh[last]);
        let mut changed = false;
        for (i, hh) in open[..count].iter().zip(hh) {
            let (best, dots) = (&mut best[i - from], dots[i - from]);
            let v = f64::from(g.dd[*i]) * f64::from(g.hh[*i]) + own - 2.0 * (f64::from(dots) * f64::from(hh));
            let d2 = if v > 0.0 { v as f32 } else { 0.0 };
            if d2 < *best {
                *best = d2;
                changed = true;
            }
        }
        changed
    }

    /// The weights of a block, added.
    fn weight(best: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        for row in best.as_chunks::<LANES>().0 {
            lanes.iter_mut().zip(row).for_each(|(l, v)| *l += f64::from(v.max(0.0)));
        }
        for half in [16, 8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        lanes[0]
    }

    /// The first of the weights at which the sum from `before` on exceeds the target, and the sum before it. Where
    /// rounding leaves none, the last with any weight.
    fn hit(weights: impl Iterator<Item = f64>, before: f64, target: f64) -> Option<(usize, f64)> {
        let (mut found, mut sum) = (None, before);
        for (i, w) in weights.enumerate() {
            if w > 0.0 {
                found = Some((i, sum));
                sum += w;
            }
            if sum > target {
                break;
            }
        }
        found
    }

    /// The row that u in [0, 1) draws; the lowest open one if nothing has a weight. Rows with -1 are never drawn.
    pub fn draw(best: &[f32], part: &[f64], u: f64) -> Option<usize> {
        let run = part.len().div_ceil(RUNS).max(1);
        let sums: Vec<f64> = part.chunks(run).map(|p| p.iter().fold(0.0, |s, w| s + w)).collect();
        let target = u * sums.iter().fold(0.0, |s, w| s + w);
        let Some((at, before)) = hit(sums.iter().copied(), 0.0, target) else {
            return best.iter().position(|v| *v >= 0.0);
        };
        let (block, before) = hit(part[at * run..].iter().copied().take(run), before, target)?;
        let from = (at * run + block) * BLOCK;
        let rows = best[from..best.len().min(from + BLOCK)].iter().map(|v| f64::from(*v));
        Some(from + hit(rows, before, target)?.0)
    }

    enum Rows<'a> {
        Plain(&'a [f32], usize),
        Gradients(Gradients<'a>),
    }

    /// Distances to the picks so far.
    pub struct State<'a> {
        rows: Rows<'a>,
        /// Squared distance to the nearest pick; -1 for picks, and where whole blocks have no row.
        pub best: Vec<f32>,
        /// Weights of blocks.
        pub part: Vec<f64>,
        pub ids: Vec<u32>,
    }

    impl<'a> State<'a> {
        pub fn new(points: Points<'a>, squares: Option<&'a (Tensor, Tensor)>, n: usize) -> Result<State<'a>> {
            let rows = match (points, squares) {
                (Points::Gradients { delta, h }, Some((dd, hh))) => Rows::Gradients(Gradients::new(delta, h, dd, hh)?),
                (Points::Plain(x) | Points::Gradients { h: x, .. }, _) => {
                    Rows::Plain(x.host(OP)?, x.shape().matrix(OP)?[1])
                }
            };
            let blocks = n.div_ceil(BLOCK);
            let mut best = vec![-1.0; blocks * BLOCK];
            best[..n].fill(f32::INFINITY);
            Ok(State { rows, best, part: vec![0.0; blocks], ids: Vec::new() })
        }

        pub fn take(&mut self, row: usize) {
            let first = self.ids.is_empty();
            self.best[row] = -1.0;
            self.ids.push(row as u32);
            let tasks = self.best.par_chunks_mut(TASK * BLOCK).zip(self.part.par_chunks_mut(TASK)).enumerate();
            tasks.for_each(|(task, (best, part))| {
                for (b, (best, part)) in best.chunks_mut(BLOCK).zip(part).enumerate() {
                    let from = (task * TASK + b) * BLOCK;
                    let changed = match &self.rows {
                        Rows::Plain(x, d) => lower_plain(best, x, *d, from, row),
                        Rows::Gradients(g) => lower_gradients(best, g, from, row),
                    };
                    if changed || first || row / BLOCK == from / BLOCK {
                        *part = weight(best);
                    }
                }
            });
        }
    }

    pub fn seed(
        points: Points,
        squares: Option<&(Tensor, Tensor)>,
        n: usize,
        k: usize,
        start: u32,
        rng: Rng,
    ) -> Result<Vec<u32>> {
        let mut s = State::new(points, squares, n)?;
        let mut next = Some(start as usize);
        while let Some(row) = next.filter(|_| s.ids.len() < k) {
            s.take(row);
            next = draw(&s.best, &s.part, uniform(rng, s.ids.len() as u32));
        }
        Ok(s.ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn matrix(n: usize, d: usize, lane: u32, of: impl Fn(u32) -> f32) -> Tensor {
        let r = Rng::new(5).at(Purpose::Select, n as u32, d as u32).lane(lane);
        let v: Vec<f32> = (0..(n * d) as u64).map(|e| of(r.u32(e))).collect();
        Tensor::new(&Device::Cpu, [n, d], &v).unwrap()
    }

    /// Whole numbers: sums are exact and their order is nobody's business.
    fn whole(n: usize, d: usize, levels: u32, lane: u32) -> Tensor {
        matrix(n, d, lane, |w| ((w >> 8) % levels) as f32 - (levels / 2) as f32)
    }

    /// g (N, C·D), formed.
    fn formed(delta: &Tensor, h: &Tensor) -> Vec<Vec<f64>> {
        let (c, d) = (delta.dims()[1], h.dims()[1]);
        let (delta, h) = (delta.to_f64().unwrap(), h.to_f64().unwrap());
        let row = |(a, b): (&[f64], &[f64])| a.iter().flat_map(|a| b.iter().map(move |b| a * b)).collect();
        delta.chunks(c).zip(h.chunks(d)).map(row).collect()
    }

    fn d2(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    /// The rule, line by line.
    fn brute(x: &[Vec<f64>], first: usize, k: usize, rng: Rng) -> Vec<u32> {
        let mut picks = vec![first];
        while picks.len() < k.min(x.len()) {
            let near = |i: usize| picks.iter().map(|p| d2(&x[i], &x[*p])).fold(f64::INFINITY, f64::min);
            let w: Vec<f64> = (0..x.len()).map(|i| if picks.contains(&i) { 0.0 } else { near(i) }).collect();
            let target = uniform(rng, picks.len() as u32) * w.iter().sum::<f64>();
            let mut sum = 0.0;
            let drawn = (0..x.len()).find(|i| {
                sum += w[*i];
                sum > target
            });
            picks.push(drawn.unwrap_or_else(|| (0..x.len()).find(|i| !picks.contains(i)).unwrap()));
        }
        picks.into_iter().map(|p| p as u32).collect()
    }

    #[test]
    fn draws_what_the_rule_draws() {
        for (n, d, levels) in [(1, 1, 2), (2, 3, 1), (17, 2, 3), (40, 33, 2), (129, 5, 4), (300, 3, 3), (513, 2, 9)] {
            let rng = Rng::new(n as u64).at(Purpose::Select, 1, 0);
            let x = whole(n, d, levels, 0);
            let rows: Vec<Vec<f64>> = x.to_f64().unwrap().chunks(d).map(<[f64]>::to_vec).collect();
            let k = (n / 3 + 2).min(60);
            let first = (uniform(rng, 0) * n as f64) as usize;
            assert_eq!(kmeans_pp(Points::Plain(&x), k, rng).unwrap(), brute(&rows, first, k, rng), "{n}x{d}");
            let mut all = kmeans_pp(Points::Plain(&x), n, rng).unwrap();
            all.sort_unstable();
            assert!(all.iter().copied().eq(0..n as u32), "{n}x{d}: everything, nothing twice");
            for (c, shift) in [(1, 0.0), (2, 0.0), (35, 2.0)] {
                let (delta, h) = (whole(n, c, levels, 1), whole(n, d, levels, 2));
                // Features that are all positive have a bound of their own.
                let h: Vec<f32> = h.to_vec::<f32>().unwrap().iter().map(|v| v + shift * levels as f32).collect();
                let h = Tensor::new(&Device::Cpu, [n, d], &h).unwrap();
                let g = formed(&delta, &h);
                let norm = |i: usize| g[i].iter().map(|v| v * v).sum::<f64>();
                let first = (0..n).fold(0, |a, i| if norm(i) > norm(a) { i } else { a });
                let got = kmeans_pp(Points::Gradients { delta: &delta, h: &h }, k, rng).unwrap();
                assert_eq!(got, brute(&g, first, k, rng), "{n}x{d}, {c} classes");
            }
        }
    }

    /// What the bound skips would not have changed: every distance is the canonical one, bit for bit.
    #[test]
    fn distances_are_canonical_whatever_is_skipped() {
        for (c, d, least) in [(3, 5, -1.0), (10, 50, 0.0), (40, 70, -0.2)] {
            let n = 300;
            let delta = label_gradients(&matrix(n, c, 1, |w| w as f32 * (8.0 / 4.3e9))).unwrap();
            let h = matrix(n, d, 2, |w| (w as f32 * (1.0 / 4.3e9) + least).max(least));
            let (dd, hh) = (squares(&delta).unwrap(), squares(&h).unwrap());
            let both = (dd.clone(), hh.clone());
            let mut s = cpu::State::new(Points::Gradients { delta: &delta, h: &h }, Some(&both), n).unwrap();
            let (dd, hh) = (dd.to_vec::<f32>().unwrap(), hh.to_vec::<f32>().unwrap());
            let dot = |x: &Tensor, i: usize, j: usize| {
                let (v, w) = (x.to_vec::<f32>().unwrap(), x.dims()[1]);
                let mut lanes = [0.0f32; 32];
                for k in 0..w {
                    let (a, b) = (v[i * w + k], v[j * w + k]);
                    let base = crate::device::simd::level() == crate::device::simd::Level::Base;
                    lanes[k % 32] = if base { a * b + lanes[k % 32] } else { a.mul_add(b, lanes[k % 32]) };
                }
                for half in [16, 8, 4, 2, 1] {
                    (0..half).for_each(|l| lanes[l] += lanes[l + half]);
                }
                f64::from(lanes[0])
            };
            let norm = |i: usize| f64::from(dd[i]) * f64::from(hh[i]);
            let mut want = vec![f32::INFINITY; n];
            for pick in [7, 0, 299, 128, 64] {
                s.take(pick);
                for (i, w) in want.iter_mut().enumerate() {
                    let v = norm(i) + norm(pick) - 2.0 * (dot(&delta, i, pick) * dot(&h, i, pick));
                    *w = w.min(v.max(0.0) as f32);
                }
                want[pick] = -1.0;
                assert_eq!(s.best[..n], want, "{c} classes, {d} features, pick {pick}");
                let sum: f64 = want.iter().map(|v| f64::from(v.max(0.0))).sum();
                assert!((s.part.iter().sum::<f64>() - sum).abs() < 1e-9 * sum);
            }
        }
    }

    /// METHODS 6.6: norms, distances to the first pick, and what two draws take.
    #[test]
    fn worked_example() {
        let t = |v: &[f32], w| Tensor::new(&Device::Cpu, [3, w], v).unwrap();
        let h = t(&[1.0, 2.0, 3.0, 0.0, 0.0, 1.0], 2);
        let p = [0.7f32, 0.2, 0.1, 0.1, 0.6, 0.3, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0];
        let delta = label_gradients(&t(&p.map(f32::ln), 3)).unwrap();
        let want = [0.3, -0.2, -0.1, -0.1, 0.4, -0.3, 2.0 / 3.0, -1.0 / 3.0, -1.0 / 3.0];
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-6);
        assert!(close(&delta.to_vec::<f32>().unwrap(), &want));
        let both = (squares(&delta).unwrap(), squares(&h).unwrap());
        let norms = ops::mul(&both.0, &both.1).unwrap();
        assert!(close(&norms.to_vec::<f32>().unwrap(), &[0.7, 2.34, 2.0 / 3.0]));
        let points = Points::Gradients { delta: &delta, h: &h };
        let mut s = cpu::State::new(points, Some(&both), 3).unwrap();
        s.take(1);
        assert!(close(&s.best[..3], &[3.52, -1.0, 3.006_667]));
        assert_eq!(cpu::draw(&s.best, &s.part, 0.25), Some(0));
        assert_eq!(cpu::draw(&s.best, &s.part, 0.75), Some(2));
        assert_eq!(kmeans_pp(points, 1, Rng::new(0)).unwrap(), [1]);
    }

    #[test]
    fn bad_rows_and_shapes() {
        let x = whole(9, 3, 4, 0);
        let mut bad = x.to_vec::<f32>().unwrap();
        bad[17] = f32::NAN;
        let bad = Tensor::new(&Device::Cpu, [9, 3], &bad).unwrap();
        for points in [Points::Plain(&bad), Points::Gradients { delta: &x, h: &bad }] {
            let e = kmeans_pp(points, 2, Rng::new(0)).unwrap_err().to_string();
            assert!(e.contains("row 5"), "{e}");
        }
        assert!(kmeans_pp(Points::Gradients { delta: &x, h: &whole(8, 3, 4, 0) }, 2, Rng::new(0)).is_err());
        assert!(kmeans_pp(Points::Plain(&x), 0, Rng::new(0)).unwrap().is_empty());
    }
}
