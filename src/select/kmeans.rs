//! k-means: Lloyd's iterations from k-means++ seeds, and the rows nearest to the centres.
//!
//! **Labels** are those of the canonical distances of [`crate::ops::nearest_update`], the lowest centre of equals, on every
//! device, bit for bit; but a row is rarely compared by those. With s_j = x·c_j − |c_j|²/2, a dense product,
//! |x − c_j|² = |x|² − 2 s_j. Let u = 2⁻²⁴ and S = |x| max|c| + max|c|². A computed score is off by less than
//! 2 (D + 16) u S, so the squared distances of the best centre and of any other differ by more than
//! 2 (s₁ − s₂) − 8 (D + 16) u S. A canonical distance is off by its (D + 2) u-th part. Hence the best centre by scores is the
//! canonical one where that difference exceeds 8 (D + 16) u (|x|² − 2 s₁), raised by the same errors; the other rows are
//! compared with all centres by differences.
//!
//! **Means** are sums in f64: of a cluster's rows, ascending, in eight pieces that are added in order. An empty cluster
//! moves to the row farthest from its centre (several: the next farthest; ties to the lowest row); rows at distance 0
//! move none. Iterations end when the squared shifts of all centres sum to at most the tolerance times the mean variance
//! of the features.

use std::rc::Rc;

use super::kcenter::{kcenter, non_finite};
use super::seeding::{Points, first_non_finite, kmeans_pp, squares};
use crate::Result;
use crate::device::{Cuda, Device, Launch, launch};
use crate::ops;
use crate::rng::Rng;
use crate::tensor::{Buf, Dtype, Tensor};

/// When k-means stops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stops {
    /// Fresh seeds; the clustering with the least sum of squared distances counts, the first of equals. At least 1.
    pub restarts: u32,
    /// Moves of the centres at most.
    pub iterations: u32,
    /// Of the summed squared shift, in units of the mean variance of the features.
    pub tolerance: f64,
}

/// A clustering: on the device of its rows.
#[derive(Clone, Debug)]
pub struct Clusters {
    /// Centres (K, D).
    pub centres: Tensor,
    /// Number of the nearest centre of each row (N), u32.
    pub labels: Tensor,
    /// Squared distance of each row to it (N).
    pub distances: Tensor,
    /// How often the centres moved.
    pub iterations: u32,
}

const OP: &str = "kmeans";

/// Clusters the rows of x (N, D), f32, around `k` centres (at most N). Seeds are drawn from the words of `rng` with b = 0, 1,
/// … for each restart. O(iterations·N·K·D); memory N + K·D beside the rows, twice that with restarts. A row with a NaN or
/// an infinity is an error that names it.
pub fn kmeans(x: &Tensor, k: usize, stops: Stops, rng: Rng) -> Result<Clusters> {
    let [n, d] = x.shape().matrix(OP)?;
    if k == 0 || k > n || d == 0 {
        return Err(x.shape().refuse(OP, format!("(N, D) with at least {} rows and one feature", k.max(1))));
    }
    if let Some(row) = first_non_finite(x)? {
        return Err(non_finite(row));
    }
    let variance = variance(x)?;
    let limit = stops.tolerance * variance.iter().sum::<f64>() / d as f64;
    let norms = squares(x)?;
    let mut best: Option<(f64, Clusters)> = None;
    for restart in 0..stops.restarts.max(1) {
        let seeds = kmeans_pp(Points::Plain(x), k, rng.with_b(restart))?;
        let centres = ops::gather_rows(x, &Tensor::new(x.device(), [k], &seeds)?)?;
        let c = from(x, &norms, centres, stops.iterations, limit)?;
        let inertia = if stops.restarts > 1 { c.distances.to_f64()?.iter().sum() } else { 0.0 };
        if best.as_ref().is_none_or(|(least, _)| inertia < *least) {
            best = Some((inertia, c));
        }
    }
    best.map(|b| b.1).ok_or_else(|| x.shape().refuse(OP, "at least one restart"))
}

/// Lloyd's iterations from given centres (K, D), without looking for NaN; `tolerance` as in [`Stops`].
pub fn lloyd(x: &Tensor, centres: &Tensor, iterations: u32, tolerance: f64) -> Result<Clusters> {
    let ([n, d], [k, width]) = (x.shape().matrix(OP)?, centres.shape().matrix(OP)?);
    if k == 0 || n == 0 || d == 0 || d != width {
        return Err(centres.shape().refuse(OP, format!("some centres as wide as the rows {:?}", x.shape())));
    }
    let limit = tolerance * variance(x)?.iter().sum::<f64>() / d as f64;
    from(x, &squares(x)?, centres.clone(), iterations, limit)
}

fn from(x: &Tensor, norms: &Tensor, mut centres: Tensor, iterations: u32, limit: f64) -> Result<Clusters> {
    let mut done = 0;
    let mut labels = Tensor::zeros(x.device(), [x.dims()[0]], Dtype::U32)?;
    let mut pivots = Vec::new();
    assign(&mut labels, &mut pivots, x, norms, &centres)?;
    while done < iterations {
        let members = Members::of(&labels, centres.dims()[0])?;
        let mut next = means(x, &centres, &members)?;
        let empty = members.empty()?;
        if !empty.is_empty() {
            reseed(&mut next, x, &distances(x, &centres, &labels)?, &empty)?;
        }
        let shift: f64 = shifts(&next, &centres)?.iter().sum();
        centres = next;
        done += 1;
        assign(&mut labels, &mut pivots, x, norms, &centres)?;
        if shift <= limit {
            break;
        }
    }
    let distances = distances(x, &centres, &labels)?;
    Ok(Clusters { centres, labels, distances, iterations: done })
}

impl Clusters {
    /// Of each cluster the row nearest to its centre, the lowest of equals. A cluster without rows has none; for each of
    /// those a row follows that is farthest from all taken before (see [`kcenter`]), as long as there are rows.
    pub fn central(&self, x: &Tensor) -> Result<Vec<u32>> {
        let k = self.centres.dims()[0];
        let mut ids = nearest(&self.distances, &Members::of(&self.labels, k)?)?;
        ids.retain(|id| *id != u32::MAX);
        if ids.len() < k {
            let mut taken = vec![false; x.dims()[0]];
            ids.iter().for_each(|id| taken[*id as usize] = true);
            let rest: Vec<u32> = (0..taken.len() as u32).filter(|i| !taken[*i as usize]).collect();
            let more = kcenter(x, &ids, &rest, k - ids.len())?;
            ids.extend(more.ids);
        }
        Ok(ids)
    }
}

/// Rows by cluster, ascending.
enum Members {
    /// Rows of cluster l: order[starts[l]..starts[l + 1]].
    Host { order: Vec<u32>, starts: Vec<u32> },
    /// Label and row, sorted; where each cluster begins.
    Cuda { cuda: Rc<Cuda>, keys: Buf<u64>, starts: Buf<u32> },
}

impl Members {
    fn of(labels: &Tensor, k: usize) -> Result<Members> {
        let n = labels.len();
        Ok(match labels.device() {
            Device::Cpu => {
                let (order, starts) = cpu::members(labels.host(OP)?, k);
                Members::Host { order, starts }
            }
            Device::Cuda(cuda) => {
                let padded = ops::sorted_room(n);
                let mut keys = Buf::stale(labels.device(), padded)?;
                let mut starts = Buf::stale(labels.device(), k + 1)?;
                launch::kmeans_keys(
                    cuda,
                    Launch::elements(padded),
                    &mut keys,
                    labels.buf(OP)?,
                    n as i32,
                    padded as i32,
                )?;
                ops::sort_keys(cuda, &mut keys)?;
                launch::kmeans_starts(cuda, Launch::elements(n + 1), &mut starts, &keys, n as i32, k as i32)?;
                Members::Cuda { cuda: cuda.clone(), keys, starts }
            }
        })
    }

    /// Clusters without rows, ascending.
    fn empty(&self) -> Result<Vec<u32>> {
        let of = |starts: &[u32]| starts.windows(2).zip(0..).filter(|(s, _)| s[0] == s[1]).map(|(_, l)| l).collect();
        match self {
            Members::Host { starts, .. } => Ok(of(starts)),
            Members::Cuda { starts, .. } => Ok(of(&starts.to_host()?)),
        }
    }
}

/// labels[i] = the nearest centre of row i. `pivots` is what the CPU carries from one call to the next.
fn assign(labels: &mut Tensor, pivots: &mut Vec<f32>, x: &Tensor, norms: &Tensor, centres: &Tensor) -> Result<()> {
    let ([n, d], k) = (x.shape().matrix(OP)?, centres.dims()[0]);
    let squares = squares(centres)?;
    match x.device() {
        Device::Cpu => {
            let (labels, norms, squares) = (labels.host_mut(OP)?, norms.host(OP)?, squares.host(OP)?);
            cpu::assign(labels, pivots, x.host(OP)?, norms, centres.host(OP)?, squares, d);
            Ok(())
        }
        Device::Cuda(cuda) => {
            let (labels, x, c) = (labels.buf_mut(OP)?, x.buf(OP)?, centres.buf(OP)?);
            let (l, xx, cc) = (Launch::grid(n.div_ceil(64), 1, 1, 256), norms.buf(OP)?, squares.buf(OP)?);
            launch::kmeans_assign_f32(cuda, l, labels, x, c, xx, cc, n as i32, k as i32, d as i32)?;
            launch::kmeans_exact_f32(cuda, Launch::warps(n, 256), labels, x, c, n as i32, k as i32, d as i32)
        }
    }
}

/// Canonical squared distances (N) of the rows to their centres.
fn distances(x: &Tensor, centres: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let [n, d] = x.shape().matrix(OP)?;
    let mut own = x.stale_like([n])?;
    match x.device() {
        Device::Cpu => cpu::distances(own.host_mut(OP)?, x.host(OP)?, centres.host(OP)?, labels.host(OP)?, d),
        Device::Cuda(cuda) => {
            let (l, to, labels) = (Launch::elements(n), own.buf_mut(OP)?, labels.buf(OP)?);
            launch::kmeans_own_f32(cuda, l, to, x.buf(OP)?, centres.buf(OP)?, labels, n as i32, d as i32)?;
        }
    }
    Ok(own)
}

fn means(x: &Tensor, centres: &Tensor, members: &Members) -> Result<Tensor> {
    let [k, d] = centres.shape().matrix(OP)?;
    let mut next = x.stale_like([k, d])?;
    match members {
        Members::Host { order, starts } => {
            cpu::means(next.host_mut(OP)?, centres.host(OP)?, x.host(OP)?, order, starts, d);
        }
        Members::Cuda { cuda, keys, starts } => {
            let (l, to) = (Launch::grid(k, d.div_ceil(32), 1, 256), next.buf_mut(OP)?);
            launch::kmeans_means_f32(cuda, l, to, centres.buf(OP)?, x.buf(OP)?, keys, starts, d as i32)?;
        }
    }
    Ok(next)
}

/// Puts the centres of `empty` clusters on the rows farthest from their own.
fn reseed(next: &mut Tensor, x: &Tensor, distances: &Tensor, empty: &[u32]) -> Result<()> {
    let d = x.dims()[1];
    let far = ops::top_k(distances, empty.len().min(distances.len()))?;
    let rows = far.to_vec::<u32>()?;
    // At distance 0 there are fewer distinct rows than centres.
    let at = ops::gather_rows(&distances.reshape([distances.len(), 1])?, &far)?.to_vec::<f32>()?;
    let useful = at.iter().take_while(|v| **v > 0.0).count();
    match x.device() {
        Device::Cpu => {
            let (next, x) = (next.host_mut::<f32>(OP)?, x.host::<f32>(OP)?);
            for (l, row) in empty.iter().zip(&rows[..useful]) {
                next[*l as usize * d..][..d].copy_from_slice(&x[*row as usize * d..][..d]);
            }
            Ok(())
        }
        Device::Cuda(cuda) => {
            let clusters = Buf::from_host(x.device(), &empty[..useful])?;
            let rows = Buf::from_host(x.device(), &rows[..useful])?;
            let l = Launch::grid(useful, 1, 1, 256);
            launch::kmeans_reseed_f32(cuda, l, next.buf_mut(OP)?, x.buf(OP)?, &clusters, &rows, d as i32)
        }
    }
}

/// |next_l − c_l|² of each centre.
fn shifts(next: &Tensor, centres: &Tensor) -> Result<Vec<f64>> {
    let [k, d] = centres.shape().matrix(OP)?;
    match centres.device() {
        Device::Cpu => Ok(cpu::shifts(next.host(OP)?, centres.host(OP)?, d)),
        Device::Cuda(cuda) => {
            let mut shift = Buf::stale(centres.device(), k)?;
            let l = Launch { grid: [k.div_ceil(64) as u32, 1, 1], block: 64, shared: 0 };
            launch::kmeans_shift_f32(cuda, l, &mut shift, next.buf(OP)?, centres.buf(OP)?, k as i32, d as i32)?;
            shift.to_host()
        }
    }
}

/// The variance of each feature.
fn variance(x: &Tensor) -> Result<Vec<f64>> {
    let [n, d] = x.shape().matrix(OP)?;
    match x.device() {
        Device::Cpu => Ok(cpu::variance(x.host(OP)?, n, d)),
        Device::Cuda(cuda) => {
            let mut variance = Buf::stale(x.device(), d)?;
            let l = Launch { grid: [d.div_ceil(32) as u32, 1, 1], block: 32, shared: 0 };
            launch::kmeans_variance_f32(cuda, l, &mut variance, x.buf(OP)?, n as i32, d as i32)?;
            variance.to_host()
        }
    }
}

/// Of each cluster the row with the smallest distance, u32::MAX without one.
fn nearest(distances: &Tensor, members: &Members) -> Result<Vec<u32>> {
    match members {
        Members::Host { order, starts } => Ok(cpu::nearest(distances.host(OP)?, order, starts)),
        Members::Cuda { cuda, keys, starts } => {
            let k = starts.len() - 1;
            let mut ids = Buf::stale(distances.device(), k)?;
            launch::kmeans_nearest_f32(
                cuda,
                Launch::warps(k, 256),
                &mut ids,
                distances.buf(OP)?,
                keys,
                starts,
                k as i32,
            )?;
            ids.to_host()
        }
    }
}

pub(super) mod cpu {
    use rayon::prelude::*;

    use crate::device::cpu as threads;
    use crate::device::microkernel::Panels;
    use crate::device::simd::mul_add;
    use crate::ops::distance::fast;
    use crate::select::planes::{Planes, SAFE, WIDTH, find, margin, most, slack};
    use crate::simd;

    /// Pieces of a cluster, added one after the other.
    const PIECES: usize = 8;
    /// Distances that are summed side by side.
    const SUMS: usize = 8;
    /// Rows of a task.
    const BLOCK: usize = 256;
    /// The label of a row that is still to be compared with all centres by differences.
    const OPEN: u32 = u32::MAX;
    /// Centres of a group, on average.
    const GROUP: usize = 32;

    pub fn members(labels: &[u32], k: usize) -> (Vec<u32>, Vec<u32>) {
        let mut starts = vec![0u32; k + 1];
        labels.iter().for_each(|l| starts[*l as usize + 1] += 1);
        for l in 0..k {
            starts[l + 1] += starts[l];
        }
        let (mut next, mut order) = (starts.clone(), vec![0; labels.len()]);
        for (i, l) in (0..).zip(labels) {
            order[next[*l as usize] as usize] = i;
            next[*l as usize] += 1;
        }
        (order, starts)
    }

    pub fn means(next: &mut [f32], centres: &[f32], x: &[f32], order: &[u32], starts: &[u32], d: usize) {
        next.par_chunks_exact_mut(d).enumerate().with_min_len(16).for_each(|(l, next)| {
            let rows = &order[starts[l] as usize..starts[l + 1] as usize];
            if rows.is_empty() {
                return next.copy_from_slice(&centres[l * d..][..d]);
            }
            for (at, next) in (0..d).step_by(WIDTH).zip(next.chunks_mut(WIDTH)) {
                mean(next, x, rows, d, at);
            }
        });
    }

    simd! {
        /// The mean of some rows, of the features from `at` on.
        fn mean(next: &mut [f32], x: &[f32], rows: &[u32], d: usize, at: usize) {
            let _ = FMA;
            let mut total = [0.0f64; WIDTH];
            for piece in rows.chunks(rows.len().div_ceil(PIECES)) {
                let mut sum = [0.0f64; WIDTH];
                for row in piece {
                    let row = &x[*row as usize * d + at..][..next.len()];
                    if let Some(row) = row.first_chunk::<WIDTH>() {
                        for i in 0..WIDTH {
                            sum[i] += f64::from(row[i]);
                        }
                    } else {
                        sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
                    }
                }
                for i in 0..WIDTH {
                    total[i] += sum[i];
                }
            }
            for (next, total) in next.iter_mut().zip(&total) {
                *next = (total / rows.len() as f64) as f32;
            }
        }
    }

    pub fn shifts(next: &[f32], centres: &[f32], d: usize) -> Vec<f64> {
        let one = |(a, b): (&[f32], &[f32])| a.iter().zip(b).fold(0.0, |s, (a, b)| s + f64::from(a - b).powi(2));
        next.chunks_exact(d).zip(centres.chunks_exact(d)).map(one).collect()
    }

    pub fn variance(x: &[f32], n: usize, d: usize) -> Vec<f64> {
        let mut mean = vec![0.0f64; d];
        for row in x.chunks_exact(d) {
            mean.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
        }
        mean.iter_mut().for_each(|m| *m /= n as f64);
        let mut sum = vec![0.0f64; d];
        for row in x.chunks_exact(d) {
            for ((s, v), m) in sum.iter_mut().zip(row).zip(&mean) {
                *s += f64::from((f64::from(*v) - m) as f32).powi(2);
            }
        }
        sum.iter().map(|s| s / n as f64).collect()
    }

    pub fn nearest(distances: &[f32], order: &[u32], starts: &[u32]) -> Vec<u32> {
        let of = |w: &[u32]| {
            let rows = order[w[0] as usize..w[1] as usize].iter();
            // Not negative: bits order like numbers.
            rows.map(|i| (distances[*i as usize].to_bits(), *i)).min().map_or(u32::MAX, |best| best.1)
        };
        starts.windows(2).map(of).collect()
    }

    simd! {
        /// Eight rows side by side: each addition to one sum waits for the last.
        fn distances_of(own: &mut [f32], x: &[f32], centres: &[f32], labels: &[u32], d: usize) {
            for ((own, x), labels) in own.chunks_mut(SUMS).zip(x.chunks(SUMS * d)).zip(labels.chunks(SUMS)) {
                let (mut rows, mut theirs) = ([&x[..d]; SUMS], [&x[..d]; SUMS]);
                for i in 0..own.len() {
                    rows[i] = &x[i * d..][..d];
                    theirs[i] = &centres[labels[i] as usize * d..][..d];
                }
                let mut acc = [0.0; SUMS];
                for k in 0..d {
                    for i in 0..SUMS {
                        let t = rows[i][k] - theirs[i][k];
                        acc[i] = mul_add::<FMA>(t, t, acc[i]);
                    }
                }
                own.copy_from_slice(&acc[..own.len()]);
            }
        }
    }

    pub fn distances(own: &mut [f32], x: &[f32], centres: &[f32], labels: &[u32], d: usize) {
        threads::chunks(own, 1, |at, own| {
            distances_of(own, &x[at * d..], centres, &labels[at..], d);
        });
    }

    /// Of a row: the two largest scores, and whose the largest is.
    #[derive(Clone, Copy)]
    struct Top {
        first: f32,
        second: f32,
        at: u32,
    }

    /// Centres with the same nearest pivot.
    struct Group {
        panels: Panels<'static>,
        /// −|c|²/2 and the numbers of the centres.
        start: Vec<f32>,
        number: Vec<u32>,
    }

    /// The centres by their nearest pivots.
    struct Groups {
        of: Vec<Group>,
        planes: Planes,
    }

    impl Groups {
        fn new(pivots: &mut Vec<f32>, centres: &[f32], squares: &[f32], d: usize) -> Groups {
            let (planes, of) = Planes::new(pivots, squares.len() / GROUP, centres, squares, d);
            let (order, starts) = members(&of, planes.count());
            let group = |w: &[u32]| {
                let number = order[w[0] as usize..w[1] as usize].to_vec();
                let rows: Vec<f32> = number.iter().flat_map(|j| &centres[*j as usize * d..][..d]).copied().collect();
                let start = number.iter().map(|j| -0.5 * squares[*j as usize]).collect();
                Group { panels: Panels::from_cols(&rows, d, number.len()), start, number }
            };
            Groups { of: starts.windows(2).map(group).collect(), planes }
        }

        /// Labels of a block of rows; [`OPEN`] where the scores do not prove one. Each row meets the group of the nearest
        /// pivot, then all groups that may hold a centre as near as the best of those.
        fn label(&self, labels: &mut [u32], x: &[f32], norms: &[f32]) {
            let (groups, d, widest) = (self.of.len(), self.planes.d, self.planes.widest);
            let mut tops = vec![Top { first: f32::NEG_INFINITY, second: f32::NEG_INFINITY, at: 0 }; labels.len()];
            let bases: Vec<u32> = (0..labels.len()).map(|i| (i * d) as u32).collect();
            let mut scores = self.planes.scores(x, &bases);
            let mut lists = Lists { of: vec![0; groups * BLOCK], len: vec![0; groups] };
            let near: Vec<usize> = scores.chunks_exact(groups).map(|s| find(s, most(s))).collect();
            (0..).zip(&near).for_each(|(i, near)| lists.push(*near, i));
            self.meet(&mut tops, &lists, x, &bases);
            lists.len.fill(0);
            for (i, scores) in scores.chunks_exact_mut(groups).enumerate() {
                let reach = at_most(tops[i].first, norms[i], widest, d).sqrt() * (1.0 + margin(d));
                let own = self.planes.own(scores[near[i]], norms[i]);
                // Met already: this proves to be too far.
                scores[near[i]] = f32::NEG_INFINITY;
                let (plane, apart) = self.planes.from(near[i]);
                unproved(&mut lists, i as u32, scores, own, reach, plane, apart);
            }
            self.meet(&mut tops, &lists, x, &bases);
            for (i, label) in labels.iter_mut().enumerate() {
                let sure = decided(tops[i].first, tops[i].second, norms[i], widest, d);
                *label = if sure { tops[i].at } else { OPEN };
            }
        }

        /// Scores of the listed rows with the centres of their groups.
        fn meet(&self, tops: &mut [Top], lists: &Lists, x: &[f32], bases: &[u32]) {
            let (mut scores, mut at) = (Vec::new(), Vec::new());
            let groups = self.of.iter().enumerate().filter(|(g, group)| lists.len[*g] > 0 && !group.number.is_empty());
            for (g, group) in groups {
                let rows = lists.of(g);
                at.clear();
                at.extend(rows.iter().map(|i| bases[*i as usize]));
                scores.resize(rows.len() * group.number.len(), 0.0);
                group.panels.some_rows(&mut scores, x, &at, &group.start);
                rank(tops, rows, &mut scores, &group.number);
            }
        }
    }

    /// For each group some rows of a block.
    struct Lists {
        of: Vec<u32>,
        len: Vec<usize>,
    }

    impl Lists {
        fn of(&self, group: usize) -> &[u32] {
            &self.of[group * BLOCK..][..self.len[group]]
        }

        fn push(&mut self, group: usize, row: u32) {
            self.of[group * BLOCK + self.len[group]] = row;
            self.len[group] += 1;
        }
    }

    simd! {
        /// Puts a row on the list of every group that is not proved to be out of its reach. A bound that is NaN proves nothing.
        fn unproved(
            lists: &mut Lists,
            row: u32,
            scores: &[f32],
            own: f32,
            reach: f32,
            plane: &[f32],
            apart: &[f32],
        ) {
            let _ = FMA;
            let bounds = plane.chunks(WIDTH).zip(apart.chunks(WIDTH));
            for (at, (scores, (plane, apart))) in scores.chunks(WIDTH).zip(bounds).enumerate() {
                let mut open = 0u32;
                for (i, (score, (plane, apart))) in scores.iter().zip(plane.iter().zip(apart)).enumerate() {
                    let proved = own - score + plane > reach * apart;
                    open |= u32::from(!proved) << i;
                }
                while open != 0 {
                    lists.push(at * WIDTH + open.trailing_zeros() as usize, row);
                    open &= open - 1;
                }
            }
        }
    }

    /// Takes scores of some rows with the centres `number` into account; the scores are scratch afterwards.
    fn rank(tops: &mut [Top], rows: &[u32], scores: &mut [f32], number: &[u32]) {
        for (row, scores) in rows.iter().zip(scores.chunks_exact_mut(number.len())) {
            let (top, first) = (&mut tops[*row as usize], most(scores));
            if first > top.first {
                let at = find(scores, first);
                scores[at] = f32::NEG_INFINITY;
                *top = Top { first, second: top.first.max(most(scores)), at: number[at] };
            } else if first > top.second {
                top.second = first;
            }
        }
    }

    /// See the head of this file. `pivots`: those of the last call, at first none.
    pub fn assign(
        labels: &mut [u32],
        pivots: &mut Vec<f32>,
        x: &[f32],
        norms: &[f32],
        centres: &[f32],
        squares: &[f32],
        d: usize,
    ) {
        let groups = Groups::new(pivots, centres, squares, d);
        let blocks = labels.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK * d)).zip(norms.par_chunks(BLOCK));
        blocks.for_each(|((labels, x), norms)| groups.label(labels, x, norms));
        // All of them together: tiles are full then, and four share their centres.
        let open: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == OPEN).collect();
        let mut of_open = vec![0; open.len()];
        let rows: Vec<&[f32]> = centres.chunks_exact(d).collect();
        fast::closest(&mut of_open, |i| &x[open[i] * d..][..d], &rows, d);
        open.iter().zip(of_open).for_each(|(i, l)| labels[*i] = l);
    }

    /// An upper bound of the squared distance of a row to the centre with its best score.
    fn at_most(first: f32, norm: f32, widest: f32, d: usize) -> f32 {
        (norm - 2.0 * first).max(0.0) + slack(norm, widest, d)
    }

    /// True when the best score is proved to be that of the nearest centre.
    fn decided(first: f32, second: f32, norm: f32, widest: f32, d: usize) -> bool {
        let slack = 2.0 * margin(d);
        let scale = (norm * widest).sqrt() + widest;
        let gap = 2.0 * (first - second) - slack * scale;
        SAFE.contains(&scale) && gap > slack * at_most(first, norm, widest, d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn points(n: usize, d: usize, levels: u32, lane: u32) -> Tensor {
        let r = Rng::new(3).at(Purpose::Select, n as u32, d as u32).lane(lane);
        let one = |e| if levels == 0 { r.uniform(e) } else { ((r.u32(e) >> 8) % levels) as f32 };
        let v: Vec<f32> = (0..(n * d) as u64).map(one).collect();
        Tensor::new(&Device::Cpu, [n, d], &v).unwrap()
    }

    /// The nearest centre by canonical distances, the lowest of equals.
    fn brute_labels(x: &Tensor, c: &Tensor) -> Vec<u32> {
        let k = c.dims()[0];
        let d2 = ops::pairwise_sq(x, c).unwrap().to_vec::<f32>().unwrap();
        let first = |row: &[f32]| (0..k).fold(0, |a, j| if row[j] < row[a] { j } else { a }) as u32;
        d2.chunks_exact(k).map(first).collect()
    }

    #[test]
    fn labels_are_those_of_canonical_distances() {
        // Far from the origin products say little; large ones overflow, small ones underflow.
        let ranges = [(0, 1.0, 0.0), (1, 1.0, 0.0), (2, 1.0, 0.0), (5, 1.0, 4096.0), (0, 1e18, 0.0), (0, 1e20, 0.0)];
        for d in [1, 3, 50, 129] {
            for (n, k) in [(1, 1), (17, 5), (513, 8), (600, 33), (300, 300), (200, 700)] {
                for (levels, scale, shift) in ranges.into_iter().chain([(3, 1e-13, 0.0), (0, 1e-22, 0.0)]) {
                    let points = |n, lane| {
                        let v = points(n, d, levels, lane).to_vec::<f32>().unwrap();
                        let v: Vec<f32> = v.iter().map(|v| v * scale + shift).collect();
                        Tensor::new(&Device::Cpu, [n, d], &v).unwrap()
                    };
                    let (x, c) = (points(n, 1), points(k, 2));
                    let got = lloyd(&x, &c, 0, 0.0).unwrap().labels.to_vec::<u32>().unwrap();
                    assert_eq!(got, brute_labels(&x, &c), "{n}x{d}, {k} centres, {levels} levels times {scale:e}");
                }
            }
        }
    }

    /// Clusters far apart and copies of centres, over several iterations: most groups are passed over, some are empty.
    #[test]
    fn groups_are_passed_over_only_where_none_of_them_is_nearest() {
        for (n, d, k, clusters) in [(900, 5, 400, 9), (1500, 20, 300, 5), (700, 2, 650, 3), (2000, 40, 600, 30)] {
            let (noise, middle) = (points(n, d, 0, 1).to_vec::<f32>().unwrap(), points(clusters, d, 4, 2));
            let middle = middle.to_vec::<f32>().unwrap();
            let x = noise.iter().enumerate().map(|(e, v)| v + 3.0 * middle[e / d * 7 % clusters * d + e % d]);
            let x = Tensor::new(&Device::Cpu, [n, d], &x.collect::<Vec<f32>>()).unwrap();
            let rows: Vec<u32> = (0..k as u32).map(|j| if j % 5 == 0 { 0 } else { j }).collect();
            let c = ops::gather_rows(&x, &Tensor::new(&Device::Cpu, [k], &rows).unwrap()).unwrap();
            for iterations in [0, 1, 4] {
                let got = lloyd(&x, &c, iterations, 0.0).unwrap();
                assert_eq!(got.labels.to_vec::<u32>().unwrap(), brute_labels(&x, &got.centres), "{n}x{d}, {k} centres");
            }
        }
    }

    /// Whole numbers: every sum is exact, so a plain loop must agree to the bit, empty clusters and all.
    fn brute(x: &[Vec<f64>], mut c: Vec<Vec<f64>>, iterations: u32) -> (Vec<Vec<f64>>, Vec<usize>) {
        // Centres are not whole: distances in the canonical order.
        let base = crate::device::simd::level() == crate::device::simd::Level::Base;
        let add = |s: f32, t: f32| if base { t * t + s } else { t.mul_add(t, s) };
        let d2 = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0, |s, (a, b)| add(s, (a - b) as f32));
        let label = |c: &[Vec<f64>], row: &[f64]| {
            let d: Vec<f32> = c.iter().map(|c| d2(row, c)).collect();
            (0..c.len()).fold(0, |a, j| if d[j] < d[a] { j } else { a })
        };
        for _ in 0..iterations {
            let of: Vec<usize> = x.iter().map(|row| label(&c, row)).collect();
            let old = c.clone();
            let own = |i: usize| d2(&x[i], &old[of[i]]);
            let mut far: Vec<usize> = (0..x.len()).filter(|i| own(*i) > 0.0).collect();
            far.sort_by(|a, b| own(*b).total_cmp(&own(*a)).then(a.cmp(b)));
            let mut far = far.into_iter();
            for (l, centre) in c.iter_mut().enumerate() {
                let rows: Vec<&Vec<f64>> = x.iter().zip(&of).filter(|(_, o)| **o == l).map(|(r, _)| r).collect();
                if rows.is_empty() {
                    if let Some(i) = far.next() {
                        *centre = x[i].clone();
                    }
                    continue;
                }
                for (k, v) in centre.iter_mut().enumerate() {
                    *v = f64::from((rows.iter().map(|r| r[k]).sum::<f64>() / rows.len() as f64) as f32);
                }
            }
            if c == old {
                break;
            }
        }
        let of = x.iter().map(|row| label(&c, row)).collect();
        (c, of)
    }

    #[test]
    fn iterations_are_those_of_a_plain_loop() {
        for (n, d, k, levels) in [(1, 1, 1, 2), (30, 1, 7, 9), (40, 2, 12, 3), (200, 2, 20, 12), (60, 1, 20, 6)] {
            let x = points(n, d, levels, 1);
            // Copies of one row: all but the first of these clusters are empty at once.
            let c = ops::gather_rows(&x, &Tensor::new(&Device::Cpu, [k], &vec![n as u32 / 2; k]).unwrap()).unwrap();
            let rows = |t: &Tensor| t.to_f64().unwrap().chunks(d).map(<[f64]>::to_vec).collect::<Vec<_>>();
            for iterations in [1, 2, 3] {
                let got = lloyd(&x, &c, iterations, 0.0).unwrap();
                let (centres, labels) = brute(&rows(&x), rows(&c), iterations);
                assert_eq!(rows(&got.centres), centres, "{n}x{d}, {k} centres, {iterations} iterations");
                assert!(got.labels.to_vec::<u32>().unwrap().iter().map(|l| *l as usize).eq(labels));
            }
        }
    }

    /// METHODS 6.9, from seeds in the three clusters.
    #[test]
    fn worked_example() {
        let x = [0.0f32, 0.0, 0.0, 1.0, 5.0, 0.0, 5.0, 1.0, 9.0, 9.0];
        let x = Tensor::new(&Device::Cpu, [5, 2], &x).unwrap();
        let c = ops::gather_rows(&x, &Tensor::new(&Device::Cpu, [3], &[1u32, 2, 4]).unwrap()).unwrap();
        let got = lloyd(&x, &c, 100, 1e-4).unwrap();
        assert_eq!(got.centres.to_vec::<f32>().unwrap(), [0.0, 0.5, 5.0, 0.5, 9.0, 9.0]);
        assert_eq!(got.central(&x).unwrap(), [0, 2, 4]);
        let stops = Stops { restarts: 10, iterations: 300, tolerance: 1e-4 };
        let mut ids = kmeans(&x, 3, stops, Rng::new(1)).unwrap().central(&x).unwrap();
        ids.sort_unstable();
        assert_eq!(ids, [0, 2, 4]);
    }

    /// The means of these pairs are .5 away from the centres, in sum of squares, and then stay; the features vary by 25.25 and
    /// by nothing, 12.625 on average. From any row the mean of all is 20.25 or 30.25 away.
    #[test]
    fn iterations_end_where_centres_rest() {
        let x = Tensor::new(&Device::Cpu, [4, 2], &[0.0f32, 7.0, 1.0, 7.0, 10.0, 7.0, 11.0, 7.0]).unwrap();
        let c = Tensor::new(&Device::Cpu, [2, 2], &[0.0f32, 7.0, 10.0, 7.0]).unwrap();
        let moves = |tolerance| lloyd(&x, &c, 100, tolerance).unwrap().iterations;
        assert_eq!([0.0, 0.039, 0.04].map(moves), [2, 2, 1]);
        let rest = lloyd(&x, &c, 100, 0.0).unwrap().centres;
        assert_eq!(lloyd(&x, &rest, 100, 0.0).unwrap().iterations, 1, "nothing moves");
        let moves = |tolerance| kmeans(&x, 1, Stops { restarts: 1, iterations: 100, tolerance }, Rng::new(1)).unwrap();
        assert_eq!([0.0, 1.6, 2.4].map(|t| moves(t).iterations), [2, 2, 1]);
    }

    /// Rows on their centres are no place for an empty cluster: its centre stays, also where others move.
    #[test]
    fn empty_clusters_stay_where_no_row_is_far() {
        let line = |v: &[f32]| Tensor::new(&Device::Cpu, [v.len(), 1], v).unwrap();
        let moved = |x: &[f32], c: &[f32]| lloyd(&line(x), &line(c), 1, 0.0).unwrap().centres.to_vec::<f32>().unwrap();
        assert_eq!(moved(&[2.0, 2.0], &[2.0, 90.0, 80.0]), [2.0, 90.0, 80.0]);
        // The one row that is away from its centre is for the first of two.
        assert_eq!(moved(&[2.0, 2.0, 4.0], &[2.0, 90.0, 80.0]), [8.0 / 3.0, 4.0, 80.0]);
    }

    #[test]
    fn more_restarts_are_never_worse_and_everything_is_distinct() {
        let total = |c: &Clusters| c.distances.to_f64().unwrap().iter().sum::<f64>();
        for levels in [0, 1, 3] {
            let x = points(150, 2, levels, 4);
            let mut least = f64::INFINITY;
            for restarts in [1, 2, 8] {
                let stops = Stops { restarts, iterations: 20, tolerance: 1e-4 };
                let c = kmeans(&x, 40, stops, Rng::new(2)).unwrap();
                assert!(total(&c) <= least, "{restarts} restarts");
                least = total(&c);
                let mut ids = c.central(&x).unwrap();
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), 40, "{levels} levels");
            }
        }
        let stops = Stops { restarts: 1, iterations: 1, tolerance: 0.0 };
        assert!(kmeans(&points(3, 2, 0, 1), 4, stops, Rng::new(0)).is_err());
        let bad = Tensor::new(&Device::Cpu, [3, 1], &[1.0f32, f32::INFINITY, 0.0]).unwrap();
        assert!(kmeans(&bad, 2, stops, Rng::new(0)).unwrap_err().to_string().contains("row 1"));
    }
}
