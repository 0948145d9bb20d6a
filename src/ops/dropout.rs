//! Dropout: y = x · k / (1 − p), with k = 0 with probability p and 1 otherwise; dx = dy · k / (1 − p).
//!
//! The mask is not stored: k of element e is decided by word e of the stream (seed, dropout, lane, round, step)
//! against an integer threshold, so forward, backward and every device agree bit for bit. Channel dropout decides
//! once per image and channel: element n·C + c.

use std::rc::Rc;

use super::{Arg, Case};
use crate::clock::{Clock, Word};
use crate::device::{Device, Launch, cpu as threads, launch};
use crate::rng::{Rng, threshold};
use crate::tensor::{Real, Tensor};
use crate::{Error, Result, on_real};

/// Drops single elements. x of any shape.
pub fn dropout(x: &Tensor, p: f32, rng: Rng, clock: &Rc<Clock>) -> Result<Tensor> {
    apply(x, p, rng, clock, Unit::Element)
}

/// Drops whole feature maps. x (N, H, W, C).
pub fn dropout_channels(x: &Tensor, p: f32, rng: Rng, clock: &Rc<Clock>) -> Result<Tensor> {
    let [_, h, w, c] = x.shape().nhwc("dropout_channels")?;
    apply(x, p, rng, clock, Unit::Channel { hw: h * w, c })
}

/// What is kept or dropped as one.
#[derive(Clone, Copy)]
enum Unit {
    Element,
    Channel { hw: usize, c: usize },
}

fn apply(x: &Tensor, p: f32, rng: Rng, clock: &Rc<Clock>, unit: Unit) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&p) {
        return Err(Error::Config { key: "dropout".into(), why: format!("the rate {p} is not between 0 and 1") });
    }
    // On the CPU the step is read now; a kernel reads it in stream order, before the clock moves on.
    let rng = if x.device().is_cpu() { rng.with_b(clock.host(Word::Step)?) } else { rng };
    let y = mask(x, p, rng, clock, unit)?;
    let clock = clock.clone();
    Ok(y.with_grad("dropout", &[x], move |dy, need| Ok(vec![need.then(0, || mask(dy, p, rng, &clock, unit))?])))
}

fn mask(x: &Tensor, p: f32, rng: Rng, clock: &Clock, unit: Unit) -> Result<Tensor> {
    const OP: &str = "dropout";
    let (mut y, n) = (x.like()?, x.len());
    let below = if p >= 1.0 { None } else { Some(threshold(p)) };
    let scale = 1.0 / (1.0 - p);
    match (x.device(), below) {
        (Device::Cpu, _) => on_real!(OP, x, T => {
            let (y, x) = (y.host_mut::<T>(OP)?, x.host::<T>(OP)?);
            match (unit, below) {
                (_, None) => y.fill(T::default()),
                (Unit::Element, Some(t)) => cpu::elements(y, x, t, scale, rng),
                (Unit::Channel { hw, c }, Some(t)) => cpu::channels(y, x, hw, c, t, scale, rng),
            }
            Ok(())
        })?,
        (Device::Cuda(_), None) => super::elementwise::fill(&mut y, 0.0)?,
        (Device::Cuda(cuda), Some(t)) => {
            let [lo, hi, stream, round] = rng.words();
            let (y, x, w) = (y.buf_mut(OP)?, x.buf(OP)?, clock.words());
            match unit {
                Unit::Element => {
                    let l = Launch::elements(n.div_ceil(4));
                    launch::dropout_fwd_f32(cuda, l, y, x, &w, n as i32, scale, t, lo, hi, stream, round)?;
                }
                Unit::Channel { hw, c } => {
                    let (l, hw, c) = (Launch::elements(n), hw as i32, c as i32);
                    launch::dropout_channels_fwd_f32(
                        cuda, l, y, x, &w, n as i32, hw, c, scale, t, lo, hi, stream, round,
                    )?;
                }
            }
        }
    }
    Ok(y)
}

mod cpu {
    use super::{Real, Rng, threads};

    /// y, x (n)
    pub fn elements<T: Real>(y: &mut [T], x: &[T], below: u32, scale: f32, rng: Rng) {
        threads::chunks(y, 4, |at, y| {
            for (i, (y, x)) in y.chunks_mut(4).zip(x[at..].chunks(4)).enumerate() {
                let words = rng.block((at / 4 + i) as u32);
                for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                    *y = if word >= below { T::of(x.f64() * f64::from(scale)) } else { T::default() };
                }
            }
        });
    }

    /// y, x (n, hw, c)
    pub fn channels<T: Real>(y: &mut [T], x: &[T], hw: usize, c: usize, below: u32, scale: f32, rng: Rng) {
        let image = (hw * c).max(1);
        threads::chunks(y, image, |at, y| {
            let mut factor = vec![T::default(); c];
            for (i, (y, x)) in y.chunks_exact_mut(image).zip(x[at..].chunks_exact(image)).enumerate() {
                let first = ((at / image + i) * c) as u64;
                for (ch, f) in factor.iter_mut().enumerate() {
                    *f = T::of(if rng.u32(first + ch as u64) >= below { f64::from(scale) } else { 0.0 });
                }
                for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for ((y, x), f) in y.iter_mut().zip(x).zip(&factor) {
                        *y = if f.f64() == 0.0 { T::default() } else { T::of(x.f64() * f.f64()) };
                    }
                }
            }
        });
    }
}

fn still(x: &Tensor) -> Result<Rc<Clock>> {
    Ok(Rc::new(Clock::new(x.device())?))
}

/// Shapes every suite runs these operations on. The stream is (seed 5, dropout, round 2, step 0), lane 1.
pub const CASES: &[Case] = &[
    Case {
        name: "dropout/7x33",
        inputs: &[Arg::Diff(&[7, 33], -2.0, 2.0)],
        run: |x| dropout(&x[0], 0.3, Rng::new(5).at(crate::rng::Purpose::Dropout, 2, 0).lane(1), &still(&x[0])?),
        sum: 1,
        flops: 231,
        bytes: 2 * 231 * 4,
    },
    Case {
        name: "dropout_channels/3x4x2x5",
        inputs: &[Arg::Diff(&[3, 4, 2, 5], -2.0, 2.0)],
        run: |x| {
            dropout_channels(&x[0], 0.5, Rng::new(5).at(crate::rng::Purpose::Dropout, 2, 0).lane(1), &still(&x[0])?)
        },
        sum: 1,
        flops: 120,
        bytes: 2 * 120 * 4,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn ones(shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        Tensor::new(&Device::Cpu, shape, &vec![1.0f32; n]).unwrap()
    }

    #[test]
    fn masks_are_the_addressed_words_and_the_rate_is_right() {
        let clock = Rc::new(Clock::new(&Device::Cpu).unwrap());
        clock.start(11, 0, 0.1).unwrap();
        let rng = Rng::new(3).at(Purpose::Dropout, 1, 0).lane(4);
        let y = dropout(&ones(&[50_001]), 0.3, rng, &clock).unwrap().to_vec::<f32>().unwrap();
        let kept = y.iter().filter(|v| **v != 0.0).count() as f64;
        let sigma = (50_001.0f64 * 0.3 * 0.7).sqrt();
        assert!((kept - 50_001.0 * 0.7).abs() < 5.0 * sigma, "{kept}");
        for (e, v) in y.iter().enumerate() {
            let keep = rng.with_b(11).u32(e as u64) >= threshold(0.3);
            assert_eq!(*v, if keep { 1.0 / 0.7 } else { 0.0 });
        }
        let y = dropout_channels(&ones(&[4, 3, 3, 7]), 0.5, rng, &clock).unwrap().to_vec::<f32>().unwrap();
        for (e, v) in y.iter().enumerate() {
            let keep = rng.with_b(11).u32((e / 63 * 7 + e % 7) as u64) >= threshold(0.5);
            assert_eq!(*v, if keep { 2.0 } else { 0.0 });
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        let clock = Rc::new(Clock::new(&Device::Cpu).unwrap());
        let rng = Rng::new(3).at(Purpose::Dropout, 1, 0);
        let all = |p| dropout(&ones(&[100]), p, rng, &clock).map(|y| y.to_vec::<f32>().unwrap());
        assert!(all(0.0).unwrap().iter().all(|v| *v == 1.0));
        assert!(all(1.0).unwrap().iter().all(|v| *v == 0.0));
        assert!(all(1.5).is_err() && all(f32::NAN).is_err());
    }
}
