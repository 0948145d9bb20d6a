//! Operations without a gradient: what the cases do not reach.

use std::rc::Rc;

use dalcore::clock::Clock;
use dalcore::data::Flip;
use dalcore::device::{Device, roofline};
use dalcore::ops::{self, AdamRule, ChunkSums, Conv, McRule, Mixtures, Pool, Rise, SgdEmaRule, Then, View};
use dalcore::rng::{Purpose, Rng};
use dalcore::tensor::{Buf, Dtype, Tensor};

use crate::common::{assert_close, cuda};

fn noise(n: usize, lane: u32) -> Vec<f32> {
    let r = Rng::new(11).lane(lane);
    (0..n as u64).map(|e| 4.0 * r.uniform(e) - 2.0).collect()
}

fn f64s(v: &[f32]) -> Vec<f64> {
    v.iter().map(|x| f64::from(*x)).collect()
}

pub fn all() {
    let Some(s) = cuda(1) else { return };
    let devices = [Device::Cpu, s.device.clone()];
    images(&devices);
    pooling(&devices);
    scores(&devices);
    passes(&devices);
    optimizer(&devices);
    averaged_optimizer(&devices);
    mixtures(&devices);
    sure_rows(&devices);
    risen_losses(&devices);
    rows_of_zeros(&devices);
    moments(&devices);
    noise_of_a_step(&devices);
    training_masks(&devices);
    critics(&devices);
    chains(&s.device);
    sums_of_convolutions(&s.device);
    whole_steps(&devices);
}

/// The kernels that measure a device compute what they say: three turns of v/2 + 1 from t + i, and three products of ones.
fn chains(d: &Device) {
    let Device::Cuda(cuda) = d else { return };
    let mut y = Buf::stale(d, 512).unwrap();
    roofline::fma_chains(cuda, &mut y, 3).unwrap();
    let want: Vec<f32> = (0..512).map(|t| (0..8).map(|i| (t + i) as f32 / 8.0 + 1.75).sum()).collect();
    assert_eq!(y.to_host().unwrap(), want);
    roofline::mma_chains(cuda, &mut y, 3).unwrap();
    assert_eq!(y.to_host().unwrap(), [8.0 * 4.0 * 3.0 * 16.0; 512]);
}

/// What a convolution leaves for the normalisation of its result, with every tile and a last one that is not full, is
/// what the normalisation would find out by itself.
fn sums_of_convolutions(d: &Device) {
    let tensor = |dims: &[usize], lane| {
        let values = noise(dims.iter().product(), lane);
        ops::cast(&Tensor::new(d, dims, &values).unwrap(), Dtype::Bf16).unwrap()
    };
    // The last two have grids large enough for the large tiles.
    for (n, side, k) in [(3, 9, 16), (3, 9, 24), (3, 9, 40), (2, 81, 64), (2, 81, 72)] {
        let (x, w) = (tensor(&[n, side, side, 8], 1), tensor(&[k, 1, 1, 8], 2));
        let (y, sums) = ops::conv2d_with_sums(&x, &w, Conv::default()).unwrap();
        let of_channels = |v: f32| Tensor::new(d, [k], &vec![v; k]).unwrap();
        let stats = |sums: Option<ChunkSums>| {
            let (gamma, beta) = (of_channels(1.0), of_channels(0.0));
            let stats = ops::batch_norm(&y, sums, &gamma, &beta, 1e-5, Then::default()).unwrap().1;
            [stats.mean, stats.var].map(|t| f64s(&t.to_vec::<f32>().unwrap()))
        };
        assert!(sums.is_some(), "{k} channels");
        let ([mean, var], [want_mean, want_var]) = (stats(sums), stats(None));
        for j in 0..k {
            let (m, v) = ((mean[j] - want_mean[j]).abs(), (var[j] / want_var[j] - 1.0).abs());
            assert!(
                m < 1e-5 * want_var[j].sqrt() && v < 1e-5,
                "channel {j} of {k}: mean off by {m:e}, variance by {v:e}"
            );
        }
    }
}

/// Convolutions in bf16 whose channels are whole steps of the tiles, over more steps than a tile keeps, with each of the
/// wide tiles: such filters are copied in another way.
fn whole_steps(devices: &[Device; 2]) {
    for (n, side, c, r, k) in [(2, 7, 64, 3, 64), (2, 81, 256, 1, 64), (1, 81, 256, 1, 136)] {
        let run = |d: &Device| {
            let tensor = |dims: [usize; 4], lane| {
                let values = noise(dims.iter().product(), lane);
                ops::cast(&Tensor::new(d, dims, &values).unwrap(), Dtype::Bf16).unwrap()
            };
            let (x, w) = (tensor([n, side, side, c], 1), tensor([k, r, r, c], 2));
            let y = ops::conv2d(&x, &w, None, Conv { stride: 1, pad: r / 2 }).unwrap();
            f64s(&ops::cast(&y, Dtype::F32).unwrap().to_vec::<f32>().unwrap())
        };
        // Sums of some hundred products, each rounded to bf16 once.
        let tolerance = |v: f64| v.abs() * 2f64.powi(-7) + 1e-3;
        assert_close(&format!("{c} to {k} channels"), &run(&devices[1]), &run(&devices[0]), tolerance);
    }
}

/// Gather, crop, flip, normalise; labels; bit-equal but for the one multiply-add.
fn images(devices: &[Device; 2]) {
    let px: Vec<u8> = (0..9 * 7 * 6 * 3).map(|i| (i * 37 % 256) as u8).collect();
    let labels: Vec<u32> = (0..9).map(|i| i * i).collect();
    let order = [3u32, 8, 0, 5, 5, 1, 7];
    let run = |d: &Device| {
        let clock = Clock::new(d).unwrap();
        clock.start(4, 2, 0.1).unwrap();
        clock.advance(2).unwrap();
        let pixels = Tensor::new(d, [9, 7, 6, 3], &px).unwrap();
        let order = Tensor::new(d, [7], &order).unwrap();
        let view = View::train(d, &[0.5, 0.4, 0.3], &[0.2, 0.3, 0.25], 2, Flip::Half, Rng::new(9), 5).unwrap();
        let x = ops::gather_images(&pixels, &order, &clock, 5, &view).unwrap().to_vec::<f32>().unwrap();
        let l = Buf::from_host(d, &labels).unwrap();
        (x, ops::gather_labels(&l, &order, &clock, 5).unwrap().to_vec::<u32>().unwrap())
    };
    let ((x, l), (want_x, want_l)) = (run(&devices[1]), run(&devices[0]));
    assert_eq!(x, want_x);
    assert_eq!(l, want_l);
    assert_eq!(l, [0, 25, 25, 1, 49]);
}

/// Equal values and a NaN in the windows: the same maximum from the same place, forward and backward.
fn pooling(devices: &[Device; 2]) {
    let r = Rng::new(13);
    let mut x: Vec<f32> = (0..2 * 7 * 6 * 9).map(|e| (r.u32(e) % 3) as f32).collect();
    (x[100], x[300]) = (f32::NAN, f32::NEG_INFINITY);
    // With seven rows the last is in no window; with six a GPU takes rows of windows in one piece.
    for (h, pool) in [(7, Pool::square(2)), (6, Pool::square(2)), (7, Pool { size: 3, stride: 2, pad: 1 })] {
        let run = |d: &Device| {
            let x = Tensor::new(d, [2, h, 6, 9], &x[..2 * h * 6 * 9]).unwrap().tracked();
            let y = ops::max_pool2d(&x, pool).unwrap();
            let dy = Tensor::new(d, y.shape().clone(), &noise(y.len(), 6)).unwrap();
            let dx = y.grad_from(&dy, &[&x]).unwrap().of(&x).unwrap().to_vec::<f32>().unwrap();
            [y.to_vec::<f32>().unwrap(), dx].map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        assert!(run(&devices[1]) == run(&devices[0]), "{h} {pool:?}");
    }
}

/// Arg-max, maxima, least confidence, entropy, margin, counting of correct rows, writing a loss.
fn scores(devices: &[Device; 2]) {
    for (n, c) in [(1, 1), (7, 10), (33, 31), (5, 200)] {
        let mut x = noise(n * c, 1);
        if c > 3 {
            x[2] = x[1]; // a tie
        }
        let labels: Vec<u32> = (0..n as u32).map(|i| i % c as u32).collect();
        let run = |d: &Device| {
            let t = Tensor::new(d, [n, c], &x).unwrap();
            let labels = Tensor::new(d, [n], &labels).unwrap();
            let mut count: Buf<u32> = Buf::zeros(d, 1).unwrap();
            ops::count_correct(&mut count, &t, &labels).unwrap();
            ops::count_correct(&mut count, &t, &labels).unwrap();
            let clock = Clock::new(d).unwrap();
            clock.advance(1).unwrap();
            let mut losses: Buf<f32> = Buf::zeros(d, 3).unwrap();
            ops::write_loss(&mut losses, &ops::cross_entropy(&t, &labels).unwrap(), &clock).unwrap();
            (
                ops::argmax_rows(&t).unwrap().to_vec::<u32>().unwrap(),
                count.to_host().unwrap(),
                ops::max_cols(&t).unwrap().to_vec::<f32>().unwrap(),
                ops::least_confidence(&t).unwrap().to_f64().unwrap(),
                [ops::entropy(&t), ops::margin(&t)].map(|s| s.unwrap().to_f64().unwrap()),
                f64s(&losses.to_host().unwrap()),
            )
        };
        let (got, want) = (run(&devices[1]), run(&devices[0]));
        assert_eq!((got.0, got.1, got.2), (want.0, want.1, want.2));
        // exp and log are good to a few units in the last place, over sums of c terms.
        let tolerance = (c as f64 + 8.0) * 2f64.powi(-22);
        assert_close("least confidence", &got.3, &want.3, |w| tolerance * w.abs().max(1.0));
        for (what, i) in [("entropy", 0), ("margin", 1)] {
            assert_close(what, &got.4[i], &want.4[i], |w| tolerance * w.abs().max(1.0));
        }
        assert_close("losses", &got.5, &want.5, |w| tolerance * w.abs().max(1.0));
        assert!(got.5[0] == 0.0 && got.5[1] > 0.0 || c == 1);
    }
}

/// Scores of several passes: of widths beside a warp, from stored passes, with sure rows, and a NaN that stays one.
fn passes(devices: &[Device; 2]) {
    for [t, n, c] in [[1, 3, 1], [2, 9, 2], [5, 33, 10], [3, 7, 33], [2, 5, 70]] {
        let x =
            Tensor::new(&Device::Cpu, [t * n, c], &noise(t * n * c, 15).iter().map(|v| 6.0 * v).collect::<Vec<_>>());
        let mut p = ops::softmax(&x.unwrap()).unwrap().to_vec::<f32>().unwrap();
        p[..c].fill(0.0);
        p[0] = 1.0;
        for rule in [McRule::Bald, McRule::MeanStd, McRule::Variance, McRule::VarRatio] {
            let run = |d: &Device, p: &[f32]| {
                ops::mc_scores(rule, &Tensor::new(d, [t, n, c], p).unwrap()).unwrap().to_f64().unwrap()
            };
            // A dozen roundings over sums of t passes and c classes, of numbers up to ln c.
            let tolerance = |w: f64| (t + c + 8) as f64 * 2f64.powi(-22) * w.abs().max(0.1);
            assert_close("passes", &run(&devices[1], &p), &run(&devices[0], &p), tolerance);
            let mut bad = p.clone();
            *bad.last_mut().unwrap() = f32::NAN;
            for d in devices {
                assert!(run(d, &bad)[n - 1].is_nan() && run(d, &bad)[0].is_finite(), "{rule:?} {t} {n} {c}");
            }
        }
    }
}

fn optimizer(devices: &[Device; 2]) {
    let n = 1000;
    let run = |d: &Device| {
        let clock = Clock::new(d).unwrap();
        clock.start(0, 0, 0.05).unwrap();
        let mut w = Buf::from_host(d, &noise(n, 2)).unwrap();
        let mut v = Buf::from_host(d, &noise(n, 3)).unwrap();
        let mut g = noise(n, 4);
        g[7] = f32::NAN; // stays one
        let g = Buf::from_host(d, &g).unwrap();
        for _ in 0..2 {
            ops::sgd_step(&mut w, &mut v, &g, &clock, d, 0.9, 5e-4, 0.7).unwrap();
        }
        let of = |seed| Tensor::new(d, [n / 2], &noise(n / 2, seed)).unwrap();
        let batch = ops::BatchStats { mean: of(5), var: of(6) };
        ops::batch_norm_update(&mut v, [n / 2, 0], &batch, d, 0.1).unwrap();
        let mut whole: Buf<f32> = Buf::zeros(d, n + 3).unwrap();
        ops::copy_into(&mut whole, 3, &w, d).unwrap();
        (f64s(&whole.to_host().unwrap()), f64s(&v.to_host().unwrap()))
    };
    let (got, want) = (run(&devices[1]), run(&devices[0]));
    // nvcc may fuse a product and a sum: three roundings of numbers up to 8.
    let tolerance = |_: f64| 3.0 * 8.0 * 2f64.powi(-24);
    assert_close("weights", &got.0, &want.0, tolerance);
    assert_close("velocities", &got.1, &want.1, tolerance);
}

/// SGD with an average and two kinds of decay, on a number of elements that four does not divide.
fn averaged_optimizer(devices: &[Device; 2]) {
    let n = 1003;
    let run = |d: &Device| {
        let clock = Clock::new(d).unwrap();
        clock.start(0, 0, 0.05).unwrap();
        let buf = |lane| Buf::from_host(d, &noise(n, lane)).unwrap();
        let (mut w, mut v, mut average) = (buf(2), buf(3), buf(5));
        let mut g = noise(n, 4);
        g[7] = f32::NAN; // stays one
        let g = Buf::from_host(d, &g).unwrap();
        let kernels: Vec<u8> = (0..n).map(|i| u8::from(i % 3 == 0)).collect();
        let kernels = Buf::from_host(d, &kernels).unwrap();
        let rule = SgdEmaRule { momentum: 0.9, decay: 5e-4, ema: 0.9, shrink: 0.5 };
        for _ in 0..2 {
            ops::sgd_ema_step(&mut w, &mut v, &mut average, &g, &kernels, &clock, d, rule).unwrap();
        }
        ops::shrink_step(&mut v, &clock, d, 0.5).unwrap();
        [w, v, average].map(|b| f64s(&b.to_host().unwrap()))
    };
    let (got, want) = (run(&devices[1]), run(&devices[0]));
    for ((name, got), want) in ["weights", "velocities", "averages"].iter().zip(&got).zip(&want) {
        // As above, and a fourth rounding for the decay.
        assert_close(name, got, want, |_| 4.0 * 8.0 * 2f64.powi(-24));
        assert!(got[7].is_nan());
    }
}

/// Guesses, margins of two views, and the second step's mixtures of images and targets, with one share for all rows and
/// with one for each; a step beyond the last is NaN.
fn mixtures(devices: &[Device; 2]) {
    let (batch, c) = (7, 43);
    let run = |d: &Device, each: bool, bf16: bool| {
        let logits = |lane| Tensor::new(d, [batch, c], &noise(batch * c, lane)).unwrap();
        let (a, b) = (logits(20), logits(21));
        let q = ops::guess(&a, &b, 0.5).unwrap();
        let margins = ops::margin_of_mean(&a, &b).unwrap().to_f64().unwrap();
        let image = |lane| {
            let x = Tensor::new(d, [batch, 3, 2, 5], &noise(batch * 30, lane)).unwrap();
            ops::cast(&x, if bf16 { Dtype::Bf16 } else { Dtype::F32 }).unwrap()
        };
        let [x, u, v] = [22, 23, 24].map(image);
        let rows = 3 * batch as u32;
        let partners: Vec<u32> = (0..2 * rows).map(|i| (i * 5 + i / rows) % rows).collect();
        let shares: Vec<f32> = (0..if each { 2 * rows } else { 2 }).map(|i| 0.5 + 0.01 * i as f32).collect();
        let mixtures = Mixtures {
            partners: Tensor::new(d, [partners.len()], &partners).unwrap(),
            shares: Tensor::new(d, [shares.len()], &shares).unwrap(),
        };
        let clock = Clock::new(d).unwrap();
        clock.advance(batch).unwrap();
        let labels: Vec<u32> = (0..batch as u32).map(|i| i * i % c as u32).collect();
        let labels = Tensor::new(d, [batch], &labels).unwrap();
        let targets = ops::mix_targets(&labels, &q, &mixtures, &clock).unwrap().to_f64().unwrap();
        let mix = || ops::cast(&ops::mix_images([&x, &u, &v], &mixtures, &clock)?, Dtype::F32)?.to_f64();
        let images = mix().unwrap();
        nothing_is_invented(d, [&x, &u, &v], [&labels, &q], &mixtures, &clock);
        clock.advance(batch).unwrap();
        match d {
            Device::Cpu => assert!(mix().is_err()),
            Device::Cuda(_) => assert!(mix().unwrap().iter().all(|v| v.is_nan())),
        }
        [q.to_f64().unwrap(), margins, targets, images]
    };
    for (each, bf16) in [(false, false), (true, false), (true, true)] {
        let (got, want) = (run(&devices[1], each, bf16), run(&devices[0], each, bf16));
        // Sums of 43 exponentials, and a power that doubles their error; numbers below 4, in bf16 rounded to 2^-9.
        for ((name, got), want) in ["guesses", "margins", "targets"].iter().zip(&got).zip(&want) {
            assert_close(name, got, want, |_| 100.0 * 4.0 * 2f64.powi(-24));
        }
        let unit = if bf16 { 2f64.powi(-8) } else { 3.0 * 2f64.powi(-24) };
        assert_close("images", &got[3], &want[3], |_| 4.0 * unit);
    }
}

/// A partner that is no row of the step, and a label that is no class: an error on the CPU; on a device the rows that are
/// made of them are NaN, and no others.
fn nothing_is_invented(
    d: &Device,
    images: [&Tensor; 3],
    [labels, q]: [&Tensor; 2],
    mixtures: &Mixtures,
    clock: &Clock,
) {
    let [batch, c] = q.dims() else { panic!("guesses are a matrix") };
    let rows = 3 * batch;
    let mut partners = mixtures.partners.to_vec::<u32>().unwrap();
    (partners[rows + 1], partners[rows + 9]) = (rows as u32, u32::MAX);
    let partners = Tensor::new(d, [partners.len()], &partners).unwrap();
    let none = Mixtures { partners, shares: mixtures.shares.clone() };
    let mut unknown = labels.to_vec::<u32>().unwrap();
    unknown[2] = *c as u32;
    let unknown = Tensor::new(d, [*batch], &unknown).unwrap();
    let bad = |rows: usize, made: dalcore::Result<Tensor>| match d {
        Device::Cpu => {
            assert!(made.is_err());
            rows
        }
        Device::Cuda(_) => {
            let made = ops::cast(&made.unwrap(), Dtype::F32).unwrap().to_vec::<f32>().unwrap();
            made.chunks(made.len() / (3 * batch)).filter(|row| row.iter().any(|v| v.is_nan())).count()
        }
    };
    assert_eq!(bad(2, ops::mix_images(images, &none, clock)), 2);
    assert_eq!(bad(2, ops::mix_targets(labels, q, &none, clock)), 2);
    // Labelled row 2, and the one whose partner it is.
    assert_eq!(bad(2, ops::mix_targets(&unknown, q, mixtures, clock)), 2);
}

/// Margins of two views near certainty, at a tie and of rows with a NaN.
fn sure_rows(devices: &[Device; 2]) {
    let c = 43;
    let mut logits = [9.0, 14.0, 30.0, 0.0, 9.0].map(|top| [vec![top], vec![0.0f32; c - 1]].concat());
    logits[4][40] = f32::NAN;
    let run = |d: &Device| {
        let a = Tensor::new(d, [5, c], &logits.concat()).unwrap();
        let b = Tensor::new(d, [5, c], &[vec![0.0; c], logits[..4].concat()].concat()).unwrap();
        let one = Tensor::new(d, [2, 1], &[f32::NAN, 5.0]).unwrap();
        [(&a, &a), (&a, &b), (&one, &one)].map(|(a, b)| ops::margin_of_mean(a, b).unwrap().to_f64().unwrap()).concat()
    };
    let (got, want) = (run(&devices[1]), run(&devices[0]));
    assert!(want[0] < 0.01 && want[2] < 1e-10 && want[3].is_infinite() && want[4].is_nan(), "{want:?}");
    assert_close("margins of sure rows", &got, &want, |w| 1e-5 * w.abs());
}

/// The loss while its weight rises, as it ends rising, afterwards, and where it never does.
fn risen_losses(devices: &[Device; 2]) {
    let run = |d: &Device, ramp: f32| {
        let clock = Clock::new(d).unwrap();
        clock.resume(25, 2, 0.1, [0, 5]).unwrap();
        let matrix = |v: &[f32]| Tensor::new(d, [6, 5], v).unwrap();
        let targets: Vec<f32> = noise(30, 31).iter().map(|v| 0.1 * (v + 2.0)).collect();
        let rise = Rise { most: 8.0, ramp, steps: 10 };
        let [_, rows] = ops::mixmatch_loss(&matrix(&noise(30, 30)), 0, &matrix(&targets), rise, &clock).unwrap();
        rows.to_f64().unwrap()
    };
    let all = [0.0, 1.0, 2.5, 4.0].map(|ramp| (run(&devices[1], ramp), run(&devices[0], ramp)));
    for (got, want) in &all {
        assert_close("losses of rows", got, want, |w| 1e-5 * w.abs());
    }
    assert!(all[0].1 == all[1].1 && all[1].1 == all[2].1 && all[2].1 != all[3].1);
}

/// A row of zeros among others, and a window that starts anywhere: the same on both devices.
fn rows_of_zeros(devices: &[Device; 2]) {
    let mut x = noise(5 * 33, 8);
    x[33..66].fill(0.0);
    let run = |d: &Device| {
        let x = Tensor::new(d, [5, 33], &x).unwrap().tracked();
        let cut = ops::slice_rows(&x, 1, 4).unwrap();
        [ops::normalize_rows(&cut).unwrap(), ops::row_norms(&cut).unwrap(), ops::sigmoid(&cut).unwrap()].map(|y| {
            let dy = Tensor::new(d, y.shape().clone(), &noise(y.len(), 9)).unwrap();
            let dx = y.grad_from(&dy, &[&x]).unwrap().of(&x).unwrap().to_f64().unwrap();
            (y.to_f64().unwrap(), dx)
        })
    };
    for ((y, dx), (want_y, want_dx)) in run(&devices[1]).iter().zip(&run(&devices[0])) {
        // Sums of 33 squares below 4.
        let tolerance = |_: f64| 4.0 * 35.0 * 2f64.powi(-24);
        assert_close("rows", y, want_y, tolerance);
        assert_close("gradients of rows", dx, want_dx, tolerance);
        assert!(dx[..33].iter().all(|v| *v == 0.0), "the row that was cut off has no gradient");
    }
}

/// Adam and the moving average; the count of steps and the rate are read on the device. Odd sizes and a start that is
/// not on 16 bytes: the average of a window.
fn moments(devices: &[Device; 2]) {
    let n = 1003;
    let run = |d: &Device| {
        let (clock, steps) = (Clock::new(d).unwrap(), Clock::new(d).unwrap());
        clock.start(90, 0, 0.05).unwrap();
        let noise = |lane| Buf::from_host(d, &noise(n, lane)).unwrap();
        let mut g = self::noise(n, 4);
        g[7] = f32::NAN; // stays one
        let (mut w, g) = (noise(2), Buf::from_host(d, &g).unwrap());
        let (mut m, mut v): (Buf<f32>, Buf<f32>) = (Buf::zeros(d, n).unwrap(), Buf::zeros(d, n).unwrap());
        for _ in 0..3 {
            let rule = AdamRule { decay: 0.01, ..AdamRule::default() };
            ops::adam_step(&mut w, &mut m, &mut v, &g, &clock, &steps, d, rule).unwrap();
            steps.advance(0).unwrap();
        }
        let whole = noise(3);
        let mut average = whole.window(1, n - 1).unwrap();
        drop(whole);
        ops::ema_step(&mut average, &w.window(1, n - 1).unwrap(), d, 0.9).unwrap();
        [w, m, v, average].map(|b| f64s(&b.to_host().unwrap()))
    };
    for ((got, want), what) in run(&devices[1]).iter().zip(&run(&devices[0])).zip(["w", "m", "v", "average"]) {
        // A dozen roundings a step of numbers up to 4.
        assert_close(what, got, want, |_| 36.0 * 4.0 * 2f64.powi(-24));
    }
}

/// Normal numbers of the device's own clock, equal to those of the host to about 1e-6: three functions, each good to two
/// units in the last place of a number below 6, which are 1.5e-6 at worst.
fn noise_of_a_step(devices: &[Device; 2]) {
    let run = |d: &Device| {
        let clock = Clock::new(d).unwrap();
        clock.start(6, 0, 0.1).unwrap();
        clock.advance(1).unwrap();
        let y = ops::normals(d, [3, 6667], Rng::new(8).at(Purpose::Vae, 3, 0).lane(2), &clock).unwrap();
        f64s(&y.to_vec::<f32>().unwrap())
    };
    let (got, want) = (run(&devices[1]), run(&devices[0]));
    assert_close("normals", &got, &want, |_| 1.5e-6);
    let mean = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).sum::<f64>() / got.len() as f64;
    assert!(mean < 1e-7, "normal numbers are off by {mean:e} on average");
}

/// Masks follow the device's own clock or the ids of examples, bit for bit, and dropping everything gives zeros.
fn training_masks(devices: &[Device; 2]) {
    let run = |d: &Device| {
        let clock = Rc::new(Clock::new(d).unwrap());
        clock.start(6, 0, 0.1).unwrap();
        clock.advance(1).unwrap();
        let x = Tensor::new(d, [2, 3, 3, 7], &noise(126, 5)).unwrap();
        let rng = Rng::new(8).at(Purpose::Dropout, 3, 0).lane(2);
        let order = Tensor::new(d, [4], &[9u32, 80_000, 5, 2]).unwrap();
        let rounded = ops::cast(&x, Dtype::Bf16).unwrap();
        [
            ops::dropout(&x, 0.3, rng, &clock),
            ops::dropout_channels(&x, 0.5, rng, &clock),
            ops::dropout(&x, 1.0, rng, &clock),
            ops::dropout_examples(&x, 0.3, rng, &order, &clock),
            ops::dropout_examples(&x.reshape([2, 63]).unwrap(), 0.5, rng, &order, &clock),
            ops::cast(&ops::dropout_examples(&rounded, 0.5, rng, &order, &clock).unwrap(), Dtype::F32),
        ]
        .map(|t| t.unwrap().to_vec::<f32>().unwrap())
    };
    assert_eq!(run(&devices[1]), run(&devices[0]));
}

/// Points between batches by the device's own clock; scores of widths beside a warp, at the floor and at a NaN.
fn critics(devices: &[Device; 2]) {
    for (n, c) in [(1, 1), (5, 31), (33, 10), (9, 70)] {
        let mut x: Vec<f32> = noise(n * c, 20).iter().map(|v| 3.0 * v).collect();
        if n > 5 {
            (x[c], x[2 * c]) = (-1e6, f32::NAN);
        }
        let run = |d: &Device| {
            let clock = Clock::new(d).unwrap();
            clock.start(6, 0, 0.1).unwrap();
            clock.advance(1).unwrap();
            let of = |lane| Tensor::new(d, [n, c], &noise(n * c, lane)).unwrap();
            let rng = Rng::new(8).at(Purpose::Critic, 3, 0).lane(5);
            let between = ops::between(&of(21), &of(22), rng, &clock).unwrap();
            let g = Tensor::new(d, [n, 1], &noise(n, 23)).unwrap();
            let scores = ops::uniform_scores(&Tensor::new(d, [n, c], &x).unwrap(), &g, 10.0).unwrap();
            [between, scores].map(|t| t.to_f64().unwrap())
        };
        let (got, want) = (run(&devices[1]), run(&devices[0]));
        // Three roundings of numbers up to 2; exp and log over sums of c terms, then sums of c logarithms.
        assert_close("between", &got[0], &want[0], |_| 6.0 * 2f64.powi(-24));
        assert_close("scores", &got[1], &want[1], |w| (c as f64 + 8.0) * 2f64.powi(-22) * w.abs().max(20.0));
        assert!(n <= 5 || want[1][2].is_nan());
    }
}
