//! Typical rows: of clusters, those whose neighbours in the cluster are near on average.
//!
//! There is no N×N graph: distances are taken within a cluster, in tiles, and only in clusters that are picked from.
//! Distances are the canonical ones of [`crate::ops::pairwise_sq`], their roots are added in f64, ascending, so all
//! devices decide alike.

use super::cover::rows;
use crate::device::{Device, Launch, launch};
use crate::ops::{pairwise_sq, slice_rows};
use crate::tensor::{Buf, Tensor};
use crate::{Error, Result};

/// What was picked, in the order it was picked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Typical {
    /// Rows of the matrix.
    pub ids: Vec<u32>,
    /// The mean distance of each to the nearest of its cluster; 0 where it is alone.
    pub distance: Vec<f32>,
}

/// How many of the nearest may count: one less than are kept, the row itself among them.
pub const NEIGHBOURS: usize = FEW - 1;
/// The lanes of a warp.
const FEW: usize = 32;
/// Rows and columns of a tile of distances: 32 MiB.
const TILE: [usize; 2] = [8192, 1024];
const OP: &str = "typical";

/// k of the candidates (all if there are fewer), one after the other: from the cluster with the fewest rows that are no
/// candidates any more, of those the largest, of those the lowest, it takes the candidate with the smallest mean distance to
/// its nearest rows of the cluster, the lowest id of equals. Nearest are `neighbours` ([`NEIGHBOURS`] at most), or all
/// others where the cluster has fewer; candidates or not.
///
/// `x` (N, D), f32, on any device, without NaN; `clusters` (N), the number of each row's cluster; `candidates` ascending.
/// O(Σ m²·D) for clusters of m rows that are picked from; memory a tile and the rows of a cluster.
pub fn typical(x: &Tensor, clusters: &[u32], candidates: &[u32], k: usize, neighbours: usize) -> Result<Typical> {
    let [n, _] = x.shape().matrix(OP)?;
    if clusters.len() != n {
        return Err(x.shape().refuse(OP, format!("({}, D), a row for every label", clusters.len())));
    }
    if let Some(id) = candidates.iter().find(|id| **id as usize >= n) {
        let why = format!("row {id} does not exist: there are {n}, numbered from 0");
        return Err(Error::Config { key: "ids".into(), why });
    }
    let count = clusters.iter().max().map_or(0, |c| *c as usize + 1);
    let mut groups = vec![Group::default(); count];
    (0..).zip(clusters).for_each(|(row, c)| groups[*c as usize].rows.push(row));
    candidates.iter().for_each(|row| groups[clusters[*row as usize] as usize].left.push(*row));
    let place = |c: u32, g: &Group| (g.rows.len() - g.left.len(), usize::MAX - g.rows.len(), c);
    let open = (0..).zip(&groups).filter(|(_, g)| !g.left.is_empty());
    let mut order: std::collections::BTreeSet<_> = open.map(|(c, g)| place(c, g)).collect();
    let mut picked = Typical::default();
    while picked.ids.len() < k {
        let Some((.., c)) = order.pop_first() else { break };
        let group = &mut groups[c as usize];
        if group.distance.is_empty() {
            group.rank(x, neighbours)?;
        }
        // The best come last.
        let Some((id, distance)) = group.left.pop().zip(group.distance.pop()) else { continue };
        picked.ids.push(id);
        picked.distance.push(distance as f32);
        if !group.left.is_empty() {
            order.insert(place(c, group));
        }
    }
    Ok(picked)
}

/// A cluster.
#[derive(Clone, Default)]
struct Group {
    /// All of it, ascending.
    rows: Vec<u32>,
    /// The candidates; the next one last, as soon as there are distances.
    left: Vec<u32>,
    /// The mean distance of each of those.
    distance: Vec<f64>,
}

impl Group {
    /// Puts the candidates in the order they are picked in, backwards.
    fn rank(&mut self, x: &Tensor, neighbours: usize) -> Result<()> {
        let mean = mean_distances(&rows(x, &self.left)?, &rows(x, &self.rows)?, neighbours)?;
        let mut ranked: Vec<(f64, u32)> = mean.into_iter().zip(self.left.iter().copied()).collect();
        ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        (self.distance, self.left) = ranked.into_iter().unzip();
        Ok(())
    }
}

/// The mean distance of each of `some` (n, D) to its nearest `neighbours` among the other rows of `all` (m, D), in which it
/// is too.
fn mean_distances(some: &Tensor, all: &Tensor, neighbours: usize) -> Result<Vec<f64>> {
    let ([n, _], [m, _], [height, width]) = (some.shape().matrix(OP)?, all.shape().matrix(OP)?, TILE);
    let count = neighbours.min(NEIGHBOURS).min(m - 1);
    let mut means = Vec::with_capacity(n);
    for from in (0..n).step_by(height) {
        let here = height.min(n - from);
        let part = slice_rows(some, from, here)?;
        let mut few = Buf::from_host(some.device(), &vec![f32::INFINITY; here * FEW])?;
        for at in (0..m).step_by(width) {
            nearest_few(&mut few, &pairwise_sq(&part, &slice_rows(all, at, width.min(m - at))?)?)?;
        }
        // The first is 0: the row itself, or one like it.
        means.extend(few.to_host()?.chunks_exact(FEW).map(|few| match count {
            0 => 0.0,
            _ => few[1..=count].iter().map(|d2| f64::from(*d2).sqrt()).sum::<f64>() / count as f64,
        }));
    }
    Ok(means)
}

/// few[i] = the smallest of few[i] and d2[i], ascending;   few: (n, FEW), d2: (n, m)
fn nearest_few(few: &mut Buf<f32>, d2: &Tensor) -> Result<()> {
    let [n, m] = d2.shape().matrix(OP)?;
    match d2.device() {
        Device::Cpu => {
            cpu::nearest_few(few.host_mut(OP)?, d2.host(OP)?, m);
            Ok(())
        }
        Device::Cuda(cuda) => {
            launch::nearest_few_f32(cuda, Launch::warps(n, 256), few, d2.buf(OP)?, n as i32, m as i32)
        }
    }
}

mod cpu {
    use rayon::prelude::*;

    use super::FEW;

    pub fn nearest_few(few: &mut [f32], d2: &[f32], m: usize) {
        few.par_chunks_exact_mut(FEW).zip(d2.par_chunks_exact(m)).with_min_len(16).for_each(|(few, d2)| {
            for v in d2 {
                if *v < few[FEW - 1] {
                    let at = few.partition_point(|f| f <= v);
                    few.copy_within(at..FEW - 1, at + 1);
                    few[at] = *v;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn points(n: usize, d: usize, levels: u32) -> Tensor {
        let r = Rng::new(14).lane(n as u32);
        let one = |e| if levels == 0 { r.uniform(e) } else { (r.u32(e) % levels) as f32 };
        let v: Vec<f32> = (0..(n * d) as u64).map(one).collect();
        Tensor::new(&Device::Cpu, [n, d], &v).unwrap()
    }

    /// From the whole matrix, all counted anew for every pick.
    fn brute(x: &Tensor, clusters: &[u32], candidates: &[u32], k: usize, neighbours: usize) -> Typical {
        let n = x.dims()[0];
        let d2 = pairwise_sq(x, x).unwrap().to_vec::<f32>().unwrap();
        let (mut left, mut picked) = (candidates.to_vec(), Typical::default());
        while picked.ids.len() < k && !left.is_empty() {
            let rows = |c: u32| (0..n).filter(move |i| clusters[*i] == c);
            let open = |c: u32| left.iter().filter(|i| clusters[**i as usize] == c).count();
            let place = |c: u32| (rows(c).count() - open(c), usize::MAX - rows(c).count(), c);
            let c = left.iter().map(|i| clusters[*i as usize]).min_by_key(|c| place(*c)).unwrap();
            let mean = |i: u32| {
                let others = rows(c).filter(|j| *j != i as usize);
                let mut near: Vec<f64> = others.map(|j| f64::from(d2[i as usize * n + j]).sqrt()).collect();
                near.sort_unstable_by(f64::total_cmp);
                near.truncate(neighbours);
                near.iter().sum::<f64>() / near.len().max(1) as f64
            };
            let of = left.iter().copied().filter(|i| clusters[*i as usize] == c);
            let best = of.min_by(|a, b| mean(*a).total_cmp(&mean(*b)).then(a.cmp(b))).unwrap();
            picked.ids.push(best);
            picked.distance.push(mean(best) as f32);
            left.retain(|i| *i != best);
        }
        picked
    }

    #[test]
    fn equals_the_plain_loop() {
        for (n, d, levels, groups) in [(1, 1, 0, 1), (40, 2, 3, 6), (130, 3, 0, 4), (90, 1, 2, 9), (150, 4, 3, 2)] {
            let x = points(n, d, levels);
            let clusters: Vec<u32> = (0..n as u64).map(|i| Rng::new(2).u32(i) % groups * 2).collect();
            for every in [1, 3, n + 1] {
                let candidates: Vec<u32> =
                    (0..n as u32).filter(|i| !(*i as usize + 1).is_multiple_of(every) || every == 1).collect();
                for (k, neighbours) in [(1, 1), (7, 20), (n, 31), (n + 5, 3)] {
                    let got = typical(&x, &clusters, &candidates, k, neighbours).unwrap();
                    let want = brute(&x, &clusters, &candidates, k, neighbours);
                    assert_eq!(got, want, "{n}x{d}, {levels} levels, {k} of {}, {neighbours}", candidates.len());
                }
            }
        }
    }

    /// Clusters of 4, 2 and 1 rows on a line: the middle one of the first (its two nearest are 1 away), the lower one of the
    /// pair, the lone row; then from the largest again.
    #[test]
    fn a_worked_example() {
        let x = Tensor::new(&Device::Cpu, [7, 1], &[0.0f32, 1.0, 2.0, 10.0, 100.0, 101.0, 200.0]).unwrap();
        let clusters = [0, 0, 0, 0, 1, 1, 2];
        let pick = |candidates: &[u32], k| typical(&x, &clusters, candidates, k, 2).unwrap();
        let all = pick(&[0, 1, 2, 3, 4, 5, 6], 9);
        assert_eq!(all.ids, [1, 4, 6, 0, 5, 2, 3]);
        assert_eq!(all.distance, [1.0, 1.0, 0.0, 1.5, 1.0, 1.5, 8.5]);
        // Row 1 is labelled: the other clusters come first.
        assert_eq!(pick(&[0, 2, 3, 4, 5, 6], 3).ids, [4, 6, 0]);
    }

    /// The nearest 31 of the first row are 1 to 31 away; the last of them comes after one that is farther.
    #[test]
    fn the_last_of_the_nearest_counts() {
        let line: Vec<f32> = (0..31).map(|v| v as f32).chain([40.0, 31.0]).collect();
        let x = Tensor::new(&Device::Cpu, [33, 1], &line).unwrap();
        let all: Vec<u32> = (0..33).collect();
        let got = typical(&x, &[0; 33], &all, 33, NEIGHBOURS).unwrap();
        let of = |id| got.distance[got.ids.iter().position(|i| *i == id).unwrap()];
        assert_eq!((of(0), of(32)), (16.0, (9 + (1..=30).sum::<u32>()) as f32 / 31.0));
    }

    /// Several tiles in both directions.
    #[test]
    fn tiles_are_seamless() {
        let n = TILE[0] + 100;
        let x = points(n, 2, 0);
        let all: Vec<u32> = (0..n as u32).collect();
        let got = typical(&x, &vec![0; n], &all, n, 20).unwrap();
        for at in [0, 1, n / 2, n - 1] {
            let one = rows(&x, &[got.ids[at]]).unwrap();
            let mut near = pairwise_sq(&one, &x).unwrap().to_vec::<f32>().unwrap();
            near.sort_unstable_by(f32::total_cmp);
            let mean = near[1..=20].iter().map(|d2| f64::from(*d2).sqrt()).sum::<f64>() / 20.0;
            assert_eq!(got.distance[at], mean as f32);
        }
        assert!(got.distance.is_sorted());
    }

    #[test]
    fn bad_rows_are_named() {
        let x = points(3, 1, 0);
        assert!(typical(&x, &[0; 3], &[0, 7], 1, 20).unwrap_err().to_string().contains("row 7"));
        assert!(typical(&x, &[0; 2], &[0], 1, 20).is_err());
        assert!(typical(&x, &[0; 3], &[], 1, 20).unwrap().ids.is_empty());
    }
}
