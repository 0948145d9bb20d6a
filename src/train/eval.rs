//! Evaluation passes: dropout off, test transform, results that do not depend on the batch size.

use std::rc::Rc;

use super::{DeviceData, Model, Resident};
use crate::clock::Clock;
use crate::nn::{Ctx, Mode};
use crate::ops::{self, View};
use crate::rng::{Purpose, Rng};
use crate::tensor::{Buf, Dtype, Tensor};
use crate::{Error, Result};

/// Runs `each(batch of images)` over the ids in `order`, in order.
fn batches(
    model: &Model,
    images: &Resident,
    order: &Tensor,
    view: &View,
    batch: usize,
    mut each: impl FnMut(usize, usize, &Rc<Clock>, &Tensor, &Ctx) -> Result<()>,
) -> Result<()> {
    let clock = Rc::new(Clock::new(images.pixels.device())?);
    let rng = Rng::new(0).at(Purpose::Dropout, 0, 0); // not drawn from: dropout is off
    let cx = Ctx::new(Mode::Eval, rng, &clock, &model.params);
    let mut at = 0;
    while at < order.len() {
        let n = batch.min(order.len() - at);
        let x = ops::gather_images(&images.pixels, order, &clock, n, view)?;
        each(at, n, &clock, &x, &cx)?;
        clock.advance(n)?;
        at += n;
    }
    Ok(())
}

/// Number of test images the model gets right. Counted on the device, read once.
pub fn evaluate(model: &Model, data: &DeviceData, view: &View, batch: usize) -> Result<u32> {
    let test = &data.test;
    let mut correct: Buf<u32> = Buf::zeros(&data.device, 1)?;
    batches(model, test, &test.identity, view, batch, |_, n, clock, x, cx| {
        let labels = ops::gather_labels(&data.test_labels, &test.identity, clock, n)?;
        let logits = model.net.forward(x, cx)?.logits.detach();
        ops::count_correct(&mut correct, &logits, &labels)
    })?;
    correct.to_host()?.first().copied().ok_or(Error::Device { op: "evaluate", why: "lost its counter".into() })
}

/// Outputs of a pass over part of the pool, on the device.
pub struct Features {
    /// (M, C)
    pub logits: Tensor,
    /// (M, D)
    pub embeddings: Tensor,
}

/// Logits and embeddings of the images `ids`, one row each in that order.
pub fn extract(model: &Model, images: &Resident, ids: &[u32], view: &View, batch: usize) -> Result<Features> {
    let device = images.pixels.device();
    let order = Tensor::new(device, [ids.len()], ids)?;
    let (c, d) = (model.classes, model.net.embedding_width());
    let mut logits = Tensor::stale(device, [ids.len(), c], Dtype::F32)?;
    let mut embeddings = Tensor::stale(device, [ids.len(), d], Dtype::F32)?;
    batches(model, images, &order, view, batch, |at, _, _, x, cx| {
        let out = model.net.forward(x, cx)?;
        ops::copy_into(logits.buf_mut::<f32>("extract")?, at * c, out.logits.buf("extract")?, device)?;
        ops::copy_into(embeddings.buf_mut::<f32>("extract")?, at * d, out.embedding.buf("extract")?, device)
    })?;
    Ok(Features { logits, embeddings })
}
