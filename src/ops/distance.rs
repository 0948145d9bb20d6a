//! Squared Euclidean distances by direct differences, and the minimum over centres that never stores N×M numbers.
//!
//! pairwise: y_ij = Σ_d (x_id − c_jd)², x (N, D), c (M, D), y (N, M); backward dx_i = 2 Σ_j dy_ij (x_i − c_j) and
//! dc_j = 2 Σ_i dy_ij (c_j − x_i). nearest: best_i ← min(best_i, min_j |x_i − c_j|²), best (N).
//!
//! **Canonical order.** In f32 the distance of a pair is one accumulator, d ascending: t = x_d − c_d, acc =
//! fma(t, t, acc), starting from zero. Every f32 path below, on every device, for every tile, thread count and
//! batch, returns these bits, so that whatever compares distances decides alike everywhere. (On a processor
//! without FMA the product is rounded too: the same bits on that machine, other bits than elsewhere.)

use super::{Arg, Case};
use crate::Result;
use crate::device::{Device, Launch, launch};
use crate::tensor::{Dtype, Real, Tensor};

/// y_ij = |x_i − c_j|².   x (N, D), c (M, D), y (N, M).
pub fn pairwise_sq(x: &Tensor, c: &Tensor) -> Result<Tensor> {
    let y = pairwise_fwd(x, c)?;
    let (sx, sc) = (x.detach(), c.detach());
    Ok(y.with_grad("pairwise_sq", &[x, c], move |dy, need| {
        Ok(vec![
            need.then(0, || pairwise_bwd(dy, &sx, &sc, Side::X))?,
            need.then(1, || pairwise_bwd(dy, &sc, &sx, Side::Centres))?,
        ])
    }))
}

/// best_i ← min(best_i, min_j |x_i − c_j|²), f32 only.   best (N) in place, x (N, D), centres (M, D).
///
/// A distance that is NaN never replaces anything: check the rows first where that matters.
pub fn nearest_update(best: &mut Tensor, x: &Tensor, centres: &Tensor) -> Result<()> {
    const OP: &str = "nearest_update";
    let (n, m, d) = matrices(OP, x, centres)?;
    if best.dims() != [n] {
        return Err(best.shape().refuse(OP, format!("best ({n})")));
    }
    match x.device() {
        Device::Cpu => {
            let (x, c) = (x.host::<f32>(OP)?, centres.host::<f32>(OP)?);
            let mut panels = fast::Panels::new(d, m);
            (0..m).for_each(|j| panels.push(&c[j * d..(j + 1) * d]));
            fast::nearest(best.host_mut(OP)?, |i| &x[i * d..(i + 1) * d], &panels, 0, m);
            Ok(())
        }
        Device::Cuda(cuda) => {
            let l = Launch::grid(if m == 0 { 0 } else { n.div_ceil(64) }, 1, 1, 256);
            let (x, c) = (x.buf(OP)?, centres.buf(OP)?);
            launch::nearest_update_f32(cuda, l, best.buf_mut(OP)?, x, c, n as i32, m as i32, d as i32)
        }
    }
}

/// Whose gradient: that of the rows or that of the columns of y.
#[derive(Clone, Copy)]
enum Side {
    X,
    Centres,
}

/// (N, M, D), after checking that both are matrices of the same width.
fn matrices(op: &'static str, x: &Tensor, c: &Tensor) -> Result<(usize, usize, usize)> {
    let ([n, d], [m, dc]) = (x.shape().matrix(op)?, c.shape().matrix(op)?);
    if d != dc {
        return Err(c.shape().refuse(op, format!("({m}, {d}), as wide as {:?}", x.shape())));
    }
    Ok((n, m, d))
}

fn pairwise_fwd(x: &Tensor, c: &Tensor) -> Result<Tensor> {
    const OP: &str = "pairwise_sq";
    let (n, m, d) = matrices(OP, x, c)?;
    let mut y = x.stale_like([n, m])?;
    match x.device() {
        Device::Cpu if x.dtype() == Dtype::F64 => {
            cpu::pairwise(y.host_mut::<f64>(OP)?, x.host::<f64>(OP)?, c.host::<f64>(OP)?, m, d);
        }
        Device::Cpu => fast::pairwise(y.host_mut(OP)?, x.host(OP)?, c.host(OP)?, m, d),
        Device::Cuda(cuda) => {
            let l = Launch::grid(n.div_ceil(64), m.div_ceil(128), 1, 256);
            let (y, x, c) = (y.buf_mut(OP)?, x.buf(OP)?, c.buf(OP)?);
            launch::pairwise_sq_fwd_f32(cuda, l, y, x, c, n as i32, m as i32, d as i32)?;
        }
    }
    Ok(y)
}

/// da_i = 2 Σ_j dy_ij (a_i − b_j); for the centres dy is read the other way round.
fn pairwise_bwd(dy: &Tensor, a: &Tensor, b: &Tensor, side: Side) -> Result<Tensor> {
    const OP: &str = "pairwise_sq_bwd";
    let (n, m, d) = matrices(OP, a, b)?;
    let (step_i, step_j) = match side {
        Side::X => (m, 1),
        Side::Centres => (1, n),
    };
    let mut da = a.like()?;
    match a.device() {
        Device::Cpu => crate::on_real!(OP, a, T => {
            let (dy, a, b) = (dy.host::<T>(OP)?, a.host::<T>(OP)?, b.host::<T>(OP)?);
            cpu::pairwise_bwd(da.host_mut::<T>(OP)?, dy, a, b, (m, d), (step_i, step_j));
            Ok(())
        })?,
        Device::Cuda(cuda) => {
            let (l, da) = (Launch::elements(n * d), da.buf_mut(OP)?);
            let (n, m, d, si, sj) = (n as i32, m as i32, d as i32, step_i as i32, step_j as i32);
            launch::pairwise_sq_bwd_f32(cuda, l, da, dy.buf(OP)?, a.buf(OP)?, b.buf(OP)?, n, m, d, si, sj)?;
        }
    }
    Ok(da)
}

mod cpu {
    use super::Real;
    use crate::device::cpu as threads;

    /// y (N, M) from x (N, D), c (M, D)
    pub fn pairwise<T: Real>(y: &mut [T], x: &[T], c: &[T], m: usize, d: usize) {
        threads::chunks(y, m, |at, y| {
            for (e, y) in y.iter_mut().enumerate() {
                let (i, j) = ((at + e) / m, (at + e) % m);
                let (a, b) = (&x[i * d..(i + 1) * d], &c[j * d..(j + 1) * d]);
                *y = T::of(a.iter().zip(b).map(|(a, b)| (a.f64() - b.f64()).powi(2)).sum());
            }
        });
    }

    /// da (N, D) from dy, a (N, D), b (M, D); dy_ij lies at i * step.0 + j * step.1
    pub fn pairwise_bwd<T: Real>(
        da: &mut [T],
        dy: &[T],
        a: &[T],
        b: &[T],
        (m, d): (usize, usize),
        step: (usize, usize),
    ) {
        threads::chunks(da, d, |at, da| {
            for (e, da) in da.iter_mut().enumerate() {
                let (i, k) = ((at + e) / d, (at + e) % d);
                let a = a[i * d + k].f64();
                let term = |j: usize| dy[i * step.0 + j * step.1].f64() * (a - b[j * d + k].f64());
                *da = T::of(2.0 * (0..m).map(term).sum::<f64>());
            }
        });
    }
}

/// f32 in the canonical order. Rows are taken sixteen at a time and turned, (16, D) to (D, 16): then the lanes of
/// a register are rows, each with its own sequential sum, and nothing has to be added across a register.
pub(crate) mod fast {
    use rayon::prelude::*;

    use crate::device::simd::{Level, level, mul_add};
    use crate::simd;

    /// Rows of a tile: one AVX-512 register, two of AVX2.
    pub const ROWS: usize = 16;
    /// One feature of the rows of a tile.
    pub type Lane = [f32; ROWS];

    /// Rows a task keeps in its second-level cache while centres pass by.
    const BLOCK: usize = 256;
    /// Floats of centres that stay in the first-level cache while the tiles of a block pass by.
    const CENTRES: usize = 4096;

    /// Features between two looks at whether a distance can still be the smallest.
    const SPAN: usize = 32;

    /// Centres of a panel: what is multiplied with a tile at a time.
    pub const PANEL: usize = 8;

    /// Centres eight at a time, each panel turned, (8, D) to (D, 8).
    pub struct Panels {
        of: Vec<[f32; PANEL]>,
        d: usize,
        count: usize,
    }

    impl Panels {
        /// No centres of width d, with room for some.
        pub fn new(d: usize, room: usize) -> Panels {
            Panels { of: Vec::with_capacity(room.div_ceil(PANEL) * d), d, count: 0 }
        }

        /// How many centres there are.
        pub fn count(&self) -> usize {
            self.count
        }

        /// Adds a centre. A new panel is full of it: a copy changes no minimum, so the lanes behind need no care.
        pub fn push(&mut self, centre: &[f32]) {
            let lane = self.count % PANEL;
            if lane == 0 {
                self.of.extend(centre.iter().map(|v| [*v; PANEL]));
            } else {
                let at = self.of.len() - self.d;
                for (p, v) in self.of[at..].iter_mut().zip(centre) {
                    p[lane..].fill(*v);
                }
            }
            self.count += 1;
        }

        /// The panels that hold the centres from..to, and perhaps their neighbours.
        fn range(&self, from: usize, to: usize) -> &[[f32; PANEL]] {
            &self.of[from / PANEL * self.d..to.div_ceil(PANEL) * self.d]
        }
    }

    simd! {
        /// low[r] = min(low[r], distance of row r of the tile to each centre of the panels), C centres at a time.
        fn tile_nearest<const C: usize>(low: &mut Lane, tile: &[Lane], panels: &[[f32; PANEL]]) {
            let mut best = *low;
            for panel in panels.chunks_exact(tile.len()) {
                for part in 0..PANEL / C {
                    let mut acc = [[0.0f32; ROWS]; C];
                    for (tile, panel) in tile.chunks(SPAN).zip(panel.chunks(SPAN)) {
                        for (x, y) in tile.iter().zip(panel) {
                            for i in 0..C {
                                for r in 0..ROWS {
                                    let t = x[r] - y[part * C + i];
                                    acc[i][r] = mul_add::<FMA>(t, t, acc[i][r]);
                                }
                            }
                        }
                        let mut open = 0u32;
                        for a in &acc {
                            for r in 0..ROWS {
                                open |= u32::from(a[r] < best[r]);
                            }
                        }
                        if open == 0 {
                            break;
                        }
                    }
                    for a in &acc {
                        for r in 0..ROWS {
                            best[r] = if a[r] < best[r] { a[r] } else { best[r] };
                        }
                    }
                }
            }
            *low = best;
        }
    }

    simd! {
        /// low = min(low, distance to one centre) for tiles that lie one behind the other; four at a time, so that
        /// four sums hide the latency of one.
        fn tiles_to_one(low: &mut [f32], tiles: &[Lane], centre: &[f32]) {
            let d = centre.len();
            let (mut low, mut tiles) = (low, tiles);
            while low.len() >= 4 * ROWS {
                let (four, rest) = low.split_at_mut(4 * ROWS);
                let (t0, t) = tiles.split_at(d);
                let (t1, t) = t.split_at(d);
                let (t2, t) = t.split_at(d);
                let (t3, t) = t.split_at(d);
                let (mut a0, mut a1, mut a2, mut a3) = ([0.0; ROWS], [0.0; ROWS], [0.0; ROWS], [0.0; ROWS]);
                for ((((x0, x1), x2), x3), y) in t0.iter().zip(t1).zip(t2).zip(t3).zip(centre) {
                    add_square::<FMA>(&mut a0, x0, *y);
                    add_square::<FMA>(&mut a1, x1, *y);
                    add_square::<FMA>(&mut a2, x2, *y);
                    add_square::<FMA>(&mut a3, x3, *y);
                }
                for (low, a) in four.chunks_exact_mut(ROWS).zip([&a0, &a1, &a2, &a3]) {
                    lower(low, a);
                }
                (low, tiles) = (rest, t);
            }
            for low in low.chunks_exact_mut(ROWS) {
                let (tile, rest) = tiles.split_at(d);
                let mut acc = [0.0; ROWS];
                for (x, y) in tile.iter().zip(centre) {
                    add_square::<FMA>(&mut acc, x, *y);
                }
                lower(low, &acc);
                tiles = rest;
            }
        }
    }

    /// One feature of the canonical distance, in every lane.
    #[inline(always)]
    fn add_square<const FMA: bool>(acc: &mut Lane, x: &Lane, y: f32) {
        for r in 0..ROWS {
            let t = x[r] - y;
            acc[r] = mul_add::<FMA>(t, t, acc[r]);
        }
    }

    #[inline(always)]
    fn lower(low: &mut [f32], by: &Lane) {
        for (low, by) in low.iter_mut().zip(by) {
            *low = if *by < *low { *by } else { *low };
        }
    }

    /// Turns up to ROWS rows into a tile. Lanes without a row repeat the last one.
    pub fn turn<'a>(tile: &mut [Lane], row: impl Fn(usize) -> &'a [f32], rows: usize) {
        for r in 0..ROWS {
            for (t, v) in tile.iter_mut().zip(row(r.min(rows.saturating_sub(1)))) {
                t[r] = *v;
            }
        }
    }

    /// The minimum over the centres from..to (d > 0) for the rows of one tile.
    pub fn tile(low: &mut Lane, tile: &[Lane], centres: &Panels, from: usize, to: usize) {
        let panels = centres.range(from, to);
        // Half a panel: sums for all of it do not fit sixteen registers, and LLVM then vectorises across the panel.
        match level() {
            Level::Base => tile_nearest::<2>(low, tile, panels),
            _ => tile_nearest::<4>(low, tile, panels),
        }
    }

    /// low = min(low, distance to one centre); `low` holds ROWS values per tile.
    pub fn sweep(low: &mut [f32], tiles: &[Lane], centre: &[f32]) {
        tiles_to_one(low, tiles, centre);
    }

    /// of[i] = the number of the centre nearest to row(i), the lowest of equals
    pub fn closest<'a>(of: &mut [u32], row: impl Fn(usize) -> &'a [f32] + Sync, centres: &[&[f32]], d: usize) {
        of.par_chunks_mut(BLOCK).enumerate().for_each(|(block, of)| {
            let mut tiles = vec![[0.0; ROWS]; of.len().div_ceil(ROWS) * d];
            for (t, tile) in tiles.chunks_exact_mut(d).enumerate() {
                let at = block * BLOCK + t * ROWS;
                turn(tile, |r| row(at + r), ROWS.min(of.len() - t * ROWS));
            }
            let mut low = [f32::INFINITY; BLOCK];
            for (j, c) in (0..).zip(centres) {
                let before = low;
                tiles_to_one(&mut low[..of.len().next_multiple_of(ROWS)], &tiles, c);
                for ((of, low), before) in of.iter_mut().zip(&low).zip(&before) {
                    *of = if low < before { j } else { *of };
                }
            }
        });
    }

    /// best[i] = min(best[i], distance of row(i) to the centres from..to, and perhaps their neighbours)
    pub fn nearest<'a>(
        best: &mut [f32],
        row: impl Fn(usize) -> &'a [f32] + Sync,
        centres: &Panels,
        from: usize,
        to: usize,
    ) {
        let d = centres.d;
        if from >= to {
            return;
        }
        if d == 0 {
            return best.iter_mut().for_each(|b| *b = b.min(0.0));
        }
        best.par_chunks_mut(BLOCK).enumerate().for_each(|(block, best)| {
            let mut tiles = vec![[0.0; ROWS]; best.len().div_ceil(ROWS) * d];
            for (t, tile) in tiles.chunks_exact_mut(d).enumerate() {
                let at = block * BLOCK + t * ROWS;
                turn(tile, |r| row(at + r), ROWS.min(best.len() - t * ROWS));
            }
            let some = (CENTRES / d).next_multiple_of(PANEL).max(PANEL);
            for from in (from..to).step_by(some) {
                for (low, t) in best.chunks_mut(ROWS).zip(tiles.chunks_exact(d)) {
                    let mut full = [f32::INFINITY; ROWS];
                    full[..low.len()].copy_from_slice(low);
                    tile(&mut full, t, centres, from, to.min(from + some));
                    low.copy_from_slice(&full[..low.len()]);
                }
            }
        });
    }

    /// y (N, M) from x (N, D), c (M, D)
    pub fn pairwise(y: &mut [f32], x: &[f32], c: &[f32], m: usize, d: usize) {
        if d == 0 || m == 0 {
            return y.fill(0.0);
        }
        y.par_chunks_mut(ROWS * m).enumerate().for_each(|(t, y)| {
            let (rows, mut tile) = (y.len() / m, vec![[0.0; ROWS]; d]);
            turn(&mut tile, |r| &x[(t * ROWS + r) * d..][..d], rows);
            for (j, c) in c.chunks(PAIR * d).enumerate() {
                let mut acc = [[0.0; ROWS]; PAIR];
                tile_to_some(&mut acc, &tile, c);
                let width = c.len() / d;
                for (r, y) in y.chunks_exact_mut(m).enumerate() {
                    y[j * PAIR..][..width].iter_mut().zip(&acc).for_each(|(y, a)| *y = a[r]);
                }
            }
        });
    }

    /// Centres whose distances are summed side by side: their sums hide the latency of one.
    const PAIR: usize = 4;

    simd! {
        /// acc[i][r] = distance of row r of the tile to centre i.   centres: up to PAIR rows of D
        fn tile_to_some(acc: &mut [Lane; PAIR], tile: &[Lane], centres: &[f32]) {
            let d = tile.len();
            if centres.len() < PAIR * d {
                for (acc, c) in acc.iter_mut().zip(centres.chunks_exact(d)) {
                    // No closure: it would not inherit the instruction set.
                    let mut a = *acc;
                    for (x, y) in tile.iter().zip(c) {
                        add_square::<FMA>(&mut a, x, *y);
                    }
                    *acc = a;
                }
                return;
            }
            let (c0, c) = centres.split_at(d);
            let (c1, c) = c.split_at(d);
            let (c2, c3) = c.split_at(d);
            let [mut a0, mut a1, mut a2, mut a3] = *acc;
            for ((((x, y0), y1), y2), y3) in tile.iter().zip(c0).zip(c1).zip(c2).zip(c3) {
                add_square::<FMA>(&mut a0, x, *y0);
                add_square::<FMA>(&mut a1, x, *y1);
                add_square::<FMA>(&mut a2, x, *y2);
                add_square::<FMA>(&mut a3, x, *y3);
            }
            *acc = [a0, a1, a2, a3];
        }
    }
}

/// Shapes every suite runs these operations on.
pub const CASES: &[Case] = &[
    Case {
        name: "pairwise_sq/5x7x3",
        inputs: &[Arg::Diff(&[5, 3], -2.0, 2.0), Arg::Diff(&[7, 3], -2.0, 2.0)],
        run: |x| pairwise_sq(&x[0], &x[1]),
        sum: 7,
        flops: 3 * 5 * 7 * 3,
        bytes: (5 * 3 + 7 * 3 + 5 * 7) * 4,
    },
    Case {
        name: "pairwise_sq/65x130x37",
        inputs: &[Arg::Diff(&[65, 37], -2.0, 2.0), Arg::Diff(&[130, 37], -2.0, 2.0)],
        run: |x| pairwise_sq(&x[0], &x[1]),
        sum: 130,
        flops: 3 * 65 * 130 * 37,
        bytes: (65 * 37 + 130 * 37 + 65 * 130) * 4,
    },
];

/// Real sizes, for device agreement and benchmarks: picks against a block of a pool, whose rows need not be multiples
/// of anything.
pub const LARGE: &[Case] = &[
    Case {
        name: "pairwise_sq/500x257x50",
        inputs: &[Arg::Diff(&[500, 50], -2.0, 2.0), Arg::Diff(&[257, 50], -2.0, 2.0)],
        run: |x| pairwise_sq(&x[0], &x[1]),
        sum: 500,
        flops: 3 * 500 * 257 * 50,
        bytes: (500 * 50 + 257 * 50 + 500 * 257) * 4,
    },
    Case {
        name: "pairwise_sq/512x256x128",
        inputs: &[Arg::Fixed(&[512, 128], -2.0, 2.0), Arg::Diff(&[256, 128], -2.0, 2.0)],
        run: |x| pairwise_sq(&x[0], &x[1]),
        sum: 512,
        flops: 3 * 512 * 256 * 128,
        bytes: (512 * 128 + 256 * 128 + 512 * 256) * 4,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};

    fn random(n: usize, d: usize, lane: u32) -> Tensor {
        let r = Rng::new(7).at(Purpose::Select, 0, 0).lane(lane);
        let v: Vec<f32> = (0..(n * d) as u64).map(|e| 4.0 * r.uniform(e) - 2.0).collect();
        Tensor::new(&Device::Cpu, [n, d], &v).unwrap()
    }

    /// Around tile, group and block sizes, every value is the canonical one, bit for bit.
    #[test]
    fn nearest_is_the_canonical_distance_whatever_the_tile() {
        for d in [1, 2, 3, 50, 128, 513] {
            for (n, m) in [(1, 1), (15, 3), (16, 4), (17, 7), (31, 8), (255, 9), (257, 33), (70, 100)] {
                let (x, c) = (random(n, d, 1), random(m, d, 2));
                let mut best = Tensor::new(&Device::Cpu, [n], &vec![0.75 * d as f32; n]).unwrap();
                nearest_update(&mut best, &x, &c).unwrap();
                let (x, c) = (x.to_vec::<f32>().unwrap(), c.to_vec::<f32>().unwrap());
                let y = pairwise_sq(&random(n, d, 1), &random(m, d, 2)).unwrap().to_vec::<f32>().unwrap();
                for (i, got) in best.to_vec::<f32>().unwrap().into_iter().enumerate() {
                    let mut want = 0.75 * d as f32;
                    for j in 0..m {
                        let mut acc = 0.0f32;
                        for k in 0..d {
                            let t = x[i * d + k] - c[j * d + k];
                            acc = if crate::device::simd::level() == crate::device::simd::Level::Base {
                                t * t + acc
                            } else {
                                t.mul_add(t, acc)
                            };
                        }
                        assert_eq!(acc.to_bits(), y[i * m + j].to_bits(), "pairwise {n}x{m}x{d} at {i}, {j}");
                        want = want.min(acc);
                    }
                    assert_eq!(got.to_bits(), want.to_bits(), "nearest {n}x{m}x{d}, row {i}: {got} for {want}");
                }
            }
        }
    }

    #[test]
    fn nearest_with_nothing_to_do() {
        let mut best = Tensor::new(&Device::Cpu, [3], &[1.0f32, 2.0, 3.0]).unwrap();
        nearest_update(&mut best, &random(3, 4, 1), &random(0, 4, 2)).unwrap();
        assert_eq!(best.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0]);
        nearest_update(&mut best, &random(3, 0, 1), &random(2, 0, 2)).unwrap();
        assert_eq!(best.to_vec::<f32>().unwrap(), [0.0; 3]);
        let mut none = Tensor::new::<f32>(&Device::Cpu, [0], &[]).unwrap();
        nearest_update(&mut none, &random(0, 4, 1), &random(2, 4, 2)).unwrap();
        assert!(nearest_update(&mut none, &random(1, 4, 1), &random(2, 4, 2)).is_err());
        assert!(nearest_update(&mut best, &random(3, 4, 1), &random(2, 5, 2)).is_err());
    }
}
