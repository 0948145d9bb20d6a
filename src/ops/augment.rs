//! From u8 images on the device to a batch of floats in one pass: gather by id, random crop of the zero-padded
//! image, random flip, normalise: out = pixel · scale_c + shift_c with scale = 1 / (255 · std), shift = −mean / std.
//!
//! The randomness of an image is addressed by (seed, purpose, round, epoch, pool id), never by its place in a
//! batch. Black padding comes before normalisation. No gradient flows here.

use rayon::prelude::*;

use crate::Result;
use crate::clock::{Clock, Word};
use crate::data::Flip;
use crate::device::{Device, Launch, launch};
use crate::rng::{Purpose, Rng, threshold};
use crate::tensor::{Buf, Dtype, Tensor};

/// How an image is looked at.
pub struct View {
    crop_pad: usize,
    flip: Flip,
    /// (2C): scales, then shifts.
    norm: Tensor,
    crop: Rng,
    mirror: Rng,
}

impl View {
    /// The test transform: normalise only. `mean` and `std` per channel in units of white.
    pub fn plain(device: &Device, mean: &[f32], std: &[f32]) -> Result<View> {
        View::train(device, mean, std, 0, Flip::Never, Rng::new(0), 0)
    }

    /// The training transform of one round.
    pub fn train(
        device: &Device,
        mean: &[f32],
        std: &[f32],
        crop_pad: usize,
        flip: Flip,
        rng: Rng,
        round: u32,
    ) -> Result<View> {
        let scale = std.iter().map(|s| 1.0 / (255.0 * s));
        let norm: Vec<f32> = scale.chain(mean.iter().zip(std).map(|(m, s)| -m / s)).collect();
        Ok(View {
            crop_pad,
            flip,
            norm: Tensor::new(device, [norm.len()], &norm)?,
            crop: rng.at(Purpose::Crop, round, 0),
            mirror: rng.at(Purpose::Flip, round, 0),
        })
    }

    fn flip_below(&self) -> u32 {
        if self.flip == Flip::Half { threshold(0.5) } else { 0 }
    }
}

/// Images `order[offset .. offset + n]` of `pixels` (N, H, W, C), as (n, H, W, C) floats; offset and epoch are the
/// clock's.
pub fn gather_images(pixels: &Tensor, order: &Tensor, clock: &Clock, n: usize, view: &View) -> Result<Tensor> {
    const OP: &str = "gather_images";
    let [total, h, w, c] = pixels.shape().nhwc(OP)?;
    if view.norm.len() != 2 * c {
        return Err(pixels.shape().refuse(OP, format!("{} channels", view.norm.len() / 2)));
    }
    let mut out = Tensor::stale(pixels.device(), [n, h, w, c], Dtype::F32)?;
    match pixels.device() {
        Device::Cpu => {
            let ids = batch(order, clock, n, total)?;
            let epoch = clock.host(Word::Epoch)?;
            let how = How {
                pad: view.crop_pad,
                below: view.flip_below(),
                crop: view.crop.with_b(epoch),
                mirror: view.mirror.with_b(epoch),
            };
            let size = Size { h, w, c };
            let (pixels, norm) = (pixels.host::<u8>(OP)?, view.norm.host::<f32>(OP)?);
            let table: Vec<[f32; 256]> =
                (0..c).map(|ch| std::array::from_fn(|v| (v as f32).mul_add(norm[ch], norm[c + ch]))).collect();
            let image = h * w * c;
            out.host_mut::<f32>(OP)?.par_chunks_mut(image.max(1)).zip(ids).with_min_len(16).for_each(|(out, id)| {
                one(out, &pixels[*id as usize * image..][..image], size, *id, &how, &table);
            });
        }
        Device::Cuda(cuda) => {
            let ([lo, hi, crop, round], [_, _, mirror, _]) = (view.crop.words(), view.mirror.words());
            launch::gather_images_f32(
                cuda,
                Launch::elements(n * h * w * c),
                out.buf_mut(OP)?,
                pixels.buf(OP)?,
                order.buf(OP)?,
                &clock.words(),
                view.norm.buf(OP)?,
                n as i32,
                h as i32,
                w as i32,
                c as i32,
                total as u32,
                view.crop_pad as i32,
                view.flip_below(),
                lo,
                hi,
                crop,
                mirror,
                round,
            )?;
        }
    }
    Ok(out)
}

/// labels[order[offset .. offset + n]]; the offset is the clock's.
pub fn gather_labels(labels: &Buf<u32>, order: &Tensor, clock: &Clock, n: usize) -> Result<Tensor> {
    const OP: &str = "gather_labels";
    let mut out = Tensor::stale(order.device(), [n], Dtype::U32)?;
    match order.device() {
        Device::Cpu => {
            let labels = labels.host(OP)?;
            let ids = batch(order, clock, n, labels.len())?;
            for (out, id) in out.host_mut::<u32>(OP)?.iter_mut().zip(ids) {
                *out = labels[*id as usize];
            }
        }
        Device::Cuda(c) => {
            let (l, words) = (Launch::elements(n), clock.words());
            let total = labels.len() as u32;
            launch::gather_labels_u32(c, l, out.buf_mut(OP)?, labels, order.buf(OP)?, &words, n as i32, total)?;
        }
    }
    Ok(out)
}

/// The ids of the batch, all below `total`.
fn batch<'a>(order: &'a Tensor, clock: &Clock, n: usize, total: usize) -> Result<&'a [u32]> {
    let at = clock.host(Word::Offset)? as usize;
    let ids = order.host::<u32>("gather")?.get(at..at + n);
    ids.filter(|ids| ids.iter().all(|i| (*i as usize) < total))
        .ok_or_else(|| order.shape().refuse("gather", format!("{n} ids below {total} from position {at} on")))
}

#[derive(Clone, Copy)]
struct Size {
    h: usize,
    w: usize,
    c: usize,
}

/// A view's randomness at one epoch.
struct How {
    pad: usize,
    below: u32,
    crop: Rng,
    mirror: Rng,
}

/// One image: `out` and `image` are (H, W, C).
fn one(out: &mut [f32], image: &[u8], s: Size, id: u32, how: &How, table: &[[f32; 256]]) {
    let pad = how.pad as isize;
    let shift = |word: u32| ((u64::from(word) * (2 * pad as u64 + 1)) >> 32) as isize - pad;
    let (dy, dx) = if pad > 0 {
        let r = how.crop.block(id);
        (shift(r[0]), shift(r[1]))
    } else {
        (0, 0)
    };
    let flip = how.below > 0 && how.mirror.block(id)[0] < how.below;
    for (y, row) in out.chunks_exact_mut(s.w * s.c).enumerate() {
        let from = y.wrapping_add_signed(dy);
        let source = (from < s.h).then(|| &image[from * s.w * s.c..][..s.w * s.c]);
        for (x, pixel) in row.chunks_exact_mut(s.c).enumerate() {
            let x = if flip { s.w - 1 - x } else { x }.wrapping_add_signed(dx);
            for (ch, out) in pixel.iter_mut().enumerate() {
                let v = source.filter(|_| x < s.w).map_or(0, |r| r[x * s.c + ch]);
                *out = table[ch][v as usize];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> Tensor {
        let v: Vec<u8> = (0..5 * 6 * 4 * 3).map(|i| (i * 7 % 251) as u8).collect();
        Tensor::new(&Device::Cpu, [5, 6, 4, 3], &v).unwrap()
    }

    fn ids(v: &[u32]) -> Tensor {
        Tensor::new(&Device::Cpu, [v.len()], v).unwrap()
    }

    const MEAN: [f32; 3] = [0.5, 0.4, 0.3];
    const STD: [f32; 3] = [0.2, 0.25, 0.3];

    #[test]
    fn the_plain_view_normalises() {
        let clock = Clock::new(&Device::Cpu).unwrap();
        clock.advance(1).unwrap();
        let view = View::plain(&Device::Cpu, &MEAN, &STD).unwrap();
        let y = gather_images(&images(), &ids(&[9, 4, 0]), &clock, 2, &view).unwrap().to_vec::<f32>().unwrap();
        let px = images().to_vec::<u8>().unwrap();
        for (i, id) in [4usize, 0].into_iter().enumerate() {
            for e in 0..72 {
                let want = (f32::from(px[id * 72 + e]) / 255.0 - MEAN[e % 3]) / STD[e % 3];
                assert!((y[i * 72 + e] - want).abs() < 1e-5);
            }
        }
        let bad = gather_images(&images(), &ids(&[0, 5]), &clock, 1, &view).unwrap_err().to_string();
        assert!(bad.contains("below 5"), "{bad}");
    }

    #[test]
    fn crops_and_flips_are_those_of_the_addressed_words() {
        let (d, rng) = (Device::Cpu, Rng::new(42));
        let clock = Clock::new(&d).unwrap();
        clock.start(0, 3, 0.1).unwrap();
        let view = View::train(&d, &MEAN, &STD, 2, Flip::Half, rng, 7).unwrap();
        let plain = View::plain(&d, &MEAN, &STD).unwrap();
        let all = ids(&[0, 1, 2, 3, 4]);
        let y = gather_images(&images(), &all, &clock, 5, &view).unwrap().to_vec::<f32>().unwrap();
        let x = gather_images(&images(), &all, &clock, 5, &plain).unwrap().to_vec::<f32>().unwrap();
        let mut flips = 0;
        for id in 0..5usize {
            let r = rng.at(Purpose::Crop, 7, 3).block(id as u32);
            let at = |w: u32| ((u64::from(w) * 5) >> 32) as isize - 2;
            let flip = rng.at(Purpose::Flip, 7, 3).block(id as u32)[0] < 1 << 31;
            flips += usize::from(flip);
            for e in 0..72 {
                let (ch, px, py) = (e % 3, e / 3 % 4, e / 12);
                let sx = if flip { 3 - px } else { px } as isize + at(r[1]);
                let sy = py as isize + at(r[0]);
                let inside = (0..4).contains(&sx) && (0..6).contains(&sy);
                let black = -MEAN[ch] / STD[ch];
                let want = if inside { x[id * 72 + sy as usize * 12 + sx as usize * 3 + ch] } else { black };
                assert!((y[id * 72 + e] - want).abs() < 1e-6, "image {id} element {e}");
            }
        }
        assert!((1..5).contains(&flips), "the case must contain both");
        // The place in the batch does not matter.
        let back = gather_images(&images(), &ids(&[4, 3, 2, 1, 0]), &clock, 5, &view).unwrap();
        assert_eq!(back.to_vec::<f32>().unwrap()[..72], y[4 * 72..]);
    }
}
