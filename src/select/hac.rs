//! Average-linkage agglomerative clustering by nearest-neighbour chains (Murtagh 1983): O(N²) distances, no heap.
//!
//! A chain of ever nearer nearest neighbours ends in two clusters that are each other's nearest; these are merged, and
//! the rest of the chain stays valid, because average linkage is reducible. A merged cluster keeps the lower of two
//! numbers, so a cluster has the number of its lowest row, and the lowest of equally near ones is taken, but the one
//! before in the chain first.
//!
//! **Exact** while half a matrix of f32 fits the memory bound: d(A ∪ B, X) = w_A d(A, X) + w_B d(B, X) with Euclidean
//! distances, w_A = n_A / (n_A + n_B). **Beyond it** the distances are squared, of which the mean over pairs is
//! ‖μ_A − μ_B‖² + S_A / n_A + S_B / n_B, S being the scatter of a cluster: O(N·D) memory. Which of the two depends on N
//! and the bound alone. All distances are in the canonical order of [`crate::ops::nearest_update`] and every update is
//! rounded alike, so devices return the same tree, bit for bit.

use std::rc::Rc;

use super::kcenter::check_finite;
use crate::device::{Cuda, Device, Launch, cuda::Replay, launch};
use crate::ops::{pairwise_sq, slice_rows};
use crate::tensor::{Buf, Tensor};
use crate::{Error, Result};

/// Two clusters become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merge {
    /// The lowest row of the one, and of both.
    pub keep: u32,
    /// The lowest row of the other.
    pub gone: u32,
    /// Their distance: the mean over pairs of rows of the Euclidean distance, squared beyond the memory bound.
    pub height: f32,
}

/// All merges of N rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    rows: usize,
    /// N − 1, lowest first.
    merges: Vec<Merge>,
}

impl Tree {
    /// The merges, lowest first.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// The cluster of every row (N) when there are `clusters` of them (at least 1, at most N): numbered by their lowest
    /// rows.
    pub fn cut(&self, clusters: usize) -> Vec<u32> {
        let keep = self.rows - clusters.clamp(1, self.rows.max(1)).min(self.rows);
        let mut parent: Vec<u32> = (0..self.rows as u32).collect();
        for m in &self.merges[..keep] {
            let (a, b) = (root(&mut parent, m.keep), root(&mut parent, m.gone));
            parent[a.max(b) as usize] = a.min(b);
        }
        let mut number = vec![u32::MAX; self.rows];
        let mut next = 0;
        (0..self.rows as u32)
            .map(|row| {
                let n = &mut number[root(&mut parent, row) as usize];
                if *n == u32::MAX {
                    *n = next;
                    next += 1;
                }
                *n
            })
            .collect()
    }

    /// As [`Tree::cut`], with as many clusters as have at least `size` rows in the mean.
    pub fn cut_to_mean_size(&self, size: f64) -> Vec<u32> {
        self.cut((self.rows as f64 / size) as usize)
    }
}

/// The lowest row of a row's cluster so far; shortens the way there.
fn root(parent: &mut [u32], row: u32) -> u32 {
    let mut at = row;
    while parent[at as usize] != at {
        parent[at as usize] = parent[parent[at as usize] as usize];
        at = parent[at as usize];
    }
    at
}

/// The tree of the rows of x (N, D), f32, on any device. `memory`: bytes that distances may take, see above; `check` is
/// asked now and then, and its error stops the clustering. A row with a NaN or an infinity is an error that names it.
pub fn average_linkage(x: &Tensor, memory: u64, check: &dyn Fn() -> Result<()>) -> Result<Tree> {
    let [n, d] = x.shape().matrix(OP)?;
    if d == 0 {
        return Err(x.shape().refuse(OP, "(N, D) with at least one feature"));
    }
    check_finite(x)?;
    let mut merges = match x.device() {
        Device::Cpu => cpu::merges(x, memory, check)?,
        Device::Cuda(cuda) => on_cuda(cuda, x, memory, check)?,
    };
    // Stable: of equal heights the one that was found first.
    merges.sort_by(|a, b| a.height.total_cmp(&b.height));
    Ok(Tree { rows: n, merges })
}

const OP: &str = "average_linkage";

/// Rows whose distances to all others are computed at a time.
const BLOCK: usize = 256;

/// Bytes that the distances between n rows take, half a matrix: from so much `memory` on, [`average_linkage`] is exact.
pub fn half_matrix(n: usize) -> u64 {
    2 * n as u64 * n.saturating_sub(1) as u64
}

/// Place of the distance of rows i > j in half a matrix.
fn place(i: usize, j: usize) -> usize {
    i * (i - 1) / 2 + j
}

/// `f(first row, squared distances (rows, columns))` for blocks of rows; `columns`: at least those before the end of the
/// block, or all.
fn distance_blocks(
    x: &Tensor,
    half: bool,
    check: &dyn Fn() -> Result<()>,
    mut f: impl FnMut(usize, &Tensor) -> Result<()>,
) -> Result<()> {
    let n = x.dims()[0];
    for first in (0..n).step_by(BLOCK) {
        check()?;
        let rows = BLOCK.min(n - first);
        // Four widths only: memory that is let go is kept for the same size, so each new one would stay held.
        let columns = if half { (first + rows).next_multiple_of(n.div_ceil(4)).min(n) } else { n };
        f(first, &pairwise_sq(&slice_rows(x, first, rows)?, &slice_rows(x, 0, columns)?)?)?;
    }
    Ok(())
}

fn too_far(row: u32) -> Error {
    let what = format!("row {row} of the embeddings is so far from the others that its distance overflows; scale them");
    Error::NonFinite { what }
}

/// A cluster's nearest neighbour is found in the chain twice: only broken distances do that.
fn broken() -> Error {
    Error::NonFinite { what: "the distances are not symmetric; this is a bug".into() }
}

/// Steps of the chain per submission; nothing happens in those beyond the end.
const STEPS: usize = 16;

fn on_cuda(cuda: &Rc<Cuda>, x: &Tensor, memory: u64, check: &dyn Fn() -> Result<()>) -> Result<Vec<Merge>> {
    let ([n, d], device) = (x.shape().matrix(OP)?, x.device());
    if n < 2 {
        return Ok(Vec::new());
    }
    let mut of = Resident::new(cuda, x, memory, check)?;
    let blocks = n.div_ceil(128);
    let mut part = Buf::<u64>::stale(device, blocks)?;
    let (mut chain, mut link) = (Buf::<u32>::zeros(device, n + 1)?, Buf::<f32>::zeros(device, n + 1)?);
    let mut size = Buf::from_host(device, &vec![1u32; n])?;
    let (mut pairs, mut height) = (Buf::<u32>::zeros(device, 2 * (n - 1))?, Buf::<f32>::zeros(device, n - 1)?);
    let mut state = Buf::<u32>::zeros(device, 9)?;
    let mut replay = Replay::new(true);
    let (ni, di, wide) = (n as i32, d as i32, Launch::grid(blocks, 1, 1, 128));
    loop {
        check()?;
        // A merge takes three steps at most; looking whether it is over costs a wait.
        for _ in 0..(n / STEPS).clamp(1, 64) {
            replay.run(device, || {
                (0..STEPS).try_for_each(|_| {
                    match &mut of {
                        Resident::Half { distances } => {
                            launch::hac_scan_f32(cuda, wide, &mut part, distances, &chain, &state, ni)?;
                        }
                        Resident::Centroids { mean, own, .. } => {
                            launch::hac_scan_means_f32(cuda, wide, &mut part, mean, own, &chain, &state, ni, di)?;
                        }
                    }
                    let (c, s) = (&mut chain, &mut size);
                    let one = Launch::grid(1, 1, 1, 256);
                    let (p, h) = (&mut pairs, &mut height);
                    launch::hac_step_f32(cuda, one, c, &mut link, s, p, h, &mut state, &part, blocks as i32, ni)?;
                    match &mut of {
                        Resident::Half { distances } => launch::hac_merge_f32(cuda, wide, distances, &state, ni),
                        Resident::Centroids { mean, own, scatter } => {
                            launch::hac_merge_means_f32(cuda, one, mean, own, scatter, &size, &state, di)
                        }
                    }
                })
            })?;
        }
        let state = state.to_host()?;
        match state[8] {
            0 if state[1] as usize == n - 1 => break,
            0 => {}
            1 => return Err(broken()),
            tip => return Err(too_far(tip - 2)),
        }
    }
    let pairs = pairs.to_host()?;
    let merge = |(pair, height): (&[u32], f32)| Merge { keep: pair[0], gone: pair[1], height };
    Ok(pairs.chunks_exact(2).zip(height.to_host()?).map(merge).collect())
}

/// What the distances of clusters come from, on the device.
enum Resident {
    Half { distances: Buf<f32> },
    Centroids { mean: Buf<f32>, own: Buf<f32>, scatter: Buf<f32> },
}

impl Resident {
    fn new(cuda: &Cuda, x: &Tensor, memory: u64, check: &dyn Fn() -> Result<()>) -> Result<Resident> {
        let ([n, _], device) = (x.shape().matrix(OP)?, x.device());
        if half_matrix(n) > memory {
            let zeros = || Buf::zeros(device, n);
            let mut mean = Buf::stale(device, x.len())?;
            crate::ops::copy_into(&mut mean, 0, x.buf(OP)?, device)?;
            return Ok(Resident::Centroids { mean, own: zeros()?, scatter: zeros()? });
        }
        let mut distances = Buf::stale(device, n * (n - 1) / 2)?;
        distance_blocks(x, true, check, |first, block| {
            let (rows, columns) = (block.dims()[0], block.dims()[1]);
            let l = Launch::grid(columns.div_ceil(256), rows, 1, 256);
            launch::hac_pack_f32(cuda, l, &mut distances, block.buf(OP)?, first as i32, columns as i32)
        })?;
        Ok(Resident::Half { distances })
    }
}

mod cpu {
    use rayon::prelude::*;

    use super::{Merge, OP, broken, distance_blocks, half_matrix, place, too_far};
    use crate::Result;
    use crate::ops::distance::fast::{self, Lane, ROWS};
    use crate::simd;
    use crate::tensor::Tensor;

    /// Distances between clusters.
    trait Distances {
        /// The nearest other cluster and its distance, the lowest of equals. There is at least one.
        fn nearest(&mut self, of: usize) -> (f32, u32);

        /// Cluster `keep` takes in `gone` > `keep`; `size` is how many rows each has.
        fn merge(&mut self, keep: usize, gone: usize, size: [f32; 2]);
    }

    pub fn merges(x: &Tensor, memory: u64, check: &dyn Fn() -> Result<()>) -> Result<Vec<Merge>> {
        let [n, d] = x.shape().matrix(OP)?;
        if n < 2 {
            return Ok(Vec::new());
        }
        let mut distances: Box<dyn Distances> = match half_matrix(n) {
            half if half > memory => Box::new(Centroids::new(x.host(OP)?, n, d)),
            _ if 4 * (n as u64).pow(2) <= memory => Box::new(Square::new(x, check)?),
            _ => Box::new(Half::new(x, check)?),
        };
        let mut size = vec![1.0f32; n];
        let mut merges = Vec::with_capacity(n - 1);
        // Clusters, each with its distance to the one before.
        let mut chain: Vec<(u32, f32)> = Vec::new();
        for step in 0.. {
            if merges.len() == n - 1 {
                break;
            }
            if step % 256 == 0 {
                check()?;
            }
            if chain.is_empty() {
                // The cluster of row 0 always has that number.
                chain.push((0, f32::INFINITY));
            }
            let (tip, link) = chain[chain.len() - 1];
            let (distance, at) = distances.nearest(tip as usize);
            if !distance.is_finite() {
                return Err(too_far(tip));
            }
            if distance < link {
                if chain.len() == n {
                    return Err(broken());
                }
                chain.push((at, distance));
                continue;
            }
            chain.pop();
            let (before, _) = chain.pop().ok_or_else(broken)?;
            let (keep, gone) = (tip.min(before), tip.max(before));
            let (k, g) = (keep as usize, gone as usize);
            distances.merge(k, g, [size[k], size[g]]);
            size[k] += size[g];
            merges.push(Merge { keep, gone, height: link });
        }
        Ok(merges)
    }

    /// The shares of two clusters in their union.
    fn shares([keep, gone]: [f32; 2]) -> [f32; 2] {
        let both = keep + gone;
        [keep / both, gone / both]
    }

    simd! {
        /// The smallest of numbers that are not negative, as bits, which order alike and whose minimum vectorises.
        fn least(row: &[f32]) -> u32 {
            row.iter().fold(u32::MAX, |least, v| least.min(v.to_bits()))
        }
    }

    /// The smallest of numbers that are not negative and the first place it is at; NaN, which has the larger bits, comes
    /// last.
    fn first_least(row: &[f32]) -> (f32, u32) {
        const RUN: usize = 1024;
        let (mut best, mut run) = (u32::MAX, 0);
        for (i, part) in row.chunks(RUN).enumerate() {
            let here = least(part);
            if here < best {
                (best, run) = (here, i * RUN);
            }
        }
        let at = row[run..].iter().position(|v| v.to_bits() == best).unwrap_or(0);
        (f32::from_bits(best), (run + at) as u32)
    }

    /// All N² distances, so that a cluster's are in one run of memory. A merge is written to the row of the new cluster
    /// only and into a log; another row catches up with the log when it is needed, while it is in the cache anyway. What
    /// is gone, and a row's own place, is infinitely far.
    struct Square {
        n: usize,
        d: Vec<f32>,
        log: Vec<Entry>,
        /// How much of the log is in each row.
        seen: Vec<u32>,
    }

    struct Entry {
        keep: u32,
        gone: u32,
        shares: [f32; 2],
    }

    impl Square {
        fn new(x: &Tensor, check: &dyn Fn() -> Result<()>) -> Result<Square> {
            let n = x.dims()[0];
            let mut d = vec![0.0f32; n * n];
            distance_blocks(x, false, check, |first, block| {
                let from = block.host::<f32>(OP)?;
                let to = &mut d[first * n..first * n + from.len()];
                to.par_chunks_mut(n).zip(from.par_chunks(n)).enumerate().for_each(|(i, (to, from))| {
                    to.iter_mut().zip(from).for_each(|(to, sq)| *to = sq.sqrt());
                    to[first + i] = f32::INFINITY;
                });
                Ok(())
            })?;
            Ok(Square { n, d, log: Vec::with_capacity(n), seen: vec![0; n] })
        }

        fn row(&mut self, i: usize) -> &mut [f32] {
            let row = &mut self.d[i * self.n..(i + 1) * self.n];
            for e in &self.log[self.seen[i] as usize..] {
                let [keep, gone] = e.shares;
                row[e.keep as usize] = keep * row[e.keep as usize] + gone * row[e.gone as usize];
                row[e.gone as usize] = f32::INFINITY;
            }
            self.seen[i] = self.log.len() as u32;
            row
        }
    }

    impl Distances for Square {
        fn nearest(&mut self, of: usize) -> (f32, u32) {
            first_least(self.row(of))
        }

        fn merge(&mut self, keep: usize, gone: usize, size: [f32; 2]) {
            self.row(keep);
            self.row(gone);
            let (shares, n) = (shares(size), self.n);
            let (front, back) = self.d.split_at_mut(gone * n);
            let (row, other) = (&mut front[keep * n..(keep + 1) * n], &back[..n]);
            row.iter_mut().zip(other).for_each(|(k, g)| *k = shares[0] * *k + shares[1] * g);
            (row[keep], row[gone]) = (f32::INFINITY, f32::INFINITY);
            self.log.push(Entry { keep: keep as u32, gone: gone as u32, shares });
            self.seen[keep] = self.log.len() as u32;
        }
    }

    /// The distances of rows i > j, row by row: half the memory, but half of a cluster's distances are far apart in it.
    struct Half {
        d: Vec<f32>,
        /// Ascending.
        left: Vec<u32>,
    }

    impl Half {
        fn new(x: &Tensor, check: &dyn Fn() -> Result<()>) -> Result<Half> {
            let n = x.dims()[0];
            let mut d = vec![0.0f32; n * (n - 1) / 2];
            distance_blocks(x, true, check, |first, block| {
                let columns = block.dims()[1];
                for (i, from) in (first..).zip(block.host::<f32>(OP)?.chunks_exact(columns)).filter(|(i, _)| *i > 0) {
                    d[place(i, 0)..][..i].iter_mut().zip(from).for_each(|(to, sq)| *to = sq.sqrt());
                }
                Ok(())
            })?;
            Ok(Half { d, left: (0..n as u32).collect() })
        }
    }

    impl Distances for Half {
        fn nearest(&mut self, of: usize) -> (f32, u32) {
            let lower = if of > 0 { first_least(&self.d[place(of, 0)..][..of]) } else { (f32::INFINITY, 0) };
            let above = self.left.partition_point(|i| *i as usize <= of);
            let each = self.left[above..].iter().map(|i| (self.d[place(*i as usize, of)], *i));
            each.fold(lower, |best, one| if one.0.to_bits() < best.0.to_bits() { one } else { best })
        }

        fn merge(&mut self, keep: usize, gone: usize, size: [f32; 2]) {
            let shares = shares(size);
            let place = |a: usize, b: usize| place(a.max(b), a.min(b));
            for &x in &self.left {
                let x = x as usize;
                if x != keep && x != gone {
                    let (k, g) = (place(x, keep), place(x, gone));
                    self.d[k] = shares[0] * self.d[k] + shares[1] * self.d[g];
                    self.d[g] = f32::INFINITY;
                }
            }
            self.d[place(gone, keep)] = f32::INFINITY;
            self.left.retain(|x| *x as usize != gone);
        }
    }

    /// Means and scatters of clusters; distances are squared.
    struct Centroids {
        n: usize,
        d: usize,
        /// Means, sixteen side by side.
        tiles: Vec<Lane>,
        /// S
        scatter: Vec<f32>,
        /// S / n, infinite for what is gone and for lanes without a row.
        own: Vec<f32>,
        /// Squared distances of means, then of clusters.
        to: Vec<f32>,
    }

    impl Centroids {
        fn new(x: &[f32], n: usize, d: usize) -> Centroids {
            let lanes = n.next_multiple_of(ROWS);
            let mut tiles = vec![[0.0; ROWS]; lanes / ROWS * d];
            for (t, tile) in tiles.chunks_exact_mut(d).enumerate() {
                fast::turn(tile, |r| &x[(t * ROWS + r) * d..][..d], ROWS.min(n - t * ROWS));
            }
            let mut own = vec![f32::INFINITY; lanes];
            own[..n].fill(0.0);
            Centroids { n, d, tiles, scatter: vec![0.0; n], own, to: vec![0.0; lanes] }
        }

        fn mean(&self, i: usize) -> Vec<f32> {
            self.tiles[i / ROWS * self.d..][..self.d].iter().map(|lane| lane[i % ROWS]).collect()
        }
    }

    impl Distances for Centroids {
        fn nearest(&mut self, of: usize) -> (f32, u32) {
            let (mean, own, d) = (self.mean(of), self.own[of], self.d);
            // Tiles enough to be worth a task.
            let run = (1 << 15) / (ROWS * d) + 1;
            let parts = self.to.par_chunks_mut(run * ROWS).zip(self.tiles.par_chunks(run * d));
            parts.zip(self.own.par_chunks(run * ROWS)).for_each(|((to, tiles), others)| {
                to.fill(f32::INFINITY);
                fast::sweep(to, tiles, &mean);
                to.iter_mut().zip(others).for_each(|(to, other)| *to += own + other);
            });
            self.to[of] = f32::INFINITY;
            first_least(&self.to[..self.n])
        }

        fn merge(&mut self, keep: usize, gone: usize, size: [f32; 2]) {
            let (shares, other) = (shares(size), self.mean(gone));
            let mut apart = [f32::INFINITY; ROWS];
            let tile = &mut self.tiles[keep / ROWS * self.d..][..self.d];
            fast::sweep(&mut apart, tile, &other);
            let lane = keep % ROWS;
            let both = self.scatter[keep] + self.scatter[gone];
            self.scatter[keep] = both + size[0] * shares[1] * apart[lane];
            self.own[keep] = self.scatter[keep] / (size[0] + size[1]);
            self.own[gone] = f32::INFINITY;
            for (mean, other) in tile.iter_mut().zip(&other) {
                mean[lane] = shares[0] * mean[lane] + shares[1] * other;
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::device::Device;

        /// One distance at a time, whatever the way they are kept.
        #[test]
        fn square_and_half_are_one() {
            let r = crate::rng::Rng::new(9);
            for (n, whole) in [(2, false), (47, false), (300, true)] {
                let value = |e: u64| if whole { (r.u32(e) % 5) as f32 } else { r.uniform(e) };
                let x = Tensor::new(&Device::Cpu, [n, 3], &(0..3 * n as u64).map(value).collect::<Vec<_>>()).unwrap();
                let square = merges(&x, u64::MAX, &|| Ok(())).unwrap();
                let half = merges(&x, half_matrix(n), &|| Ok(())).unwrap();
                assert!(n < 3 || 4 * (n as u64).pow(2) > half_matrix(n));
                assert_eq!(square, half);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn tree(x: &[f32], n: usize, memory: u64) -> Tree {
        let x = Tensor::new(&Device::Cpu, [n, x.len() / n], x).unwrap();
        average_linkage(&x, memory, &|| Ok(())).unwrap()
    }

    /// The definition: of all pairs of clusters, the nearest are merged. Labels by lowest row for each number of clusters.
    fn brute(x: &[f32], n: usize, squared: bool) -> Vec<Vec<u32>> {
        let d = x.len() / n;
        let distance = |i: usize, j: usize| {
            let sq = (0..d).map(|f| f64::from(x[i * d + f] - x[j * d + f]).powi(2)).sum::<f64>();
            if squared { sq } else { sq.sqrt() }
        };
        let mut clusters: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
        let mut cuts = vec![(0..n as u32).collect::<Vec<_>>()];
        while clusters.len() > 1 {
            let mean = |a: &[usize], b: &[usize]| {
                let sum: f64 = a.iter().flat_map(|i| b.iter().map(|j| distance(*i, *j))).sum();
                sum / (a.len() * b.len()) as f64
            };
            let pairs = (0..clusters.len()).flat_map(|a| (a + 1..clusters.len()).map(move |b| (a, b)));
            let least = pairs.min_by(|p, q| {
                let [p, q] = [p, q].map(|p| mean(&clusters[p.0], &clusters[p.1]));
                p.total_cmp(&q)
            });
            let (a, b) = least.unwrap();
            let other = clusters.remove(b);
            clusters[a].extend(other);
            let mut labels = vec![0; n];
            clusters.iter().enumerate().for_each(|(c, rows)| rows.iter().for_each(|r| labels[*r] = c as u32));
            cuts.push(labels);
        }
        cuts
    }

    #[test]
    fn equals_the_definition() {
        let r = Rng::new(4);
        for n in [1, 2, 3, 17, 60] {
            let x: Vec<f32> = (0..5 * n as u64).map(|e| r.lane(n as u32).uniform(e)).collect();
            for squared in [false, true] {
                let memory = if squared { 0 } else { u64::MAX };
                let (tree, cuts) = (tree(&x, n, memory), brute(&x, n, squared));
                assert!(tree.merges().windows(2).all(|m| m[0].height <= m[1].height));
                for (merged, want) in cuts.iter().enumerate() {
                    assert_eq!(&tree.cut(n - merged), want, "{} clusters of {n}, squared: {squared}", n - merged);
                }
            }
        }
    }

    /// The heights of three points on a line: 1, then the mean of 9 and 10 or of their squares.
    #[test]
    fn heights() {
        let heights = |memory| tree(&[0.0, 1.0, 10.0], 3, memory).merges().iter().map(|m| m.height).collect::<Vec<_>>();
        assert_eq!(heights(u64::MAX), [1.0, 9.5]);
        assert_eq!(heights(0), [1.0, 90.5]);
    }

    #[test]
    fn copies_and_ties() {
        // Copies first, the lowest rows first.
        let t = tree(&[3.0, 1.0, 3.0, 1.0, 1.0, 7.0], 6, u64::MAX);
        assert_eq!(t.cut(3), [0, 1, 0, 1, 1, 2]);
        assert_eq!(t.cut(2), [0, 0, 0, 0, 0, 1]);
        assert_eq!(t.cut_to_mean_size(2.5), [0, 0, 0, 0, 0, 1]);
        let same = tree(&[2.0; 40], 20, 0);
        for k in 1..=20 {
            assert_eq!(same.cut(k).into_iter().max(), Some(k as u32 - 1));
        }
        assert_eq!((same.cut(0), same.cut(99).len()), (vec![0; 20], 20));
        // Four corners: the pair of the lowest rows first, of which 0 has two.
        let corners = tree(&[0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], 4, u64::MAX);
        assert_eq!(corners.cut(3), [0, 0, 1, 2]);
    }

    #[test]
    fn bad_rows_and_a_stop() {
        for memory in [0, u64::MAX] {
            for (bad, why) in [(f32::NAN, "row 1 of"), (f32::INFINITY, "row 1 of"), (3e38, "scale them")] {
                let x = Tensor::new(&Device::Cpu, [3, 1], &[1.0, bad, 2.0]).unwrap();
                let e = average_linkage(&x, memory, &|| Ok(())).unwrap_err().to_string();
                assert!(e.contains(why), "{e}");
            }
            let x = Tensor::new(&Device::Cpu, [3, 1], &[1.0f32, 5.0, 2.0]).unwrap();
            let stop = || Err(Error::NonFinite { what: "stop".into() });
            assert!(average_linkage(&x, memory, &stop).unwrap_err().to_string().contains("stop"));
        }
    }
}
