//! The optimizers, each one fused kernel over the parameter arena: SGD with momentum, coupled weight decay and
//! element-wise gradient clamp; Adam; and the step schedule of the learning rate.

use crate::autograd::Grads;
use crate::clock::Clock;
use crate::nn::{Params, Slot};
use crate::ops::{AdamRule, SgdEmaRule};
use crate::tensor::Buf;
use crate::{Result, ops};

/// g ← clamp(g, ±c);  v ← μ·v + (g + λ·w);  w ← w − lr·v, with v = 0 before the first step.
pub struct Sgd {
    /// μ
    momentum: f32,
    /// λ
    decay: f32,
    /// c; infinite when off.
    clamp: f32,
    velocity: Buf<f32>,
    grads: Buf<f32>,
}

impl Sgd {
    /// For one set of parameters. `clamp` of none leaves gradients as they are.
    pub fn new(params: &Params, momentum: f32, decay: f32, clamp: Option<f32>) -> Result<Sgd> {
        let (device, n) = (params.device(), params.arena_len());
        let (velocity, grads) = (Buf::zeros(device, n)?, Buf::zeros(device, n)?);
        Ok(Sgd { momentum, decay, clamp: clamp.unwrap_or(f32::INFINITY), velocity, grads })
    }

    /// One step with the learning rate of `clock`. A parameter that was not used keeps a gradient of zero.
    pub fn step(&mut self, params: &mut Params, grads: &Grads, clock: &Clock) -> Result<()> {
        let device = params.device().clone();
        gather(&mut self.grads, params, grads)?;
        let (v, g) = (&mut self.velocity, &self.grads);
        ops::sgd_step(params.arena_mut(), v, g, clock, &device, self.momentum, self.decay, self.clamp)?;
        params.round()
    }
}

/// SGD of a student whose weights another set follows as a moving average, with the decoupled decay of MixMatch.
pub struct SgdEma {
    rule: SgdEmaRule,
    /// Marks what the decoupled decay reaches.
    kernels: Buf<u8>,
    /// It reaches everything, the running statistics too.
    everything: bool,
    velocity: Buf<f32>,
    grads: Buf<f32>,
}

impl SgdEma {
    /// For one set of parameters. The decoupled decay reaches filters and linear weights, or `everything`.
    pub fn new(params: &Params, rule: SgdEmaRule, everything: bool) -> Result<SgdEma> {
        let (device, n) = (params.device(), params.arena_len());
        let marks = if everything { vec![1; n] } else { params.kernel_marks() };
        let (velocity, grads) = (Buf::zeros(device, n)?, Buf::zeros(device, n)?);
        Ok(SgdEma { rule, kernels: Buf::from_host(device, &marks)?, everything, velocity, grads })
    }

    /// One step with the learning rate of `clock`, after the running statistics have absorbed those of the step.
    pub fn step(&mut self, params: &mut Params, average: &mut Params, grads: &Grads, clock: &Clock) -> Result<()> {
        let device = params.device().clone();
        gather(&mut self.grads, params, grads)?;
        let (v, a, g) = (&mut self.velocity, average.arena_mut(), &self.grads);
        ops::sgd_ema_step(params.arena_mut(), v, a, g, &self.kernels, clock, &device, self.rule)?;
        if params.normalises() {
            ops::ema_step(average.running_mut(), params.running_mut(), &device, self.rule.ema)?;
            if self.everything {
                ops::shrink_step(params.running_mut(), clock, &device, self.rule.shrink)?;
            }
        }
        average.round()?;
        params.round()
    }
}

/// As torch.optim.Adam: m and v, the moving averages of g and g², start from zero and are corrected for that.
pub struct Adam {
    rule: AdamRule,
    moments: [Buf<f32>; 2],
    grads: Buf<f32>,
    /// Counts this optimizer's own steps, on the device: a training step may take several of them, or none.
    steps: Clock,
}

impl Adam {
    /// For one set of parameters.
    pub fn new(params: &Params, rule: AdamRule) -> Result<Adam> {
        let (device, n) = (params.device(), params.arena_len());
        let zeros = || Buf::zeros(device, n);
        Ok(Adam { rule, moments: [zeros()?, zeros()?], grads: zeros()?, steps: Clock::new(device)? })
    }

    /// One step with the learning rate of `clock`. A parameter that was not used keeps a gradient of zero.
    pub fn step(&mut self, params: &mut Params, grads: &Grads, clock: &Clock) -> Result<()> {
        let device = params.device().clone();
        gather(&mut self.grads, params, grads)?;
        let [m, v] = &mut self.moments;
        ops::adam_step(params.arena_mut(), m, v, &self.grads, clock, &self.steps, &device, self.rule)?;
        params.round()?;
        self.steps.advance(0)
    }
}

/// Copies gradients to where their parameters are in the arena.
fn gather(arena: &mut Buf<f32>, params: &Params, grads: &Grads) -> Result<()> {
    grads.params().try_for_each(|(i, g)| ops::copy_into(arena, params.offset(i), g.buf("optimizer")?, params.device()))
}

/// An optimizer that remembers a velocity for every parameter: what a resumed training goes on with.
pub trait Momentum {
    /// The velocity of every parameter, on the host. Waits for the device.
    fn velocity(&self, params: &Params) -> Result<Vec<(Slot, Vec<f32>)>>;

    /// Goes on with the velocities of an earlier run: `value` gives those of a parameter.
    fn load(&mut self, params: &Params, value: &mut dyn FnMut(&Slot) -> Result<Vec<f32>>) -> Result<()>;
}

macro_rules! momentum {
    ($($optimizer:ty),*) => {$(
        impl Momentum for $optimizer {
            fn velocity(&self, params: &Params) -> Result<Vec<(Slot, Vec<f32>)>> {
                params.split(&self.velocity)
            }

            fn load(&mut self, params: &Params, value: &mut dyn FnMut(&Slot) -> Result<Vec<f32>>) -> Result<()> {
                params.join(&mut self.velocity, value)
            }
        }
    )*};
}

momentum!(Sgd, SgdEma);

/// The learning rate of an epoch (0-based): `base`, divided by ten at every milestone reached.
pub fn rate_at(base: f64, milestones: &[u32], epoch: u32) -> f32 {
    let drops = milestones.iter().filter(|m| epoch >= **m).count();
    (base * 0.1f64.powi(drops as i32)) as f32
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use half::bf16;

    use super::*;
    use crate::device::Device;
    use crate::nn::{Ctx, Layout, Mode, Precision};
    use crate::rng::{Purpose, Rng};

    #[test]
    fn rates_drop_at_the_milestones() {
        let at = |e| rate_at(0.1, &[20, 40], e);
        assert_eq!([at(0), at(19), at(20), at(39), at(40), at(49)], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]);
    }

    /// In bf16 the products of the next step read the weights as this step left them, rounded.
    #[test]
    fn steps_reach_the_rounded_weights() {
        let (device, rng) = (Device::Cpu, Rng::new(2).at(Purpose::Init, 0, 0));
        let clock = Rc::new(Clock::new(&device).unwrap());
        clock.start(0, 0, 0.1).unwrap();
        for by in ["sgd", "adam", "sgd with an average"] {
            let fresh = || {
                let mut layout = Layout::default();
                let w = layout.add("w", [3, 8], 8);
                let mut params = layout.init(&device, rng).unwrap();
                params.set_precision(Precision::Bf16).unwrap();
                (w, params)
            };
            let ((w, mut params), (_, mut average)) = (fresh(), fresh());
            let read = |params: &Params| {
                let cx = Ctx::new(Mode::Train, rng, &clock, params);
                let rounded = cx.weight(w).unwrap().to_vec::<bf16>().unwrap();
                (rounded, params.tensor(w).unwrap().to_vec::<f32>().unwrap())
            };
            let before = read(&params);
            let t = params.tensor(w).unwrap();
            let grads = ops::sum_all(&ops::mul(&t, &t).unwrap()).unwrap().backward(&params).unwrap();
            drop(t);
            match by {
                "sgd" => Sgd::new(&params, 0.9, 0.0, None).unwrap().step(&mut params, &grads, &clock).unwrap(),
                "adam" => Adam::new(&params, AdamRule::default()).unwrap().step(&mut params, &grads, &clock).unwrap(),
                _ => {
                    let rule = SgdEmaRule { momentum: 0.9, decay: 0.0, ema: 0.5, shrink: 0.0 };
                    let mut sgd = SgdEma::new(&params, rule, false).unwrap();
                    sgd.step(&mut params, &mut average, &grads, &clock).unwrap();
                }
            }
            let all = if by.ends_with("average") { vec![&params, &average] } else { vec![&params] };
            for (rounded, exact) in all.into_iter().map(read) {
                assert!(exact.iter().zip(&before.1).all(|(a, b)| a != b), "the step moved every weight");
                assert_eq!(rounded, exact.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>(), "{by}");
            }
        }
    }
}
