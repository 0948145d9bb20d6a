//! Which groups of centres are too far from a row, by planes between pivots. CPU.
//!
//! Centres are grouped by their nearest pivots, of which there are fewer. With scores s_p(x) = x·p − |p|²/2, a dense product,
//! and a centre c of the group of p, for any other pivot q
//!
//! |x − c| |p − q| ≥ (x − c)·(q − p) = (s_q(x) − s_p(x)) + (s_p(c) − s_q(c)):
//!
//! how far both are from the plane between the pivots. With q near x this mostly proves the whole group of p too far,
//! where many features hide that from the triangle inequality. All numbers are lowered or raised by more than their
//! errors (u = 2⁻²⁴, S = |x| max|p| + max|p|²): a score is off by less than 2 (D + 16) u S, a canonical distance by its
//! (D + 2) u-th part; so what is proved here holds for canonical distances.

use std::ops::Range;

use super::kmeans::cpu::{means, members};
use crate::device::microkernel::{Panels, product};
use crate::ops::distance::fast;
use crate::simd;

/// Numbers that are compared side by side.
pub const WIDTH: usize = 16;

/// S where scores prove something: products do not overflow, nor lose more to underflow than to rounding.
pub const SAFE: Range<f32> = 1e-24..1e37;

/// Moves of the pivots when they are new.
const ROUNDS: usize = 3;

/// Pivots, and what lies between them and the centres.
pub struct Planes {
    panels: Panels<'static>,
    /// −|p|²/2
    start: Vec<f32>,
    /// A row for each q, a number for each p: a lower bound of s_p(c) − s_q(c) for all centres of p, and an upper bound of
    /// |p − q|.
    plane: Vec<f32>,
    apart: Vec<f32>,
    /// Features.
    pub d: usize,
    /// The largest |c|² or |p|².
    pub widest: f32,
}

impl Planes {
    /// Moves the pivots to the middle of their centres (K, D), `squares` |c|² (K); without pivots the first `count` centres
    /// are some. Also returns the pivot of each centre.
    pub fn new(pivots: &mut Vec<f32>, count: usize, centres: &[f32], squares: &[f32], d: usize) -> (Planes, Vec<u32>) {
        let rounds = if pivots.is_empty() { ROUNDS } else { 1 };
        if pivots.is_empty() {
            pivots.extend(&centres[..count.max(1) * d]);
        }
        let count = pivots.len() / d;
        let (mut scores, mut of) = (vec![0.0; squares.len() * count], vec![0; squares.len()]);
        for round in 0..=rounds {
            if round > 0 {
                let (order, starts) = members(&of, count);
                let before = pivots.clone();
                means(pivots, &before, centres, &order, &starts, d);
            }
            product(&mut scores, centres, &Panels::from_cols(pivots, d, count), Some(&starts_of(pivots, d)));
            of.iter_mut().zip(scores.chunks_exact(count)).for_each(|(of, s)| *of = find(s, most(s)) as u32);
        }
        let start = starts_of(pivots, d);
        let widest = squares.iter().copied().chain(start.iter().map(|s| -2.0 * s)).fold(0.0, f32::max);
        let mut apart = vec![0.0; count * count];
        fast::pairwise(&mut apart, pivots, pivots, count, d);
        apart.iter_mut().for_each(|v| *v = v.sqrt() * (1.0 + margin(d)));
        let mut plane = vec![f32::INFINITY; count * count];
        for (p, scores) in of.iter().zip(scores.chunks_exact(count)) {
            let own = scores[*p as usize] - slack(widest, widest, d);
            for (plane, s) in plane[*p as usize..].iter_mut().step_by(count).zip(scores) {
                let bound = own - s;
                // A NaN stays.
                *plane = if bound < *plane || bound.is_nan() { bound } else { *plane };
            }
        }
        (Planes { panels: Panels::from_cols(pivots, d, count), start, plane, apart, d, widest }, of)
    }

    /// How many pivots there are.
    pub fn count(&self) -> usize {
        self.start.len()
    }

    /// Scores (n, P) of the rows of x that start at `bases`.
    pub fn scores(&self, x: &[f32], bases: &[u32]) -> Vec<f32> {
        let mut scores = vec![0.0; bases.len() * self.count()];
        self.panels.some_rows(&mut scores, x, bases, &self.start);
        scores
    }

    /// A row's score with the pivot q, lowered so that `own − s_p + plane > reach · apart` proves the group of p to be
    /// farther from the row than `reach`. `norm`: |x|².
    pub fn own(&self, score: f32, norm: f32) -> f32 {
        let scale = (norm * self.widest).sqrt() + self.widest;
        if SAFE.contains(&scale) { score - slack(norm, self.widest, self.d) } else { f32::NEG_INFINITY }
    }

    /// plane and apart, seen from the pivot q.
    pub fn from(&self, q: usize) -> (&[f32], &[f32]) {
        let row = q * self.count()..(q + 1) * self.count();
        (&self.plane[row.clone()], &self.apart[row])
    }
}

/// −|p|²/2 of each row.
fn starts_of(rows: &[f32], d: usize) -> Vec<f32> {
    rows.chunks_exact(d).map(|r| -0.5 * r.iter().map(|v| v * v).sum::<f32>()).collect()
}

/// What computed distances are raised by where they must be upper bounds of the true ones, or lowered where lower
/// ones: canonical distances are off by their (D + 2) u-th part, so with 4 (D + 16) u there is room on both sides, and
/// what holds for the bounds holds for canonical distances.
pub fn margin(d: usize) -> f32 {
    4.0 * (d + 16) as f32 / 16_777_216.0
}

/// How far |x|² − 2 s may be from the squared distance whose score s is, in both directions.
pub fn slack(norm: f32, widest: f32, d: usize) -> f32 {
    2.0 * margin(d) * ((norm * widest).sqrt() + widest + norm)
}

simd! {
    /// The largest score.
    pub fn most(scores: &[f32]) -> f32 {
        let _ = FMA;
        let mut most = [f32::NEG_INFINITY; WIDTH];
        let (whole, rest) = scores.as_chunks::<WIDTH>();
        for some in whole {
            for i in 0..WIDTH {
                most[i] = if some[i] > most[i] { some[i] } else { most[i] };
            }
        }
        for (most, v) in most.iter_mut().zip(rest) {
            *most = if *v > *most { *v } else { *most };
        }
        let mut one = f32::NEG_INFINITY;
        for v in most {
            one = if v > one { v } else { one };
        }
        one
    }
}

simd! {
    /// Where a score is; 0 without it.
    pub fn find(scores: &[f32], score: f32) -> usize {
        let _ = FMA;
        for (at, some) in scores.chunks(WIDTH).enumerate() {
            let mut found = 0u32;
            for (i, v) in some.iter().enumerate() {
                found |= u32::from(*v == score) << i;
            }
            if found != 0 {
                return at * WIDTH + found.trailing_zeros() as usize;
            }
        }
        0
    }
}
