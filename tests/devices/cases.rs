//! Every case: forward and all gradients.

use dalcore::device::Device;
use dalcore::ops::{self, Case, Conv};
use dalcore::rng::Rng;
use dalcore::tensor::{Dtype, Tensor};

use crate::common::{Outcome, assert_close, assert_not_degenerate, cuda, f32_tolerance, outcome, scale};

fn run(case: &Case, device: &Device) -> Outcome {
    let inputs = case.make(device, Dtype::F32).unwrap();
    outcome(case, &inputs).unwrap_or_else(|e| panic!("{} on {device:?}: {e}", case.name))
}

fn compare(case: &Case, got: &Outcome, want: &Outcome) {
    let close = |what: String, got: &[f64], want: &[f64]| {
        // The inputs are below 2 in size, so a sum's terms are within a few times its largest result.
        let tolerance = f32_tolerance(case.sum, scale(want));
        assert_close(&what, got, want, |_| tolerance);
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
    for schedule in 1..3 {
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

/// The first rows of a batch of 33 are those of a batch of 7, bit for bit.
pub fn batch_independence() {
    let Some(s) = cuda(0) else { return };
    let r = Rng::new(3);
    let fill = |n: usize, lane: u32| (0..n as u64).map(|e| r.lane(lane).uniform(e) - 0.5).collect::<Vec<f32>>();
    let x = fill(33 * 9 * 8 * 3, 1);
    let w = Tensor::new(&s.device, [20, 3, 3, 3], &fill(540, 2)).unwrap();
    let l = Tensor::new(&s.device, [11, 72], &fill(792, 3)).unwrap();
    let both = |n: usize| {
        let conv = ops::conv2d(
            &Tensor::new(&s.device, [n, 9, 8, 3], &x[..n * 216]).unwrap(),
            &w,
            None,
            Conv { stride: 1, pad: 1 },
        );
        let lin = ops::linear(&Tensor::new(&s.device, [n, 72], &x[..n * 72]).unwrap(), &l, None);
        let soft = ops::softmax(&lin.as_ref().unwrap().clone());
        [conv, lin, soft].map(|t| t.unwrap().to_vec::<f32>().unwrap())
    };
    for (few, many) in both(7).iter().zip(both(33)) {
        assert_eq!(few[..], many[..few.len()]);
    }
}
