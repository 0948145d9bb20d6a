//! The optimizer's step over the flat parameter arena, and copies into it.
//!
//! g′ = clamp(g, ±κ); v ← μ v + (g′ + λ w); w ← w − η v. The learning rate η is read from the clock, so that a captured
//! step follows its schedule. A NaN in g stays one.

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

    #[test]
    fn copies_stay_inside() {
        let mut dst = Buf::from_host(&Device::Cpu, &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let src = Buf::from_host(&Device::Cpu, &[8.0f32, 9.0]).unwrap();
        copy_into(&mut dst, 1, &src, &Device::Cpu).unwrap();
        assert_eq!(dst.to_host().unwrap(), [1.0, 8.0, 9.0, 4.0]);
        assert!(copy_into(&mut dst, 3, &src, &Device::Cpu).is_err());
    }
}
