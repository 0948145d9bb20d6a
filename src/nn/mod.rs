//! Networks: parameters in one arena, what a forward pass needs to know, and the trait every network implements.

pub mod checkpoint;
pub mod lenet;

use std::cell::Cell;
use std::rc::Rc;

use crate::autograd::Leaf;
use crate::clock::Clock;
use crate::device::Device;
use crate::rng::Rng;
use crate::tensor::{Buf, Shape, Storage, Tensor};
use crate::{Error, Result};

/// Index of a parameter; layers hold these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param(usize);

/// Name, shape and place of one parameter.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The name in torchvision's state dict.
    pub name: String,
    /// Sizes: filters (K, R, S, C), linear weights (out, in).
    pub shape: Shape,
    /// Number of inputs of one output, for the initial range.
    pub fan_in: usize,
    offset: usize,
}

/// All parameters of a network in one flat f32 arena.
pub struct Params {
    slots: Vec<Slot>,
    arena: Buf<f32>,
    device: Device,
    set: u64,
    generation: u64,
}

/// Collects the parameters while a network is put together.
#[derive(Default)]
pub struct Layout {
    slots: Vec<Slot>,
    len: usize,
}

impl Layout {
    /// Reserves a parameter. Slots start at multiples of four floats, so that kernels may load 16 bytes.
    pub fn add(&mut self, name: &str, shape: impl Into<Shape>, fan_in: usize) -> Param {
        let shape = shape.into();
        let offset = self.len;
        self.len += shape.len().next_multiple_of(4);
        self.slots.push(Slot { name: name.into(), shape, fan_in, offset });
        Param(self.slots.len() - 1)
    }

    /// All parameters drawn from uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)), on the host, so that every device
    /// starts from the same bytes. `rng` is the stream of (seed, round).
    pub fn init(self, device: &Device, rng: Rng) -> Result<Params> {
        let mut host = vec![0.0f32; self.len];
        for (i, s) in self.slots.iter().enumerate() {
            let bound = 1.0 / (s.fan_in as f32).sqrt();
            let stream = rng.lane(i as u32);
            for (e, w) in host[s.offset..s.offset + s.shape.len()].iter_mut().enumerate() {
                *w = (2.0 * stream.uniform(e as u64) - 1.0) * bound;
            }
        }
        thread_local!(static SETS: Cell<u64> = const { Cell::new(1) });
        let set = SETS.with(|n| n.replace(n.get() + 1));
        let arena = Buf::from_host(device, &host)?;
        Ok(Params { slots: self.slots, arena, device: device.clone(), set, generation: 0 })
    }
}

impl Params {
    /// The parameter as a tensor, the start of a graph.
    pub fn tensor(&self, p: Param) -> Result<Tensor> {
        let s = &self.slots[p.0];
        let buf = self.arena.window(s.offset, s.shape.len())?;
        let leaf = Leaf { set: self.set, index: p.0, generation: self.generation };
        Ok(Tensor::build(s.shape.clone(), Storage::F32(buf), self.device.clone(), true, None, Some(leaf)))
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

    /// All values on the host, by parameter. Waits for the device.
    pub fn to_host(&self) -> Result<Vec<(String, Shape, Vec<f32>)>> {
        let all = self.arena.to_host()?;
        let one = |s: &Slot| (s.name.clone(), s.shape.clone(), all[s.offset..s.offset + s.shape.len()].to_vec());
        Ok(self.slots.iter().map(one).collect())
    }

    /// Overwrites parameters by name; every parameter must be given.
    pub fn load(&mut self, values: &[(String, Vec<f32>)]) -> Result<()> {
        let mut all = vec![0.0f32; self.arena.len()];
        for s in &self.slots {
            let found = values.iter().find(|(n, _)| *n == s.name);
            let v = found.map(|(_, v)| v).filter(|v| v.len() == s.shape.len()).ok_or_else(|| Error::Data {
                path: s.name.clone(),
                why: format!("the checkpoint has no parameter of this name with shape {:?}", s.shape),
            })?;
            all[s.offset..s.offset + v.len()].copy_from_slice(v);
        }
        self.generation += 1;
        self.arena.write(&self.device, &all)
    }

    pub(crate) fn set(&self) -> u64 {
        self.set
    }

    /// How often the parameters have been moved.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The arena, to move the parameters; graphs built before are stale from here on.
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
    /// Dropout on.
    Train,
    /// Dropout off.
    Eval,
}

/// What travels with a forward pass: there is no hidden train/eval flag anywhere.
pub struct Ctx<'a> {
    /// Dropout on or off.
    pub mode: Mode,
    /// The dropout stream of this round; layers add their lane.
    pub rng: Rng,
    /// Gives the step to the dropout streams.
    pub clock: &'a Rc<Clock>,
    /// The weights.
    pub params: &'a Params,
}

impl Ctx<'_> {
    /// The tensor of a parameter.
    pub fn param(&self, p: Param) -> Result<Tensor> {
        self.params.tensor(p)
    }
}

/// Result of a forward pass.
pub struct Output {
    /// (N, C)
    pub logits: Tensor,
    /// (N, D): the penultimate features h.
    pub embedding: Tensor,
}

/// A network: a trunk that makes the embedding and a head that makes the logits.
pub trait Net {
    /// The penultimate features (N, D) of images (N, H, W, C).
    fn trunk(&self, x: &Tensor, cx: &Ctx) -> Result<Tensor>;

    /// Logits (N, C) of an embedding.
    fn head(&self, embedding: &Tensor, cx: &Ctx) -> Result<Tensor>;

    /// D
    fn embedding_width(&self) -> usize;

    /// Trunk and head.
    fn forward(&self, x: &Tensor, cx: &Ctx) -> Result<Output> {
        let embedding = self.trunk(x, cx)?;
        let logits = self.head(&embedding, cx)?;
        Ok(Output { logits, embedding })
    }
}
