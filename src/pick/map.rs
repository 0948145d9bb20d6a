//! A pool seen in two dimensions: the first two principal components.

use super::Inputs;
use crate::Result;

/// Rows that the components are computed from, evenly spaced over the pool.
const SAMPLE: usize = 4096;
/// Dots of each kind that are shown, evenly spaced.
const DOTS: usize = 2500;

/// Where rows lie on the first two principal components.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map {
    /// Rows of the whole pool.
    pub pool: Vec<[f32; 2]>,
    /// Labelled rows.
    pub labelled: Vec<[f32; 2]>,
    /// Picks.
    pub picked: Vec<[f32; 2]>,
    /// Share of the variance along each component.
    pub share: [f64; 2],
}

/// The map of a pool with embeddings. Nothing of size N is held.
pub fn map(inputs: &Inputs, labelled: &[u32], picked: &[u32]) -> Result<Map> {
    let Some(source) = inputs.embeddings() else { return Ok(Map::default()) };
    let [n, d] = source.sizes("N, D")?;
    let all: Vec<u32> = spaced(n, SAMPLE.min(4 * inputs.block(d))).map(|i| i as u32).collect();
    inputs.fits("the map of the pool", &[("sampled rows", 4 * (all.len() * d) as u64), ("dots", 24 * DOTS as u64)])?;
    let mut x = vec![0.0f32; all.len() * d];
    source.rows(&all, d, &mut x)?;
    let plane = Plane::of(&x, d);
    let place = |ids: &mut dyn Iterator<Item = u32>| -> Result<Vec<[f32; 2]>> {
        let mut row = vec![0.0f32; d];
        ids.map(|id| source.rows(&[id], d, &mut row).map(|()| plane.place(&row))).collect()
    };
    Ok(Map {
        pool: place(&mut spaced(n, DOTS).map(|i| i as u32))?,
        labelled: place(&mut spaced(labelled.len(), DOTS).map(|i| labelled[i]))?,
        picked: place(&mut spaced(picked.len(), DOTS).map(|i| picked[i]))?,
        share: plane.share,
    })
}

/// At most `most` of 0..n, evenly spaced.
fn spaced(n: usize, most: usize) -> impl Iterator<Item = usize> {
    let count = n.min(most);
    (0..count).map(move |i| (i as u128 * n as u128 / count as u128) as usize)
}

/// The plane of the first two principal components.
pub struct Plane {
    mean: Vec<f64>,
    axes: [Vec<f64>; 2],
    /// Share of the variance along each.
    pub share: [f64; 2],
}

impl Plane {
    /// That of the rows x (N, d).
    pub fn of(x: &[f32], d: usize) -> Plane {
        let (mean, axes, share) = components(x, d);
        Plane { mean, axes, share }
    }

    /// Where a row lies on it.
    pub fn place(&self, row: &[f32]) -> [f32; 2] {
        self.axes.each_ref().map(|axis| {
            let terms = row.iter().zip(&self.mean).zip(axis);
            terms.map(|((x, m), w)| (f64::from(*x) - m) * w).sum::<f64>() as f32
        })
    }
}

/// Mean, the two directions of largest variance (of length 1, or 0 where there is none), their shares. Power iteration
/// on the centred rows, the second direction kept orthogonal to the first: a fixed start, fixed sums and a fixed sign,
/// so the same rows give the same map.
fn components(x: &[f32], d: usize) -> (Vec<f64>, [Vec<f64>; 2], [f64; 2]) {
    let n = (x.len() / d).max(1) as f64;
    let mut mean = vec![0.0f64; d];
    for row in x.chunks_exact(d) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v) / n);
    }
    let centred = |row: &[f32], of: &mut dyn FnMut(usize, f64)| {
        row.iter().zip(&mean).enumerate().for_each(|(j, (v, m))| of(j, f64::from(*v) - m));
    };
    let mut total = 0.0;
    x.chunks_exact(d).for_each(|row| centred(row, &mut |_, v| total += v * v));
    let mut axes = [vec![0.0; d], vec![0.0; d]];
    let mut share = [0.0; 2];
    for a in 0..2.min(d) {
        let mut w: Vec<f64> = (0..d).map(|j| 1.0 + (j as f64 * 0.618_033_988_749_895).fract()).collect();
        for _ in 0..300 {
            let mut next = vec![0.0; d];
            for row in x.chunks_exact(d) {
                let mut along = 0.0;
                centred(row, &mut |j, v| along += v * w[j]);
                centred(row, &mut |j, v| next[j] += v * along);
            }
            for before in &axes[..a] {
                let along: f64 = next.iter().zip(before).map(|(v, b)| v * b).sum();
                next.iter_mut().zip(before).for_each(|(v, b)| *v -= along * b);
            }
            let length = next.iter().map(|v| v * v).sum::<f64>().sqrt();
            // What rounding leaves of a pool without (further) variance is no direction.
            if length <= 1e-12 * total {
                w.fill(0.0);
                break;
            }
            next.iter_mut().for_each(|v| *v /= length);
            let moved: f64 = next.iter().zip(&w).map(|(a, b)| (a - b).powi(2)).sum();
            w = next;
            share[a] = length / total;
            if moved < 1e-12 {
                break;
            }
        }
        let largest = w.iter().fold(0.0f64, |m, v| if v.abs() > m.abs() { *v } else { m });
        w.iter_mut().for_each(|v| *v *= largest.signum());
        axes[a] = w;
    }
    (mean, axes, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_of_a_stretched_cloud() {
        // Variance 4 along (0.6, 0.8, 0), 1 along (0.8, −0.6, 0), 0 across.
        let mut x = Vec::new();
        for (a, b) in [(2.0, 1.0), (2.0, -1.0), (-2.0, 1.0), (-2.0, -1.0)] {
            x.extend([5.0 + 0.6 * a + 0.8 * b, 0.8 * a - 0.6 * b, 7.0f32]);
        }
        let (mean, axes, share) = components(&x, 3);
        assert!((mean[0] - 5.0).abs() < 1e-6 && (mean[2] - 7.0).abs() < 1e-6);
        for (axis, want) in axes.iter().zip([[0.6, 0.8, 0.0], [0.8, -0.6, 0.0]]) {
            assert!(axis.iter().zip(want).all(|(a, w)| (a - w).abs() < 1e-5), "{axis:?}");
        }
        assert!((share[0] - 0.8).abs() < 1e-6 && (share[1] - 0.2).abs() < 1e-6, "{share:?}");
        let (_, axes, share) = components(&[3.0; 12], 3);
        assert_eq!((axes, share), ([vec![0.0; 3], vec![0.0; 3]], [0.0; 2]));
        assert_eq!(components(&[1.0, 2.0], 1).1[0], [1.0]);
    }

    #[test]
    fn spaced_ids_are_distinct_and_in_range() {
        assert_eq!(spaced(5, 9).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(spaced(10, 4).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(spaced(0, 4).count(), 0);
    }
}
