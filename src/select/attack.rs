//! The iterated sign attack (BIM) on many images at once: η ← η + ε sign(∇_x L(f(x + η))) until argmax f(x + η) is
//! another class than ŷ = argmax f(x); what counts is Σ η². Gradients of the inputs only.
//!
//! η is ε times whole numbers k, so Σ η² = ε² Σ k² with a whole Σ k²: equal norms are equal, and no device rounds another
//! way. Images are worked on in slots. A step runs the network forward and backward on all slots, then decides in one
//! kernel which are done and moves the others, and fills the free ones with the next images: the batch stays full until
//! the images run out; from then on it shrinks whenever half of it is idle. What becomes of an image depends on nothing
//! but the image, because no operation of the network depends on the batch.

use crate::device::cuda::Replay;
use crate::device::{Device, Launch, launch};
use crate::tensor::{Buf, Dtype, Tensor};
use crate::{Error, Result, ops};

/// What L is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// The cross-entropy with ŷ; with `fallback` an image whose gradient is zero everywhere goes on by the margin.
    CrossEntropy {
        /// Go on by the margin.
        fallback: bool,
    },
    /// max over the others of z_c − z_ŷ, which does not vanish where softmax saturates.
    Margin,
}

/// How an attack goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attack {
    /// ε
    pub eps: f32,
    /// Most steps of an image; at most 10⁶.
    pub cap: u32,
    /// L
    pub along: Along,
    /// An image that keeps its class through all steps, or whose gradient is zero everywhere, counts with the norm it has
    /// got to; else it is infinitely far from changing.
    pub keep_norm: bool,
    /// Images at a time: memory and speed, never a result.
    pub batch: usize,
    /// Replay steps as CUDA graphs.
    pub graphs: bool,
}

/// Σ k² of an image that does not change its class.
pub const NEVER: u64 = u64::MAX;
/// A logit or a gradient that is not a number.
const NOT_A_NUMBER: u64 = u64::MAX - 1;

/// Fields of a slot; the same in kernels/attack.cu.
enum Field {
    Place,
    Id,
    Label,
    Steps,
    Mode,
    State,
}
const FIELDS: usize = 6;
/// Values of `State` and of `Mode`.
const IDLE: u32 = 0;
const BUSY: u32 = 1;
const DECIDED: u32 = 2;
const CROSS_ENTROPY: u32 = 0;
const MARGIN: u32 = 1;

const OP: &str = "attack";

impl Attack {
    /// Σ k² of each of the images `ids` of `p` numbers each, whose classes are `labels` (u32, U) = argmax f(x): ε² times it is Σ η². [`NEVER`]
    /// for those that keep their class. `images(ids (s))` gives clean images (s, …) and `logits(x)` gives f(x) (s, C);
    /// both may be captured in a graph. A logit or a gradient that is not a number is an error that names the id.
    pub fn run(
        &self,
        (ids, p): (&[u32], usize),
        labels: &Tensor,
        images: impl Fn(&Tensor) -> Result<Tensor>,
        logits: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Vec<u64>> {
        let (device, u) = (labels.device().clone(), ids.len());
        if labels.dims() != [u] {
            return Err(labels.shape().refuse(OP, format!("({u}), a class for every image")));
        }
        if u == 0 {
            return Ok(Vec::new());
        }
        let mut slots = Slots::new(*self, &device, ids, labels, [self.batch.clamp(1, u), p])?;
        slots.refill()?;
        let mut replay = Replay::new(self.graphs);
        loop {
            replay.run(&device, || slots.step(&images, &logits))?;
            let counters = slots.counters.to_host()?;
            let (taken, busy) = (counters[0] as usize, counters[1] as usize);
            if busy == 0 {
                break;
            }
            if taken == u && 2 * busy <= slots.s {
                slots.shrink()?;
                replay = Replay::new(self.graphs);
            }
        }
        let found = slots.found.to_host()?;
        match found.iter().position(|f| *f == NOT_A_NUMBER) {
            Some(at) => Err(Error::NonFinite {
                what: format!("{OP}: a logit or an input gradient of example {} is NaN; nothing was ranked", ids[at]),
            }),
            None => Ok(found),
        }
    }
}

/// The images that are being worked on.
struct Slots {
    rule: Attack,
    device: Device,
    s: usize,
    /// (6, s), by [`Field`].
    fields: Buf<u32>,
    /// (s, P)
    k: Tensor,
    /// Σ k² so far (s).
    squares: Buf<u64>,
    /// Images taken so far, busy slots.
    counters: Buf<u32>,
    /// Σ k² of every image (U).
    found: Buf<u64>,
    ids: Buf<u32>,
    labels: Buf<u32>,
}

impl Slots {
    fn new(rule: Attack, device: &Device, ids: &[u32], labels: &Tensor, [s, p]: [usize; 2]) -> Result<Slots> {
        Ok(Slots {
            rule,
            device: device.clone(),
            s,
            fields: Buf::zeros(device, FIELDS * s)?,
            k: Tensor::zeros(device, [s, p], Dtype::F32)?,
            squares: Buf::zeros(device, s)?,
            counters: Buf::zeros(device, 2)?,
            found: Buf::zeros(device, ids.len())?,
            ids: Buf::from_host(device, ids)?,
            labels: labels.buf::<u32>(OP)?.clone(),
        })
    }

    /// Forward, backward, one step of every busy slot, new images for those that are decided.
    fn step(
        &mut self,
        images: impl Fn(&Tensor) -> Result<Tensor>,
        logits: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let ids = self.fields.window(Field::Id as usize * self.s, self.s)?;
        let clean = images(&Tensor::from_buf(&self.device, [self.s], ids)?)?;
        let x = self.inputs(&clean)?.tracked();
        drop(clean);
        let z = logits(&x)?;
        let d = self.direction(&z.detach())?;
        let gradients = z.grad_from(&d, &[&x])?;
        let zeros = || Tensor::zeros(&self.device, x.shape().clone(), x.dtype());
        let g = gradients.of(&x).map_or_else(zeros, |g| Ok(g.clone()))?;
        self.advance(&z.detach(), &g)?;
        self.refill()
    }

    /// clean + ε k;   clean (s, …)
    fn inputs(&self, clean: &Tensor) -> Result<Tensor> {
        let ([s, p], k) = (self.k.shape().matrix(OP)?, &self.k);
        if clean.len() != s * p {
            return Err(clean.shape().refuse(OP, format!("{s} images of {p} numbers")));
        }
        let (mut x, eps) = (clean.like()?, self.rule.eps);
        match &self.device {
            Device::Cpu => {
                let steps = &self.fields.host(OP)?[Field::Steps as usize * s..][..s];
                cpu::inputs(x.host_mut(OP)?, clean.host(OP)?, k.host(OP)?, steps, eps);
            }
            Device::Cuda(cuda) => {
                let (l, x, clean, k) = (Launch::elements(s * p), x.buf_mut(OP)?, clean.buf(OP)?, k.buf(OP)?);
                let [total, s, p] = [s * p, s, p].map(|v| v as i32);
                launch::attack_inputs_f32(cuda, l, x, clean, k, &self.fields, total, s, p, eps)?;
            }
        }
        Ok(x)
    }

    /// The gradient of L in the logits z (s, C), of busy slots.
    fn direction(&self, z: &Tensor) -> Result<Tensor> {
        let [s, c] = z.shape().matrix(OP)?;
        let mut d = z.like()?;
        match &self.device {
            Device::Cpu => cpu::direction(d.host_mut(OP)?, z.host(OP)?, self.fields.host(OP)?, s),
            Device::Cuda(cuda) => {
                let (l, d) = (Launch::warps(s, 256), d.buf_mut(OP)?);
                launch::attack_direction_f32(cuda, l, d, z.buf(OP)?, &self.fields, s as i32, c as i32)?;
            }
        }
        Ok(d)
    }

    /// Decides or moves every busy slot by its logits z (s, C) and the gradient g (s, …) of its input.
    fn advance(&mut self, z: &Tensor, g: &Tensor) -> Result<()> {
        let (s, c, p) = (self.s, z.len() / self.s, g.len() / self.s);
        let k = &mut self.k;
        let (squares, found) = (&mut self.squares, &mut self.found);
        match &self.device {
            Device::Cpu => {
                let fields = self.fields.host_mut(OP)?;
                let (k, z, g) = (k.host_mut(OP)?, z.host(OP)?, g.host(OP)?);
                cpu::advance(k, fields, squares.host_mut(OP)?, found.host_mut(OP)?, [z, g], &self.rule);
            }
            Device::Cuda(cuda) => {
                let (l, k, z, g) = (Launch::grid(s, 1, 1, 256), k.buf_mut(OP)?, z.buf(OP)?, g.buf(OP)?);
                let fallback = i32::from(self.rule.along == Along::CrossEntropy { fallback: true });
                let [s, p, c, cap] = [s, p, c, self.rule.cap as usize].map(|v| v as i32);
                let (fields, keep) = (&mut self.fields, i32::from(self.rule.keep_norm));
                launch::attack_step_f32(cuda, l, k, fields, squares, found, z, g, s, p, c, cap, fallback, keep)?;
            }
        }
        Ok(())
    }

    /// Gives the next images to the slots that are not busy.
    fn refill(&mut self) -> Result<()> {
        let mode = if self.rule.along == Along::Margin { MARGIN } else { CROSS_ENTROPY };
        let (squares, counters) = (&mut self.squares, &mut self.counters);
        match &self.device {
            Device::Cpu => {
                let (ids, labels) = (self.ids.host(OP)?, self.labels.host(OP)?);
                let fields = self.fields.host_mut(OP)?;
                cpu::refill(fields, squares.host_mut(OP)?, counters.host_mut(OP)?, ids, labels, mode);
            }
            Device::Cuda(cuda) => {
                let (l, [s, u]) = (Launch::grid(1, 1, 1, 32), [self.s, self.ids.len()].map(|v| v as i32));
                let (ids, labels) = (&self.ids, &self.labels);
                launch::attack_refill(cuda, l, &mut self.fields, squares, counters, ids, labels, s, u, mode as i32)?;
            }
        }
        Ok(())
    }

    /// Keeps the busy slots only.
    fn shrink(&mut self) -> Result<()> {
        let (fields, squares) = (self.fields.to_host()?, self.squares.to_host()?);
        let state = &fields[Field::State as usize * self.s..][..self.s];
        let busy: Vec<u32> = (0..self.s as u32).filter(|i| state[*i as usize] == BUSY).collect();
        let of = |f: usize| busy.iter().map(move |i| (f, i));
        let kept: Vec<u32> = (0..FIELDS).flat_map(of).map(|(f, i)| fields[f * self.s + *i as usize]).collect();
        let squares: Vec<u64> = busy.iter().map(|i| squares[*i as usize]).collect();
        let rows = Tensor::new(&self.device, [busy.len()], &busy)?;
        self.k = ops::gather_rows(&self.k, &rows)?;
        self.fields = Buf::from_host(&self.device, &kept)?;
        self.squares = Buf::from_host(&self.device, &squares)?;
        self.s = busy.len();
        Ok(())
    }
}

mod cpu {
    use rayon::prelude::*;

    use super::{Along, Attack, BUSY, CROSS_ENTROPY, DECIDED, Field, IDLE, MARGIN, NEVER, NOT_A_NUMBER};

    /// x = clean + ε k, clean where no step was made;   x, clean, k: (s, P), steps: (s)
    pub fn inputs(x: &mut [f32], clean: &[f32], k: &[f32], steps: &[u32], eps: f32) {
        let p = (x.len() / steps.len()).max(1);
        let rows = x.par_chunks_exact_mut(p).zip(clean.par_chunks_exact(p)).zip(k.par_chunks_exact(p)).zip(steps);
        rows.for_each(|(((x, clean), k), steps)| match steps {
            0 => x.copy_from_slice(clean),
            _ => x.iter_mut().zip(clean).zip(k).for_each(|((x, clean), k)| *x = clean + eps * k),
        });
    }

    /// The largest logit of another class than `label` and where it is, the lowest class at a tie.
    fn other(z: &[f32], label: usize) -> Option<usize> {
        let others = (0..z.len()).filter(|j| *j != label && !z[*j].is_nan());
        others.reduce(|best, j| if z[j] > z[best] { j } else { best })
    }

    /// softmax − onehot(label), or onehot(other) − onehot(label);   d, z: (s, C)
    pub fn direction(d: &mut [f32], z: &[f32], fields: &[u32], s: usize) {
        let c = d.len() / s;
        d.fill(0.0);
        let field = |f: Field, i: usize| fields[f as usize * s + i];
        for (i, (d, z)) in d.chunks_exact_mut(c).zip(z.chunks_exact(c)).enumerate() {
            let label = field(Field::Label, i) as usize;
            if field(Field::State, i) != BUSY {
                continue;
            }
            let other = other(z, label);
            if field(Field::Mode, i) == MARGIN {
                if let Some(other) = other {
                    (d[label], d[other]) = (-1.0, 1.0);
                }
                continue;
            }
            let top = f64::from(other.map_or(z[label], |j| z[j].max(z[label])));
            let e: Vec<f64> = z.iter().map(|z| (f64::from(*z) - top).exp()).collect();
            let others = e.iter().enumerate().filter(|(j, _)| *j != label).map(|(_, e)| e).sum::<f64>();
            let all = others + e[label];
            d.iter_mut().zip(&e).for_each(|(d, e)| *d = (e / all) as f32);
            d[label] = (-others / all) as f32;
        }
    }

    /// As attack_step_f32.   k, g: (s, P), z: (s, C)
    pub fn advance(
        k: &mut [f32],
        fields: &mut [u32],
        squares: &mut [u64],
        found: &mut [u64],
        [z, g]: [&[f32]; 2],
        rule: &Attack,
    ) {
        let s = squares.len();
        let (c, p) = (z.len() / s, k.len() / s);
        let slots: Vec<[u32; 4]> = (0..s)
            .map(|i| [Field::State, Field::Label, Field::Steps, Field::Mode].map(|f| fields[f as usize * s + i]))
            .collect();
        let rows = k.par_chunks_exact_mut(p.max(1)).zip(squares.par_iter_mut()).zip(z.par_chunks_exact(c));
        let rows = rows.zip(g.par_chunks_exact(p.max(1))).zip(&slots);
        let after: Vec<Becomes> =
            rows.map(|((((k, squares), z), g), slot)| one(k, squares, z, g, *slot, rule)).collect();
        for (i, after) in after.into_iter().enumerate() {
            let place = fields[Field::Place as usize * s + i] as usize;
            match after {
                Becomes::Same => {}
                Becomes::Moved => fields[Field::Steps as usize * s + i] += 1,
                Becomes::ByMargin => fields[Field::Mode as usize * s + i] = MARGIN,
                Becomes::Decided(result) => {
                    found[place] = result;
                    fields[Field::State as usize * s + i] = DECIDED;
                }
            }
        }
    }

    enum Becomes {
        Same,
        Moved,
        ByMargin,
        Decided(u64),
    }

    fn one(
        k: &mut [f32],
        squares: &mut u64,
        z: &[f32],
        g: &[f32],
        [state, label, steps, mode]: [u32; 4],
        rule: &Attack,
    ) -> Becomes {
        let given_up = Becomes::Decided(if rule.keep_norm { *squares } else { NEVER });
        if state != BUSY {
            return Becomes::Same;
        }
        if z.iter().any(|z| z.is_nan()) {
            return Becomes::Decided(NOT_A_NUMBER);
        }
        let top = (1..z.len()).fold(0, |best, j| if z[j] > z[best] { j } else { best });
        if top as u32 != label {
            return Becomes::Decided(*squares);
        }
        if steps >= rule.cap {
            return given_up;
        }
        if g.iter().any(|g| g.is_nan()) {
            return Becomes::Decided(NOT_A_NUMBER);
        }
        if g.iter().all(|g| *g == 0.0) {
            let goes_on = mode == CROSS_ENTROPY && rule.along == Along::CrossEntropy { fallback: true };
            return if goes_on { Becomes::ByMargin } else { given_up };
        }
        if steps == 0 {
            k.fill(0.0);
        }
        for (k, g) in k.iter_mut().zip(g) {
            *k += f32::from(i8::from(*g > 0.0) - i8::from(*g < 0.0));
        }
        *squares = k.iter().map(|k| (*k as i64 * *k as i64) as u64).sum();
        Becomes::Moved
    }

    /// As attack_refill.
    pub fn refill(
        fields: &mut [u32],
        squares: &mut [u64],
        counters: &mut [u32],
        ids: &[u32],
        labels: &[u32],
        mode: u32,
    ) {
        let s = squares.len();
        let (mut head, mut busy) = (counters[0] as usize, 0);
        for i in 0..s {
            if fields[Field::State as usize * s + i] != BUSY {
                let state = if head < ids.len() {
                    let new = [head as u32, ids[head], labels[head], 0, mode];
                    new.into_iter().enumerate().for_each(|(f, v)| fields[f * s + i] = v);
                    squares[i] = 0;
                    head += 1;
                    BUSY
                } else {
                    IDLE
                };
                fields[Field::State as usize * s + i] = state;
            }
            busy += u32::from(fields[Field::State as usize * s + i] == BUSY);
        }
        counters.copy_from_slice(&[head as u32, busy]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const RULE: Attack = Attack {
        eps: 0.05,
        cap: 100,
        along: Along::CrossEntropy { fallback: true },
        keep_norm: false,
        batch: 4,
        graphs: false,
    };

    fn cpu(shape: &[usize], v: &[f32]) -> Tensor {
        Tensor::new(&Device::Cpu, shape, v).unwrap()
    }

    /// Of the rows of x (n, p) with logits x·wᵀ, w (c, p).
    fn linear(rule: Attack, x: &Tensor, w: &Tensor) -> Result<Vec<u64>> {
        let labels = ops::argmax_rows(&ops::matmul_nt(x, w)?)?;
        let ids: Vec<u32> = (0..x.dims()[0] as u32).collect();
        rule.run((&ids, x.dims()[1]), &labels, |ids| ops::gather_rows(x, ids), |x| ops::matmul_nt(x, w))
    }

    /// METHODS 6.4: logits (x, −x), x = .12: .07, .02, −.03 flips after 3 steps, s = .0225 = .05² · 9.
    #[test]
    fn worked_example() {
        for along in [RULE.along, Along::CrossEntropy { fallback: false }, Along::Margin] {
            let found = linear(Attack { along, ..RULE }, &cpu(&[1, 1], &[0.12]), &cpu(&[2, 1], &[1.0, -1.0])).unwrap();
            assert_eq!(found, [9], "{along:?}");
        }
    }

    /// One image at a time, in plain loops and f64, by the definition.
    fn brute(rule: Attack, x: &[f32], w: &[f32], c: usize) -> u64 {
        let p = x.len();
        let mut k = vec![0i64; p];
        let logits = |k: &[i64]| -> Vec<f64> {
            let at = |j: usize| f64::from(x[j] + rule.eps * k[j] as f32);
            (0..c).map(|i| (0..p).map(|j| at(j) * f64::from(w[i * p + j])).sum()).collect()
        };
        let argmax = |z: &[f64]| (1..c).fold(0, |b, j| if z[j] > z[b] { j } else { b });
        let label = argmax(&logits(&k));
        for step in 0.. {
            let z = logits(&k);
            if argmax(&z) != label {
                break;
            }
            if step == rule.cap {
                return NEVER;
            }
            let e: Vec<f64> = z.iter().map(|v| (v - z[label]).exp()).collect();
            let sum: f64 = e.iter().sum();
            let other = (0..c).filter(|j| *j != label).reduce(|b, j| if z[j] > z[b] { j } else { b }).unwrap();
            let d = |i: usize| match rule.along {
                Along::Margin => f64::from(u8::from(i == other)) - f64::from(u8::from(i == label)),
                _ if i == label => -(0..c).filter(|j| *j != label).map(|j| e[j]).sum::<f64>() / sum,
                _ => e[i] / sum,
            };
            let g: Vec<f64> = (0..p).map(|j| (0..c).map(|i| d(i) * f64::from(w[i * p + j])).sum()).collect();
            k.iter_mut().zip(&g).for_each(|(k, g)| *k += i64::from(*g > 0.0) - i64::from(*g < 0.0));
        }
        k.iter().map(|k| (k * k) as u64).sum()
    }

    /// The same for every batch, in every order of the images, and as one image at a time.
    #[test]
    fn equals_one_image_at_a_time() {
        for (n, p, c, along) in
            [(1, 1, 2, RULE.along), (37, 5, 3, RULE.along), (23, 7, 4, Along::Margin), (64, 3, 2, RULE.along)]
        {
            let r = Rng::new(4).lane(n as u32);
            let x: Vec<f32> = (0..(n * p) as u64).map(|e| 2.0 * r.uniform(e) - 1.0).collect();
            let w: Vec<f32> = (0..(c * p) as u64).map(|e| 4.0 * r.lane(99).uniform(e) - 2.0).collect();
            let rule = Attack { along, cap: 9, ..RULE };
            let want: Vec<u64> = x.chunks_exact(p).map(|x| brute(rule, x, &w, c)).collect();
            assert!(n == 1 || want.contains(&NEVER) && want.iter().any(|w| *w < NEVER), "both kinds: {want:?}");
            let (xs, ws) = (cpu(&[n, p], &x), cpu(&[c, p], &w));
            for batch in [1, 3, 16, 1000] {
                assert_eq!(linear(Attack { batch, ..rule }, &xs, &ws).unwrap(), want, "{n}x{p}, batch {batch}");
            }
            let order = r.permutation(n);
            let shuffled: Vec<f32> = order.iter().flat_map(|i| x[*i as usize * p..][..p].to_vec()).collect();
            let got = linear(rule, &cpu(&[n, p], &shuffled), &ws).unwrap();
            assert_eq!(got, order.iter().map(|i| want[*i as usize]).collect::<Vec<_>>());
        }
    }

    /// A lead of 400 leaves e^-400 of the cross-entropy: no gradient. By the margin 100 · .05 · 2 · 100 beats it.
    #[test]
    fn saturated_and_dead_images() {
        let (x, w) = (cpu(&[2, 1], &[2.0, 0.01]), cpu(&[2, 1], &[100.0, -100.0]));
        let at = |along, keep_norm| linear(Attack { along, keep_norm, ..RULE }, &x, &w).unwrap();
        let [fallback, ce] = [true, false].map(|fallback| Along::CrossEntropy { fallback });
        assert_eq!(at(Along::Margin, false), [41 * 41, 1]);
        assert_eq!(at(fallback, false), at(Along::Margin, false));
        assert_eq!(at(ce, false), [NEVER, 1], "never moved, never flipped");
        assert_eq!(at(ce, true), [0, 1], "as the reference code: the surest image comes first");
        // Nothing moves the logits at all.
        let dead = cpu(&[2, 1], &[0.0, 0.0]);
        assert_eq!(linear(RULE, &x, &dead).unwrap(), [NEVER; 2]);
        // The cap counts steps: three are needed.
        let (x, w) = (cpu(&[1, 1], &[0.12]), cpu(&[2, 1], &[1.0, -1.0]));
        let cap = |cap, keep_norm| linear(Attack { cap, keep_norm, ..RULE }, &x, &w).unwrap()[0];
        assert_eq!([cap(2, false), cap(3, false), cap(2, true)], [NEVER, 9, 4]);
    }

    #[test]
    fn nans_are_named_and_nothing_is_nothing() {
        let e =
            linear(RULE, &cpu(&[3, 1], &[1.0, 2.0, f32::NAN]), &cpu(&[2, 1], &[1.0, -1.0])).unwrap_err().to_string();
        assert!(e.contains("example 2") && e.contains("NaN"), "{e}");
        assert!(linear(RULE, &cpu(&[0, 1], &[]), &cpu(&[2, 1], &[1.0, -1.0])).unwrap().is_empty());
    }
}
