//! Convolution gradients from a dy that is mostly zeros. Behind 2×2 max pooling at least three of four elements
//! are, behind relu and channel dropout many more: then every element that is not zero adds its multiple of one
//! window, and the rest costs nothing.
//!
//! Windows are `runs` rows of `len` contiguous floats. All vectors are whole registers long: what they cover beyond
//! a run is multiplied with zeros of the packed filters, or summed into padding.

use super::lane::{Eight, LANES, Lane, load, store};
use crate::lanes;

/// One element of dy that is not zero.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Where the window of its pixel starts in the padded image.
    window: u32,
    filter: u32,
    value: f32,
}

/// How windows lie in an image.
#[derive(Clone, Copy)]
pub struct Window {
    /// Rows.
    pub runs: usize,
    /// Floats of a row.
    pub len: usize,
    /// Floats from one row to the next in the image.
    pub stride: usize,
}

impl Window {
    /// Floats of a row with padding.
    fn padded(&self) -> usize {
        self.len.next_multiple_of(LANES)
    }

    /// Floats of all rows with padding.
    pub fn size(&self) -> usize {
        self.runs * self.padded()
    }

    /// Filters (K, runs, len) with their padding.
    pub fn pack(&self, w: &[f32]) -> Vec<f32> {
        let padded = self.padded();
        let mut to = vec![0.0; w.len() / self.len * padded];
        for (to, w) in to.chunks_exact_mut(padded).zip(w.chunks_exact(self.len)) {
            to[..w.len()].copy_from_slice(w);
        }
        to
    }

    /// Windows of all filters without their padding.
    pub fn unpack(&self, dw: &[f32]) -> Vec<f32> {
        let padded = self.padded();
        let mut to = vec![0.0; dw.len() / padded * self.len];
        for (to, dw) in to.chunks_exact_mut(self.len).zip(dw.chunks_exact(padded)) {
            to.copy_from_slice(&dw[..to.len()]);
        }
        to
    }
}

/// Where fewer than one in this many elements is not zero, this form is the faster one.
const SPARSE: usize = 3;

/// Up to this many elements the division below is exact.
const MOST: usize = 1 << 24;

/// Appends the entries of dy (pixels, `k`), pixel by pixel, and says so; false, and nothing, when there are too many.
pub fn entries(to: &mut Vec<Entry>, dy: &[f32], windows: &[u32], k: usize) -> bool {
    let mut masks = [0u64; 128];
    let len = dy.len();
    if len > MOST || k >= 1 << 16 {
        return false;
    }
    let (from, limit) = (to.len(), len / SPARSE);
    // idx / k for idx below 2^24 and k below 2^16
    let inverse = (1u64 << 40) / k as u64 + 1;
    for (block, dy) in dy.chunks(64 * masks.len()).enumerate() {
        let masks = &mut masks[..dy.len().div_ceil(64)];
        let found = nonzero(masks, dy);
        if to.len() - from + found > limit {
            to.truncate(from);
            return false;
        }
        to.reserve(found);
        for (word, mask) in masks.iter().enumerate() {
            let mut mask = *mask;
            while mask != 0 {
                let at = word * 64 + mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let element = block * 64 * 128 + at;
                let pixel = ((element as u64 * inverse) >> 40) as usize;
                to.push(Entry { window: windows[pixel], filter: (element - pixel * k) as u32, value: dy[at] });
            }
        }
    }
    true
}

lanes! {
    /// Bit b of word i is set where element 64·i + b is not zero; the number of those.
    fn nonzero(masks: &mut [u64], x: &[f32]) -> usize = nonzero_body;
}

#[inline(always)]
fn nonzero_body<V: Eight>(masks: &mut [u64], x: &[f32]) -> usize {
    let mut found = 0;
    for (mask, x) in masks.iter_mut().zip(x.chunks(64)) {
        let mut m = 0;
        let whole = x.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            m |= u64::from(load::<V>(x, at).nonzero()) << at;
        }
        for (at, x) in x.iter().enumerate().skip(whole) {
            m |= u64::from(*x != 0.0) << at;
        }
        found += m.count_ones() as usize;
        *mask = m;
    }
    found
}

lanes! {
    /// dx, with a register of room behind it: each entry adds its multiple of its packed filter to its window.
    pub fn dgrad(dx: &mut [f32], entries: &[Entry], w: &[f32], window: Window) = dgrad_body;
}

#[inline(always)]
fn dgrad_body<V: Lane>(dx: &mut [f32], entries: &[Entry], w: &[f32], window: Window) {
    let (size, padded) = (window.size(), window.padded());
    for e in entries {
        let w = &w[e.filter as usize * size..][..size];
        let g = V::splat(e.value);
        for (r, w) in w.chunks_exact(padded).enumerate() {
            let dx = &mut dx[e.window as usize + r * window.stride..][..padded];
            for (dx, w) in dx.chunks_exact_mut(LANES).zip(w.chunks_exact(LANES)) {
                let sum = g.mul_add(load::<V>(w, 0), load(dx, 0));
                store(sum, dx, 0);
            }
        }
    }
}

lanes! {
    /// dw (K, window size with padding): each entry adds its multiple of its window of x, which has a register of
    /// room behind it.
    pub fn wgrad(dw: &mut [f32], entries: &[Entry], x: &[f32], window: Window) = wgrad_body;
}

#[inline(always)]
fn wgrad_body<V: Lane>(dw: &mut [f32], entries: &[Entry], x: &[f32], window: Window) {
    let (size, padded) = (window.size(), window.padded());
    for e in entries {
        let dw = &mut dw[e.filter as usize * size..][..size];
        let g = V::splat(e.value);
        for (r, dw) in dw.chunks_exact_mut(padded).enumerate() {
            let x = &x[e.window as usize + r * window.stride..][..padded];
            for (dw, x) in dw.chunks_exact_mut(LANES).zip(x.chunks_exact(LANES)) {
                let sum = g.mul_add(load::<V>(x, 0), load(dw, 0));
                store(sum, dw, 0);
            }
        }
    }
}
