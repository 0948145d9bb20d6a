//! Every case: forward and all gradients.

use dalcore::Result;
use dalcore::device::Device;
use dalcore::ops::{self, Case, Conv};
use dalcore::rng::Rng;
use dalcore::tensor::{Dtype, Tensor};

use crate::common::{Outcome, assert_close, assert_not_degenerate, cuda, f32_tolerance, outcome, scale};

fn run(case: &Case, device: &Device) -> Outcome {
    run_as(case, device, Dtype::F32)
}

fn run_as(case: &Case, device: &Device, dtype: Dtype) -> Outcome {
    let inputs = case.make(device, dtype).unwrap();
    outcome(case, &inputs).unwrap_or_else(|e| panic!("{} on {device:?}: {e}", case.name))
}

fn compare(case: &Case, got: &Outcome, want: &Outcome) {
    compare_rounded(case, got, want, 0.0);
}

/// `rounding`: how far apart, of their size, two values are that were rounded to neighbouring numbers.
fn compare_rounded(case: &Case, got: &Outcome, want: &Outcome, rounding: f64) {
    let close = |what: String, got: &[f64], want: &[f64]| {
        // The inputs are below 2 in size, so a sum's terms are within a few times its largest result.
        let tolerance = f32_tolerance(case.sum, scale(want));
        assert_close(&what, got, want, |w| tolerance + rounding * w.abs());
    };
    assert_not_degenerate(case.name, &want.out);
    close(format!("{} forward", case.name), &got.out, &want.out);
    for (i, (g, w)) in got.grads.iter().zip(&want.grads).enumerate() {
        match (g, w) {
            (Some(g), Some(w)) => close(format!("{} gradient of input {i}", case.name), g, w),
            (None, None) => {}
            _ => panic!("{}: only one device gives a gradient of input {i}", case.name),
        }
    }
}

pub fn small() {
    let natural: Vec<Outcome> = {
        let Some(s) = cuda(0) else { return };
        ops::cases().into_iter().map(|c| run(c, &s.device)).collect()
    };
    for (case, got) in ops::cases().into_iter().zip(&natural) {
        compare(case, got, &run(case, &Device::Cpu));
    }
    for schedule in 1..=3 {
        let Some(s) = cuda(schedule) else { return };
        for (case, want) in ops::cases().into_iter().zip(&natural) {
            let got = run(case, &s.device);
            assert_eq!(got.out, want.out, "{}: schedule {schedule} gives other bits", case.name);
            assert_eq!(got.grads, want.grads, "{}: schedule {schedule} gives other bits", case.name);
        }
    }
}

pub fn large() {
    let Some(s) = cuda(0) else { return };
    for case in ops::large_cases() {
        compare(case, &run(case, &s.device), &run(case, &Device::Cpu));
    }
}

/// Tensor cores, on the smallest tiles.
pub fn small_rounded() {
    rounded(ops::cases());
}

/// All widths of tiles.
pub fn large_rounded() {
    rounded(ops::large_cases());
}

/// In bf16: sums in f32 that differ by their order, then rounded to 8 bits, on both sides.
fn rounded(cases: Vec<&'static Case>) {
    let Some(s) = cuda(0) else { return };
    for case in cases.into_iter().filter(|c| c.in_bf16()) {
        let (got, want) = (run_as(case, &s.device, Dtype::Bf16), run_as(case, &Device::Cpu, Dtype::Bf16));
        compare_rounded(case, &got, &want, 2f64.powi(-7));
    }
}

/// Images and rows do not depend on their batch: some of 33, computed alone, are those of the whole, bit for bit.
pub fn batch_independence() {
    let Some(s) = cuda(0) else { return };
    for device in [&Device::Cpu, &s.device] {
        alone_as_in_a_batch(device);
    }
}

fn alone_as_in_a_batch(d: &Device) {
    const BATCH: usize = 33;
    let r = Rng::new(3);
    let fill = |n: usize, lane: u32| (0..n as u64).map(|e| r.lane(lane).uniform(e) - 0.5).collect::<Vec<f32>>();
    let same = |what: &str, x: &[f32], run: &dyn Fn(usize, &[f32]) -> Result<Tensor>| {
        let bits = |from: usize, to: usize| {
            let x = &x[from * x.len() / BATCH..to * x.len() / BATCH];
            let y = run(to - from, x).unwrap().to_vec::<f32>().unwrap();
            y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let whole = bits(0, BATCH);
        for (from, to) in [(0, 7), (13, 14), (20, BATCH)] {
            let want = &whole[from * whole.len() / BATCH..to * whole.len() / BATCH];
            assert!(bits(from, to) == want, "{what} on {d:?}: images {from} to {to} depend on their batch");
        }
    };

    let conv = Conv { stride: 1, pad: 1 };
    let w = Tensor::new(d, [20, 3, 3, 3], &fill(540, 1)).unwrap();
    same("conv2d", &fill(BATCH * 9 * 8 * 3, 2), &|n, x| ops::conv2d(&Tensor::new(d, [n, 9, 8, 3], x)?, &w, None, conv));
    // The CPU takes another way for images whose dy is mostly zeros; it chooses for each image, not for the batch.
    let mut dy = fill(BATCH * 9 * 8 * 20, 3);
    for (i, dy) in dy.chunks_exact_mut(9 * 8 * 20).enumerate().filter(|(i, _)| i % 3 > 0) {
        dy.iter_mut().enumerate().filter(|(e, _)| e % 4 > 0 || i % 3 == 2).for_each(|(_, v)| *v = 0.0);
    }
    same("conv2d_dgrad", &dy, &|n, dy| ops::conv2d_dgrad(&Tensor::new(d, [n, 9, 8, 20], dy)?, &w, [n, 9, 8, 3], conv));

    // The CPU's Winograd, whose blocks of tiles end within images.
    let w = Tensor::new(d, [16, 3, 3, 8], &fill(1152, 10)).unwrap();
    let x = fill(BATCH * 8 * 12 * 8, 11);
    same("conv2d", &x, &|n, x| ops::conv2d(&Tensor::new(d, [n, 8, 12, 8], x)?, &w, None, conv));
    let dy = fill(BATCH * 8 * 12 * 16, 12);
    same("conv2d_dgrad", &dy, &|n, dy| {
        ops::conv2d_dgrad(&Tensor::new(d, [n, 8, 12, 16], dy)?, &w, [n, 8, 12, 8], conv)
    });

    // Rows enough for several threads and several blocks.
    let rows = fill(BATCH * 24 * 72, 4);
    let nn = Tensor::new(d, [72, 11], &fill(792, 5)).unwrap();
    same("matmul_nn", &rows, &|n, a| ops::matmul_nn(&Tensor::new(d, [n * 24, 72], a)?, &nn));
    let nt = Tensor::new(d, [11, 72], &fill(792, 6)).unwrap();
    same("matmul_nt", &rows, &|n, a| ops::matmul_nt(&Tensor::new(d, [n * 24, 72], a)?, &nt));
    same("softmax", &rows, &|n, x| ops::softmax(&Tensor::new(d, [n * 24, 72], x)?));
    same("normalize_rows", &rows, &|n, x| ops::normalize_rows(&Tensor::new(d, [n * 24, 72], x)?));
    same("row_norms", &rows, &|n, x| ops::row_norms(&Tensor::new(d, [n * 24, 72], x)?));
    let centres = Tensor::new(d, [5, 72], &fill(360, 7)).unwrap();
    same("pairwise_sq", &rows, &|n, x| ops::pairwise_sq(&Tensor::new(d, [n * 24, 72], x)?, &centres));
    let w = Tensor::new(d, [20, 4, 4, 3], &fill(960, 8)).unwrap();
    let conv = Conv { stride: 2, pad: 1 };
    same("conv_transpose2d", &fill(BATCH * 12 * 20, 9), &|n, x| {
        ops::conv_transpose2d(&Tensor::new(d, [n, 4, 3, 20], x)?, &w, None, conv)
    });
}
