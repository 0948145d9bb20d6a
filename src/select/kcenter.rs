//! k-center greedy, farthest first: x* = argmax_{i ∈ candidates} min_{c ∈ labelled ∪ picked} |x_i − x_c|, k times.
//!
//! Squared distances are compared, the lowest id of equals is taken, and every distance is the canonical one of
//! [`crate::ops::nearest_update`]. A minimum does not depend on the order it is taken in, so the plain loop, the
//! lazy one below and the kernels return the same picks and the same radii, bit for bit.
//!
//! **The lazy loop** (CPU). The minimum over *some* of the centres is an upper bound of the minimum over all. Each
//! candidate keeps such a bound and how many centres are in it. The candidates with the largest bounds, the front,
//! are brought up to date, many centres at once from the cache; then picks are taken from the front alone, each
//! updating only the front, for as long as the best of it provably wins: its distance is larger than the largest
//! bound outside, or equal to it with a lower id. Then the next front is drawn. Labelled rows are the centres
//! nobody picked: a candidate that never comes near the front is never compared with most of them. Where they are many
//! they form regions; the first bound comes from a candidate's own region, and a row of the front meets only the regions
//! that `planes.rs` does not prove to be too far from it.

use std::rc::Rc;

use crate::device::{Cuda, Device, Launch, cuda::Replay, launch};
use crate::ops::{argmax, nearest_update};
use crate::tensor::{Buf, Tensor};
use crate::{Error, Result};

/// What k-center picked, in the order it was picked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picks {
    /// Rows of the matrix.
    pub ids: Vec<u32>,
    /// The distance (not squared) to the nearest centre when the row was taken; of a first pick without labelled
    /// rows, its distance to the mean.
    pub radius: Vec<f32>,
}

/// The k candidates that farthest-first traversal takes, starting from the labelled rows.
///
/// `x` (N, D), f32, on any device; `labelled` rows of x in any order; `candidates` rows of x, ascending. Without
/// labelled rows the first pick is the candidate farthest from the candidates' mean. With more picks wanted than
/// there are candidates, all are taken. Copies of a centre have distance 0 and come last, the lowest id first.
/// A row among these with a NaN or an infinity is an error that names it.
pub fn kcenter(x: &Tensor, labelled: &[u32], candidates: &[u32], k: usize) -> Result<Picks> {
    let [n, d] = x.shape().matrix("kcenter")?;
    if d == 0 {
        return Err(x.shape().refuse("kcenter", "(N, D) with at least one feature"));
    }
    check_ids(n, labelled, candidates)?;
    let k = k.min(candidates.len());
    if k == 0 {
        return Ok(Picks::default());
    }
    match x.device() {
        Device::Cpu => cpu::kcenter(x, labelled, candidates, k),
        Device::Cuda(c) => on_cuda(c, x, labelled, candidates, k),
    }
}

/// max_{i ∈ others} min_{c ∈ covered} |x_i − x_c|: how far the worst row is from what is covered. Zero without
/// others, infinite without anything that covers. Both are rows of `x` (N, D), in any order.
pub fn coverage_radius(x: &Tensor, covered: &[u32], others: &[u32]) -> Result<f32> {
    let [n, _] = x.shape().matrix("coverage_radius")?;
    check_ids(n, covered, &[])?;
    check_ids(n, others, &[])?;
    if others.is_empty() {
        return Ok(0.0);
    }
    let worst = match x.device() {
        Device::Cpu => cpu::worst(x, covered, others)?,
        Device::Cuda(c) => Resident::new(c, x, covered, others)?.worst()?,
    };
    Ok(worst.sqrt())
}

fn check_ids(n: usize, labelled: &[u32], candidates: &[u32]) -> Result<()> {
    let config = |key: &str, why: String| Err(Error::Config { key: key.into(), why });
    if let Some(id) = labelled.iter().chain(candidates).find(|id| **id as usize >= n) {
        return config("ids", format!("row {id} does not exist: there are {n}, numbered from 0"));
    }
    if let Some(w) = candidates.windows(2).find(|w| w[0] >= w[1]) {
        return config("candidates", format!("must ascend without repetition, but {} is before {}", w[0], w[1]));
    }
    Ok(())
}

pub(super) fn non_finite(row: u32) -> Error {
    Error::NonFinite { what: format!("row {row} of the embeddings holds a NaN or an infinity; nothing was selected") }
}

/// Refuses a NaN or an infinity in the rows of x (N, D) whose mask (N) is not 0.
fn check_masked(cuda: &Cuda, x: &Tensor, mask: &Buf<u8>) -> Result<()> {
    let [n, d] = x.shape().matrix(OP)?;
    let mut bad = Buf::from_host(x.device(), &[u32::MAX])?;
    launch::kcenter_check_f32(cuda, Launch::warps(n, 256), &mut bad, x.buf(OP)?, mask, n as i32, d as i32)?;
    match bad.to_host()?.first() {
        Some(row) if *row != u32::MAX => Err(non_finite(*row)),
        _ => Ok(()),
    }
}

/// Refuses a NaN or an infinity in x (N, D), f32, and names the row.
pub(super) fn check_finite(x: &Tensor) -> Result<()> {
    let [n, _] = x.shape().matrix(OP)?;
    match x.device() {
        Device::Cpu => cpu::check_finite(x, &[&(0..n as u32).collect::<Vec<_>>()]),
        Device::Cuda(cuda) => check_masked(cuda, x, &Buf::from_host(x.device(), &vec![1u8; n])?),
    }
}

/// Picks per submission. Nothing happens in those beyond the last.
const PICKS: usize = 8;

fn on_cuda(cuda: &Rc<Cuda>, x: &Tensor, labelled: &[u32], candidates: &[u32], k: usize) -> Result<Picks> {
    let mut r = Resident::new(cuda, x, labelled, candidates)?;
    let mut ids = Buf::<u32>::zeros(x.device(), k)?;
    let mut radius = Buf::<f32>::zeros(x.device(), k)?;
    if labelled.is_empty() {
        // Farthest from the mean; then only the pick counts, so the distances start again without it.
        let mut mean = x.stale_like([1, r.d])?;
        let l = Launch { grid: [r.d.div_ceil(64) as u32, 1, 1], block: 64, shared: 0 };
        launch::kcenter_mean_f32(cuda, l, mean.buf_mut(OP)?, x.buf(OP)?, &r.mask, r.n as i32, r.d as i32)?;
        nearest_update(&mut r.best, x, &mean)?;
        r.pick(x, &mut ids, &mut radius, k)?;
        r.start()?;
    }
    let mut replay = Replay::new(true);
    for _ in 0..k.div_ceil(PICKS) {
        replay.run(x.device(), || (0..PICKS).try_for_each(|_| r.pick(x, &mut ids, &mut radius, k)))?;
    }
    Ok(Picks { ids: ids.to_host()?, radius: radius.to_host()? })
}

const OP: &str = "kcenter";

/// What stays on the device while picks are made.
struct Resident {
    cuda: Rc<Cuda>,
    n: usize,
    d: usize,
    /// Squared distance to the nearest centre (N); -1 for rows that cannot be picked.
    best: Tensor,
    /// What each row is (N): see kernels/kcenter.cu.
    mask: Buf<u8>,
    /// The farthest row of each block.
    part: Buf<u64>,
    /// Picks so far, last pick.
    state: Buf<u32>,
}

impl Resident {
    /// Distances to `centres`, after checking that all rows concerned are finite.
    fn new(cuda: &Rc<Cuda>, x: &Tensor, centres: &[u32], candidates: &[u32]) -> Result<Resident> {
        let [n, d] = x.shape().matrix(OP)?;
        let device = x.device();
        let mut mask = vec![0u8; n];
        centres.iter().for_each(|i| mask[*i as usize] = 1);
        candidates.iter().for_each(|i| mask[*i as usize] = 2);
        let mut r = Resident {
            cuda: cuda.clone(),
            n,
            d,
            best: x.stale_like([n])?,
            mask: Buf::from_host(device, &mask)?,
            part: Buf::stale(device, n.div_ceil(128))?,
            state: Buf::from_host(device, &[0, u32::MAX])?,
        };
        check_masked(cuda, x, &r.mask)?;
        let rows = Buf::from_host(device, centres)?;
        let mut c = x.stale_like([centres.len(), d])?;
        let l = Launch::grid(centres.len(), 1, 1, 256);
        launch::kcenter_gather_f32(cuda, l, c.buf_mut(OP)?, x.buf(OP)?, &rows, d as i32)?;
        r.start()?;
        nearest_update(&mut r.best, x, &c)?;
        Ok(r)
    }

    /// Infinity for candidates.
    fn start(&mut self) -> Result<()> {
        let (l, n) = (Launch::elements(self.n), self.n as i32);
        launch::kcenter_start_f32(&self.cuda, l, self.best.buf_mut(OP)?, &self.mask, n)
    }

    /// One pick.
    fn pick(&mut self, x: &Tensor, ids: &mut Buf<u32>, radius: &mut Buf<f32>, k: usize) -> Result<()> {
        let (c, n, d, k) = (&self.cuda, self.n as i32, self.d as i32, k as i32);
        let (best, part, blocks) = (self.best.buf_mut(OP)?, &mut self.part, self.n.div_ceil(128));
        launch::kcenter_step_f32(c, Launch::grid(blocks, 1, 1, 128), best, part, x.buf(OP)?, &self.state, n, d, k)?;
        let l = Launch::grid(1, 1, 1, 256);
        launch::kcenter_pick_f32(c, l, ids, radius, best, &mut self.mask, &mut self.state, part, blocks as i32, k)
    }

    /// The largest squared distance.
    fn worst(&self) -> Result<f32> {
        let at = argmax(&self.best)? as usize;
        Ok(self.best.buf::<f32>(OP)?.window(at, 1)?.to_host()?.first().copied().unwrap_or(0.0))
    }
}

mod cpu {
    use rayon::prelude::*;

    use super::{Picks, non_finite};
    use crate::Result;
    use crate::ops::distance::fast::{self, Lane, Panels, ROWS};
    use crate::select::kmeans::cpu::members;
    use crate::select::planes::{Planes, find, margin, most};
    use crate::tensor::Tensor;

    /// Centres every candidate is compared with before the first front is drawn, where they form no regions.
    const OPENING: usize = 256;
    /// Regions of labelled rows.
    const PIVOTS: usize = 64;
    /// Rows that look for their region together.
    const BLOCK: usize = 256;
    /// Centres between two looks at whether a tile can still matter.
    const LOOK: usize = 256;
    /// Smallest front, and the first one.
    const FRONT: usize = 512;

    /// A matrix on the host.
    struct Rows<'a> {
        x: &'a [f32],
        d: usize,
    }

    impl<'a> Rows<'a> {
        /// Of `x`, after checking that the rows `ids` are finite.
        fn new(x: &'a Tensor, ids: &[&[u32]]) -> Result<Rows<'a>> {
            let [_, d] = x.shape().matrix("kcenter")?;
            let rows = Rows { x: x.host("kcenter")?, d };
            // The exponent's bits all set: by integers, because a maximum vectorises and a search does not.
            let bad =
                |i: &u32| rows.of(*i).iter().fold(0, |most: u32, v| most.max(v.to_bits() & 0x7fff_ffff)) >= 0x7f80_0000;
            match ids.iter().filter_map(|ids| ids.par_iter().copied().filter(bad).min()).min() {
                Some(row) => Err(non_finite(row)),
                None => Ok(rows),
            }
        }

        fn of(&self, i: u32) -> &'a [f32] {
            &self.x[i as usize * self.d..(i as usize + 1) * self.d]
        }

        fn panels(&self, ids: impl ExactSizeIterator<Item = u32>, more: usize) -> Panels {
            let mut p = Panels::new(self.d, ids.len() + more);
            ids.for_each(|i| p.push(self.of(i)));
            p
        }
    }

    pub fn check_finite(x: &Tensor, ids: &[&[u32]]) -> Result<()> {
        Rows::new(x, ids).map(drop)
    }

    pub fn worst(x: &Tensor, covered: &[u32], others: &[u32]) -> Result<f32> {
        let rows = Rows::new(x, &[covered, others])?;
        let mut best = vec![f32::INFINITY; others.len()];
        let centres = rows.panels(covered.iter().copied(), 0);
        fast::nearest(&mut best, |i| rows.of(others[i]), &centres, 0, covered.len());
        Ok(best.into_iter().fold(0.0, f32::max))
    }

    pub fn kcenter(x: &Tensor, labelled: &[u32], candidates: &[u32], k: usize) -> Result<Picks> {
        let rows = Rows::new(x, &[labelled, candidates])?;
        let mut centres = labelled.to_vec();
        let mut region = vec![0; candidates.len()];
        let regions = arrange(&rows, &mut centres, candidates, &mut region);
        let mut lazy = Lazy {
            centres: rows.panels(centres.iter().copied(), k),
            bound: vec![f32::INFINITY; candidates.len()],
            region,
            regions,
            applied: vec![0; candidates.len()],
            picks: Picks::default(),
            rows,
            candidates,
        };
        if labelled.is_empty() {
            lazy.start_far_from_the_mean();
        }
        lazy.open();
        let (mut size, mut keys) = (FRONT, Vec::new());
        while lazy.picks.ids.len() < k {
            let taken = lazy.round(size, &mut keys, k);
            // Rounds cost a pass over the bounds, a large front costs at every pick.
            if taken * 16 < size {
                size = (2 * size).min(candidates.len().max(FRONT));
            } else if taken * 2 > size {
                size = (size / 2).max(FRONT);
            }
        }
        Ok(lazy.picks)
    }

    /// The labelled rows by their nearest pivots.
    struct Regions {
        planes: Planes,
        /// Where the rows of each pivot end among the centres.
        ends: Vec<usize>,
    }

    /// Puts the labelled rows into an order in which distances end early, and gives each candidate the region that its
    /// first bound comes from and its tile is formed by. Neither changes a pick. Pivots are from everywhere, also where the
    /// data is sorted by class.
    fn arrange(rows: &Rows, centres: &mut Vec<u32>, candidates: &[u32], region: &mut [u32]) -> Option<Regions> {
        centres.sort_unstable_by_key(|i| (i.wrapping_mul(2_654_435_769), *i));
        if centres.len() <= 2 * OPENING {
            return None;
        }
        let d = rows.d;
        let together = |ids: &[u32]| -> Vec<f32> { ids.iter().flat_map(|i| rows.of(*i)).copied().collect() };
        let squares: Vec<f32> = centres.par_iter().map(|i| rows.of(*i).iter().map(|v| v * v).sum()).collect();
        let (planes, of) = Planes::new(&mut Vec::new(), PIVOTS, &together(centres), &squares, d);
        let (order, starts) = members(&of, PIVOTS);
        *centres = order.iter().map(|at| centres[*at as usize]).collect();
        region.par_chunks_mut(BLOCK).zip(candidates.par_chunks(BLOCK)).for_each(|(region, ids)| {
            let bases: Vec<u32> = (0..ids.len()).map(|i| (i * d) as u32).collect();
            let scores = planes.scores(&together(ids), &bases);
            region.iter_mut().zip(scores.chunks_exact(PIVOTS)).for_each(|(of, s)| *of = find(s, most(s)) as u32);
        });
        Some(Regions { planes, ends: starts[1..].iter().map(|end| *end as usize).collect() })
    }

    /// The rows of a tile, and what proves regions to be too far from them.
    struct Sight<'a> {
        regions: &'a Regions,
        /// Of each row: its region, its score with that one's pivot, lowered, and those with all pivots.
        own: Vec<(usize, f32)>,
        scores: Vec<f32>,
    }

    impl Sight<'_> {
        fn new<'a>(regions: &'a Regions, of: &[u32], rows: &[&[f32]]) -> Sight<'a> {
            let planes = &regions.planes;
            let bases: Vec<u32> = (0..rows.len()).map(|i| (i * planes.d) as u32).collect();
            let scores = planes.scores(&rows.concat(), &bases);
            let own = of.iter().zip(rows).zip(scores.chunks_exact(PIVOTS)).map(|((q, row), scores)| {
                let norm = row.iter().map(|v| v * v).sum();
                (*q as usize, planes.own(scores[*q as usize], norm))
            });
            Sight { own: own.collect(), regions, scores }
        }

        /// True when no row of the region p can be nearer to a row of the tile than `low`. Their own region is in that.
        fn too_far(&self, p: usize, low: &Lane) -> bool {
            let planes = &self.regions.planes;
            let mut rows = self.own.iter().zip(self.scores.chunks_exact(PIVOTS)).zip(low);
            rows.all(|(((q, own), scores), low)| {
                let (plane, apart) = planes.from(*q);
                *q == p || own - scores[p] + plane[p] > low.sqrt() * (1.0 + margin(planes.d)) * apart[p]
            })
        }
    }

    /// Ascending keys are descending distances, then ascending positions. Not negative: bits order like numbers.
    fn key(distance: f32, at: u32) -> u64 {
        u64::from(!distance.to_bits()) << 32 | u64::from(at)
    }

    struct Lazy<'a> {
        rows: Rows<'a>,
        candidates: &'a [u32],
        /// Labelled rows, then picks.
        centres: Panels,
        /// Of each candidate: its squared distance to the nearest of the first `applied` centres, -1 once picked.
        bound: Vec<f32>,
        applied: Vec<u32>,
        /// Candidates of one region are near each other.
        region: Vec<u32>,
        regions: Option<Regions>,
        picks: Picks,
    }

    /// The candidates picks are taken from, turned into tiles.
    struct Front {
        /// Positions among the candidates; u32::MAX in lanes without a row.
        at: Vec<u32>,
        low: Vec<f32>,
        tiles: Vec<Lane>,
        /// Centres in `low`, per tile.
        applied: Vec<usize>,
    }

    impl Lazy<'_> {
        fn take(&mut self, at: u32, distance: f32) {
            let id = self.candidates[at as usize];
            self.centres.push(self.rows.of(id));
            self.picks.ids.push(id);
            self.picks.radius.push(distance.sqrt());
        }

        fn start_far_from_the_mean(&mut self) {
            let mut sum = vec![0.0f64; self.rows.d];
            for i in self.candidates {
                for (s, v) in sum.iter_mut().zip(self.rows.of(*i)) {
                    *s += f64::from(*v);
                }
            }
            let mean: Vec<f32> = sum.iter().map(|s| (s / self.candidates.len() as f64) as f32).collect();
            let mut far = vec![f32::INFINITY; self.candidates.len()];
            let mut centre = Panels::new(self.rows.d, 1);
            centre.push(&mean);
            fast::nearest(&mut far, |i| self.rows.of(self.candidates[i]), &centre, 0, 1);
            if let Some(first) = far.iter().zip(0..).map(|(v, i)| key(*v, i)).min() {
                let at = first as u32;
                self.take(at, far[at as usize]);
                self.bound[at as usize] = -1.0;
            }
        }

        /// The first bounds of all: by the labelled rows of their regions, or by a few of all.
        fn open(&mut self) {
            if let Some(regions) = &self.regions {
                let (order, starts) = members(&self.region, PIVOTS);
                let bounds = (0..PIVOTS).into_par_iter().map(|p| {
                    let ids = &order[starts[p] as usize..starts[p + 1] as usize];
                    let (from, to) = (if p == 0 { 0 } else { regions.ends[p - 1] }, regions.ends[p]);
                    let mut low = vec![f32::INFINITY; ids.len()];
                    let row = |i: usize| self.rows.of(self.candidates[ids[i] as usize]);
                    fast::nearest(&mut low, row, &self.centres, from, to);
                    low
                });
                let bounds: Vec<f32> = bounds.flatten_iter().collect();
                order.iter().zip(bounds).for_each(|(at, low)| self.bound[*at as usize] = low);
                return;
            }
            let first = self.centres.count().min(OPENING);
            fast::nearest(&mut self.bound, |i| self.rows.of(self.candidates[i]), &self.centres, 0, first);
            self.applied.fill(first as u32);
        }

        /// Draws a front of `size` and takes picks from it for as long as it provably holds the next one. Returns
        /// how many.
        fn round(&mut self, size: usize, keys: &mut Vec<u64>, k: usize) -> usize {
            keys.clear();
            keys.extend(self.bound.iter().zip(0..).filter(|(b, _)| **b >= 0.0).map(|(b, i)| key(*b, i)));
            let mut outside = u64::MAX;
            if size < keys.len() {
                outside = *keys.select_nth_unstable(size).1;
                keys.truncate(size);
            }
            // Tiles of rows that lack the same centres and are near each other.
            keys.sort_unstable_by_key(|key| {
                let at = *key as u32;
                (self.applied[at as usize], self.region[at as usize], at)
            });
            let mut front = self.front(keys, outside);
            let before = self.picks.ids.len();
            while self.picks.ids.len() < k {
                // A picked row has -1 and never equals a maximum that counts.
                let most = front.low.iter().fold(-1.0, |m: f32, v| if *v > m { *v } else { m });
                let ties = front.low.iter().zip(&front.at);
                let at = ties.fold(u32::MAX, |a, (v, at)| if *v == most { a.min(*at) } else { a });
                // Rows whose bound was left behind are below the outside, so they cannot be this one.
                if most < 0.0 || key(most, at) >= outside {
                    break;
                }
                self.take(at, most);
                let lane = front.at.iter().position(|a| *a == at).unwrap_or(0);
                front.low[lane] = -1.0;
                fast::sweep(&mut front.low, &front.tiles, self.rows.of(self.candidates[at as usize]));
            }
            let new = self.picks.ids.len() - before;
            for (lane, at) in front.at.iter().enumerate().filter(|(_, at)| **at != u32::MAX) {
                self.bound[*at as usize] = front.low[lane];
                let applied = front.applied[lane / ROWS];
                // A tile left behind has seen the new picks but not all centres before them.
                self.applied[*at as usize] =
                    (applied + if applied + new == self.centres.count() { new } else { 0 }) as u32;
            }
            new
        }

        /// Turns the rows into tiles and applies the centres they lack, in each tile until all is applied or every
        /// bound is below the outside.
        fn front(&self, keys: &[u64], outside: u64) -> Front {
            let d = self.rows.d;
            let lanes = keys.len().next_multiple_of(ROWS);
            let mut front = Front {
                at: vec![u32::MAX; lanes],
                low: vec![-1.0; lanes],
                tiles: vec![[0.0; ROWS]; lanes / ROWS * d],
                applied: vec![0; lanes / ROWS],
            };
            for (at, key) in front.at.iter_mut().zip(keys) {
                *at = *key as u32;
            }
            let below = if outside == u64::MAX { 0.0 } else { f32::from_bits(!((outside >> 32) as u32)) };
            let tiles = front.at.par_chunks(ROWS).zip(front.low.par_chunks_mut(ROWS));
            let tiles = tiles.zip(front.tiles.par_chunks_mut(d.max(1))).zip(front.applied.par_iter_mut());
            tiles.for_each(|(((at, low), tile), applied)| {
                let rows = at.iter().filter(|a| **a != u32::MAX).count();
                fast::turn(tile, |r| self.rows.of(self.candidates[at[r] as usize]), rows);
                let mut full = [-1.0; ROWS];
                let mut from = self.centres.count();
                for (full, at) in full.iter_mut().zip(&at[..rows]) {
                    *full = self.bound[*at as usize];
                    from = from.min(self.applied[*at as usize] as usize);
                }
                let sight = self.regions.as_ref().filter(|r| r.ends.last().is_some_and(|end| from < *end)).map(|r| {
                    let of: Vec<u32> = at[..rows].iter().map(|a| self.region[*a as usize]).collect();
                    let x: Vec<&[f32]> =
                        at[..rows].iter().map(|a| self.rows.of(self.candidates[*a as usize])).collect();
                    Sight::new(r, &of, &x)
                });
                while from < self.centres.count() && full.iter().any(|v| *v >= below) {
                    let mut to = (from + LOOK).min(self.centres.count());
                    let mut seen = true;
                    if let Some(sight) = &sight {
                        // Whole regions; behind them are the picks.
                        let p = sight.regions.ends.partition_point(|end| *end <= from);
                        to = sight.regions.ends.get(p).copied().unwrap_or(to);
                        seen = p >= PIVOTS || !sight.too_far(p, &full);
                    }
                    if seen {
                        fast::tile(&mut full, tile, &self.centres, from, to);
                    }
                    from = to;
                }
                low.copy_from_slice(&full);
                *applied = from;
            });
            front
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pairwise_sq;
    use crate::rng::{Purpose, Rng};

    /// The plain loop.
    pub(super) fn brute(x: &Tensor, labelled: &[u32], candidates: &[u32], k: usize) -> Picks {
        let n = x.dims()[0];
        let d2 = pairwise_sq(x, x).unwrap().to_vec::<f32>().unwrap();
        let to = |i: &u32, c: u32| d2[*i as usize * n + c as usize];
        let nearest = |i| labelled.iter().map(|c| to(i, *c)).fold(f32::INFINITY, f32::min);
        let mut least: Vec<f32> = candidates.iter().map(nearest).collect();
        let mut picks = Picks::default();
        while picks.ids.len() < k.min(candidates.len()) {
            let most = least.iter().fold(-1.0, |m: f32, v| m.max(*v));
            let at = least.iter().position(|v| *v == most).unwrap();
            picks.ids.push(candidates[at]);
            picks.radius.push(most.sqrt());
            least[at] = -1.0;
            least.iter_mut().zip(candidates).for_each(|(v, i)| *v = v.min(to(i, candidates[at])));
        }
        picks
    }

    /// Points of a small grid (many ties and copies) or of the unit cube.
    fn points(n: usize, d: usize, levels: u32, lane: u32) -> Tensor {
        let r = Rng::new(11).at(Purpose::Select, n as u32, d as u32).lane(lane);
        let one = |e| if levels == 0 { r.uniform(e) } else { (r.u32(e) % levels) as f32 };
        let v: Vec<f32> = (0..(n * d) as u64).map(one).collect();
        Tensor::new(&Device::Cpu, [n, d], &v).unwrap()
    }

    #[test]
    fn worked_example() {
        let x = [0.0f32, 0.0, 1.0, 0.0, 5.0, 0.0, 6.0, 0.0, 0.0, 4.0, 5.0, 1.0];
        let x = Tensor::new(&Device::Cpu, [6, 2], &x).unwrap();
        let p = kcenter(&x, &[0], &[1, 2, 3, 4, 5], 4).unwrap();
        assert_eq!(p.ids, [3, 4, 5, 1]);
        assert_eq!(p.radius, [6.0, 4.0, 2.0f32.sqrt(), 1.0]);
    }

    #[test]
    fn lazy_equals_the_plain_loop() {
        for d in [1, 3, 50, 128] {
            for n in [2, 15, 16, 17, 64, 65, 257, 300] {
                for (levels, every) in [(0, 7), (2, 5), (3, 2), (1, 3)] {
                    let x = points(n, d, levels, every);
                    let labelled: Vec<u32> = (0..n as u32).filter(|i| i % every == 0).collect();
                    let rest: Vec<u32> = (0..n as u32).filter(|i| i % every != 0).collect();
                    for k in [1, rest.len() / 2, n] {
                        let want = brute(&x, &labelled, &rest, k);
                        let got = kcenter(&x, &labelled, &rest, k).unwrap();
                        assert_eq!(got, want, "{n}x{d}, {levels} levels, every {every}, k {k}");
                    }
                }
            }
        }
    }

    /// Rows enough for several fronts, labelled ones enough to be grouped, and every row picked: those whose bounds
    /// were left behind, half up to date, come up last. Smaller cases reach none of this.
    #[test]
    fn lazy_equals_the_plain_loop_over_several_fronts() {
        for (n, d, levels, every) in
            [(2000, 1, 0, 3), (2000, 2, 40, 3), (2000, 3, 6, 3), (2000, 5, 0, 3), (3000, 8, 0, 2), (5000, 2, 0, 2)]
        {
            let x = points(n, d, levels, 1);
            let (labelled, rest): (Vec<u32>, Vec<u32>) = (0..n as u32).partition(|i| i % every == 0);
            let want = brute(&x, &labelled, &rest, n);
            assert_eq!(kcenter(&x, &labelled, &rest, n).unwrap(), want, "{n}x{d}, {levels} levels");
        }
    }

    /// Clusters far apart: most regions are proved to be too far from a tile.
    #[test]
    fn lazy_equals_the_plain_loop_where_regions_are_passed_over() {
        for (n, d, clusters, every) in [(2400, 40, 9, 3), (2000, 12, 30, 2), (2400, 128, 50, 3), (2000, 2, 5, 3)] {
            let (noise, middle) = (points(n, d, 0, 1).to_vec::<f32>().unwrap(), points(clusters, d, 4, 2));
            let middle = middle.to_vec::<f32>().unwrap();
            let x = noise.iter().enumerate().map(|(e, v)| v + middle[e / d * 7 % clusters * d + e % d]);
            let x = Tensor::new(&Device::Cpu, [n, d], &x.collect::<Vec<f32>>()).unwrap();
            let (labelled, rest): (Vec<u32>, Vec<u32>) = (0..n as u32).partition(|i| i % every == 0);
            for k in [10, n / 4, n] {
                let want = brute(&x, &labelled, &rest, k);
                assert_eq!(kcenter(&x, &labelled, &rest, k).unwrap(), want, "{n}x{d}, {clusters} clusters, {k} picks");
            }
        }
    }
}
