//! Dropout: y = x ⊙ k / (1 − p), k_e = 1 where random word e of the stream is at least the threshold of p, else 0.
//!
//! Backward: dx = dy ⊙ k / (1 − p) with the same mask, which is computed again and never stored. Element e is the
//! flat index, or n·C + c where a whole channel is dropped, x being (N, H, W, C). The stream is `rng` at the step of
//! the clock; p = 0 changes nothing, p = 1 gives zeros.

use std::rc::Rc;

use super::rows::batch;
use super::{Arg, Case, rounded};
use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, launch};
use crate::rng::{Purpose, Rng, threshold};
use crate::tensor::{Dtype, Real, Tensor};
use crate::{Error, Result, on_real, on_stored};

/// Drops every element with probability `p`. The backward pass must run before the clock moves on.
pub fn dropout(x: &Tensor, p: f32, rng: Rng, clock: &Rc<Clock>) -> Result<Tensor> {
    apply("dropout", x, p, Unit::Element, rng, clock)
}

/// Drops every channel of every image of x (N, H, W, C) with probability `p`. The backward pass must run before the
/// clock moves on.
pub fn dropout_channels(x: &Tensor, p: f32, rng: Rng, clock: &Rc<Clock>) -> Result<Tensor> {
    let [_, h, w, c] = x.shape().nhwc("dropout_channels")?;
    apply("dropout_channels", x, p, Unit::Channel { area: h * w, c }, rng, clock)
}

/// Drops every channel (the last axis) of every example of x (n, …, C) with probability `p`. Example i of the batch is
/// `order[offset + i]` (u32), the offset being that of the clock; channel c of example id has word id·C + c of `rng` at
/// step 0: what an example loses depends neither on its batch nor on what else is in the pass. A place beyond the order
/// is an error on the CPU and NaN on a device. Not differentiable.
pub fn dropout_examples(x: &Tensor, p: f32, rng: Rng, order: &Tensor, clock: &Clock) -> Result<Tensor> {
    let op = "dropout_examples";
    let (Some(&n), Some(&c), true) = (x.dims().first(), x.dims().last(), x.dims().len() > 1) else {
        return Err(x.shape().refuse(op, "(n, …, C)"));
    };
    if !(0.0..1.0).contains(&p) {
        let why = format!("the drop probability must be at least 0 and below 1, not {p}");
        return Err(Error::Config { key: op.into(), why });
    }
    if x.is_rounded() {
        return rounded([x], |[x]| dropout_examples(x, p, rng, order, clock));
    }
    let (mut y, total) = (x.like()?, x.len());
    let (limit, scale, area) = (threshold(p), 1.0 / (1.0 - p), total / (n * c).max(1));
    match x.device() {
        Device::Cpu => {
            let (ids, rng) = (batch(op, order.host(op)?, clock, n)?, rng.with_b(0));
            fast::examples(y.host_mut(op)?, x.host(op)?, ids, c, limit, scale, rng);
        }
        Device::Cuda(cuda) => on_stored!(op, x, S => {
            let (l, y, x, words) = (Launch::elements(total), y.buf_mut::<S>(op)?, x.buf(op)?, &clock.words());
            let (order, [lo, hi, s, a]) = (order.buf(op)?, rng.words());
            let [total, area, c, len] = [total, area, c, order.len()].map(|v| v as i32);
            launch::dropout_examples_fwd(
                cuda, l, y, x, order, words, total, area, c, len, scale, limit, lo, hi, s, a,
            )
        })?,
    }
    Ok(y)
}

/// What one draw decides about.
#[derive(Clone, Copy)]
enum Unit {
    Element,
    /// A channel of an image of `area` pixels with `c` channels.
    Channel {
        area: usize,
        c: usize,
    },
}

fn apply(op: &'static str, x: &Tensor, p: f32, unit: Unit, rng: Rng, clock: &Rc<Clock>) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&p) {
        let why = format!("the drop probability must be between 0 and 1, not {p}");
        return Err(Error::Config { key: op.into(), why });
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    if p == 1.0 {
        let y = Tensor::zeros(x.device(), x.shape().clone(), x.dtype())?;
        return Ok(y.with_grad(op, &[x], |dy, need| {
            Ok(vec![need.then(0, || Tensor::zeros(dy.device(), dy.shape().clone(), dy.dtype()))?])
        }));
    }
    if x.is_rounded() {
        return rounded([x], |[x]| apply(op, x, p, unit, rng, clock));
    }
    // A kernel reads the step when it runs; the host's clock may have moved on by the time of the backward pass.
    let rng = if x.device().is_cpu() { rng.with_b(clock.host(Word::Step)?) } else { rng };
    let y = masked(op, x, p, unit, rng, clock)?;
    let clock = clock.clone();
    Ok(y.with_grad(op, &[x], move |dy, need| Ok(vec![need.then(0, || masked(op, dy, p, unit, rng, &clock))?])))
}

fn masked(op: &'static str, x: &Tensor, p: f32, unit: Unit, rng: Rng, clock: &Clock) -> Result<Tensor> {
    let (mut y, n) = (x.like()?, x.len());
    let (limit, scale) = (threshold(p), 1.0 / (1.0 - p));
    match x.device() {
        Device::Cpu => match (unit, x.dtype()) {
            (Unit::Element, _) => on_real!(op, x, T => {
                cpu::elements(y.host_mut::<T>(op)?, x.host::<T>(op)?, limit, scale, rng);
                Ok(())
            })?,
            (Unit::Channel { area, c }, Dtype::F32) => {
                fast::channels(y.host_mut(op)?, x.host(op)?, [area, c], limit, scale, rng);
            }
            (Unit::Channel { area, c }, _) => on_real!(op, x, T => {
                cpu::channels(y.host_mut::<T>(op)?, x.host::<T>(op)?, [area, c], limit, scale, rng);
                Ok(())
            })?,
        },
        Device::Cuda(cuda) => on_stored!(op, x, S => {
            let (y, x, words, [lo, hi, s, a]) = (y.buf_mut::<S>(op)?, x.buf(op)?, &clock.words(), rng.words());
            match unit {
                Unit::Element => {
                    let l = Launch::elements(n.div_ceil(4));
                    launch::dropout_fwd(cuda, l, y, x, words, n as i32, scale, limit, lo, hi, s, a)
                }
                Unit::Channel { area, c } => {
                    let (l, area, c) = (Launch::elements(n), area as i32, c as i32);
                    launch::dropout_channels_fwd(cuda, l, y, x, words, n as i32, area, c, scale, limit, lo, hi, s, a)
                }
            }
        })?,
    }
    Ok(y)
}

mod cpu {
    use super::{Real, Rng};
    use crate::device::cpu as threads;

    /// y[e] = x[e] · scale where word e is at least `limit`, else 0.
    pub fn elements<T: Real>(y: &mut [T], x: &[T], limit: u32, scale: f32, rng: Rng) {
        // Whole Philox blocks of four to a task.
        threads::chunks(y, 4, |at, y| {
            for (b, (y, x)) in y.chunks_mut(4).zip(x[at..].chunks(4)).enumerate() {
                let words = rng.block((at / 4 + b) as u32);
                for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                    // Rounded once, as the device rounds it.
                    *y = if word >= limit { T::of(x.f64() * f64::from(scale)) } else { T::default() };
                }
            }
        });
    }

    /// The same with word n·C + c for all of a channel.   y, x: (N, area, C)
    pub fn channels<T: Real>(y: &mut [T], x: &[T], [area, c]: [usize; 2], limit: u32, scale: f32, rng: Rng) {
        images(y, x, [area, c], limit, rng, |y, x, keep| {
            for ((y, x), keep) in y.iter_mut().zip(x).zip(keep.iter().cycle()) {
                *y = if *keep { T::of(x.f64() * f64::from(scale)) } else { T::default() };
            }
        });
    }

    /// `f(image of y, image of x, which of its C channels to keep)` for every image.
    pub fn images<T: Real>(
        y: &mut [T],
        x: &[T],
        [area, c]: [usize; 2],
        limit: u32,
        rng: Rng,
        f: impl Fn(&mut [T], &[T], &[bool]) + Sync,
    ) {
        let image = (area * c).max(1);
        threads::chunks(y, image, |at, y| {
            let mut keep = vec![false; c];
            for (n, (y, x)) in (at / image..).zip(y.chunks_exact_mut(image).zip(x[at..].chunks_exact(image))) {
                draw(&mut keep, (n * c) as u64, limit, rng);
                f(y, x, &keep);
            }
        });
    }

    /// keep[i] = word (first + i) is at least `limit`; each Philox block is computed once.
    pub fn draw(keep: &mut [bool], first: u64, limit: u32, rng: Rng) {
        let mut words = rng.block((first / 4) as u32);
        for (e, keep) in (first..).zip(keep) {
            if e % 4 == 0 {
                words = rng.block((e / 4) as u32);
            }
            *keep = words[(e % 4) as usize] >= limit;
        }
    }
}

mod fast {
    use super::{Rng, cpu};
    use crate::device::cpu as threads;

    /// Factors side by side: enough for any vector's width.
    const WIDE: usize = 256;

    /// As `cpu::channels`, without a branch, several pixels at a time.
    pub fn channels(y: &mut [f32], x: &[f32], [area, c]: [usize; 2], limit: u32, scale: f32, rng: Rng) {
        let wide = (WIDE / c.max(1)).max(1) * c;
        cpu::images(y, x, [area, c], limit, rng, |y, x, keep| {
            let mut factors = [0.0f32; WIDE];
            if wide > WIDE {
                let factors: Vec<f32> = keep.iter().map(|k| if *k { scale } else { 0.0 }).collect();
                return image(y, x, &factors);
            }
            for (f, k) in factors[..wide].iter_mut().zip(keep.iter().cycle()) {
                *f = if *k { scale } else { 0.0 };
            }
            image(y, x, &factors[..wide]);
        });
    }

    /// As `channels` with word ids[n]·C + c for all of a channel.   y, x: (N, area, C), ids: (N)
    pub fn examples(y: &mut [f32], x: &[f32], ids: &[u32], c: usize, limit: u32, scale: f32, rng: Rng) {
        let example = (y.len() / ids.len().max(1)).max(1);
        threads::chunks(y, example, |at, y| {
            let (mut keep, mut factors) = (vec![false; c], vec![0.0f32; c]);
            for ((y, x), id) in y.chunks_exact_mut(example).zip(x[at..].chunks_exact(example)).zip(&ids[at / example..])
            {
                cpu::draw(&mut keep, u64::from(*id) * c as u64, limit, rng);
                factors.iter_mut().zip(&keep).for_each(|(f, k)| *f = if *k { scale } else { 0.0 });
                image(y, x, &factors);
            }
        });
    }

    crate::simd! {
        /// y = x · factor, but 0 where the factor is, also for a NaN.   y, x: (area, C), factors: whole pixels
        fn image(y: &mut [f32], x: &[f32], factors: &[f32]) {
            for (y, x) in y.chunks_mut(factors.len()).zip(x.chunks(factors.len())) {
                for ((y, x), f) in y.iter_mut().zip(x).zip(factors) {
                    *y = if *f != 0.0 { x * f } else { 0.0 };
                }
            }
        }
    }
}

fn stream() -> Rng {
    Rng::new(11).at(Purpose::Dropout, 2, 0).lane(1)
}

fn on_a_clock(x: &Tensor, f: impl Fn(&Rc<Clock>) -> Result<Tensor>) -> Result<Tensor> {
    let clock = Rc::new(Clock::new(x.device())?);
    clock.start(7, 1, 0.1)?;
    f(&clock)
}

macro_rules! case {
    ($name:literal, [$($d:literal),*], $f:ident, $p:literal) => {
        Case {
            name: $name,
            inputs: &[Arg::Diff(&[$($d),*], -2.0, 2.0)],
            run: |x| on_a_clock(&x[0], |clock| $f(&x[0], $p, stream(), clock)),
            sum: 1,
            flops: 1 $(* $d)*,
            bytes: 8 $(* $d)*,
        }
    };
}

/// Shapes every suite runs these operations on.
pub(super) const CASES: &[Case] = &[
    case!("dropout/1", [1], dropout, 0.5),
    case!("dropout/7x33", [7, 33], dropout, 0.5),
    case!("dropout/31", [31], dropout, 0.25),
    case!("dropout/5x7/none", [5, 7], dropout, 0.0),
    case!("dropout/5x7/all", [5, 7], dropout, 1.0),
    case!("dropout/0x50", [0, 50], dropout, 0.5),
    case!("dropout_channels/3x2x2x10", [3, 2, 2, 10], dropout_channels, 0.5),
    case!("dropout_channels/2x3x1x33", [2, 3, 1, 33], dropout_channels, 0.3),
    case!("dropout_channels/0x8x8x20", [0, 8, 8, 20], dropout_channels, 0.5),
];

/// Real sizes, too large for a gradient check: device agreement and benchmarks.
pub(super) const LARGE: &[Case] = &[
    case!("dropout/128x50", [128, 50], dropout, 0.5),
    case!("dropout/70001", [70001], dropout, 0.5),
    case!("dropout_channels/128x8x8x20", [128, 8, 8, 20], dropout_channels, 0.5),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn ones(shape: &[usize]) -> Tensor {
        Tensor::new(&Device::Cpu, shape, &vec![1.0f32; shape.iter().product()]).unwrap()
    }

    #[test]
    fn the_mask_is_the_stream_at_the_step_of_the_clock() {
        let clock = Rc::new(Clock::new(&Device::Cpu).unwrap());
        clock.start(40, 3, 0.1).unwrap();
        for n in [1, 3, 4, 5, 50_001] {
            let x = ones(&[n]).tracked();
            let y = dropout(&x, 0.3, stream(), &clock).unwrap();
            // The mask of the backward pass is that of the forward pass, wherever the clock is by then.
            clock.advance(1).unwrap();
            let dx = y.grad_from(&ones(&[n]), &[&x]).unwrap();
            let r = stream().with_b(clock.host(Word::Step).unwrap() - 1);
            let want: Vec<f32> =
                (0..n as u64).map(|e| if r.u32(e) >= threshold(0.3) { 1.0 / (1.0 - 0.3) } else { 0.0 }).collect();
            assert_eq!(y.to_vec::<f32>().unwrap(), want);
            assert_eq!(dx.of(&x).unwrap().to_vec::<f32>().unwrap(), want);
        }
        let (h, w, c) = (8, 8, 22);
        let y = dropout_channels(&ones(&[40, h, w, c]), 0.5, stream(), &clock).unwrap().to_vec::<f32>().unwrap();
        let r = stream().with_b(clock.host(Word::Step).unwrap());
        for (i, y) in y.iter().enumerate() {
            let e = i / (h * w * c) * c + i % c;
            assert_eq!(*y, if r.u32(e as u64) >= 0x8000_0000 { 2.0 } else { 0.0 }, "{i}");
        }
    }

    #[test]
    fn fast_and_plain_agree_to_the_bit() {
        for (n, area, c) in [(1, 1, 1), (3, 64, 20), (2, 5, 255), (2, 3, 300), (40, 64, 10), (0, 4, 3)] {
            let mut x: Vec<f32> = (0..(n * area * c) as u64).map(|e| stream().uniform(e) - 0.5).collect();
            x.iter_mut().step_by(17).for_each(|v| *v = f32::NAN);
            let (mut y, mut z) = (vec![7.0f32; x.len()], vec![9.0f32; x.len()]);
            cpu::channels(&mut y, &x, [area, c], threshold(0.4), 1.0 / 0.6, stream());
            fast::channels(&mut z, &x, [area, c], threshold(0.4), 1.0 / 0.6, stream());
            assert!(y.iter().zip(&z).all(|(y, z)| y.to_bits() == z.to_bits()), "{n}x{area}x{c}");
        }
    }

    /// An example loses the same in every batch and on every order, and what its words say.
    #[test]
    fn examples_keep_their_masks() {
        let clock = Rc::new(Clock::new(&Device::Cpu).unwrap());
        for (area, c) in [(1, 50), (64, 20), (3, 1)] {
            let at = |order: &[u32], offset: usize, n: usize| {
                clock.start(9, 9, 0.1).unwrap();
                clock.advance(offset).unwrap();
                let order = Tensor::new(&Device::Cpu, [order.len()], order).unwrap();
                let y = dropout_examples(&ones(&[n, area, c]), 0.5, stream(), &order, &clock);
                y.map(|y| y.to_vec::<f32>().unwrap())
            };
            let y = at(&[7, 70_000, 3, 0], 1, 2).unwrap();
            let r = stream().with_b(0);
            for (i, y) in y.iter().enumerate() {
                let id = [70_000, 3][i / (area * c)];
                assert_eq!(*y, if r.u32((id * c + i % c) as u64) >= 0x8000_0000 { 2.0 } else { 0.0 }, "{i}");
            }
            assert_eq!(at(&[3], 0, 1).unwrap(), y[area * c..]);
            assert!(at(&[3], 0, 2).is_err());
        }
    }

    #[test]
    fn the_drop_rate_is_p() {
        let clock = Rc::new(Clock::new(&Device::Cpu).unwrap());
        for p in [0.1f32, 0.5, 0.9] {
            let n = 200_000;
            let y = dropout(&ones(&[n]), p, stream(), &clock).unwrap().to_vec::<f32>().unwrap();
            let dropped = y.iter().filter(|v| **v == 0.0).count() as f64;
            let (mean, sd) = (n as f64 * f64::from(p), (n as f64 * f64::from(p) * (1.0 - f64::from(p))).sqrt());
            assert!((dropped - mean).abs() < 5.0 * sd, "p = {p}: {dropped} of {n}");
        }
    }

    #[test]
    fn probabilities_are_checked_and_dropped_nans_are_gone() {
        let clock = Rc::new(Clock::new(&Device::Cpu).unwrap());
        for p in [-0.1, 1.1, f32::NAN] {
            assert!(dropout(&ones(&[4]), p, stream(), &clock).is_err(), "{p}");
        }
        let x = Tensor::new(&Device::Cpu, [2], &[f32::NAN; 2]).unwrap();
        assert_eq!(dropout(&x, 1.0, stream(), &clock).unwrap().to_vec::<f32>().unwrap(), [0.0; 2]);
        assert!(dropout(&x, 0.0, stream(), &clock).unwrap().to_vec::<f32>().unwrap()[0].is_nan());
    }
}
