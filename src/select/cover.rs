//! Greedy maximum coverage by balls of one radius r: the candidate whose ball holds most rows that no ball of a labelled
//! or picked row holds, the lowest id of equals, k times.
//!
//! There is no N×N graph. A candidate's count of uncovered rows is kept; it is made once, in tiles, and when rows become
//! covered, which happens to a row once, they are taken off the counts: 2·N²·D in all, memory N·D and a tile. Distances
//! are the canonical ones of [`crate::ops::pairwise_sq`], so all devices decide alike.

use crate::device::{Device, Launch, launch};
use crate::ops::{gather_rows, nearest_update, pairwise_sq, row_norms, slice_rows};
use crate::tensor::{Buf, Tensor};
use crate::{Error, Result};

/// What was picked, in the order it was picked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cover {
    /// Rows of the matrix.
    pub ids: Vec<u32>,
    /// How many rows each pick covers that were not covered before.
    pub gain: Vec<u32>,
}

/// Rows and columns of a tile of distances: 32 MiB.
const TILE: [usize; 2] = [8192, 1024];
const OP: &str = "max_cover";

/// The k candidates that greedy coverage takes. `x` (N, D), f32, on any device: all its rows are to be covered;
/// `labelled` rows of x, whose balls are covered from the start; `candidates` rows of x, ascending. A ball holds what is at
/// most `radius` away, itself included. When nothing is left to cover, the lowest ids follow. A row with a NaN or an
/// infinity is an error that names it.
pub fn max_cover(x: &Tensor, labelled: &[u32], candidates: &[u32], k: usize, radius: f32) -> Result<Cover> {
    let [n, _] = x.shape().matrix(OP)?;
    if let Some(id) = labelled.iter().chain(candidates).find(|id| **id as usize >= n) {
        let why = format!("row {id} does not exist: there are {n}, numbered from 0");
        return Err(Error::Config { key: "ids".into(), why });
    }
    if k.min(candidates.len()) == 0 {
        return Ok(Cover::default());
    }
    check_finite(x)?;
    let mut balls = Balls {
        x,
        limit: radius * radius,
        covered: vec![false; n],
        counts: Buf::zeros(x.device(), n)?,
        gain: Vec::new(),
    };
    let mut best = Tensor::new(x.device(), [n], &vec![f32::INFINITY; n])?;
    nearest_update(&mut best, x, &rows(x, labelled)?)?;
    for (covered, d2) in balls.covered.iter_mut().zip(best.to_vec::<f32>()?) {
        *covered = d2 <= balls.limit;
    }
    let open: Vec<u32> = (0..n as u32).filter(|i| !balls.covered[*i as usize]).collect();
    balls.count(&open, 1)?;
    let (mut left, mut cover) = (candidates.to_vec(), Cover::default());
    while cover.ids.len() < k && !left.is_empty() {
        let counts = balls.counts.to_host()?;
        let most = left.iter().map(|i| counts[*i as usize]).max().unwrap_or(0);
        if most == 0 {
            let rest = left.iter().take(k - cover.ids.len());
            cover.ids.extend(rest);
            break;
        }
        let at = left.iter().position(|i| counts[*i as usize] == most).unwrap_or(0);
        let pick = left.remove(at);
        cover.ids.push(pick);
        balls.cover(pick)?;
    }
    balls.gain.resize(cover.ids.len(), 0);
    cover.gain = balls.gain;
    Ok(cover)
}

/// The largest radius at which at least `share` of the balls around the rows of x (N, D) are pure: hold rows of the label
/// of their centre only. `labels` (N) below `classes`. At most 2, the diameter of normalised rows; N·N·D, memory N·D.
pub fn purity_radius(x: &Tensor, labels: &[u32], classes: usize, share: f64) -> Result<f32> {
    let [n, _] = x.shape().matrix("purity_radius")?;
    if labels.len() != n {
        return Err(x.shape().refuse("purity_radius", format!("({}, D), a row for every label", labels.len())));
    }
    check_finite(x)?;
    // How far the nearest row of another label is: from the rows outside of each class to those in it.
    let mut nearest = vec![f32::INFINITY; n];
    for class in 0..classes as u32 {
        let (inside, outside): (Vec<u32>, Vec<u32>) = (0..n as u32).partition(|i| labels[*i as usize] == class);
        if inside.is_empty() || outside.is_empty() {
            continue;
        }
        let mut best = Tensor::new(x.device(), [outside.len()], &vec![f32::INFINITY; outside.len()])?;
        nearest_update(&mut best, &rows(x, &outside)?, &rows(x, &inside)?)?;
        for (i, d2) in outside.iter().zip(best.to_vec::<f32>()?) {
            nearest[*i as usize] = nearest[*i as usize].min(d2);
        }
    }
    nearest.sort_unstable_by(f32::total_cmp);
    // So many balls may be impure; the next one must not be, not even by a point on its surface.
    let impure = (((1.0 - share) * n as f64 + 1e-9) as usize).min(n.saturating_sub(1));
    let limit = nearest.get(impure).map_or(0.0, |d2| d2.next_down().clamp(0.0, 4.0));
    // The root rounds: its square must not reach what the limit stays below.
    let root = limit.sqrt();
    Ok(if root * root > limit { root.next_down() } else { root })
}

pub(super) fn rows(x: &Tensor, ids: &[u32]) -> Result<Tensor> {
    gather_rows(x, &Tensor::new(x.device(), [ids.len()], ids)?)
}

fn check_finite(x: &Tensor) -> Result<()> {
    let norms = row_norms(x)?.to_vec::<f32>()?;
    match norms.iter().position(|v| !v.is_finite()) {
        Some(row) => Err(Error::NonFinite {
            what: format!("row {row} of the embeddings holds a NaN or an infinity; nothing was selected"),
        }),
        None => Ok(()),
    }
}

/// What is covered, and how much more each row would cover.
struct Balls<'a> {
    x: &'a Tensor,
    /// The squared radius.
    limit: f32,
    covered: Vec<bool>,
    counts: Buf<u32>,
    gain: Vec<u32>,
}

impl Balls<'_> {
    /// Covers what the ball of `pick` holds.
    fn cover(&mut self, pick: u32) -> Result<()> {
        let d2 = pairwise_sq(self.x, &rows(self.x, &[pick])?)?.to_vec::<f32>()?;
        let held = |i: &u32| d2[*i as usize] <= self.limit && !self.covered[*i as usize];
        let new: Vec<u32> = (0..d2.len() as u32).filter(held).collect();
        new.iter().for_each(|i| self.covered[*i as usize] = true);
        self.gain.push(new.len() as u32);
        self.count(&new, -1)
    }

    /// Adds the rows `ids` to the counts of all whose balls hold them, or takes them off.
    fn count(&mut self, ids: &[u32], add: i32) -> Result<()> {
        let ([n, _], [height, width]) = (self.x.shape().matrix(OP)?, TILE);
        for ids in ids.chunks(width) {
            let centres = rows(self.x, ids)?;
            for from in (0..n).step_by(height) {
                let to = (from + height).min(n);
                let d2 = pairwise_sq(&slice_rows(self.x, from, to - from)?, &centres)?;
                count_within(&mut self.counts, from, &d2, self.limit, add)?;
            }
        }
        Ok(())
    }
}

/// counts[from + i] += add · the number of d2[i][j] ≤ limit;   d2: (n, m)
fn count_within(counts: &mut Buf<u32>, from: usize, d2: &Tensor, limit: f32, add: i32) -> Result<()> {
    let [n, m] = d2.shape().matrix(OP)?;
    match d2.device() {
        Device::Cpu => {
            cpu::count_within(&mut counts.host_mut(OP)?[from..from + n], d2.host(OP)?, m, limit, add);
            Ok(())
        }
        Device::Cuda(cuda) => {
            let (l, mut part) = (Launch::warps(n, 256), counts.window(from, n)?);
            launch::count_within_f32(cuda, l, &mut part, d2.buf(OP)?, n as i32, m as i32, limit, add)
        }
    }
}

mod cpu {
    use rayon::prelude::*;

    pub fn count_within(counts: &mut [u32], d2: &[f32], m: usize, limit: f32, add: i32) {
        counts.par_iter_mut().zip(d2.par_chunks_exact(m)).with_min_len(64).for_each(|(count, d2)| {
            let within = d2.iter().map(|d| i32::from(*d <= limit)).sum::<i32>();
            *count = count.wrapping_add_signed(add * within);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn points(n: usize, d: usize, levels: u32, lane: u32) -> Tensor {
        let r = Rng::new(12).lane(lane);
        let one = |e| if levels == 0 { r.uniform(e) } else { (r.u32(e) % levels) as f32 };
        let v: Vec<f32> = (0..(n * d) as u64).map(one).collect();
        Tensor::new(&Device::Cpu, [n, d], &v).unwrap()
    }

    /// From the whole graph, counted anew for every pick.
    fn brute(x: &Tensor, labelled: &[u32], candidates: &[u32], k: usize, radius: f32) -> Cover {
        let n = x.dims()[0];
        let d2 = pairwise_sq(x, x).unwrap().to_vec::<f32>().unwrap();
        let holds = |c: u32, i: usize| d2[c as usize * n + i] <= radius * radius;
        let mut centres = labelled.to_vec();
        let mut cover = Cover::default();
        while cover.ids.len() < k.min(candidates.len()) {
            let open: Vec<usize> = (0..n).filter(|i| !centres.iter().any(|c| holds(*c, *i))).collect();
            let count = |c: &u32| open.iter().filter(|i| holds(*c, **i)).count() as u32;
            let left: Vec<u32> = candidates.iter().copied().filter(|c| !cover.ids.contains(c)).collect();
            let most = left.iter().map(count).max().unwrap();
            let pick = *left.iter().find(|c| count(c) == most).unwrap();
            cover.ids.push(pick);
            cover.gain.push(most);
            centres.push(pick);
        }
        cover
    }

    #[test]
    fn equals_the_plain_loop() {
        for (n, d, levels, every) in [(1, 1, 0, 2), (40, 2, 4, 5), (130, 3, 0, 7), (90, 1, 3, 3), (200, 4, 3, 200)] {
            let x = points(n, d, levels, n as u32);
            let (labelled, rest): (Vec<u32>, Vec<u32>) =
                (1..=n as u32).map(|i| i % n as u32).partition(|i| i % every == 1);
            let mut rest = rest;
            rest.sort_unstable();
            for radius in [0.0, 0.3, 1.0, 1.5, 9.0] {
                for k in [1, 7, n] {
                    let (got, want) =
                        (max_cover(&x, &labelled, &rest, k, radius).unwrap(), brute(&x, &labelled, &rest, k, radius));
                    assert_eq!(got, want, "{n}x{d}, {levels} levels, radius {radius}, k {k}");
                }
            }
        }
    }

    /// Several tiles in both directions.
    #[test]
    fn tiles_are_seamless() {
        let n = TILE[0] + 100;
        let x = points(n, 2, 30, 3);
        let all: Vec<u32> = (0..n as u32).collect();
        let v = x.to_vec::<f32>().unwrap();
        let got = max_cover(&x, &[], &all, 1, 2.0).unwrap();
        let within = |i: usize| {
            let d = |j: usize| (v[2 * i] - v[2 * j]).powi(2) + (v[2 * i + 1] - v[2 * j + 1]).powi(2);
            (0..n).filter(|j| d(*j) <= 4.0).count() as u32
        };
        let most = (0..n).map(within).max().unwrap();
        let first = (0..n).find(|i| within(*i) == most).unwrap();
        assert_eq!((got.ids, got.gain), (vec![first as u32], vec![most]));
    }

    #[test]
    fn the_radius_keeps_its_share_of_balls_pure() {
        for (n, levels, share) in [(50, 0, 0.95), (200, 0, 0.8), (120, 6, 0.9), (60, 0, 1.0), (60, 2, 0.95)] {
            let x = points(n, 2, levels, 77);
            let labels: Vec<u32> = (0..n as u32).map(|i| Rng::new(5).u32(u64::from(i) / 3) % 3).collect();
            let radius = purity_radius(&x, &labels, 3, share).unwrap();
            let d2 = pairwise_sq(&x, &x).unwrap().to_vec::<f32>().unwrap();
            let pure = |limit: f32| {
                let ball = |i: usize| (0..n).all(|j| labels[i] == labels[j] || d2[i * n + j] > limit);
                (0..n).filter(|i| ball(*i)).count() as f64
            };
            let enough = share * n as f64 - 1e-6;
            assert!(pure(radius * radius) >= enough || radius == 0.0, "{n} {levels}");
            assert!(pure((radius * 1.000_001).powi(2) + 1e-12) < enough || radius == 2.0, "{n} {levels}: {radius}");
        }
        assert_eq!(purity_radius(&points(9, 2, 0, 1), &[0; 9], 1, 0.95).unwrap(), 2.0, "one class: all are pure");
    }

    #[test]
    fn bad_rows_are_named() {
        let x = Tensor::new(&Device::Cpu, [3, 1], &[0.0, 1.0, f32::NAN]).unwrap();
        assert!(max_cover(&x, &[], &[0, 1], 1, 1.0).unwrap_err().to_string().contains("row 2"));
        assert!(max_cover(&x, &[7], &[0, 1], 1, 1.0).unwrap_err().to_string().contains("row 7"));
        assert!(max_cover(&x, &[], &[], 1, 1.0).unwrap().ids.is_empty());
    }
}
