//! Selection on the device: identical picks on integer-valued inputs, worked examples, ties, remainders.

use dalcore::device::Device;
use dalcore::ops;
use dalcore::rng::Rng;
use dalcore::select::{
    Labelled, Points, Stops, average_linkage, kcenter, kmeans, kmeans_pp, label_gradients, lloyd, max_cover,
    purity_radius, typical, unlikeness,
};
use dalcore::tensor::Tensor;

use crate::common::{assert_close, cuda, cuda_with};

/// Whole numbers in 0..m: every sum is exact, so devices must agree to the id.
fn whole(n: usize, m: u32, lane: u32) -> Vec<f32> {
    let r = Rng::new(21).lane(lane);
    (0..n as u64).map(|e| ((u64::from(r.u32(e)) * u64::from(m)) >> 32) as f32).collect()
}

pub fn all() {
    {
        let Some(s) = cuda(2) else { return };
        worked_example(&s.device);
        top_k(&s.device);
        distances(&s.device);
        centres(&s.device);
        seeds(&s.device);
        linkage(&s.device);
        likeness(&s.device);
        cover(&s.device);
        typical_rows(&s.device);
        clusters(&s.device);
    }
    drop(cuda_with(0, None));
}

/// METHODS 6.8: labelled (0, 0); picks c, d, e, a at 6, 4, 1.414214, 1.
fn worked_example(d: &Device) {
    let x = Tensor::new(d, [6, 2], &[0.0f32, 0., 1., 0., 5., 0., 6., 0., 0., 4., 5., 1.]).unwrap();
    let picks = kcenter(&x, &[0], &[1, 2, 3, 4, 5], 4).unwrap();
    assert_eq!(picks.ids, [3, 4, 5, 1]);
    for (r, w) in picks.radius.iter().zip([6.0, 4.0, 2f32.sqrt(), 1.0]) {
        assert!((r - w).abs() < 1e-6);
    }
}

fn top_k(d: &Device) {
    for (n, m) in [(1, 5), (255, 9), (256, 1000), (257, 3), (3000, 40)] {
        let scores = whole(n, m, n as u32);
        for k in [0, 1, n / 3, n] {
            let run =
                |d: &Device| ops::top_k(&Tensor::new(d, [n], &scores).unwrap(), k).unwrap().to_vec::<u32>().unwrap();
            let mut want: Vec<u32> = (0..n as u32).collect();
            want.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b)));
            want.truncate(k);
            assert_eq!(run(d), want, "top {k} of {n}");
            assert_eq!(run(&Device::Cpu), want, "top {k} of {n} on the CPU");
        }
        let values = Tensor::new(d, [n], &scores).unwrap();
        let best = (0..n).max_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a))).unwrap();
        assert_eq!(ops::argmax(&values).unwrap(), best as u32);
    }
    let inf = f32::INFINITY;
    let t = Tensor::new(d, [8], &[-0.0, 0.0, -inf, 1e-45, inf, -1e-45, 0.0, inf]).unwrap();
    assert_eq!(ops::top_k(&t, 8).unwrap().to_vec::<u32>().unwrap(), [4, 7, 3, 0, 1, 6, 5, 2]);
    let zeros = Tensor::new(d, [2], &[-0.0f32, 0.0]).unwrap();
    assert_eq!(ops::argmax(&zeros).unwrap(), 0);
    let e = ops::top_k(&Tensor::new(d, [3], &[1.0f32, f32::NAN, 2.0]).unwrap(), 1).unwrap_err().to_string();
    assert!(e.contains('1') && e.contains("NaN"), "{e}");
}

fn distances(d: &Device) {
    for (n, m, w) in [(1, 1, 1), (65, 63, 3), (130, 70, 17)] {
        let (x, c) = (whole(n * w, 7, 1), whole(m * w, 7, 2));
        let run = |d: &Device| {
            let (x, c) = (Tensor::new(d, [n, w], &x).unwrap(), Tensor::new(d, [m, w], &c).unwrap());
            let mut best = Tensor::new(d, [n], &vec![1000.0f32; n]).unwrap();
            ops::nearest_update(&mut best, &x, &c).unwrap();
            (best.to_vec::<f32>().unwrap(), ops::pairwise_sq(&x, &c).unwrap().to_vec::<f32>().unwrap())
        };
        assert_eq!(run(d), run(&Device::Cpu), "{n} x {m} x {w}");
    }
}

fn centres(d: &Device) {
    for (n, w, l, k) in [(40, 2, 1, 39), (300, 3, 20, 50), (130, 50, 7, 30), (60, 5, 0, 10)] {
        let x = whole(n * w, 5, w as u32);
        // Rows that are neither count for nothing, not even for the mean.
        let (labelled, rest): (Vec<u32>, Vec<u32>) =
            (0..n as u32).filter(|i| i % 13 != 12).partition(|i| (*i as usize) < l);
        let run = |d: &Device| kcenter(&Tensor::new(d, [n, w], &x).unwrap(), &labelled, &rest, k).unwrap();
        let (got, want) = (run(d), run(&Device::Cpu));
        assert_eq!(got.ids, want.ids, "{n} x {w}, {l} labelled, {k} picks");
        let f = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        assert_close("radii", &f(&got.radius), &f(&want.radius), |w| 1e-6 * w);
    }
    let mut x = vec![0.0f32; 20];
    x[13] = f32::NAN;
    let x = Tensor::new(d, [10, 2], &x).unwrap();
    let e = kcenter(&x, &[0], &[1, 2, 6], 1).unwrap_err().to_string();
    assert!(e.contains('6') && (e.contains("NaN") || e.contains("finite")), "{e}");
}

/// Values of no special kind, and whole ones with copies: the draws are the same to the last id.
fn seeds(d: &Device) {
    for (n, c, w, k) in [(1, 1, 1, 1), (127, 3, 5, 20), (300, 10, 33, 40), (130, 40, 70, 9), (40, 2, 1, 40)] {
        for levels in [0, 2] {
            let of = |w, lane| {
                if levels > 0 {
                    return whole(n * w, levels, lane);
                }
                let r = Rng::new(4).lane(lane);
                (0..(n * w) as u64).map(|e| r.uniform(e) - 0.25).collect()
            };
            let (delta, h) = (of(c, 1), of(w, 2));
            let rng = Rng::new(8).lane(n as u32);
            let run = |d: &Device| {
                let (delta, h) = (Tensor::new(d, [n, c], &delta).unwrap(), Tensor::new(d, [n, w], &h).unwrap());
                let gradients = Points::Gradients { delta: &delta, h: &h };
                [Points::Plain(&h), gradients].map(|p| kmeans_pp(p, k, rng).unwrap())
            };
            assert_eq!(run(d), run(&Device::Cpu), "{n} rows, {c} classes, {w} features, {levels} levels");
        }
    }
    let logits: Vec<f32> = (0..40 * 35).map(|i| (i * 37 % 101) as f32 * 0.2 - 9.0).collect();
    for c in [1, 5, 35] {
        let run = |d: &Device| {
            let logits = Tensor::new(d, [1400 / c, c], &logits).unwrap();
            label_gradients(&logits).unwrap().to_f64().unwrap()
        };
        assert_close("label gradients", &run(d), &run(&Device::Cpu), |w| 1e-6 * w.abs() + 1e-9);
    }
}

/// Balls on a small grid: every distance is exact, and rows lie on their surfaces.
fn cover(d: &Device) {
    for (n, w, l, k) in [(40, 2, 1, 39), (200, 3, 20, 30), (70, 5, 0, 10)] {
        let x = whole(n * w, 5, w as u32);
        let (labelled, rest): (Vec<u32>, Vec<u32>) = (0..n as u32).partition(|i| (*i as usize) < l);
        let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
        let run = |d: &Device| {
            let x = Tensor::new(d, [n, w], &x).unwrap();
            (max_cover(&x, &labelled, &rest, k, 2.0).unwrap(), purity_radius(&x, &labels, 3, 0.6).unwrap())
        };
        assert_eq!(run(d), run(&Device::Cpu), "{n} x {w}");
    }
}

/// Whole numbers with many ties, and rows of length one: normalised to the same bits, then the same picks and means.
fn typical_rows(d: &Device) {
    let r = Rng::new(24);
    for (n, w, groups, levels) in [(1, 1, 1, 2), (40, 2, 7, 3), (300, 3, 2, 5), (200, 40, 3, 0), (90, 70, 1, 0)] {
        let whole = whole(n * w, levels.max(1), w as u32);
        let uniform = |e: usize| r.lane(n as u32).uniform(e as u64) - 0.3;
        let x: Vec<f32> = (0..n * w).map(|e| if levels > 0 { whole[e] } else { uniform(e) }).collect();
        let clusters: Vec<u32> = (0..n as u64).map(|i| r.u32(i) % groups).collect();
        let candidates: Vec<u32> = (0..n as u32).filter(|i| n < 2 || i % 5 != 1).collect();
        let run = |d: &Device| {
            let x = ops::normalize_rows(&Tensor::new(d, [n, w], &x).unwrap()).unwrap();
            let bits: Vec<u32> = x.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
            (bits, [1, 20, 31].map(|near| typical(&x, &clusters, &candidates, n / 2 + 1, near).unwrap()))
        };
        assert_eq!(run(d), run(&Device::Cpu), "{n} x {w}, {groups} clusters");
    }
    // The last of the nearest 31 comes after one that is farther.
    let line: Vec<f32> = (0..31).map(|v| v as f32).chain([40.0, 31.0]).collect();
    let all: Vec<u32> = (0..33).collect();
    let run = |d: &Device| typical(&Tensor::new(d, [33, 1], &line).unwrap(), &[0; 33], &all, 33, 31).unwrap();
    assert_eq!(run(d), run(&Device::Cpu));
}

/// Labels, centres, distances and the rows picked are the same to the bit: copies and empty clusters, clusters of very
/// different size, rows far from the origin where products decide nothing.
fn clusters(d: &Device) {
    for (n, w, k) in [(1, 1, 1), (65, 3, 7), (130, 33, 129), (1100, 17, 20), (300, 40, 131)] {
        for (levels, shift) in [(0, 0.0), (2, 0.0), (0, 2048.0)] {
            let r = Rng::new(6).lane(w as u32);
            let mut x =
                if levels > 0 { whole(n * w, levels, 3) } else { (0..(n * w) as u64).map(|e| r.uniform(e)).collect() };
            x.iter_mut().take(n / 2 * w).for_each(|v| *v = *v * 0.01 + shift);
            let stops = Stops { restarts: 2, iterations: 4, tolerance: 1e-4 };
            let run = |d: &Device| {
                let x = Tensor::new(d, [n, w], &x).unwrap();
                let copies = ops::gather_rows(&x, &Tensor::new(d, [k], &vec![0u32; k]).unwrap()).unwrap();
                [kmeans(&x, k, stops, Rng::new(3)).unwrap(), lloyd(&x, &copies, 3, 0.0).unwrap()].map(|c| {
                    let f = [c.centres.to_vec::<f32>().unwrap(), c.distances.to_vec().unwrap()];
                    (f, [c.labels.to_vec::<u32>().unwrap(), c.central(&x).unwrap()], c.iterations)
                })
            };
            assert_eq!(run(d), run(&Device::Cpu), "{n} x {w}, {k} clusters, {levels} levels, {shift}");
        }
    }
}

/// Trees of clusters, exact and from means, on numbers with many ties and without: the same bits.
fn linkage(d: &Device) {
    let r = Rng::new(22);
    let uniform: Vec<f32> = (0..150 * 7).map(|e| r.uniform(e)).collect();
    for (n, x) in [(1, vec![1.0; 3]), (2, whole(2 * 3, 9, 1)), (140, whole(140 * 35, 3, 2)), (150, uniform)] {
        for memory in [0, u64::MAX] {
            let run = |d: &Device| {
                let x = Tensor::new(d, [n, x.len() / n], &x).unwrap();
                average_linkage(&x, memory, &|| Ok(())).unwrap()
            };
            assert_eq!(run(d), run(&Device::Cpu), "{n} rows, {memory} bytes");
        }
    }
    for (bad, why) in [(f32::NAN, "row 2 of"), (3e38, "scale them")] {
        let x = Tensor::new(d, [3, 1], &[1.0, 5.0, bad]).unwrap();
        for memory in [0, u64::MAX] {
            let e = average_linkage(&x, memory, &|| Ok(())).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
    }
}

/// Votes of the nearest images and how unlike they are: the same bits. Odd numbers of pixels, fewer than five labelled, a
/// class that is predicted and has none, copies and an image of zeros.
fn likeness(d: &Device) {
    let r = Rng::new(23);
    for (n, p, l, classes) in [(9, 3, 2, 2), (90, 50, 41, 4), (140, 131, 70, 12)] {
        let mut images: Vec<u8> = (0..n * p).map(|e| (r.u32(e as u64) % 3 * 127) as u8).collect();
        images[n / 2 * p..(n / 2 + 1) * p].fill(0);
        let labels: Vec<u32> = (0..l as u64).map(|e| r.lane(1).u32(e) % (classes - 1)).collect();
        let predicted: Vec<u32> = (0..l as u64).map(|e| r.lane(2).u32(e) % classes).collect();
        let (rows, of): (Vec<u32>, Vec<u32>) = ((0..l).collect(), (l..n as u32).collect());
        let labelled = Labelled { rows: &rows, labels: &labels, predicted: &predicted, classes: classes as usize };
        let run = |d: &Device| {
            let images = Tensor::new(d, [n, p], &images).unwrap();
            unlikeness(&images, &of, &labelled, &|| Ok(())).unwrap()
        };
        assert_eq!(run(d), run(&Device::Cpu), "{n} images of {p}");
    }
}
