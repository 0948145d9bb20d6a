//! The optimizers' steps over the flat parameter arena, its moving average, and copies into it.
//!
//! SGD: g′ = clamp(g, ±κ); v ← μ v + (g′ + λ w); w ← w − η v.
//! Adam: g′ = g + λ w; m ← β₁ m + (1 − β₁) g′; v ← β₂ v + (1 − β₂) g′²; w ← w − η m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁ᵗ)
//! and v̂ = v / (1 − β₂ᵗ), t counting the optimizer's steps from 1. Average: a ← α a + (1 − α) w.
//! MixMatch takes SGD without the clamp, then the average, then w ← w (1 − δ η), δ being the decoupled decay.
//! The learning rate η and t are read from clocks, so that a captured step follows them. A NaN in g stays one.

use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, launch};
use crate::tensor::{Buf, Elem};
use crate::{Error, Result};

/// One step of SGD: w, v, g (n). `clamp` is infinite when off.
#[allow(clippy::too_many_arguments)]
pub fn sgd_step(
    w: &mut Buf<f32>,
    v: &mut Buf<f32>,
    g: &Buf<f32>,
    clock: &Clock,
    device: &Device,
    momentum: f32,
    decay: f32,
    clamp: f32,
) -> Result<()> {
    let (op, n) = ("sgd_step", w.len());
    if v.len() != n || g.len() != n {
        let got = format!("({}) and ({})", v.len(), g.len());
        return Err(Error::Shape { op, want: format!("velocities and gradients of ({n})"), got });
    }
    match device {
        Device::Cpu => {
            let rate = f32::from_bits(clock.host(Word::Rate)?);
            fast::step(w.host_mut(op)?, v.host_mut(op)?, g.host(op)?, rate, momentum, decay, clamp);
            Ok(())
        }
        Device::Cuda(cuda) => {
            let (l, words) = (Launch::elements(n), &clock.words());
            launch::sgd_step_f32(cuda, l, w, v, g, words, n as i32, momentum, decay, clamp)
        }
    }
}

/// What Adam does with a gradient, whatever the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamRule {
    /// β₁ and β₂, each in [0, 1).
    pub betas: [f64; 2],
    /// ε, outside of the root.
    pub eps: f32,
    /// λ, the coupled weight decay.
    pub decay: f32,
}

impl Default for AdamRule {
    /// As in PyTorch: β .9 and .999, ε 1e-8, no decay.
    fn default() -> AdamRule {
        AdamRule { betas: [0.9, 0.999], eps: 1e-8, decay: 0.0 }
    }
}

/// One step of Adam: w, m, v, g (n). The rate is that of `clock`; `steps` is the optimizer's own clock, whose step word
/// counts the steps before this one and which the caller advances afterwards.
#[allow(clippy::too_many_arguments)]
pub fn adam_step(
    w: &mut Buf<f32>,
    m: &mut Buf<f32>,
    v: &mut Buf<f32>,
    g: &Buf<f32>,
    clock: &Clock,
    steps: &Clock,
    device: &Device,
    rule: AdamRule,
) -> Result<()> {
    let (op, n) = ("adam_step", w.len());
    if [m.len(), v.len(), g.len()] != [n; 3] {
        let got = format!("({}), ({}) and ({})", m.len(), v.len(), g.len());
        return Err(Error::Shape { op, want: format!("moments and gradients of ({n})"), got });
    }
    if let Some(b) = rule.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
        return Err(Error::Config { key: op.into(), why: format!("a beta must be at least 0 and below 1, not {b}") });
    }
    match device {
        Device::Cpu => {
            let (rate, t) = (f64::from(f32::from_bits(clock.host(Word::Rate)?)), clock_step(steps)?);
            let [unbias1, unbias2] = rule.betas.map(|b| 1.0 / (1.0 - b.powf(t)));
            let rest = rule.betas.map(|b| (1.0 - b) as f32);
            let (rate, unbias) = ((rate * unbias1) as f32, unbias2.sqrt() as f32);
            let (w, m, v) = (w.host_mut(op)?, m.host_mut(op)?, v.host_mut(op)?);
            fast::adam(w, m, v, g.host(op)?, rate, unbias, rest, [rule.eps, rule.decay]);
            Ok(())
        }
        Device::Cuda(cuda) => {
            let (l, clock, steps) = (Launch::elements(n.div_ceil(4)), &clock.words(), &steps.words());
            let [rest1, rest2] = rule.betas.map(|b| (1.0 - b) as f32);
            launch::adam_step_f32(cuda, l, w, m, v, g, clock, steps, n as i32, rest1, rest2, rule.eps, rule.decay)
        }
    }
}

/// The number of this step, from 1.
fn clock_step(steps: &Clock) -> Result<f64> {
    Ok(f64::from(steps.host(Word::Step)?) + 1.0)
}

/// The moving average of weights: average ← α·average + (1 − α)·w, both (n), α = `decay` in [0, 1].
pub fn ema_step(average: &mut Buf<f32>, w: &Buf<f32>, device: &Device, decay: f64) -> Result<()> {
    let (op, n) = ("ema_step", w.len());
    if average.len() != n {
        return Err(Error::Shape { op, want: format!("an average of ({n})"), got: format!("({})", average.len()) });
    }
    if !(0.0..=1.0).contains(&decay) {
        return Err(Error::Config { key: op.into(), why: format!("the decay must be between 0 and 1, not {decay}") });
    }
    let rest = (1.0 - decay) as f32;
    match device {
        Device::Cpu => {
            fast::ema(average.host_mut(op)?, w.host(op)?, rest);
            Ok(())
        }
        Device::Cuda(cuda) => launch::ema_step_f32(cuda, Launch::elements(n.div_ceil(4)), average, w, n as i32, rest),
    }
}

/// What a step of MixMatch does with a gradient, whatever the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdEmaRule {
    /// μ
    pub momentum: f32,
    /// λ, the coupled weight decay.
    pub decay: f32,
    /// α, that of the average.
    pub ema: f64,
    /// δ, the decoupled decay.
    pub shrink: f32,
}

/// One step of SGD, then the average, then the decoupled decay of those weights whose `kernels` is not 0: w, v, average, g
/// and kernels (n), in one pass.
#[allow(clippy::too_many_arguments)]
pub fn sgd_ema_step(
    w: &mut Buf<f32>,
    v: &mut Buf<f32>,
    average: &mut Buf<f32>,
    g: &Buf<f32>,
    kernels: &Buf<u8>,
    clock: &Clock,
    device: &Device,
    rule: SgdEmaRule,
) -> Result<()> {
    let (op, n) = ("sgd_ema_step", w.len());
    if [v.len(), average.len(), g.len(), kernels.len()] != [n; 4] {
        let got = format!("({}), ({}), ({}) and ({})", v.len(), average.len(), g.len(), kernels.len());
        return Err(Error::Shape { op, want: format!("velocities, averages, gradients and marks of ({n})"), got });
    }
    let SgdEmaRule { momentum, decay, ema, shrink } = rule;
    let rest = (1.0 - ema) as f32;
    match device {
        Device::Cpu => {
            let rate = f32::from_bits(clock.host(Word::Rate)?);
            let (w, v, a) = (w.host_mut(op)?, v.host_mut(op)?, average.host_mut(op)?);
            fast::step_averaged(w, v, a, g.host(op)?, kernels.host(op)?, rate, [momentum, decay, rest, shrink]);
            Ok(())
        }
        Device::Cuda(cuda) => {
            let (l, words, n) = (Launch::elements(n.div_ceil(4)), &clock.words(), n as i32);
            launch::sgd_ema_step_f32(cuda, l, w, v, average, g, kernels, words, n, momentum, decay, rest, shrink)
        }
    }
}

/// w ← w (1 − δ η): the decoupled decay alone, of numbers that no gradient reaches.
pub fn shrink_step(w: &mut Buf<f32>, clock: &Clock, device: &Device, shrink: f32) -> Result<()> {
    let (op, n) = ("shrink_step", w.len());
    match device {
        Device::Cpu => {
            let kept = 1.0 - shrink * f32::from_bits(clock.host(Word::Rate)?);
            w.host_mut(op)?.iter_mut().for_each(|w| *w *= kept);
            Ok(())
        }
        Device::Cuda(cuda) => launch::shrink_f32(cuda, Launch::elements(n), w, &clock.words(), n as i32, shrink),
    }
}

/// dst[offset ..] = src, on the device: how gradients get into the arena.
pub fn copy_into<T: Elem>(dst: &mut Buf<T>, offset: usize, src: &Buf<T>, device: &Device) -> Result<()> {
    let op = "copy_into";
    let place = dst.window(offset, src.len())?;
    match device {
        Device::Cpu => {
            drop(place); // a second owner would make the write below a copy of the whole
            dst.host_mut(op)?[offset..offset + src.len()].copy_from_slice(src.host(op)?);
            Ok(())
        }
        Device::Cuda(cuda) => cuda.copy(place.ptr(op)?, src.ptr(op)?, size_of_val(&T::default()) * src.len()),
    }
}

mod fast {
    use rayon::prelude::*;

    /// Elements of one task.
    const TASK: usize = 1 << 15;

    /// w, v, g: (n)
    pub fn step(w: &mut [f32], v: &mut [f32], g: &[f32], rate: f32, momentum: f32, decay: f32, clamp: f32) {
        if w.len() <= TASK {
            return task(w, v, g, rate, momentum, decay, clamp);
        }
        let parts = w.par_chunks_mut(TASK).zip(v.par_chunks_mut(TASK)).zip(g.par_chunks(TASK));
        parts.for_each(|((w, v), g)| task(w, v, g, rate, momentum, decay, clamp));
    }

    crate::simd! {
        fn task(w: &mut [f32], v: &mut [f32], g: &[f32], rate: f32, momentum: f32, decay: f32, clamp: f32) {
            for ((w, v), g) in w.iter_mut().zip(v).zip(g) {
                // Comparisons and not min and max, which would turn a NaN into the clamp.
                let d = if *g > clamp { clamp } else { *g };
                let d = if d < -clamp { -clamp } else { d };
                *v = momentum * *v + (d + decay * *w);
                *w -= rate * *v;
            }
        }
    }

    /// w, m, v, g: (n). `unbias` is that of √v, `rate` holds that of m.
    #[allow(clippy::too_many_arguments)]
    pub fn adam(
        w: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        g: &[f32],
        rate: f32,
        unbias: f32,
        rest: [f32; 2],
        eps_decay: [f32; 2],
    ) {
        let weights = w.par_chunks_mut(TASK).zip(g.par_chunks(TASK));
        let moments = m.par_chunks_mut(TASK).zip(v.par_chunks_mut(TASK));
        weights.zip(moments).for_each(|((w, g), (m, v))| adam_task(w, m, v, g, rate, unbias, rest, eps_decay));
    }

    crate::simd! {
        fn adam_task(
            w: &mut [f32],
            m: &mut [f32],
            v: &mut [f32],
            g: &[f32],
            rate: f32,
            unbias: f32,
            rest: [f32; 2],
            eps_decay: [f32; 2]
        ) {
            for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
                let d = g + eps_decay[1] * *w;
                *m += rest[0] * (d - *m);
                *v += rest[1] * (d * d - *v);
                *w -= rate * *m / (v.sqrt() * unbias + eps_decay[0]);
            }
        }
    }

    /// w, v, average, g, kernels: (n). `rule`: momentum, decay, rest of the average, decoupled decay.
    pub fn step_averaged(
        w: &mut [f32],
        v: &mut [f32],
        average: &mut [f32],
        g: &[f32],
        kernels: &[u8],
        rate: f32,
        rule: [f32; 4],
    ) {
        let state = w.par_chunks_mut(TASK).zip(v.par_chunks_mut(TASK)).zip(average.par_chunks_mut(TASK));
        let given = g.par_chunks(TASK).zip(kernels.par_chunks(TASK));
        state.zip(given).for_each(|(((w, v), a), (g, k))| step_averaged_task(w, v, a, g, k, rate, rule));
    }

    crate::simd! {
        fn step_averaged_task(
            w: &mut [f32],
            v: &mut [f32],
            average: &mut [f32],
            g: &[f32],
            kernels: &[u8],
            rate: f32,
            rule: [f32; 4]
        ) {
            let [momentum, decay, rest, shrink] = rule;
            let kept = 1.0 - shrink * rate;
            for ((((w, v), a), g), k) in w.iter_mut().zip(v).zip(average).zip(g).zip(kernels) {
                *v = momentum * *v + (g + decay * *w);
                let moved = *w - rate * *v;
                *a += rest * (moved - *a);
                *w = moved * if *k == 0 { 1.0 } else { kept };
            }
        }
    }

    /// average, w: (n)
    pub fn ema(average: &mut [f32], w: &[f32], rest: f32) {
        average.par_chunks_mut(TASK).zip(w.par_chunks(TASK)).for_each(|(a, w)| ema_task(a, w, rest));
    }

    crate::simd! {
        fn ema_task(average: &mut [f32], w: &[f32], rest: f32) {
            for (a, w) in average.iter_mut().zip(w) {
                *a += rest * (w - *a);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Three steps on one weight, as torch.optim.SGD(lr=.1, momentum=.9, weight_decay=.01) takes them after
    /// clip_grad_value_(.5): v1 = g1 + λ w0; w1 = w0 − η v1; v2 = μ v1 + g2 + λ w1; …
    #[test]
    fn steps_are_those_of_pytorch() {
        let clock = Clock::new(&Device::Cpu).unwrap();
        clock.start(0, 0, 0.1).unwrap();
        let mut w = Buf::from_host(&Device::Cpu, &[1.0f32, -2.0]).unwrap();
        let mut v = Buf::zeros(&Device::Cpu, 2).unwrap();
        for g in [[0.2f32, 3.0], [-0.7, 0.1], [0.0, f32::NEG_INFINITY]] {
            let g = Buf::from_host(&Device::Cpu, &g).unwrap();
            sgd_step(&mut w, &mut v, &g, &clock, &Device::Cpu, 0.9, 0.01, 0.5).unwrap();
        }
        let (w, v) = (w.to_host().unwrap(), v.to_host().unwrap());
        for (got, want) in w.iter().chain(&v).zip(TORCH) {
            assert!((got - want).abs() < 1e-6, "{w:?} {v:?}");
        }
    }

    /// w, then the momentum buffers, printed by PyTorch.
    const TORCH: [f32; 4] = [1.035_220_7, -2.093_089_8, -0.260_997_77, -0.060_623_556];

    #[test]
    fn large_arenas_hard_gradients_and_sizes() {
        let n = 100_001;
        let r = Rng::new(4);
        let host: Vec<f32> = (0..n as u64).map(|e| 4.0 * r.uniform(e) - 2.0).collect();
        let clock = Clock::new(&Device::Cpu).unwrap();
        clock.start(0, 0, 0.05).unwrap();
        let (mut w, mut v) =
            (Buf::from_host(&Device::Cpu, &host).unwrap(), Buf::from_host(&Device::Cpu, &host).unwrap());
        let mut g = host.clone();
        g[7] = f32::NAN;
        let gb = Buf::from_host(&Device::Cpu, &g).unwrap();
        sgd_step(&mut w, &mut v, &gb, &clock, &Device::Cpu, 0.9, 0.1, f32::INFINITY).unwrap();
        let (w, v) = (w.to_host().unwrap(), v.to_host().unwrap());
        for i in 0..n {
            let step = 0.9 * host[i] + (g[i] + 0.1 * host[i]);
            let want = (host[i] - 0.05 * step, step);
            assert!((w[i], v[i]) == want || (i == 7 && w[i].is_nan() && v[i].is_nan()), "{i}");
        }
        let mut short = Buf::zeros(&Device::Cpu, 3).unwrap();
        let mut w = Buf::zeros(&Device::Cpu, 4).unwrap();
        assert!(sgd_step(&mut w, &mut short, &gb, &clock, &Device::Cpu, 0.9, 0.1, 1.0).is_err());
    }

    /// From any start and for any gradient: the first step is η·sign(g) where ε does not matter.
    #[test]
    fn adam_starts_with_full_steps_and_refuses_what_cannot_be() {
        let (d, n) = (Device::Cpu, 100_003);
        let (clock, steps) = (Clock::new(&d).unwrap(), Clock::new(&d).unwrap());
        clock.start(7, 0, 0.25).unwrap();
        let r = Rng::new(5);
        let mut g: Vec<f32> = (0..n as u64).map(|e| 4.0 * r.uniform(e) - 2.0).collect();
        (g[0], g[n - 1]) = (0.0, f32::NAN);
        let zeros = |n| Buf::zeros(&d, n).unwrap();
        let (mut w, mut m, mut v) = (zeros(n), zeros(n), zeros(n));
        let gb = Buf::from_host(&d, &g).unwrap();
        adam_step(&mut w, &mut m, &mut v, &gb, &clock, &steps, &d, AdamRule::default()).unwrap();
        let w = w.to_host().unwrap();
        assert!(w[0] == 0.0 && w[n - 1].is_nan());
        for i in 1..n - 1 {
            let want = -0.25 * g[i] / (g[i].abs() + 1e-8);
            assert!((w[i] - want).abs() < 1e-6, "{i}: {} for {}", w[i], g[i]);
        }
        let (mut w, mut short) = (zeros(n), zeros(3));
        assert!(adam_step(&mut w, &mut short, &mut v, &gb, &clock, &steps, &d, AdamRule::default()).is_err());
        let rule = AdamRule { betas: [0.9, 1.0], ..AdamRule::default() };
        assert!(adam_step(&mut w, &mut m, &mut v, &gb, &clock, &steps, &d, rule).is_err());
    }

    #[test]
    fn averages_forget_at_their_rate() {
        let d = Device::Cpu;
        let mut a = Buf::from_host(&d, &[1.0f32, -2.0, 8.0]).unwrap();
        let w = Buf::from_host(&d, &[1.0f32, 2.0, f32::NAN]).unwrap();
        ema_step(&mut a, &w, &d, 0.75).unwrap();
        let got = a.to_host().unwrap();
        assert!(got[..2] == [1.0, -1.0] && got[2].is_nan(), "{got:?}");
        assert!(ema_step(&mut a, &w, &d, 1.5).is_err());
        assert!(ema_step(&mut a, &Buf::zeros(&d, 2).unwrap(), &d, 0.5).is_err());
    }

    /// Two steps by hand; the average follows the weights before they shrink, and only kernels shrink.
    #[test]
    fn steps_with_an_average() {
        let d = Device::Cpu;
        let clock = Clock::new(&d).unwrap();
        clock.start(0, 0, 0.5).unwrap();
        let buf = |v: &[f32]| Buf::from_host(&d, v).unwrap();
        let (mut w, mut v, mut a) = (buf(&[1.0, 1.0]), buf(&[0.0; 2]), buf(&[2.0, 2.0]));
        let (g, kernels) = (buf(&[0.25, 0.25]), Buf::from_host(&d, &[0u8, 1]).unwrap());
        let rule = SgdEmaRule { momentum: 0.5, decay: 0.25, ema: 0.75, shrink: 0.5 };
        // v = .25 + .25 = .5; moved = .75; a = 2 + .25 (.75 - 2) = 1.6875; w = .75 and .75 * .75
        sgd_ema_step(&mut w, &mut v, &mut a, &g, &kernels, &clock, &d, rule).unwrap();
        assert_eq!(w.to_host().unwrap(), [0.75, 0.5625]);
        assert_eq!((v.to_host().unwrap(), a.to_host().unwrap()), (vec![0.5; 2], vec![1.6875; 2]));
        // v = .25 + (.25 + .25 w) = .6875, .640625; moved = .40625, .2421875
        sgd_ema_step(&mut w, &mut v, &mut a, &g, &kernels, &clock, &d, rule).unwrap();
        assert_eq!(v.to_host().unwrap(), [0.6875, 0.640_625]);
        assert_eq!(w.to_host().unwrap(), [0.406_25, 0.242_187_5 * 0.75]);
        assert_eq!(a.to_host().unwrap(), [1.6875 + 0.25 * (0.406_25 - 1.6875), 1.6875 + 0.25 * (0.242_187_5 - 1.6875)]);
        shrink_step(&mut v, &clock, &d, 0.5).unwrap();
        assert_eq!(v.to_host().unwrap(), [0.75 * 0.6875, 0.75 * 0.640_625]);
        let short = Buf::from_host(&d, &[0u8]).unwrap();
        assert!(sgd_ema_step(&mut w, &mut v, &mut a, &g, &short, &clock, &d, rule).is_err());
    }

    #[test]
    fn copies_stay_inside() {
        let mut dst = Buf::from_host(&Device::Cpu, &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let src = Buf::from_host(&Device::Cpu, &[8.0f32, 9.0]).unwrap();
        copy_into(&mut dst, 1, &src, &Device::Cpu).unwrap();
        assert_eq!(dst.to_host().unwrap(), [1.0, 8.0, 9.0, 4.0]);
        assert!(copy_into(&mut dst, 3, &src, &Device::Cpu).is_err());
    }
}
