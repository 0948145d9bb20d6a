//! A contact sheet: a row per class, with images as they are and as training sees them.

use std::path::Path;
use std::rc::Rc;

use super::{Augment, Dataset};
use crate::clock::Clock;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::{self, View};
use crate::rng::Rng;
use crate::tensor::Tensor;
use crate::train::Resident;

/// Examples per class.
const EXAMPLES: usize = 3;
/// Views of each: plain, then one per epoch.
const VIEWS: usize = 6;
/// Room for the label at the left.
const MARGIN: usize = 28;
const GAP: usize = 2;
const GROUND: u8 = 64;

/// Digits, three dots wide and five high, a row in three bits; drawn twice as large.
const DIGITS: [u16; 10] = [0o75557, 0o26227, 0o71747, 0o71717, 0o55711, 0o74717, 0o74757, 0o71111, 0o75757, 0o75717];

/// An image of three channels.
pub struct Sheet {
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
    /// (H, W, 3)
    pub pixels: Vec<u8>,
}

/// Draw the sheet of a data set: the first examples of every class in pool order, each plain and then in the epochs
/// 0, 1, … of round 0 of a run with this seed.
pub fn sheet(data: &Dataset, augment: Augment, seed: u64) -> Result<Sheet> {
    let (spec, device) = (&data.spec, Device::Cpu);
    let (h, w, c) = (data.train.h, data.train.w, data.train.c);
    let mut rows: Vec<Vec<u32>> = vec![Vec::new(); spec.classes];
    for (id, label) in (0u32..).zip(&data.train.labels) {
        if let Some(row) = rows.get_mut(*label as usize).filter(|r| r.len() < EXAMPLES) {
            row.push(id);
        }
    }
    let ids: Vec<u32> = rows.iter().flatten().copied().collect();
    let places: Vec<(usize, usize)> =
        rows.iter().enumerate().flat_map(|(row, ids)| (0..ids.len()).map(move |k| (row, k))).collect();

    let zoom = (64 / h.max(w)).max(1);
    let (tile_h, tile_w) = (h * zoom + GAP, w * zoom + GAP);
    let group = VIEWS * tile_w + 2 * GAP;
    let (high, wide) = (spec.classes * tile_h + GAP, MARGIN + EXAMPLES * group);
    let mut sheet = Sheet { h: high, w: wide, pixels: vec![GROUND; high * wide * 3] };
    for row in 0..spec.classes {
        sheet.number(row, row * tile_h + GAP + (h * zoom).saturating_sub(10) / 2);
    }

    let images = Resident::new(&device, &data.train)?;
    let order = Tensor::new(&device, [ids.len()], &ids)?;
    let plain = View::plain(&device, &spec.mean, &spec.std)?;
    let train = View::train(&device, &spec.mean, &spec.std, augment.crop_pad, augment.flip, Rng::new(seed), 0)?;
    let clock = Rc::new(Clock::new(&device)?);
    for view in 0..VIEWS {
        clock.start(0, view.saturating_sub(1) as u32, 0.0)?;
        let seen = if view == 0 { &plain } else { &train };
        let batch = ops::gather_images(&images.pixels, &order, &clock, ids.len(), seen)?.to_vec::<f32>()?;
        for (image, (row, k)) in batch.chunks_exact(h * w * c).zip(&places) {
            let (top, left) = (row * tile_h + GAP, MARGIN + k * group + view * tile_w);
            for y in 0..h * zoom {
                for x in 0..w * zoom {
                    let pixel = &image[(y / zoom * w + x / zoom) * c..][..c];
                    let byte = |ch: usize| {
                        // Grey in one or two channels, colour in three or four.
                        let ch = if c < 3 { 0 } else { ch };
                        ((pixel[ch] * spec.std[ch] + spec.mean[ch]) * 255.0).round() as u8
                    };
                    sheet.dot(top + y, left + x, [byte(0), byte(1), byte(2)]);
                }
            }
        }
    }
    Ok(sheet)
}

impl Sheet {
    fn dot(&mut self, y: usize, x: usize, colour: [u8; 3]) {
        let at = (y * self.w + x) * 3;
        self.pixels[at..at + 3].copy_from_slice(&colour);
    }

    /// Write a class number of up to three digits into the margin.
    fn number(&mut self, value: usize, top: usize) {
        let text = format!("{value:>3}");
        for (place, digit) in text.chars().enumerate().filter_map(|(p, d)| Some((p, d.to_digit(10)? as usize))) {
            for bit in (0..15).filter(|bit| DIGITS[digit] >> (14 - bit) & 1 == 1) {
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let (y, x) = (top + 2 * (bit / 3) + dy, GAP + 8 * place + 2 * (bit % 3) + dx);
                    if y < self.h {
                        self.dot(y, x, [255; 3]);
                    }
                }
            }
        }
    }

    /// Write it as a PNG file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = std::fs::File::create(path).map_err(|e| Error::io(path, &e))?;
        let mut encoder = png::Encoder::new(std::io::BufWriter::new(file), self.w as u32, self.h as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let written = encoder.write_header().and_then(|mut w| {
            w.write_image_data(&self.pixels)?;
            w.finish()
        });
        written.map_err(|e| Error::Io { path: path.display().to_string(), why: e.to_string() })
    }
}
