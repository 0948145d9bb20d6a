//! CPU against CUDA: distances, order, k-center. The same numbers on both, and where ids are returned the same ids.

use dalcore::device::{Choice, Device};
use dalcore::ops::{argmax, nearest_update, pairwise_sq, top_k};
use dalcore::rng::{Purpose, Rng};
use dalcore::select::{Picks, coverage_radius, kcenter};
use dalcore::tensor::Tensor;

/// The device of these tests, or a printed reason why there is none.
fn device() -> Option<Device> {
    match Choice::Cuda(0).open() {
        Ok(d) => Some(d),
        Err(e) => {
            println!("skipped: {e}");
            None
        }
    }
}

/// Points of a small grid (exact sums, many ties and copies), or with `levels` 0 of the cube [-2, 2).
fn points(n: usize, d: usize, levels: u32, lane: u32) -> Tensor {
    let r = Rng::new(5).at(Purpose::Select, n as u32, d as u32).lane(lane);
    let one = |e| if levels == 0 { 4.0 * r.uniform(e) - 2.0 } else { (r.u32(e) % levels) as f32 };
    let v: Vec<f32> = (0..(n * d) as u64).map(one).collect();
    Tensor::new(&Device::Cpu, [n, d], &v).unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The canonical order is the same everywhere, but a processor without FMA rounds products.
fn canonical() -> bool {
    dalcore::device::simd::level() != dalcore::device::simd::Level::Base || dalcore::device::simd::BASE_FMA
}

#[test]
fn distances_are_the_same_bits() {
    let Some(cuda) = device() else { return };
    for (n, m, d) in [(1, 1, 1), (63, 1, 15), (64, 64, 16), (65, 63, 17), (130, 129, 50), (5, 200, 33), (7, 0, 3)] {
        for levels in [0, 3] {
            if levels == 0 && !canonical() {
                continue;
            }
            let (x, c) = (points(n, d, levels, 1), points(m, d, levels, 2));
            let (gx, gc) = (x.to_device(&cuda).unwrap(), c.to_device(&cuda).unwrap());
            let mut best = Tensor::new(&Device::Cpu, [n], &vec![d as f32; n]).unwrap();
            let mut got = best.to_device(&cuda).unwrap();
            nearest_update(&mut best, &x, &c).unwrap();
            nearest_update(&mut got, &gx, &gc).unwrap();
            assert_eq!(bits(&got), bits(&best), "nearest_update {n}x{m}x{d}, {levels} levels");
            let (want, got) = (pairwise_sq(&x, &c).unwrap(), pairwise_sq(&gx, &gc).unwrap());
            assert_eq!(bits(&got), bits(&want), "pairwise_sq {n}x{m}x{d}, {levels} levels");
        }
    }
}

#[test]
fn gradients_of_distances() {
    let Some(cuda) = device() else { return };
    for (n, m, d) in [(3, 5, 2), (65, 33, 17)] {
        let (x, c, dy) = (points(n, d, 0, 1), points(m, d, 0, 2), points(n, m, 0, 3));
        let grads = |x: Tensor, c: Tensor, dy: &Tensor| {
            let (x, c) = (x.tracked(), c.tracked());
            let g = pairwise_sq(&x, &c).unwrap().grad_from(dy, &[&x, &c]).unwrap();
            [g.of(&x).unwrap().to_vec::<f32>().unwrap(), g.of(&c).unwrap().to_vec::<f32>().unwrap()]
        };
        let to = |t: &Tensor| t.to_device(&cuda).unwrap();
        let (want, got) = (grads(x.clone(), c.clone(), &dy), grads(to(&x), to(&c), &to(&dy)));
        for (side, (want, got)) in want.iter().zip(&got).enumerate() {
            assert!(want.iter().any(|v| v.abs() > 1.0), "a degenerate reference");
            for (i, (a, b)) in want.iter().zip(got).enumerate() {
                // Terms below 16, m or n of them, each sum rounded that often.
                let bound = 16.0 * n.max(m) as f32 * f32::EPSILON * 4.0;
                assert!((a - b).abs() <= bound, "side {side}, element {i}: {a} on the CPU, {b} on the device");
            }
        }
    }
}

#[test]
fn order() {
    let Some(cuda) = device() else { return };
    let inf = f32::INFINITY;
    for n in [1usize, 255, 256, 257, 2048, 2049, 5000] {
        for levels in [1u32, 3, 1000, 1 << 24] {
            let r = Rng::new(6).at(Purpose::Select, n as u32, levels);
            let mut v: Vec<f32> = (0..n as u64).map(|e| (r.u32(e) % levels) as f32 - levels as f32 / 2.0).collect();
            for (i, special) in [0.0, -0.0, inf, -inf, 1e-45, -1e-45].into_iter().enumerate() {
                if levels == 1000 && 7 * i < n {
                    v[7 * i] = special;
                }
            }
            let t = Tensor::new(&Device::Cpu, [n], &v).unwrap();
            let on_device = t.to_device(&cuda).unwrap();
            assert_eq!(argmax(&on_device).unwrap(), argmax(&t).unwrap(), "argmax of {n}, {levels} levels");
            for k in [0, 1, n / 3, n] {
                let got = top_k(&on_device, k).unwrap().to_vec::<u32>().unwrap();
                assert_eq!(got, top_k(&t, k).unwrap().to_vec::<u32>().unwrap(), "top {k} of {n}, {levels} levels");
            }
        }
    }
}

#[test]
fn a_nan_is_named() {
    let Some(cuda) = device() else { return };
    for at in [0usize, 255, 2999] {
        let mut v: Vec<f32> = (0..3000).map(|i| (i % 17) as f32).collect();
        v[2999] = f32::NAN;
        v[at] = -f32::NAN;
        let t = Tensor::new(&cuda, [v.len()], &v).unwrap();
        let e = top_k(&t, 5).unwrap_err().to_string();
        assert!(e.contains(&format!("id {at} ")), "{e}");
        let e = argmax(&t).unwrap_err().to_string();
        assert!(e.contains(&format!("value {at} ")), "{e}");
    }
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let mut x = points(300, 40, 0, 1).to_vec::<f32>().unwrap();
        x[40 * 7 + 39] = bad; // not mentioned below
        x[40 * 131 + 33] = bad;
        x[40 * 290] = bad;
        for device in [&Device::Cpu, &cuda] {
            let x = Tensor::new(device, [300, 40], &x).unwrap();
            let rest: Vec<u32> = (100..300).collect();
            for e in [kcenter(&x, &[0, 1], &rest, 5).unwrap_err(), kcenter(&x, &[290, 131], &[8, 9], 1).unwrap_err()] {
                assert!(e.to_string().contains("row 131 "), "{e}");
            }
            assert!(kcenter(&x, &[0, 1], &[2, 3, 4], 2).is_ok());
        }
    }
}

#[test]
fn worked_example() {
    let Some(cuda) = device() else { return };
    let x = [0.0f32, 0.0, 1.0, 0.0, 5.0, 0.0, 6.0, 0.0, 0.0, 4.0, 5.0, 1.0];
    let x = Tensor::new(&cuda, [6, 2], &x).unwrap();
    let p = kcenter(&x, &[0], &[1, 2, 3, 4, 5], 4).unwrap();
    assert_eq!(p, Picks { ids: vec![3, 4, 5, 1], radius: vec![6.0, 4.0, 2.0f32.sqrt(), 1.0] });
    assert_eq!(coverage_radius(&x, &[0, 3], &[1, 2, 4, 5]).unwrap(), 4.0);
}

#[test]
fn picks_are_the_same() {
    let Some(cuda) = device() else { return };
    for (n, d, levels, every) in [
        (1, 1, 0, 0),
        (40, 1, 5, 3),
        (127, 3, 3, 7),
        (128, 32, 2, 0),
        (129, 33, 0, 5),
        (300, 50, 0, 0),
        (513, 65, 4, 11),
    ] {
        if levels == 0 && !canonical() {
            continue;
        }
        let x = points(n, d, levels, every);
        let on_device = x.to_device(&cuda).unwrap();
        let is_labelled = |i: &u32| every > 0 && i % every == 1;
        let labelled: Vec<u32> = (0..n as u32).rev().filter(is_labelled).collect();
        let rest: Vec<u32> = (0..n as u32).filter(|i| !is_labelled(i) && i % 13 != 12).collect();
        for k in [1, 7, 20, n] {
            let k = if n > 200 { k.min(30) } else { k };
            let want = kcenter(&x, &labelled, &rest, k).unwrap();
            assert_eq!(kcenter(&on_device, &labelled, &rest, k).unwrap(), want, "{n}x{d}, {levels} levels, k {k}");
        }
        let r =
            (coverage_radius(&on_device, &labelled, &rest).unwrap(), coverage_radius(&x, &labelled, &rest).unwrap());
        assert_eq!(r.0.to_bits(), r.1.to_bits());
    }
}
