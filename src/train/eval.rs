//! Evaluation passes: dropout off, test transform, results that do not depend on the batch size.
//!
//! As in training, a batch is a step of fixed shapes and addresses that is captured once and replayed; its place in the
//! pass comes from the clock. Rows that leave a step lie in buffers of its own, from where they are copied outside of
//! the graph. The last, smaller batch has a graph of its own.

use std::rc::Rc;

use super::{DeviceData, Model, Resident};
use crate::clock::Clock;
use crate::device::Device;
use crate::device::cuda::Replay;
use crate::nn::{Ctx, Mode, Output};
use crate::ops::{self, View};
use crate::rng::{Purpose, Rng};
use crate::tensor::{Buf, Dtype, Tensor};
use crate::{Error, Result};

/// How a pass goes over images. Nothing in it changes a result but the view.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The test transform.
    pub view: &'a View,
    /// Images per batch.
    pub batch: usize,
    /// Replay batches as CUDA graphs.
    pub graphs: bool,
}

/// The two steps of a pass.
struct Steps {
    clock: Rc<Clock>,
    full: Replay,
    tail: Replay,
}

impl Steps {
    fn new(device: &Device, graphs: bool) -> Result<Steps> {
        Ok(Steps { clock: Rc::new(Clock::new(device)?), full: Replay::new(graphs), tail: Replay::new(graphs) })
    }

    /// Runs `step(output of the network, clock, batch size)` over the images in `order`, and `after(start, batch size)`
    /// behind each, outside of its graph.
    fn run<S>(
        &mut self,
        model: &Model,
        (images, order): (&Resident, &Tensor),
        pass: &Pass,
        state: &mut S,
        step: impl Fn(&mut S, Output, &Rc<Clock>, usize) -> Result<()>,
        mut after: impl FnMut(&S, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let clock = &self.clock;
        clock.start(0, 0, 0.0)?;
        let rng = Rng::new(0).at(Purpose::Dropout, 0, 0); // not drawn from: dropout is off
        let cx = Ctx::new(Mode::Eval, rng, clock, &model.params);
        for at in (0..order.len()).step_by(pass.batch) {
            let n = pass.batch.min(order.len() - at);
            let replay = if n == pass.batch { &mut self.full } else { &mut self.tail };
            replay
                .run(images.pixels.device(), || {
                    let x = ops::gather_images(&images.pixels, order, clock, n, pass.view)?;
                    step(state, model.net.forward(&x, &cx)?, clock, n)?;
                    clock.advance(n)
                })
                .map_err(|e| {
                    e.needed_for(|| {
                        let half = (n / 2).max(1);
                        let remedy =
                            format!("use a smaller batch, such as --set eval.batch={half} (embed: --batch {half})");
                        (format!("a forward pass over {n} images"), remedy)
                    })
                })?;
            after(state, at, n)?;
        }
        Ok(())
    }
}

/// Counts the test images that a model gets right, epoch after epoch with the same graphs.
pub struct Evaluator<'a> {
    data: &'a DeviceData,
    pass: Pass<'a>,
    steps: Steps,
    correct: Buf<u32>,
    /// The parameters whose addresses the graphs hold.
    set: Option<u64>,
}

impl<'a> Evaluator<'a> {
    /// For the test set of `data`.
    pub fn new(data: &'a DeviceData, pass: Pass<'a>) -> Result<Evaluator<'a>> {
        let steps = Steps::new(&data.device, pass.graphs)?;
        Ok(Evaluator { data, pass, steps, correct: Buf::zeros(&data.device, 1)?, set: None })
    }

    /// Number of test images the model gets right. Counted on the device, read once.
    pub fn correct(&mut self, model: &Model) -> Result<u32> {
        let data = self.data;
        if self.set.replace(model.params.set()) != Some(model.params.set()) {
            self.steps = Steps::new(&data.device, self.pass.graphs)?;
        }
        self.correct.write(&data.device, &[0])?;
        let count = |correct: &mut Buf<u32>, out: Output, clock: &Rc<Clock>, n: usize| {
            let labels = ops::gather_labels(&data.test_labels, &data.test.identity, clock, n)?;
            ops::count_correct(correct, &out.logits.detach(), &labels)
        };
        let all = (&data.test, &data.test.identity);
        self.steps.run(model, all, &self.pass, &mut self.correct, count, |_, _, _| Ok(()))?;
        let lost = Error::Device { op: "evaluate", why: "lost its counter".into() };
        self.correct.to_host()?.first().copied().ok_or(lost)
    }
}

/// Number of test images the model gets right.
pub fn evaluate(model: &Model, data: &DeviceData, pass: Pass) -> Result<u32> {
    Evaluator::new(data, pass)?.correct(model)
}

/// Outputs of a pass over part of the pool, on the device.
pub struct Features {
    /// (M, C)
    pub logits: Tensor,
    /// (M, D)
    pub embeddings: Tensor,
}

/// Goes over the images `ids` in that order and hands each batch to `each(place of its first row, logits (n, C),
/// embeddings (n, D))`. The next batch overwrites both buffers.
pub fn extract_each(
    model: &Model,
    images: &Resident,
    ids: &[u32],
    pass: Pass,
    mut each: impl FnMut(usize, Buf<f32>, Buf<f32>) -> Result<()>,
) -> Result<()> {
    let device = images.pixels.device();
    let order = Tensor::new(device, [ids.len()], ids)?;
    let (c, d, rows) = (model.classes, model.net.embedding_width(), pass.batch.min(ids.len()));
    let mut staging = (Buf::<f32>::stale(device, rows * c)?, Buf::<f32>::stale(device, rows * d)?);
    Steps::new(device, pass.graphs)?.run(
        model,
        (images, &order),
        &pass,
        &mut staging,
        |(logits, embeddings), out, _, _| {
            ops::copy_into(logits, 0, out.logits.buf("extract")?, device)?;
            ops::copy_into(embeddings, 0, out.embedding.buf("extract")?, device)
        },
        |(logits, embeddings), at, n| each(at, logits.window(0, n * c)?, embeddings.window(0, n * d)?),
    )
}

/// Logits and embeddings of the images `ids`, one row each in that order.
pub fn extract(model: &Model, images: &Resident, ids: &[u32], pass: Pass) -> Result<Features> {
    let device = images.pixels.device();
    let (c, d) = (model.classes, model.net.embedding_width());
    let room = |columns: usize| Tensor::stale(device, [ids.len(), columns], Dtype::F32);
    let kept = || (format!("keeping the {} outputs of {} images", c + d, ids.len()), "use a smaller network".into());
    let mut logits = room(c).map_err(|e| e.needed_for(kept))?;
    let mut embeddings = room(d).map_err(|e| e.needed_for(kept))?;
    extract_each(model, images, ids, pass, |at, l, e| {
        ops::copy_into(logits.buf_mut::<f32>("extract")?, at * c, &l, device)?;
        ops::copy_into(embeddings.buf_mut::<f32>("extract")?, at * d, &e, device)
    })?;
    Ok(Features { logits, embeddings })
}
