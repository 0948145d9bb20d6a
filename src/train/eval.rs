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
use crate::ops::{self, View};
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

    /// Runs `step(images (n, H, W, C), clock)` over the images in `order`, and `after(start, batch size)` behind each,
    /// outside of its graph.
    fn run<S>(
        &mut self,
        (images, order): (&Resident, &Tensor),
        pass: &Pass,
        state: &mut S,
        step: impl Fn(&mut S, &Tensor, &Rc<Clock>) -> Result<()>,
        mut after: impl FnMut(&S, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let clock = &self.clock;
        clock.start(0, 0, 0.0)?;
        for at in (0..order.len()).step_by(pass.batch) {
            let n = pass.batch.min(order.len() - at);
            let replay = if n == pass.batch { &mut self.full } else { &mut self.tail };
            replay
                .run(images.pixels.device(), || {
                    let x = ops::gather_images(&images.pixels, order, clock, n, pass.view)?;
                    step(state, &x, clock)?;
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
        let count = |correct: &mut Buf<u32>, x: &Tensor, clock: &Rc<Clock>| {
            let n = x.shape().nhwc("evaluate")?[0];
            let labels = ops::gather_labels(&data.test_labels, &data.test.identity, clock, n)?;
            ops::count_correct(correct, &model.output(x, clock)?.logits, &labels)
        };
        let all = (&data.test, &data.test.identity);
        self.steps.run(all, &self.pass, &mut self.correct, count, |_, _, _| Ok(()))?;
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

/// Goes over the images `ids` in that order. `step(images (n, H, W, C), clock)` makes N matrices (n, widths) from a
/// batch, and `each(place of its first row, their elements)` takes them over before the next batch overwrites them.
/// The clock counts batches as its steps.
pub fn sweep_each<const N: usize>(
    images: &Resident,
    ids: &[u32],
    pass: Pass,
    widths: [usize; N],
    step: impl Fn(&Tensor, &Rc<Clock>) -> Result<[Tensor; N]>,
    mut each: impl FnMut(usize, [Buf<f32>; N]) -> Result<()>,
) -> Result<()> {
    let device = images.pixels.device();
    let order = Tensor::new(device, [ids.len()], ids)?;
    let rows = pass.batch.min(ids.len());
    let mut staging: Vec<Buf<f32>> = widths.iter().map(|w| Buf::stale(device, rows * w)).collect::<Result<_>>()?;
    let windows = |staging: &[Buf<f32>], n: usize| -> Result<[Buf<f32>; N]> {
        let all = staging.iter().zip(widths).map(|(s, w)| s.window(0, n * w)).collect::<Result<Vec<_>>>()?;
        all.try_into().map_err(|_| Error::Device { op: "sweep", why: "lost a matrix".into() })
    };
    Steps::new(device, pass.graphs)?.run(
        (images, &order),
        &pass,
        &mut staging,
        |staging, x, clock| {
            for (to, y) in staging.iter_mut().zip(step(x, clock)?) {
                ops::copy_into(to, 0, y.buf("sweep")?, device)?;
            }
            Ok(())
        },
        |staging, at, n| each(at, windows(staging, n)?),
    )
}

/// The matrices (M, widths) that `step` makes of the images `ids`, one row each in that order: see [`sweep_each`].
pub fn sweep<const N: usize>(
    images: &Resident,
    ids: &[u32],
    pass: Pass,
    widths: [usize; N],
    step: impl Fn(&Tensor, &Rc<Clock>) -> Result<[Tensor; N]>,
) -> Result<[Tensor; N]> {
    let device = images.pixels.device();
    let kept = || {
        let numbers: usize = widths.iter().sum();
        (format!("keeping {numbers} numbers for each of {} images", ids.len()), "use a smaller network".into())
    };
    let mut all = Vec::new();
    for w in widths {
        all.push(Tensor::stale(device, [ids.len(), w], Dtype::F32).map_err(|e| e.needed_for(kept))?);
    }
    sweep_each(images, ids, pass, widths, step, |at, rows| {
        for ((to, rows), w) in all.iter_mut().zip(&rows).zip(widths) {
            ops::copy_into(to.buf_mut::<f32>("sweep")?, at * w, rows, device)?;
        }
        Ok(())
    })?;
    all.try_into().map_err(|_| Error::Device { op: "sweep", why: "lost a matrix".into() })
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
    let step = |x: &Tensor, clock: &Rc<Clock>| model.output(x, clock).map(|out| [out.logits, out.embedding]);
    sweep_each(images, ids, pass, model.widths(), step, |at, [logits, embeddings]| each(at, logits, embeddings))
}

/// Logits and embeddings of the images `ids`, one row each in that order.
pub fn extract(model: &Model, images: &Resident, ids: &[u32], pass: Pass) -> Result<Features> {
    let step = |x: &Tensor, clock: &Rc<Clock>| model.output(x, clock).map(|out| [out.logits, out.embedding]);
    let [logits, embeddings] = sweep(images, ids, pass, model.widths(), step)?;
    Ok(Features { logits, embeddings })
}
