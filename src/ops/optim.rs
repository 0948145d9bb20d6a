//! The optimizer's arithmetic: g ← clamp(g, ±c); v ← μ·v + (g + λ·w); w ← w − lr·v, one pass over the arena.

use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, launch};
use crate::simd;
use crate::tensor::{Buf, Elem};
use crate::{Error, Result};

/// One step over flat buffers of equal length: w and v in place; the learning rate is the clock's.
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
    let n = w.len();
    if v.len() != n || g.len() != n {
        let got = format!("{} and {}", v.len(), g.len());
        return Err(Error::Shape { op: "sgd_step", want: format!("{n} velocities and gradients"), got });
    }
    match device {
        Device::Cpu => {
            let lr = f32::from_bits(clock.host(Word::Rate)?);
            let (w, v) = (w.host_mut("sgd_step")?, v.host_mut("sgd_step")?);
            sgd(w, v, g.host("sgd_step")?, lr, momentum, decay, clamp);
            Ok(())
        }
        Device::Cuda(c) => {
            launch::sgd_step_f32(c, Launch::elements(n), w, v, g, &clock.words(), n as i32, momentum, decay, clamp)
        }
    }
}

simd! {
    fn sgd(w: &mut [f32], v: &mut [f32], g: &[f32], lr: f32, momentum: f32, decay: f32, clamp: f32) {
        let _ = FMA; // products and sums rounded one by one, as the formula is written
        for ((w, v), g) in w.iter_mut().zip(v).zip(g) {
            // Comparisons, not clamp(): a NaN must stay one.
            let mut d = *g;
            if d > clamp {
                d = clamp;
            }
            if d < -clamp {
                d = -clamp;
            }
            *v = momentum * *v + (d + decay * *w);
            *w -= lr * *v;
        }
    }
}

/// Copies `src` into `dst` from element `offset` on.
pub fn copy_into<T: Elem>(dst: &mut Buf<T>, offset: usize, src: &Buf<T>, device: &Device) -> Result<()> {
    let n = src.len();
    if offset + n > dst.len() {
        let want = format!("at most {} elements", dst.len());
        return Err(Error::Shape { op: "copy_into", want, got: format!("{offset} + {n}") });
    }
    match device {
        Device::Cpu => dst.host_mut("copy_into")?[offset..offset + n].copy_from_slice(src.host("copy_into")?),
        Device::Cuda(c) => {
            let size = size_of::<T>();
            c.copy(dst.ptr("copy_into")? + (offset * size) as u64, src.ptr("copy_into")?, n * size)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_formula() {
        let d = Device::Cpu;
        let clock = Clock::new(&d).unwrap();
        clock.start(0, 0, 0.1).unwrap();
        let mut w = Buf::from_host(&d, &[1.0f32, -2.0, 0.5]).unwrap();
        let mut v = Buf::zeros(&d, 3).unwrap();
        let g = Buf::from_host(&d, &[0.05f32, 7.0, f32::NAN]).unwrap();
        let (mut ew, mut ev) = ([1.0f32, -2.0], [0.0f32; 2]);
        for _ in 0..3 {
            sgd_step(&mut w, &mut v, &g, &clock, &d, 0.9, 5e-4, 0.1).unwrap();
            for i in 0..2 {
                ev[i] = 0.9 * ev[i] + ([0.05f32, 0.1][i] + 5e-4 * ew[i]);
                ew[i] -= 0.1 * ev[i];
            }
        }
        let (w, v) = (w.to_host().unwrap(), v.to_host().unwrap());
        assert_eq!((&w[..2], &v[..2]), (&ew[..], &ev[..]));
        assert!(w[2].is_nan(), "a NaN gradient is not clamped away");
    }
}
