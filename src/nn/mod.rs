//! Networks: parameters in one arena, what a forward pass needs to know, and the trait every network implements.

pub mod checkpoint;
pub mod critic;
pub mod gcn;
pub mod lenet;
pub mod losshead;
pub mod resnet;
pub mod vae;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use half::bf16;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::autograd::Leaf;
use crate::clock::Clock;
use crate::device::Device;
use crate::ops::{self, BatchStats, ChunkSums, Then};
use crate::rng::Rng;
use crate::tensor::{Buf, Dtype, Shape, Storage, Tensor};

/// Index of a parameter; layers hold these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param(usize);

/// Indices of the running statistics of one normalisation: state of the network that no gradient reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    mean: usize,
    var: usize,
}

/// How a slot starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// uniform(−1/√n, 1/√n), n being the number of inputs of one output.
    FanIn(usize),
    /// Normal with mean 0 and this standard deviation.
    Normal(f32),
    /// One value everywhere.
    Constant(f32),
}

impl Start {
    /// Kaiming's normal numbers, of standard deviation √(2/n), n being the number of inputs of one output.
    pub fn kaiming(n: usize) -> Start {
        Start::Normal((2.0 / n as f32).sqrt())
    }
}

/// Name, shape and place of one parameter or running statistic.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The name in torchvision's state dict.
    pub name: String,
    /// Sizes: filters (K, R, S, C), linear weights (out, in).
    pub shape: Shape,
    /// Its first values.
    pub start: Start,
    /// The image (H, W, C) whose flattening a linear weight reads; PyTorch flattens (C, H, W).
    pub flat: Option<[usize; 3]>,
    offset: usize,
}

impl Slot {
    fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.shape.len()
    }
}

/// What activations and their gradients are stored as. Weights, statistics, softmax, losses and scores are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits; convolutions run on tensor cores, with f32 sums.
    Bf16,
}

impl Precision {
    /// What manifests call it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// The type of activations.
    pub fn dtype(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
        }
    }
}

/// All parameters of a network in one flat f32 arena, and its running statistics in another.
pub struct Params {
    slots: Vec<Slot>,
    arena: Buf<f32>,
    /// The parameters rounded, for products in bf16.
    low: Option<Buf<bf16>>,
    stats: Vec<Slot>,
    running: Buf<f32>,
    device: Device,
    set: u64,
    generation: u64,
}

/// Collects the parameters while a network is put together.
#[derive(Default)]
pub struct Layout {
    slots: Vec<Slot>,
    stats: Vec<Slot>,
}

/// Slots start at multiples of eight, so that kernels may load 16 bytes of f32 and of bf16.
const ALIGN: usize = 8;

/// Appends a slot.
fn push(slots: &mut Vec<Slot>, name: &str, shape: Shape, start: Start) -> usize {
    let offset = slots.last().map_or(0, |s| s.range().end.next_multiple_of(ALIGN));
    slots.push(Slot { name: name.into(), shape, start, flat: None, offset });
    slots.len() - 1
}

/// The first values of all slots, on the host, so that every device starts from the same bytes.
fn first_values(slots: &[Slot], rng: Rng) -> Vec<f32> {
    let mut host = vec![0.0f32; slots.last().map_or(0, |s| s.range().end.next_multiple_of(ALIGN))];
    for (i, s) in slots.iter().enumerate() {
        let (to, stream) = (&mut host[s.range()], rng.lane(i as u32));
        match s.start {
            Start::Constant(v) => to.fill(v),
            Start::Normal(std) => {
                for (e, w) in to.iter_mut().enumerate() {
                    *w = (f64::from(std) * stream.normal(e as u64)) as f32;
                }
            }
            Start::FanIn(n) => {
                let bound = 1.0 / (n as f32).sqrt();
                for (e, w) in to.iter_mut().enumerate() {
                    *w = (2.0 * stream.uniform(e as u64) - 1.0) * bound;
                }
            }
        }
    }
    host
}

fn by_slot(slots: &[Slot], arena: &Buf<f32>) -> Result<Vec<(Slot, Vec<f32>)>> {
    let host = arena.to_host()?;
    Ok(slots.iter().map(|s| (s.clone(), host[s.range()].to_vec())).collect())
}

fn fill(
    slots: &[Slot],
    arena: &mut Buf<f32>,
    device: &Device,
    mut value: impl FnMut(&Slot) -> Result<Vec<f32>>,
) -> Result<()> {
    let mut all = vec![0.0f32; arena.len()];
    for s in slots {
        all[s.range()].copy_from_slice(&value(s)?);
    }
    arena.write(device, &all)
}

impl Layout {
    /// Reserves a parameter drawn from uniform(−1/√fan_in, 1/√fan_in).
    pub fn add(&mut self, name: &str, shape: impl Into<Shape>, fan_in: usize) -> Param {
        self.add_started(name, shape, Start::FanIn(fan_in))
    }

    /// Reserves a parameter that starts as told.
    pub fn add_started(&mut self, name: &str, shape: impl Into<Shape>, start: Start) -> Param {
        Param(push(&mut self.slots, name, shape.into(), start))
    }

    /// Reserves a linear weight (out, H·W·C) that reads a flattened image (H, W, C).
    pub fn add_flat(&mut self, name: &str, out: usize, image: [usize; 3]) -> Param {
        let n = image.iter().product();
        let p = self.add(name, [out, n], n);
        self.slots[p.0].flat = Some(image);
        p
    }

    /// Reserves a batch normalisation of `c` channels.
    pub fn norm(&mut self, name: &str, c: usize) -> Norm {
        let mut param =
            |what, v| Param(push(&mut self.slots, &format!("{name}.{what}"), [c].into(), Start::Constant(v)));
        let (gamma, beta) = (param("weight", 1.0), param("bias", 0.0));
        let mut stat = |what, v| push(&mut self.stats, &format!("{name}.{what}"), [c].into(), Start::Constant(v));
        let running = Running { mean: stat("running_mean", 0.0), var: stat("running_var", 1.0) };
        Norm { gamma, beta, running }
    }

    /// All parameters and statistics with their first values. `rng` is the stream of (seed, round).
    pub fn init(self, device: &Device, rng: Rng) -> Result<Params> {
        thread_local!(static SETS: Cell<u64> = const { Cell::new(1) });
        let set = SETS.with(|n| n.replace(n.get() + 1));
        let arena = Buf::from_host(device, &first_values(&self.slots, rng))?;
        let running = Buf::from_host(device, &first_values(&self.stats, rng))?;
        let (slots, stats, device) = (self.slots, self.stats, device.clone());
        Ok(Params { slots, arena, low: None, stats, running, device, set, generation: 0 })
    }
}

/// Batch normalisation: learned scale and shift, running statistics. ε = 1e-5, momentum 0.1, as in PyTorch.
pub struct Norm {
    gamma: Param,
    beta: Param,
    running: Running,
}

const EPS: f32 = 1e-5;
const MOMENTUM: f32 = 0.1;

impl Norm {
    /// Normalises x (…, C): with the statistics of the batch, which are kept for [`Params::absorb`], in training; with
    /// the running ones otherwise.
    ///
    /// `sums`: what the convolution that made x knows of it.
    pub fn apply(&self, x: &Tensor, sums: Option<ChunkSums>, then: Then, cx: &Ctx) -> Result<Tensor> {
        let (gamma, beta) = (cx.param(self.gamma)?, cx.param(self.beta)?);
        match cx.mode {
            Mode::Train => {
                let (y, stats) = ops::batch_norm(x, sums, &gamma, &beta, EPS, then)?;
                cx.seen.borrow_mut().push((self.running, stats));
                Ok(y)
            }
            Mode::Eval | Mode::McDropout { .. } => {
                ops::batch_norm_eval(x, &gamma, &beta, &cx.params.running(self.running)?, EPS, then)
            }
        }
    }
}

impl Params {
    /// The parameter as a tensor, the start of a graph.
    pub fn tensor(&self, p: Param) -> Result<Tensor> {
        let s = &self.slots[p.0];
        Ok(self.leaf(p, Storage::F32(self.arena.window(s.offset, s.shape.len())?)))
    }

    /// The parameter in the precision of the run, for a product. Its gradient is f32, as that of the parameter.
    fn rounded(&self, p: Param) -> Result<Tensor> {
        let s = &self.slots[p.0];
        match &self.low {
            Some(low) => Ok(self.leaf(p, Storage::Bf16(low.window(s.offset, s.shape.len())?))),
            None => self.tensor(p),
        }
    }

    fn leaf(&self, p: Param, data: Storage) -> Tensor {
        let leaf = Leaf { set: self.set, index: p.0, generation: self.generation };
        Tensor::build(self.slots[p.0].shape.clone(), data, self.device.clone(), true, None, Some(leaf))
    }

    /// Chooses what products with these parameters run in; f32 at first.
    pub fn set_precision(&mut self, precision: Precision) -> Result<()> {
        self.low = match precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(Buf::stale(&self.device, self.arena.len())?),
        };
        self.round()
    }

    /// What products with these parameters run in.
    pub fn precision(&self) -> Precision {
        if self.low.is_some() { Precision::Bf16 } else { Precision::F32 }
    }

    /// Brings the rounded copy up to date. Whoever moves the arena calls it.
    pub(crate) fn round(&mut self) -> Result<()> {
        match &mut self.low {
            Some(low) => ops::narrow_into(low, &self.arena, &self.device),
            None => Ok(()),
        }
    }

    /// Running statistics, constants.
    fn running(&self, r: Running) -> Result<BatchStats> {
        let tensor = |i: usize| {
            let slot = &self.stats[i];
            let buf = self.running.window(slot.offset, slot.shape.len())?;
            Ok(Tensor::build(slot.shape.clone(), Storage::F32(buf), self.device.clone(), false, None, None))
        };
        Ok(BatchStats { mean: tensor(r.mean)?, var: tensor(r.var)? })
    }

    /// Moves the running statistics a tenth of the way towards those of a batch.
    pub fn absorb(&mut self, seen: &[(Running, BatchStats)]) -> Result<()> {
        for (r, batch) in seen {
            let at = [r.mean, r.var].map(|i| self.stats[i].offset);
            ops::batch_norm_update(&mut self.running, at, batch, &self.device, MOMENTUM)?;
        }
        Ok(())
    }

    /// True when what the network makes of an image in training depends on the others in its batch.
    pub fn normalises(&self) -> bool {
        !self.stats.is_empty()
    }

    /// The running statistics' arena, to move them.
    pub(crate) fn running_mut(&mut self) -> &mut Buf<f32> {
        &mut self.running
    }

    /// 1 for every number that belongs to a filter or a linear weight, 0 for biases and normalisations.
    pub(crate) fn kernel_marks(&self) -> Vec<u8> {
        let mut marks = vec![0; self.arena.len()];
        for s in self.slots.iter().filter(|s| s.shape.dims().len() > 1) {
            marks[s.range()].fill(1);
        }
        marks
    }

    /// Names, shapes and places.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Number of parameters without padding.
    pub fn count(&self) -> usize {
        self.slots.iter().map(|s| s.shape.len()).sum()
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All values on the host: parameters, then running statistics. Waits for the device.
    pub fn to_host(&self) -> Result<Vec<(Slot, Vec<f32>)>> {
        Ok([by_slot(&self.slots, &self.arena)?, by_slot(&self.stats, &self.running)?].concat())
    }

    /// A number for every parameter, such as its velocity, by slot. Waits for the device.
    pub(crate) fn split(&self, arena: &Buf<f32>) -> Result<Vec<(Slot, Vec<f32>)>> {
        by_slot(&self.slots, arena)
    }

    /// Overwrites an arena of a number for every parameter: `value` gives the numbers of a slot.
    pub(crate) fn join(&self, arena: &mut Buf<f32>, value: impl FnMut(&Slot) -> Result<Vec<f32>>) -> Result<()> {
        fill(&self.slots, arena, &self.device, value)
    }

    /// Overwrites everything: `value` gives the numbers of a slot.
    pub fn load(&mut self, mut value: impl FnMut(&Slot) -> Result<Vec<f32>>) -> Result<()> {
        self.generation += 1;
        fill(&self.slots, &mut self.arena, &self.device, &mut value)?;
        fill(&self.stats, &mut self.running, &self.device, &mut value)?;
        self.round()
    }

    pub(crate) fn set(&self) -> u64 {
        self.set
    }

    /// How often the parameters have been moved.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The arena, to move the parameters, and then to call [`Params::round`]; graphs built before are stale from here
    /// on.
    pub(crate) fn arena_mut(&mut self) -> &mut Buf<f32> {
        self.generation += 1;
        &mut self.arena
    }

    pub(crate) fn arena_len(&self) -> usize {
        self.arena.len()
    }

    pub(crate) fn offset(&self, index: usize) -> usize {
        self.slots[index].offset
    }
}

/// How a forward pass treats dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout on, batch normalisation by the batch.
    Train,
    /// Dropout off, batch normalisation by the running statistics.
    Eval,
    /// As `Eval`, but with dropout: one of several passes at query time, each with masks of its own.
    McDropout {
        /// 0-based; part of the address of its masks.
        pass: u32,
    },
}

/// What travels with a forward pass: there is no hidden train/eval flag anywhere.
pub struct Ctx<'a> {
    /// Dropout on or off, batch normalisation by the batch or by the running statistics.
    pub mode: Mode,
    /// The dropout stream of this round; layers add their lane.
    pub rng: Rng,
    /// Gives the step to the dropout streams.
    pub clock: &'a Rc<Clock>,
    /// The weights.
    pub params: &'a Params,
    /// Hand out the intermediate maps too. Off unless asked for, in training as well: they are tensors that exist
    /// anyway, but whoever holds an [`Output`] with maps in it holds their memory.
    pub taps: bool,
    /// The pool ids of a pass with dropout, of which the clock's offset takes those of the batch: masks are drawn by
    /// id then, so that they do not depend on the batch.
    pub examples: Option<&'a Tensor>,
    /// Of several training passes in one step, which one it is: each has masks of its own.
    pass: u32,
    /// In training: the weights are constants, so that nothing is kept for a backward pass.
    constant: bool,
    /// Statistics of the batch, of a training pass.
    seen: RefCell<Vec<(Running, BatchStats)>>,
}

impl<'a> Ctx<'a> {
    /// For one pass.
    pub fn new(mode: Mode, rng: Rng, clock: &'a Rc<Clock>, params: &'a Params) -> Ctx<'a> {
        Ctx {
            mode,
            rng,
            clock,
            params,
            taps: false,
            examples: None,
            pass: 0,
            constant: false,
            seen: RefCell::default(),
        }
    }

    /// The same context for another training pass of the step.
    pub fn pass(self, pass: u32) -> Ctx<'a> {
        Ctx { pass, ..self }
    }

    /// The same training pass without gradients.
    pub fn constant(self) -> Ctx<'a> {
        Ctx { constant: true, ..self }
    }

    /// The same pass with the intermediate maps in its output.
    pub fn with_taps(self) -> Ctx<'a> {
        Ctx { taps: true, ..self }
    }

    /// The same pass with masks by the ids `order` (u32): see [`Ctx::examples`].
    pub fn of_examples(self, order: &'a Tensor) -> Ctx<'a> {
        Ctx { examples: Some(order), ..self }
    }

    /// Keeps a map for those who asked.
    fn tap(&self, taps: &mut Vec<Tensor>, map: &Tensor) {
        if self.taps {
            taps.push(map.clone());
        }
    }

    /// The tensor of a parameter. Outside of training it is a constant: an evaluation keeps no activations.
    pub fn param(&self, p: Param) -> Result<Tensor> {
        let t = self.params.tensor(p)?;
        Ok(if self.tracks() { t } else { t.detach() })
    }

    fn tracks(&self) -> bool {
        self.mode == Mode::Train && !self.constant
    }

    /// The tensor of a weight in the precision of the run, for a product.
    pub fn weight(&self, p: Param) -> Result<Tensor> {
        let t = self.params.rounded(p)?;
        Ok(if self.tracks() { t } else { t.detach() })
    }

    /// Images in the precision of the run.
    pub fn input(&self, x: &Tensor) -> Result<Tensor> {
        ops::cast(x, self.params.precision().dtype())
    }

    /// x with the dropout of a layer, each element with probability `p`, or each channel of maps (N, H, W, C). As it is
    /// where dropout is off.
    pub fn dropped(&self, layer: u32, p: f32, x: &Tensor) -> Result<Tensor> {
        let rng = match (self.mode, self.examples) {
            (Mode::Eval, _) => return Ok(x.clone()),
            (Mode::Train, _) => self.rng.lane(2 * self.pass + layer),
            (Mode::McDropout { pass }, None) => self.rng.lane(2 * pass + layer),
            (Mode::McDropout { pass }, Some(order)) => {
                return ops::dropout_examples(x, p, self.rng.lane(2 * pass + layer), order, self.clock);
            }
        };
        match x.dims().len() {
            4 => ops::dropout_channels(x, p, rng, self.clock),
            _ => ops::dropout(x, p, rng, self.clock),
        }
    }

    /// The statistics that the pass has seen, for [`Params::absorb`].
    pub fn into_seen(self) -> Vec<(Running, BatchStats)> {
        self.seen.into_inner()
    }
}

/// Result of a forward pass.
pub struct Output {
    /// (N, C)
    pub logits: Tensor,
    /// (N, D): the penultimate features h.
    pub embedding: Tensor,
    /// Intermediate maps (N, H, W, C) from the first to the last, tracked in training; none unless the [`Ctx`] asks for
    /// them. LeNet: after each pooling and relu. ResNet-18: the outputs of its four stages.
    pub taps: Vec<Tensor>,
}

/// When a network drops anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropout {
    /// Never: passes with dropout are all the same.
    Never,
    /// In passes at query time only.
    AtQueries,
    /// In training too.
    InTraining,
}

/// A network: a trunk of two parts that makes the embedding and a head that makes the logits.
pub trait Net {
    /// The part of the trunk that no dropout reaches, from images (N, H, W, C) to what [`Net::rest`] goes on with. It
    /// is computed once where several passes with dropout are asked for. Maps go to `taps` if the context asks for them.
    fn stem(&self, x: &Tensor, cx: &Ctx, taps: &mut Vec<Tensor>) -> Result<Tensor>;

    /// The rest of the trunk, to the penultimate features (N, D).
    fn rest(&self, stem: &Tensor, cx: &Ctx, taps: &mut Vec<Tensor>) -> Result<Tensor>;

    /// Logits (N, C) of an embedding.
    fn head(&self, embedding: &Tensor, cx: &Ctx) -> Result<Tensor>;

    /// D
    fn embedding_width(&self) -> usize;

    /// Channels of the intermediate maps.
    fn tap_widths(&self) -> Vec<usize>;

    /// The size (H, W, C) of the last map, where hidden layers lie between it and the embedding.
    fn hidden_map(&self) -> Option<[usize; 3]> {
        None
    }

    /// When it drops anything.
    fn dropout(&self) -> Dropout {
        Dropout::Never
    }

    /// Everything, from images (N, H, W, C).
    fn forward(&self, x: &Tensor, cx: &Ctx) -> Result<Output> {
        let mut taps = Vec::new();
        let embedding = self.rest(&self.stem(x, cx, &mut taps)?, cx, &mut taps)?;
        let logits = self.head(&embedding, cx)?;
        Ok(Output { logits, embedding, taps })
    }
}

#[cfg(test)]
mod tests {
    use super::lenet::LeNet;
    use super::resnet::ResNet18;
    use super::*;

    /// METHODS 1.6, and 1.1: 21,840 parameters.
    #[test]
    fn taps_are_the_maps_of_the_study() {
        type Case<'a> = (&'a dyn Fn(&mut Layout) -> Box<dyn Net>, [usize; 3], &'a [[usize; 3]]);
        let cases: [Case; 3] = [
            (&|l| Box::new(LeNet::new(l, 10)), [28, 28, 1], &[[12, 12, 10], [4, 4, 20]]),
            (
                &|l| Box::new(ResNet18::new(l, 4, [32, 3], 10).unwrap()),
                [32, 32, 3],
                &[[32, 32, 4], [16, 16, 8], [8, 8, 16], [4, 4, 32]],
            ),
            (
                &|l| Box::new(ResNet18::new(l, 2, [64, 3], 10).unwrap()),
                [64, 64, 3],
                &[[64, 64, 2], [32, 32, 4], [16, 16, 8], [8, 8, 16]],
            ),
        ];
        let clock = Rc::new(Clock::new(&Device::Cpu).unwrap());
        for (make, [h, w, c], maps) in cases {
            let mut layout = Layout::default();
            let net = make(&mut layout);
            let params = layout.init(&Device::Cpu, Rng::new(1)).unwrap();
            let x: Vec<f32> = (0..2 * (h * w * c) as u64).map(|e| Rng::new(2).uniform(e)).collect();
            let x = Tensor::new(&Device::Cpu, [2, h, w, c], &x).unwrap();
            for mode in [Mode::Train, Mode::Eval] {
                let cx = Ctx::new(mode, Rng::new(3), &clock, &params);
                assert!(net.forward(&x, &cx).unwrap().taps.is_empty(), "nobody asked");
                let out = net.forward(&x, &cx.with_taps()).unwrap();
                let shapes: Vec<&[usize]> = out.taps.iter().map(|t| t.shape().dims()).collect();
                let wanted: Vec<Vec<usize>> = maps.iter().map(|m| vec![2, m[0], m[1], m[2]]).collect();
                assert_eq!(shapes, wanted);
                assert_eq!(net.tap_widths(), maps.iter().map(|m| m[2]).collect::<Vec<_>>());
                assert!(out.taps.iter().all(|t| t.is_tracked() == (mode == Mode::Train)));
                // The last map is what the rest of the trunk reads.
                let last = out.taps.last().unwrap().to_vec::<f32>().unwrap();
                assert!(last.iter().all(|v| *v >= 0.0) && last.iter().any(|v| *v > 0.0));
            }
        }
        let mut layout = Layout::default();
        LeNet::new(&mut layout, 10);
        assert_eq!(layout.init(&Device::Cpu, Rng::new(1)).unwrap().count(), 21_840);
    }

    /// Normal numbers of the stream of their slot, of the standard deviation that was asked for.
    #[test]
    fn parameters_start_as_told() {
        let mut layout = Layout::default();
        layout.add("a", [3], 1);
        layout.add_started("b", [200, 100], Start::kaiming(50));
        layout.add_started("c", [5], Start::Constant(0.5));
        let values = layout.init(&Device::Cpu, Rng::new(4)).unwrap().to_host().unwrap();
        let b = &values[1].1;
        assert!(
            b.iter()
                .enumerate()
                .all(|(e, v)| (f64::from(*v) - 0.2 * Rng::new(4).lane(1).normal(e as u64)).abs() < 1e-6)
        );
        let std = (b.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 20_000.0).sqrt();
        assert!((std - 0.2).abs() < 5.0 * 0.2 / 40_000f64.sqrt(), "{std}");
        assert_eq!(values[2].1, [0.5; 5]);
    }
}
