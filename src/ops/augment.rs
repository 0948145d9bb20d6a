//! From u8 images on the device to a batch of floats: gather, crop, flip, normalise in one pass.
//!
//! y[i][r][s][c] = pixel · scale_c + shift_c, scale_c = 1 / (255 std_c), shift_c = −mean_c / std_c, of image
//! id = order[offset + i]; the pixel is x[id][r + dy][s′ + dx][c], black (0) outside, with s′ = W − 1 − s where the
//! image is flipped. dy, dx in [−pad, pad] are words 0 and 1 of block `id` of the crop stream, the flip is word 0 of
//! block `id` of the flip stream: they depend on (seed, round, epoch, pool id), never on the place in the batch; in
//! place of the epoch, on the step where an epoch shows an image several times.

use super::cast;
use super::rows::{batch, check_ids};
use crate::clock::{Clock, Word};
use crate::data::Flip;
use crate::device::{Device, Launch, cpu as threads, launch};
use crate::rng::{Purpose, Rng, threshold};
use crate::tensor::{Dtype, Tensor};
use crate::{Error, Result, on_stored};

/// How images are seen: crop, flip, normalisation.
pub struct View {
    crop_pad: usize,
    /// The word below which an image is flipped; the largest one for all images.
    flip_below: u32,
    crop_rng: Rng,
    flip_rng: Rng,
    /// What of the clock the streams are read at.
    when: Word,
    /// (2C): scales, then shifts.
    norm: Tensor,
    /// (256, C): what becomes of each byte; for the CPU.
    table: Vec<f32>,
    dtype: Dtype,
}

impl View {
    /// Normalised only: what evaluation sees. `mean` and `std` per channel, of pixels in [0, 1].
    pub fn plain(device: &Device, mean: &[f32], std: &[f32]) -> Result<View> {
        View::train(device, mean, std, 0, Flip::Never, Rng::new(0), 0)
    }

    /// Random crops of the image with `crop_pad` black pixels around it, and flips, from the streams of (seed,
    /// round); the epoch comes from the clock.
    pub fn train(
        device: &Device,
        mean: &[f32],
        std: &[f32],
        crop_pad: usize,
        flip: Flip,
        rng: Rng,
        round: u32,
    ) -> Result<View> {
        if mean.len() != std.len() || std.iter().any(|s| s.is_nan() || *s <= 0.0) {
            let why = format!("wants as many standard deviations above 0 as means, got {std:?} for {mean:?}");
            return Err(Error::Config { key: "normalisation".into(), why });
        }
        let (means, stds) = (mean.iter().map(|v| f64::from(*v)), std.iter().map(|v| f64::from(*v)));
        let mut norm: Vec<f32> = stds.clone().map(|s| (1.0 / (255.0 * s)) as f32).collect();
        norm.extend(means.zip(stds).map(|(m, s)| (-m / s) as f32));
        // Fused, as the device computes it.
        let (scales, shifts) = norm.split_at(mean.len());
        let entry = |b: u8| scales.iter().zip(shifts).map(move |(s, t)| f32::from(b).mul_add(*s, *t));
        let table = (0..=255).flat_map(entry).collect();
        Ok(View {
            crop_pad,
            flip_below: threshold(if flip == Flip::Half { 0.5 } else { 0.0 }),
            crop_rng: rng.at(Purpose::Crop, round, 0),
            flip_rng: rng.at(Purpose::Flip, round, 0),
            when: Word::Epoch,
            norm: Tensor::new(device, [norm.len()], &norm)?,
            table,
            dtype: Dtype::F32,
        })
    }

    /// Batches stored as `dtype`: f32, which is what they are otherwise, or bf16.
    pub fn stored_as(self, dtype: Dtype) -> View {
        View { dtype, ..self }
    }

    /// Another view of the same images: lane `l` of the streams, 0 being what there is otherwise.
    pub fn lane(self, l: u32) -> View {
        View { crop_rng: self.crop_rng.lane(l), flip_rng: self.flip_rng.lane(l), ..self }
    }

    /// Draws anew at every step instead of every epoch.
    pub fn each_step(self) -> View {
        View { when: Word::Step, ..self }
    }

    /// Every image flipped.
    pub fn flipped(self) -> View {
        View { flip_below: threshold(1.0), ..self }
    }
}

/// The batch of `n` images at the clock's offset in `order` (u32): pixels u8 (N, H, W, C) → (n, H, W, C). An id
/// or a position that does not exist is an error on the CPU and NaN on a device, which stops the run.
pub fn gather_images(pixels: &Tensor, order: &Tensor, clock: &Clock, n: usize, view: &View) -> Result<Tensor> {
    let op = "gather_images";
    let [total, h, w, c] = pixels.shape().nhwc(op)?;
    if view.norm.len() != 2 * c {
        return Err(pixels.shape().refuse(op, format!("images with {} channels, as the view", view.norm.len() / 2)));
    }
    let on_cpu = pixels.device().is_cpu();
    let mut y = Tensor::stale(pixels.device(), [n, h, w, c], if on_cpu { Dtype::F32 } else { view.dtype })?;
    match pixels.device() {
        Device::Cpu => {
            let ids = batch(op, order.host(op)?, clock, n)?;
            check_ids(op, ids, total)?;
            cpu::gather(y.host_mut(op)?, pixels.host(op)?, ids, [h, w, c], view, clock.host(view.when)?);
        }
        Device::Cuda(cuda) => on_stored!(op, y, S => {
            let (l, words, y) = (Launch::elements(n * h * w * c), &clock.words(), y.buf_mut::<S>(op)?);
            let (pixels, len, order) = (pixels.buf(op)?, order.len() as i32, order.buf(op)?);
            let [n, h, w, c, pad] = [n, h, w, c, view.crop_pad].map(|v| v as i32);
            let ([lo, hi, crop, round], [_, _, flip, _]) = (view.crop_rng.words(), view.flip_rng.words());
            let (norm, total, below) = (view.norm.buf(op)?, total as u32, view.flip_below);
            launch::gather_images(
                cuda, l, y, pixels, order, words, norm, n, h, w, c, len, total, pad, below, lo, hi, crop, flip, round,
                view.when as i32,
            )
        })?,
    }
    cast(&y, view.dtype)
}

mod cpu {
    use super::{View, threads};

    /// y: (n, H, W, C), x: (N, H, W, C); the ids are below N.
    pub fn gather(y: &mut [f32], x: &[u8], ids: &[u32], [h, w, c]: [usize; 3], view: &View, when: u32) {
        let image = h * w * c;
        let (crops, flips) = (view.crop_rng.with_b(when), view.flip_rng.with_b(when));
        let (pad, below, table) = (view.crop_pad as isize, view.flip_below, &view.table);
        threads::chunks(y, image, |at, y| {
            for (y, id) in y.chunks_exact_mut(image.max(1)).zip(&ids[at / image.max(1)..]) {
                let x = &x[*id as usize * image..][..image];
                let words = if pad > 0 { crops.block(*id) } else { [0; 4] };
                let shift = |word: u32| ((u64::from(word) * (2 * pad as u64 + 1)) >> 32) as isize - pad;
                let flipped = below > 0 && (below == u32::MAX || flips.block(*id)[0] < below);
                for (r, y) in y.chunks_exact_mut(w * c).enumerate() {
                    let row = r.checked_add_signed(shift(words[0])).filter(|r| *r < h);
                    let row = row.map(|r| &x[r * w * c..][..w * c]);
                    match c {
                        1 => line::<1>(y, row, shift(words[1]), flipped, table, c),
                        3 => line::<3>(y, row, shift(words[1]), flipped, table, c),
                        _ => line::<0>(y, row, shift(words[1]), flipped, table, c),
                    }
                }
            }
        });
    }

    /// One row of an image: black, the part of `x` that is inside, black; then mirrored if `flipped`. C is the number
    /// of channels where it is known to the compiler, else 0.   y, x: (W, c), table: (256, c)
    fn line<const C: usize>(y: &mut [f32], x: Option<&[u8]>, dx: isize, flipped: bool, table: &[f32], c: usize) {
        let c = if C > 0 { C } else { c };
        let w = y.len() / c;
        let black = &table[..c];
        let Some(x) = x else {
            return y.chunks_exact_mut(c).for_each(|y| y.copy_from_slice(black));
        };
        // Columns [first, last) of the cropped row lie inside of x.
        let first = dx.min(0).unsigned_abs().min(w);
        let last = w - (dx.max(0) as usize).min(w);
        let inside = if first < last {
            &x[(first.wrapping_add_signed(dx)) * c..(last.wrapping_add_signed(dx)) * c]
        } else {
            &[]
        };
        let (before, after) = if flipped { (w - last.max(first), first) } else { (first, w - last.max(first)) };
        y[..before * c].chunks_exact_mut(c).for_each(|y| y.copy_from_slice(black));
        y[(w - after) * c..].chunks_exact_mut(c).for_each(|y| y.copy_from_slice(black));
        let y = &mut y[before * c..(w - after) * c];
        let pixel = |(y, x): (&mut [f32], &[u8])| {
            for (ch, (y, x)) in y.iter_mut().zip(x).enumerate() {
                *y = table[*x as usize * c + ch];
            }
        };
        if flipped {
            y.chunks_exact_mut(c).zip(inside.chunks_exact(c).rev()).for_each(pixel);
        } else {
            y.chunks_exact_mut(c).zip(inside.chunks_exact(c)).for_each(pixel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN: [f32; 3] = [0.5, 0.25, 0.1];
    const STD: [f32; 3] = [0.5, 0.3, 0.2];

    fn pixels(n: usize, h: usize, w: usize, c: usize) -> Vec<u8> {
        let r = Rng::new(9);
        (0..(n * h * w * c) as u64).map(|e| (r.u32(e) >> 24) as u8).collect()
    }

    #[test]
    fn the_plain_view_normalises_and_follows_the_order() {
        let x = pixels(3, 2, 2, 3);
        let t = Tensor::new(&Device::Cpu, [3, 2, 2, 3], &x).unwrap();
        let order = Tensor::new(&Device::Cpu, [3], &[0u32, 2, 1]).unwrap();
        let clock = Clock::new(&Device::Cpu).unwrap();
        clock.advance(1).unwrap();
        let view = View::plain(&Device::Cpu, &MEAN, &STD).unwrap();
        let y = gather_images(&t, &order, &clock, 2, &view).unwrap();
        assert_eq!(y.dims(), [2, 2, 2, 3]);
        for (i, y) in y.to_vec::<f32>().unwrap().iter().enumerate() {
            let (id, c) = ([2, 1][i / 12], i % 3);
            let want = (f32::from(x[id * 12 + i % 12]) / 255.0 - MEAN[c]) / STD[c];
            assert!((y - want).abs() < 1e-5, "{i}: {y} {want}");
        }
        assert!(gather_images(&t, &order, &clock, 3, &view).is_err());
        let bad = Tensor::new(&Device::Cpu, [2], &[0u32, 3]).unwrap();
        assert!(gather_images(&t, &bad, &clock, 1, &view).is_err());
        assert!(View::plain(&Device::Cpu, &[0.5], &[0.0]).is_err());
    }

    #[test]
    fn a_flipped_view_mirrors_every_image() {
        let x = pixels(5, 2, 3, 1);
        let t = Tensor::new(&Device::Cpu, [5, 2, 3, 1], &x).unwrap();
        let order = Tensor::new(&Device::Cpu, [5], &[4u32, 3, 2, 1, 0]).unwrap();
        let clock = Clock::new(&Device::Cpu).unwrap();
        let view = || View::plain(&Device::Cpu, &[0.0], &[1.0 / 255.0]).unwrap();
        let see = |view: View| gather_images(&t, &order, &clock, 5, &view).unwrap().to_vec::<f32>().unwrap();
        let mirrored: Vec<f32> = see(view()).chunks(3).flat_map(|row| row.iter().rev().copied()).collect();
        assert_eq!(see(view().flipped()), mirrored);
    }

    /// Lanes and steps give draws of their own; the epoch of a view by steps does not matter.
    #[test]
    fn views_of_lanes_and_steps() {
        let x = pixels(30, 4, 4, 1);
        let t = Tensor::new(&Device::Cpu, [30, 4, 4, 1], &x).unwrap();
        let order = Tensor::new(&Device::Cpu, [30], &(0..30).collect::<Vec<u32>>()).unwrap();
        let see = |lane: u32, by_step: bool, [step, epoch]: [u32; 2]| {
            let clock = Clock::new(&Device::Cpu).unwrap();
            clock.start(step, epoch, 0.0).unwrap();
            let view = View::train(&Device::Cpu, &[0.0], &[1.0], 1, Flip::Half, Rng::new(3), 1).unwrap().lane(lane);
            let view = if by_step { view.each_step() } else { view };
            gather_images(&t, &order, &clock, 30, &view).unwrap().to_vec::<f32>().unwrap()
        };
        assert_ne!(see(0, false, [0, 2]), see(1, false, [0, 2]));
        assert_eq!(see(1, false, [0, 2]), see(1, false, [9, 2]));
        assert_eq!(see(1, true, [2, 0]), see(1, false, [0, 2]));
        assert_eq!(see(1, true, [2, 0]), see(1, true, [2, 7]));
        assert_ne!(see(1, true, [2, 0]), see(1, true, [3, 0]));
    }

    #[test]
    fn crops_and_flips_follow_their_formula() {
        for (pad, c) in [(4, 1), (2, 3), (9, 2), (0, 3)] {
            let (n, h, w) = (40, 7, 6);
            let x = pixels(n, h, w, c);
            let t = Tensor::new(&Device::Cpu, [n, h, w, c], &x).unwrap();
            let ids: Vec<u32> = (0..n as u32).rev().collect();
            let order = Tensor::new(&Device::Cpu, [n], &ids).unwrap();
            let clock = Clock::new(&Device::Cpu).unwrap();
            clock.start(0, 5, 0.1).unwrap();
            let rng = Rng::new(77);
            let (mean, std) = (vec![0.0; c], vec![1.0; c]);
            let view = View::train(&Device::Cpu, &mean, &std, pad, Flip::Half, rng, 3).unwrap();
            let y = gather_images(&t, &order, &clock, n, &view).unwrap().to_vec::<f32>().unwrap();
            let (mut flips, mut shifts) = (0, std::collections::BTreeSet::new());
            for (e, y) in y.iter().enumerate() {
                let (ch, s, r, id) = (e % c, e / c % w, e / c / w % h, ids[e / c / w / h]);
                let b = rng.at(Purpose::Crop, 3, 5).block(id);
                let off = |word: u32| ((u64::from(word) * (2 * pad as u64 + 1)) >> 32) as i64 - pad as i64;
                let flipped = rng.at(Purpose::Flip, 3, 5).block(id)[0] < 0x8000_0000;
                flips += usize::from(flipped && e % (h * w * c) == 0);
                shifts.insert((off(b[0]), off(b[1])));
                let s = if flipped { w - 1 - s } else { s } as i64 + off(b[1]);
                let r = r as i64 + off(b[0]);
                let inside = (0..h as i64).contains(&r) && (0..w as i64).contains(&s);
                let at = ((id as usize * h + r as usize) * w + s as usize) * c + ch;
                let want = if inside { f32::from(x[at]) / 255.0 } else { 0.0 };
                assert!((y - want).abs() < 1e-6, "pad {pad}, element {e}: {y} {want}");
            }
            // The place in the batch does not matter.
            let order = Tensor::new(&Device::Cpu, [n], &ids.iter().rev().copied().collect::<Vec<_>>()).unwrap();
            let back = gather_images(&t, &order, &clock, n, &view).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(back[..h * w * c], y[(n - 1) * h * w * c..]);
            assert!((10..=30).contains(&flips), "{flips}");
            assert!(shifts.len() >= if pad > 0 { 15 } else { 1 });
        }
    }
}
