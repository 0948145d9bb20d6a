//! CPU against CUDA for the operations that have no place in the case tables: no gradient, a clock, or an effect.

use std::rc::Rc;

use dalcore::clock::Clock;
use dalcore::data::Flip;
use dalcore::device::{Choice, Device};
use dalcore::ops::{self, View};
use dalcore::rng::{Purpose, Rng};
use dalcore::tensor::{Buf, Tensor};

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

/// `n` numbers in [-4, 4), one in eight taken from a few values so that there are ties.
fn numbers(n: usize, lane: u32) -> Vec<f32> {
    let r = Rng::new(21).at(Purpose::Select, 0, 0).lane(lane);
    let one = |e: u64| if r.u32(e) % 8 == 0 { (r.u32(e) >> 29) as f32 } else { 8.0 * r.uniform(e) - 4.0 };
    (0..n as u64).map(one).collect()
}

/// Integers below `n`.
fn ids(len: usize, n: u32, lane: u32) -> Vec<u32> {
    let r = Rng::new(22).at(Purpose::Select, 0, 0).lane(lane);
    (0..len as u64).map(|e| r.u32(e) % n).collect()
}

/// Logits that are hard on purpose: ties, NaN, infinities, large values.
fn logits(n: usize, c: usize) -> Vec<f32> {
    let mut x = numbers(n * c, c as u32);
    for (i, row) in x.chunks_exact_mut(c).enumerate() {
        match i % 9 {
            3 => row.fill(f32::NEG_INFINITY),
            4 => row[c / 2] = f32::NAN,
            5 => row.fill(2.5),
            6 => row[c - 1] = 1e30,
            7 => row[0] = f32::INFINITY,
            8 => row.fill(f32::NAN),
            _ => {}
        }
    }
    x
}

/// Equal up to `tolerance` relative to 1 + |a|; not-a-numbers and infinities must be the same.
fn close(what: &str, a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let same = (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= tolerance * (1.0 + a.abs());
        assert!(same, "{what}: element {i}: {a} on the CPU, {b} on the device");
    }
}

#[test]
fn rows_of_logits() {
    let Some(cuda) = device() else { return };
    for (n, c) in [(0, 10), (1, 1), (9, 1), (31, 2), (33, 10), (1024, 10), (27, 31), (27, 32), (27, 33), (18, 1000)] {
        let what = format!("{n}x{c}");
        let x = logits(n, c);
        let labels = ids(n, c as u32, 1);
        let run = |d: &Device| {
            let x = Tensor::new(d, [n, c], &x).unwrap();
            let labels = Tensor::new(d, [n], &labels).unwrap();
            let mut counter = Buf::from_host(d, &[5u32]).unwrap();
            ops::count_correct(&mut counter, &x, &labels).unwrap();
            ops::count_correct(&mut counter, &x, &labels).unwrap();
            (
                ops::argmax_rows(&x).unwrap().to_vec::<u32>().unwrap(),
                counter.to_host().unwrap(),
                ops::max_cols(&x).unwrap().to_vec::<f32>().unwrap(),
                ops::least_confidence(&x).unwrap().to_vec::<f32>().unwrap(),
                ops::softmax(&x).unwrap().to_vec::<f32>().unwrap(),
                ops::log_softmax(&x).unwrap().to_vec::<f32>().unwrap(),
            )
        };
        let (host, dev) = (run(&Device::Cpu), run(&cuda));
        assert_eq!(host.0, dev.0, "argmax {what}");
        assert_eq!(host.1, dev.1, "count {what}");
        close(&format!("max_cols {what}"), &host.2, &dev.2, 0.0);
        // expf is good to 2 units in the last place, the sums to c / 32 + 5 roundings.
        let eps = f32::EPSILON * (8.0 + c as f32 / 32.0);
        close(&format!("least_confidence {what}"), &host.3, &dev.3, eps);
        close(&format!("softmax {what}"), &host.4, &dev.4, eps);
        close(&format!("log_softmax {what}"), &host.5, &dev.5, eps);
        let wrong = host.0.iter().zip(&labels).filter(|(a, l)| a != l).count();
        assert!(n < 31 || c < 2 || (wrong > 0 && wrong < n), "a reference of one kind only: {wrong} of {n}");
    }
}

#[test]
fn a_label_that_is_no_class_makes_the_loss_nan() {
    let Some(cuda) = device() else { return };
    let x = Tensor::new(&cuda, [3, 10], &numbers(30, 0)).unwrap().tracked();
    let labels = Tensor::new(&cuda, [3], &[1u32, u32::MAX, 9]).unwrap();
    let loss = ops::cross_entropy(&x, &labels).unwrap();
    assert!(loss.to_vec::<f32>().unwrap()[0].is_nan());
    let g = loss.grad(&[&x]).unwrap().of(&x).unwrap().to_vec::<f32>().unwrap();
    assert!(g[..10].iter().all(|v| v.is_finite()) && g[10..20].iter().all(|v| v.is_nan()));
}

#[test]
fn losses_and_labels_follow_the_clock() {
    let Some(cuda) = device() else { return };
    let clock = Clock::new(&cuda).unwrap();
    let mut losses = Buf::zeros(&cuda, 2).unwrap();
    let labels = Buf::from_host(&cuda, &[10u32, 11, 12]).unwrap();
    let order = Tensor::new(&cuda, [5], &[2u32, 0, 7, 1, 1]).unwrap();
    let mut seen = Vec::new();
    for value in [1.5f32, 2.5, 3.5] {
        ops::write_loss(&mut losses, &Tensor::new(&cuda, [], &[value]).unwrap(), &clock).unwrap();
        seen.extend(ops::gather_labels(&labels, &order, &clock, 2).unwrap().to_vec::<u32>().unwrap());
        clock.advance(2).unwrap();
    }
    assert_eq!(losses.to_host().unwrap(), [1.5, 2.5]);
    assert_eq!(seen, [12, 10, u32::MAX, 11, 11, u32::MAX]);
    assert!(ops::gather_labels(&labels, &order, &clock, 0).unwrap().is_empty());
}

#[test]
fn images_are_the_same_bytes_on_every_device() {
    let Some(cuda) = device() else { return };
    for (n, [h, w, c], pad, flip) in [
        (0, [28, 28, 1], 4, Flip::Half),
        (1, [1, 1, 1], 0, Flip::Never),
        (33, [28, 28, 1], 4, Flip::Never),
        (40, [32, 32, 3], 4, Flip::Half),
        (31, [5, 7, 2], 8, Flip::Half),
    ] {
        let total = n + 3;
        let pixels: Vec<u8> = ids(total * h * w * c, 256, 3).iter().map(|v| *v as u8).collect();
        let order = ids(n + 2, total as u32, 4);
        let run = |d: &Device| {
            let pixels = Tensor::new(d, [total, h, w, c], &pixels).unwrap();
            let order = Tensor::new(d, [order.len()], &order).unwrap();
            let (mean, std) = (&[0.4914f32, 0.4822, 0.4465][..c], &[0.2470f32, 0.2435, 0.2616][..c]);
            let view = View::train(d, mean, std, pad, flip, Rng::new(99), 2).unwrap();
            let clock = Clock::new(d).unwrap();
            clock.start(8, 6, 0.1).unwrap();
            clock.advance(2).unwrap();
            ops::gather_images(&pixels, &order, &clock, n, &view).unwrap().to_vec::<f32>().unwrap()
        };
        let (host, dev) = (run(&Device::Cpu), run(&cuda));
        let same = host.iter().zip(&dev).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same && host.len() == dev.len(), "{n} images of {h}x{w}x{c}");
    }
    let pixels = Tensor::new(&cuda, [2, 1, 1, 1], &[255u8, 0]).unwrap();
    let order = Tensor::new(&cuda, [3], &[0u32, 2, 1]).unwrap();
    let view = View::plain(&cuda, &[0.0], &[1.0]).unwrap();
    let clock = Clock::new(&cuda).unwrap();
    let y = ops::gather_images(&pixels, &order, &clock, 4, &view).unwrap().to_vec::<f32>().unwrap();
    assert!((y[0] - 1.0).abs() < 1e-6 && y[1].is_nan() && y[2] == 0.0 && y[3].is_nan(), "{y:?}");
}

#[test]
fn masks_are_the_same_bits_on_every_device() {
    let Some(cuda) = device() else { return };
    for (n, area, c) in [(1, 1, 1), (3, 4, 31), (5, 1, 33), (128, 64, 20), (1, 1, 1025)] {
        let x = numbers(n * area * c, 6);
        let run = |d: &Device| {
            let x = Tensor::new(d, [n, area, 1, c], &x).unwrap().tracked();
            let clock = Rc::new(Clock::new(d).unwrap());
            clock.start(30, 1, 0.1).unwrap();
            let rng = Rng::new(u64::MAX - 3).at(Purpose::Dropout, 4, 0);
            let mut out = Vec::new();
            for p in [0.25, 0.5] {
                clock.advance(1).unwrap();
                let y = ops::dropout(&x, p, rng.lane(1), &clock).unwrap();
                let z = ops::dropout_channels(&y, p, rng.lane(0), &clock).unwrap();
                let g = z.grad_from(&x.detach(), &[&x]).unwrap();
                out.extend([z.to_vec::<f32>().unwrap(), g.of(&x).unwrap().to_vec().unwrap()]);
            }
            out
        };
        let (host, dev) = (run(&Device::Cpu), run(&cuda));
        assert_eq!(host, dev, "{n}x{area}x{c}");
        assert_ne!(host[0], host[2], "a new step draws a new mask");
    }
}

#[test]
fn optimizer_steps_and_copies() {
    let Some(cuda) = device() else { return };
    for n in [1, 255, 257, 21_840, 0] {
        let run = |d: &Device| {
            let clock = Clock::new(d).unwrap();
            let (mut w, mut v) = (Buf::from_host(d, &numbers(n, 7)).unwrap(), Buf::zeros(d, n).unwrap());
            let mut g = Buf::from_host(d, &numbers(n, 8)).unwrap();
            for (rate, clamp) in [(0.1, 0.5), (0.05, f32::INFINITY)] {
                clock.start(0, 0, rate).unwrap();
                ops::sgd_step(&mut w, &mut v, &g, &clock, d, 0.9, 5e-4, clamp).unwrap();
                let part = Buf::from_host(d, &numbers(n / 3, 9)).unwrap();
                ops::copy_into(&mut g, n / 2, &part, d).unwrap();
            }
            (w.to_host().unwrap(), v.to_host().unwrap(), g.to_host().unwrap())
        };
        let (host, dev) = (run(&Device::Cpu), run(&cuda));
        // Two steps of four operations each; the device fuses some of them.
        close(&format!("weights of {n}"), &host.0, &dev.0, 8.0 * f32::EPSILON);
        close(&format!("velocities of {n}"), &host.1, &dev.1, 8.0 * f32::EPSILON);
        assert_eq!(host.2, dev.2);
    }
    let clock = Clock::new(&cuda).unwrap();
    clock.start(0, 0, 0.1).unwrap();
    let (mut w, mut v) = (Buf::zeros(&cuda, 1).unwrap(), Buf::zeros(&cuda, 1).unwrap());
    let g = Buf::from_host(&cuda, &[f32::NAN]).unwrap();
    ops::sgd_step(&mut w, &mut v, &g, &clock, &cuda, 0.9, 0.0, 0.1).unwrap();
    assert!(w.to_host().unwrap()[0].is_nan(), "the clamp must not hide a NaN");
}
