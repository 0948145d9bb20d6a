//! How alike images are to labelled ones, pixel by pixel: cosines of rows of u8, without the U×L matrix.
//!
//! dot(x, j) is an exact integer. What is compared is v = dot / ‖j‖ in f32 (0 for an image of zeros), which orders the j of
//! an x like the cosine v / ‖x‖. For every x the five j with the largest v, the lowest of equals first, vote with their
//! predicted class, the lowest of equals winning; then, over the j of that class (over all, where it has none),
//! data = ½ (1 − mean v / ‖x‖) + ½ (1 − max v / ‖x‖), sums running over j in order. All of it is rounded alike on every
//! device.

use crate::device::{Cuda, Device, Launch, launch};
use crate::tensor::{Buf, Dtype, Tensor};
use crate::{Error, Result};

/// Labelled images that vote.
const VOTES: usize = 5;

/// The labelled images of a query.
pub struct Labelled<'a> {
    /// Rows of the images.
    pub rows: &'a [u32],
    /// Their classes.
    pub labels: &'a [u32],
    /// The classes a model predicts for them.
    pub predicted: &'a [u32],
    /// C
    pub classes: usize,
}

/// Of every x: the class its nearest labelled images vote for, and how unlike it is to those of that class, 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Unlike {
    /// Classes (U).
    pub class: Vec<u32>,
    /// The data term (U).
    pub data: Vec<f32>,
}

/// For the rows `of` of images (N, …), u8, on any device, at least one image being labelled. O(U·L·P) steps for P values
/// per image; memory U·C.
pub fn unlikeness(images: &Tensor, of: &[u32], labelled: &Labelled, check: &dyn Fn() -> Result<()>) -> Result<Unlike> {
    if images.dtype() != Dtype::U8 {
        return Err(Error::Dtype { op: OP, want: Dtype::U8, got: images.dtype() });
    }
    let (n, l) = (images.dims().first().copied().unwrap_or(0), labelled.rows.len());
    let p = images.len() / n.max(1);
    let refuse = |why: String| Err(Error::Config { key: OP.into(), why });
    if l == 0 || labelled.labels.len() != l || labelled.predicted.len() != l {
        return refuse(format!("{l} labelled images want a label and a prediction each, and at least one image"));
    }
    if let Some(row) = of.iter().chain(labelled.rows).find(|r| **r as usize >= n) {
        return refuse(format!("row {row} does not exist: there are {n}, numbered from 0"));
    }
    if labelled.labels.iter().chain(labelled.predicted).any(|c| *c as usize >= labelled.classes) {
        return refuse(format!("a label or a prediction is not among the {} classes", labelled.classes));
    }
    // 255² in each of them must fit an i32.
    if p > 33_000 {
        return refuse(format!("images of {p} values; at most 33000 are compared"));
    }
    match images.device() {
        Device::Cpu => cpu::unlikeness(images.host(OP)?, p, of, labelled, check),
        Device::Cuda(cuda) => on_cuda(cuda, images, p, of, labelled, check),
    }
}

const OP: &str = "unlikeness";

/// Rows of `of` per launch, between which a stop is asked for.
const LAUNCH: usize = 1 << 14;

fn on_cuda(
    cuda: &Cuda,
    images: &Tensor,
    p: usize,
    of: &[u32],
    labelled: &Labelled,
    check: &dyn Fn() -> Result<()>,
) -> Result<Unlike> {
    let (device, l, c) = (images.device(), labelled.rows.len(), labelled.classes);
    let n = images.dims()[0];
    let pixels = images.buf::<u8>(OP)?;
    let mut inverse = Buf::<f32>::stale(device, n)?;
    launch::likeness_norms(cuda, Launch::warps(n, 256), &mut inverse, pixels, n as i32, p as i32)?;
    let upload = |v: &[u32]| Buf::from_host(device, v);
    let (rows, labels, predicted) = (upload(labelled.rows)?, upload(labelled.labels)?, upload(labelled.predicted)?);
    let (mut class, mut data) = (Vec::with_capacity(of.len()), Vec::with_capacity(of.len()));
    let most = LAUNCH.min(of.len());
    let (mut sums, mut tops) = (Buf::<f32>::stale(device, most * c)?, Buf::<f32>::stale(device, most * c)?);
    for some in of.chunks(LAUNCH) {
        check()?;
        let u = some.len();
        let ids = upload(some)?;
        let (mut near, mut found) = (Buf::<u32>::stale(device, u * VOTES)?, Buf::<u32>::stale(device, u)?);
        let mut unlike = Buf::<f32>::stale(device, u)?;
        let (ui, li, pi, ci) = (u as i32, l as i32, p as i32, c as i32);
        let wide = Launch::grid(u.div_ceil(32), 1, 1, 256);
        let (s, t) = (&mut sums, &mut tops);
        launch::likeness_scan(cuda, wide, &mut near, s, t, pixels, &inverse, &ids, &rows, &labels, ui, li, pi, ci)?;
        let one = Launch::elements(u);
        let (f, d) = (&mut found, &mut unlike);
        launch::likeness_vote(cuda, one, f, d, &near, s, t, &inverse, &ids, &labels, &predicted, ui, li, ci)?;
        class.extend(found.to_host()?);
        data.extend(unlike.to_host()?);
    }
    Ok(Unlike { class, data })
}

mod cpu {
    use rayon::prelude::*;

    use super::{Labelled, Unlike, VOTES};
    use crate::Result;
    use crate::simd;

    /// Rows of a task: with the labelled image that passes by they fit the first-level cache.
    const BLOCK: usize = 16;

    simd! {
        /// Exact: at most 33,000 products of two bytes.
        fn dot(a: &[i16], b: &[i16]) -> i32 {
            a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum::<i32>()
        }
    }

    fn widen(to: &mut Vec<i16>, row: &[u8]) {
        to.extend(row.iter().map(|v| i16::from(*v)));
    }

    /// 1 / ‖row‖, 0 for a row of zeros. The sum is exact.
    fn inverse(row: &[u8]) -> f32 {
        let square: u64 = row.iter().map(|v| u64::from(*v).pow(2)).sum();
        if square == 0 { 0.0 } else { (1.0 / (square as f64).sqrt()) as f32 }
    }

    pub fn unlikeness(
        pixels: &[u8],
        p: usize,
        of: &[u32],
        labelled: &Labelled,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<Unlike> {
        let row = |i: u32| &pixels[i as usize * p..][..p];
        let mut wide = Vec::with_capacity(labelled.rows.len() * p);
        labelled.rows.iter().for_each(|i| widen(&mut wide, row(*i)));
        let inverses: Vec<f32> = labelled.rows.iter().map(|i| inverse(row(*i))).collect();
        let mut count = vec![0u32; labelled.classes];
        labelled.labels.iter().for_each(|c| count[*c as usize] += 1);
        let (mut class, mut data) = (Vec::with_capacity(of.len()), Vec::with_capacity(of.len()));
        for some in of.chunks(64 * BLOCK) {
            check()?;
            let blocks = some.par_chunks(BLOCK).map(|ids| {
                let mut own = Vec::with_capacity(ids.len() * p);
                ids.iter().for_each(|i| widen(&mut own, row(*i)));
                let mut seen: Vec<Seen> = ids.iter().map(|_| Seen::new(labelled.classes)).collect();
                for (j, c) in labelled.labels.iter().enumerate() {
                    let other = &wide[j * p..][..p];
                    for (x, seen) in seen.iter_mut().enumerate() {
                        seen.meet(j as u32, *c as usize, dot(&own[x * p..][..p], other) as f32 * inverses[j]);
                    }
                }
                let each = ids.iter().zip(&seen).map(|(i, seen)| seen.vote(labelled, &count, inverse(row(*i))));
                each.collect::<Vec<_>>()
            });
            for (c, d) in blocks.collect::<Vec<_>>().into_iter().flatten() {
                class.push(c);
                data.push(d);
            }
        }
        Ok(Unlike { class, data })
    }

    /// What a row has met.
    struct Seen {
        /// The largest v, descending, with their j.
        near: [(f32, u32); VOTES],
        /// Per class: the sum of v and the largest.
        classes: Vec<[f32; 2]>,
    }

    impl Seen {
        fn new(classes: usize) -> Seen {
            Seen { near: [(-1.0, u32::MAX); VOTES], classes: vec![[0.0, 0.0]; classes] }
        }

        fn meet(&mut self, j: u32, class: usize, v: f32) {
            let [sum, top] = &mut self.classes[class];
            *sum += v;
            *top = if v > *top { v } else { *top };
            if v > self.near[VOTES - 1].0 {
                let at = self.near.partition_point(|n| n.0 >= v);
                self.near[at..].rotate_right(1);
                self.near[at] = (v, j);
            }
        }

        fn vote(&self, labelled: &Labelled, count: &[u32], inverse: f32) -> (u32, f32) {
            let votes: Vec<u32> =
                self.near.iter().filter(|n| n.1 != u32::MAX).map(|n| labelled.predicted[n.1 as usize]).collect();
            let of = |class: u32| votes.iter().filter(|v| **v == class).count();
            let class = votes.iter().copied().max_by_key(|c| (of(*c), std::cmp::Reverse(*c))).unwrap_or(0);
            let (n, [sum, top]) = match count[class as usize] {
                0 => {
                    let all = self
                        .classes
                        .iter()
                        .fold([0.0f32, 0.0], |[sum, top], c| [sum + c[0], if c[1] > top { c[1] } else { top }]);
                    (labelled.rows.len() as f32, all)
                }
                n => (n as f32, self.classes[class as usize]),
            };
            (class, 0.5 * (1.0 - sum / n * inverse) + 0.5 * (1.0 - top * inverse))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn run(images: &[u8], p: usize, of: &[u32], labelled: &Labelled) -> Result<Unlike> {
        let images = Tensor::new(&Device::Cpu, [images.len() / p, p], images)?;
        unlikeness(&images, of, labelled, &|| Ok(()))
    }

    /// METHODS 6.11, scaled to bytes: labelled (1,0), (.8,.6) of class A and (0,1) of class B.
    #[test]
    fn the_worked_example() {
        let images = [10, 0, 8, 6, 0, 10, 6, 8, 10, 0];
        let labelled = Labelled { rows: &[0, 1, 2], labels: &[0, 0, 1], predicted: &[0, 0, 1], classes: 2 };
        let u = run(&images, 2, &[3, 4], &labelled).unwrap();
        assert_eq!(u.class, [0, 0]);
        for (got, want) in u.data.iter().zip([0.13, 0.05]) {
            assert!((got - want).abs() < 1e-6, "{got}, not {want}");
        }
    }

    /// Against the definition in f64, on images with copies and one of zeros.
    #[test]
    fn equals_the_definition() {
        let (n, p, l, classes) = (60, 7, 25u32, 4);
        let r = Rng::new(6);
        let mut images: Vec<u8> = (0..n * p).map(|e| (r.u32(e as u64) % 4) as u8 * 60).collect();
        images[30 * p..31 * p].fill(0);
        let row = |i: u32| &images[i as usize * p..][..p];
        let dot = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let cos = |i, j| {
            let norms = dot(row(i), row(i)).sqrt() * dot(row(j), row(j)).sqrt();
            if norms == 0.0 { 0.0 } else { dot(row(i), row(j)) / norms }
        };
        let rows: Vec<u32> = (0..l).collect();
        // Nothing is of class 3, but it is predicted.
        let labels: Vec<u32> = (0..l).map(|e| r.lane(1).u32(u64::from(e)) % 3).collect();
        let predicted: Vec<u32> = (0..l).map(|e| r.lane(2).u32(u64::from(e)) % 4).collect();
        let labelled = Labelled { rows: &rows, labels: &labels, predicted: &predicted, classes };
        let of: Vec<u32> = (l..n as u32).collect();
        let u = run(&images, p, &of, &labelled).unwrap();
        let mut classes_seen = [false; 4];
        for (x, (class, data)) in of.iter().zip(u.class.iter().zip(&u.data)) {
            // Rounded, so that what differs by rounding only counts as equal: the lowest j then.
            let mut near = rows.clone();
            near.sort_by_key(|j| ((-1e6 * cos(*x, *j)).round() as i64, *j));
            let votes: Vec<u32> = near[..5].iter().map(|j| predicted[*j as usize]).collect();
            let most = (0..4).max_by_key(|c| (votes.iter().filter(|v| *v == c).count(), std::cmp::Reverse(*c)));
            assert_eq!(Some(*class), most, "row {x}");
            classes_seen[*class as usize] = true;
            let of_class: Vec<f64> =
                rows.iter().filter(|j| labels[**j as usize] == *class).map(|j| cos(*x, *j)).collect();
            let of_class = if of_class.is_empty() { rows.iter().map(|j| cos(*x, *j)).collect() } else { of_class };
            let mean = of_class.iter().sum::<f64>() / of_class.len() as f64;
            let want = 0.5 * (1.0 - mean) + 0.5 * (1.0 - of_class.iter().copied().fold(0.0, f64::max));
            assert!((f64::from(*data) - want).abs() < 1e-5, "row {x}: {data}, not {want}");
        }
        assert!(classes_seen[3], "a class without labelled images is voted for somewhere");
    }

    /// Five equal ones are as near as each other; a nearer one drives out the last of them, not the first.
    #[test]
    fn of_equals_the_lowest_vote() {
        let images = [8, 6, 8, 6, 8, 6, 8, 6, 8, 6, 10, 0, 10, 0];
        let labelled = |predicted| Labelled { rows: &[0, 1, 2, 3, 4, 5], labels: &[0; 6], predicted, classes: 2 };
        assert_eq!(run(&images, 2, &[6], &labelled(&[1, 1, 0, 0, 0, 1])).unwrap().class, [1]);
        assert_eq!(run(&images, 2, &[6], &labelled(&[0, 0, 0, 1, 1, 1])).unwrap().class, [0]);
    }

    #[test]
    fn bad_input_is_refused() {
        let one = Labelled { rows: &[0], labels: &[0], predicted: &[0], classes: 1 };
        assert_eq!(run(&[1, 2], 1, &[1], &one).unwrap(), Unlike { class: vec![0], data: vec![0.0] });
        assert!(run(&[1, 2], 1, &[2], &one).unwrap_err().to_string().contains("row 2"));
        assert!(run(&[1, 2], 1, &[1], &Labelled { rows: &[], ..one }).is_err());
        assert!(run(&[1, 2], 1, &[1], &Labelled { labels: &[1], ..one }).unwrap_err().to_string().contains("classes"));
    }
}
