//! What to label, from arrays alone: `dalcore select` and `dalcore label next`. No model, no training.
//!
//! Arrays are read by blocks of rows ([`Source`]); only what a rule needs as a whole is held as a whole, and everything
//! held is counted against the memory bound *before* anything is read: a rule that does not fit is refused with what it
//! would need. The bound is what was asked for, never what the machine has free, so the same command does the same on
//! every machine.

mod coverage;
mod ids;
mod map;
mod output;
mod rules;

pub use coverage::coverage;
pub(crate) use ids::text;
pub use ids::{Names, read_ids};
pub use map::{Map, Plane, map};
pub use output::{Format, publish, refuse_existing};
pub use rules::{RULES, Rule, find, note, usable};

use crate::arrays::Source;
use crate::device::Device;
use crate::error::human_bytes;
use crate::ops::{McRule, McSums, pairwise_sq};
use crate::rng::{Purpose, Rng, lane_of};
use crate::tensor::{Dtype, Tensor};
use crate::{Error, Result};

/// What a matrix of predictions holds; never guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Rows that sum to 1.
    Probabilities,
    /// Before the softmax.
    Logits,
}

/// Kinds of arrays that rules are computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// (N, D)
    Embeddings,
    /// (N, C), probabilities or logits
    Predictions,
    /// (T, N, C), probabilities of T stochastic passes
    Passes,
}

impl Input {
    /// The options that give it.
    pub fn options(self) -> &'static str {
        match self {
            Input::Embeddings => "--embeddings",
            Input::Predictions => "--probs or --logits",
            Input::Passes => "--mc-probs",
        }
    }
}

/// Which arrays there are, as [`Source::open`] reads them.
#[derive(Clone, Debug, Default)]
pub struct Arrays {
    /// Embeddings (N, D).
    pub embeddings: Option<String>,
    /// Predictions (N, C).
    pub predictions: Option<(Form, String)>,
    /// Probabilities of stochastic passes (T, N, C).
    pub passes: Option<String>,
}

/// The arrays of one pool, opened.
pub struct Inputs {
    n: usize,
    embeddings: Option<Source>,
    predictions: Option<(Form, Source)>,
    passes: Option<Source>,
    /// Bytes that may be held.
    memory: u64,
}

impl Inputs {
    /// Opens the arrays and checks their sizes; `memory` bounds everything that is held from here on.
    pub fn open(arrays: &Arrays, memory: u64) -> Result<Inputs> {
        let mut held = 0;
        let mut open = |text: &String| -> Result<Source> {
            let source = Source::open(text, memory - held)?;
            held += source.held();
            Ok(source)
        };
        let embeddings = arrays.embeddings.as_ref().map(&mut open).transpose()?;
        let predictions = match &arrays.predictions {
            Some((form, text)) => Some((*form, open(text)?)),
            None => None,
        };
        let passes = arrays.passes.as_ref().map(&mut open).transpose()?;
        // Whose number of rows the others must have.
        let mut first: Option<(usize, String)> = None;
        let mut rows = |source: &Source, n: usize, width: usize, least: usize| {
            if n == 0 || width < least {
                return Err(source.refuse(format!("{n} rows of {width} numbers; nothing can be chosen from that")));
            }
            if n > u32::MAX as usize {
                return Err(source.refuse(format!("{n} rows; at most {} are numbered", u32::MAX)));
            }
            match &first {
                Some((m, name)) if *m != n => Err(source.refuse(format!("has {n} rows, but {name} has {m}"))),
                Some(_) => Ok(()),
                None => {
                    first = Some((n, source.shown().to_string()));
                    Ok(())
                }
            }
        };
        if let Some(source) = &embeddings {
            let [n, d] = source.sizes("N, D")?;
            rows(source, n, d, 1)?;
        }
        if let Some((_, source)) = &predictions {
            let [n, c] = source.sizes("N, C")?;
            rows(source, n, c, 2)?;
        }
        if let Some(source) = &passes {
            let [t, n, c] = source.sizes("T, N, C")?;
            rows(source, n, c, 2)?;
            if t < 2 {
                return Err(source.refuse("one pass says nothing about how passes differ; give at least two"));
            }
        }
        let Some((n, _)) = first else {
            let why = "no array was given, so the pool has no rows; give --embeddings, --probs, --logits or --mc-probs";
            return Err(Error::Config { key: "select".into(), why: why.into() });
        };
        Ok(Inputs { n, embeddings, predictions, passes, memory })
    }

    /// N
    pub fn rows(&self) -> usize {
        self.n
    }

    /// The embeddings (N, D), where there are any.
    pub fn embeddings(&self) -> Option<&Source> {
        self.embeddings.as_ref()
    }

    /// True when this input was given.
    pub fn has(&self, input: Input) -> bool {
        match input {
            Input::Embeddings => self.embeddings.is_some(),
            Input::Predictions => self.predictions.is_some(),
            Input::Passes => self.passes.is_some(),
        }
    }

    /// What was given although `rule` does not look at it. Embeddings always have a use: the distances of the picks.
    pub fn unused(&self, rule: &Rule) -> impl Iterator<Item = Input> {
        let given = [Input::Predictions, Input::Passes].into_iter().filter(|i| self.has(*i));
        given.filter(|i| !rule.wants.contains(i))
    }

    /// Bytes that may be held.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Rows of so many numbers that are read at a time: a share of the bound, at most 8 MiB.
    pub(crate) fn block(&self, width: usize) -> usize {
        self.block_within(self.memory, width)
    }

    fn block_within(&self, memory: u64, width: usize) -> usize {
        ((memory / 32).min(8 << 20) as usize / (4 * width.max(1))).clamp(1, self.n.max(1))
    }

    fn sizes(&self, labelled: usize, k: usize) -> Sizes {
        let width = |s: Option<&Source>| s.and_then(|s| s.shape().last().copied()).unwrap_or(0) as u64;
        let predictions = self.predictions.as_ref().map(|p| &p.1);
        let passes = self.passes.as_ref();
        Sizes {
            n: self.n as u64,
            d: width(self.embeddings.as_ref()),
            c: width(predictions).max(width(passes)),
            t: passes.map_or(0, |s| s.shape()[0] as u64),
            l: labelled as u64,
            k: k as u64,
        }
    }

    /// Bytes of decompressed arrays, row numbers, scores, and of the blocks in flight: read, converted, worked on.
    fn base(&self, memory: u64) -> u64 {
        let sources = [self.embeddings.as_ref(), self.predictions.as_ref().map(|p| &p.1), self.passes.as_ref()];
        let blocks = sources.into_iter().flatten().map(|s| {
            let width = s.shape().last().map_or(1, |w| *w) * if s.shape().len() == 3 { s.shape()[0] } else { 1 };
            s.held() + 3 * 4 * (self.block_within(memory, width) * width) as u64 + (1 << 20)
        });
        blocks.sum::<u64>() + 24 * self.n as u64
    }

    /// An error when what `what` needs, beside what is held anyway, is more than the bound.
    pub(crate) fn fits(&self, what: &str, needs: &[(&'static str, u64)]) -> Result<()> {
        let own = needs.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let total = own.saturating_add(self.base(self.memory));
        if total <= self.memory {
            return Ok(());
        }
        let mut all = needs.to_vec();
        all.push(("rows in flight", self.base(self.memory)));
        let parts: Vec<String> =
            all.iter().map(|(name, bytes)| format!("{name} {}", human_bytes(*bytes as usize))).collect();
        Err(Error::Config {
            key: "--mem".into(),
            why: format!(
                "{what} on these {} rows needs {} ({}), more than the bound of {}; give --mem {}MiB or fewer rows",
                self.n,
                human_bytes(total as usize),
                parts.join(", "),
                human_bytes(self.memory as usize),
                self.enough(own)
            ),
        })
    }

    /// The bound, in MiB, at which `own` bytes fit beside what is held anyway. A larger one reads larger blocks, up to
    /// the amount at which all fits.
    fn enough(&self, own: u64) -> u64 {
        let mut enough = own.saturating_add(self.base(self.memory));
        while own.saturating_add(self.base(enough)) > enough {
            enough = own.saturating_add(self.base(enough));
        }
        enough.div_ceil(1 << 20)
    }

    /// What the bound leaves beside `needs` and what is held anyway; none where that does not fit.
    fn left(&self, needs: &[(&'static str, u64)]) -> Option<u64> {
        let own: u64 = needs.iter().map(|(_, bytes)| bytes).sum();
        self.memory.checked_sub(own.checked_add(self.base(self.memory))?)
    }
}

/// The sizes that memory depends on, by the letters of METHODS 0.2; zero where there is no such array.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Sizes {
    pub n: u64,
    pub d: u64,
    pub c: u64,
    pub t: u64,
    pub l: u64,
    pub k: u64,
}

/// One selection, as a rule sees it.
pub struct Query<'a> {
    inputs: &'a Inputs,
    /// Rows that are labelled, ascending.
    pub labelled: &'a [u32],
    /// The other rows, ascending.
    pub candidates: &'a [u32],
    /// The rule's random stream.
    pub rng: Rng,
    /// Where matrices are worked on.
    pub device: &'a Device,
}

impl Query<'_> {
    /// What memory depends on, for `k` picks.
    fn sizes(&self, k: usize) -> Sizes {
        self.inputs.sizes(self.labelled.len(), k)
    }

    /// All embeddings (N, D), on the device.
    pub fn embeddings(&self) -> Result<Tensor> {
        let source = self.inputs.embeddings.as_ref().ok_or_else(|| missing(Input::Embeddings))?;
        let [n, d] = source.sizes("N, D")?;
        let mut x = Tensor::stale(self.device, [n, d], Dtype::F32)?;
        match self.device {
            Device::Cpu => source.floats(0, x.host_mut("embeddings")?)?,
            Device::Cuda(_) => {
                let block = self.inputs.block(d);
                let mut values = vec![0.0f32; block * d];
                for first in (0..n).step_by(block) {
                    let values = &mut values[..block.min(n - first) * d];
                    source.floats(first * d, values)?;
                    x.buf::<f32>("embeddings")?.window(first * d, values.len())?.write(self.device, values)?;
                }
            }
        }
        Ok(x)
    }

    /// Runs `each(first row, form, rows (n, C), C)` over the predictions, block by block. Probabilities have been checked.
    pub fn blocks(&self, mut each: impl FnMut(usize, Form, &[f32], usize) -> Result<()>) -> Result<()> {
        let (form, source) = self.inputs.predictions.as_ref().ok_or_else(|| missing(Input::Predictions))?;
        let [n, c] = source.sizes("N, C")?;
        let block = self.inputs.block(c);
        let mut values = vec![0.0f32; block * c];
        for first in (0..n).step_by(block) {
            let values = &mut values[..block.min(n - first) * c];
            source.floats(first * c, values)?;
            if *form == Form::Probabilities {
                check_sums(source, values, c, |row| format!("row {}", first + row))?;
            }
            each(first, *form, values, c)?;
        }
        Ok(())
    }

    /// The `width` numbers per row that `each(form, rows (n, C), C)` gives, of every candidate: (U, width).
    pub fn predictions(
        &self,
        width: usize,
        mut each: impl FnMut(Form, &[f32], usize) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let mut kept = Vec::with_capacity(self.candidates.len() * width);
        self.blocks(|first, form, values, c| {
            self.keep(&mut kept, first, width, &each(form, values, c)?);
            Ok(())
        })?;
        Ok(kept)
    }

    /// The embeddings of the candidates (U, D), on the device.
    pub fn features(&self) -> Result<Tensor> {
        let source = self.inputs.embeddings.as_ref().ok_or_else(|| missing(Input::Embeddings))?;
        let [_, d] = source.sizes("N, D")?;
        let mut x = Tensor::stale(self.device, [self.candidates.len(), d], Dtype::F32)?;
        match self.device {
            Device::Cpu => source.rows(self.candidates, d, x.host_mut("features")?)?,
            Device::Cuda(_) => {
                let block = self.inputs.block(d);
                let mut values = vec![0.0f32; block * d];
                for (at, ids) in self.candidates.chunks(block).enumerate() {
                    let values = &mut values[..ids.len() * d];
                    source.rows(ids, d, values)?;
                    x.buf::<f32>("features")?.window(at * block * d, values.len())?.write(self.device, values)?;
                }
            }
        }
        Ok(x)
    }

    /// C of the predictions; 0 without any.
    pub fn classes(&self) -> usize {
        self.inputs.predictions.as_ref().and_then(|p| p.1.shape().last().copied()).unwrap_or(0)
    }

    /// What the predictions are.
    pub fn form(&self) -> Option<Form> {
        self.inputs.predictions.as_ref().map(|p| p.0)
    }

    /// The scores of the candidates by what the passes say together, block by block. Probabilities have been checked.
    pub fn passes(&self, rule: McRule) -> Result<Vec<f32>> {
        let source = self.inputs.passes.as_ref().ok_or_else(|| missing(Input::Passes))?;
        let [t, n, c] = source.sizes("T, N, C")?;
        let block = self.inputs.block(t * c);
        let mut values = vec![0.0f32; block * c];
        let mut scores = Vec::with_capacity(self.candidates.len());
        for first in (0..n).step_by(block) {
            let rows = block.min(n - first);
            let values = &mut values[..rows * c];
            let mut sums = McSums::new(rule, self.device, [rows, c])?;
            for pass in 0..t {
                source.floats((pass * n + first) * c, values)?;
                check_sums(source, values, c, |row| format!("row {} of pass {pass}", first + row))?;
                sums.add(&Tensor::new(self.device, [rows, c], values)?)?;
            }
            self.keep(&mut scores, first, 1, &sums.scores()?.to_vec()?);
        }
        Ok(scores)
    }

    /// Of the numbers of rows `first` and on, `width` each, those of candidates.
    fn keep(&self, kept: &mut Vec<f32>, first: usize, width: usize, of_rows: &[f32]) {
        let candidates = self.candidates.get(kept.len() / width..).unwrap_or_default().iter();
        let rows = candidates.map_while(|id| of_rows.get((*id as usize - first) * width..)?.get(..width));
        rows.for_each(|row| kept.extend_from_slice(row));
    }
}

fn missing(input: Input) -> Error {
    Error::Config { key: input.options().into(), why: "is needed".into() }
}

/// Every row must be probabilities that sum to 1, within what its element type loses.
fn check_sums(source: &Source, values: &[f32], c: usize, place: impl Fn(usize) -> String) -> Result<()> {
    let tolerance = source.number().sum_tolerance();
    for (row, p) in values.chunks_exact(c).enumerate() {
        let sum: f64 = p.iter().map(|v| f64::from(*v)).sum();
        let negative = p.iter().find(|v| **v < 0.0);
        if let Some(v) = negative {
            let why = format!("{} holds {v}, which is no probability; logits are given with --logits", place(row));
            return Err(source.refuse(why));
        }
        if (sum - 1.0).abs() > tolerance {
            let why = format!(
                "{} sums to {sum:.6}, not to 1 within {tolerance}; logits are given with --logits, sums are never \
                 corrected",
                place(row)
            );
            return Err(source.refuse(why));
        }
    }
    Ok(())
}

/// What a rule took, in the order it took it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picked {
    /// Rows.
    pub ids: Vec<u32>,
    /// One for each, or none at all; what they mean, [`Rule::score`] says.
    pub scores: Vec<f32>,
    /// Of every candidate, where the rule scores all before it chooses; else nothing.
    pub candidates: Vec<f32>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// In the order it was chosen.
    pub picks: Vec<Pick>,
    /// The scores of all candidates, ascending by row; nothing where the rule has none.
    pub candidates: Vec<f32>,
}

/// One line of the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// The row.
    pub id: u32,
    /// The rule's score.
    pub score: Option<f32>,
    /// Distance to the nearest labelled row, and which one that is, the lowest of equals.
    pub nearest: Option<(f32, u32)>,
}

/// Who chooses, how many, and from what randomness.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// How many.
    pub k: usize,
    /// The seed.
    pub seed: u64,
    /// The batch of a label loop, counted from 1; 0 outside of one.
    pub round: u32,
    /// Where matrices are worked on.
    pub device: &'a Device,
}

/// Chooses k rows that are neither labelled nor `pending`: handed out to be labelled, so that they need not be covered
/// again. Both ascending.
pub fn select(inputs: &Inputs, choice: &Choice, labelled: &[u32], pending: &[u32]) -> Result<Selection> {
    let Choice { rule, k, seed, round, device } = *choice;
    if let Some(input) = rule.wants.iter().find(|i| !inputs.has(**i)) {
        let why = format!("{} needs {}", rule.id, input.options());
        return Err(Error::Config { key: "--method".into(), why });
    }
    let mut taken = [labelled, pending].concat();
    taken.sort_unstable();
    let candidates: Vec<u32> = (0..inputs.n as u32).filter(|i| taken.binary_search(i).is_err()).collect();
    let refuse = |why: String| Error::Config { key: "-k".into(), why };
    if k == 0 {
        return Err(refuse("nothing is to be chosen; give at least 1".into()));
    }
    if k > candidates.len() {
        return Err(refuse(format!(
            "{k} are wanted, but of {} rows {} are labelled or handed out, which leaves {}",
            inputs.n,
            taken.len(),
            candidates.len()
        )));
    }
    let sizes = inputs.sizes(taken.len(), k);
    inputs.fits(rule.id, &(rule.memory)(&sizes))?;
    if inputs.embeddings.is_some() {
        inputs.fits("the distances of the picks", &[("picks", 4 * sizes.k * (sizes.d + 2 * DISTANCES as u64))])?;
    }
    let rng = Rng::new(seed).at(Purpose::Select, round, 0).lane(lane_of(rule.id));
    let q = Query { inputs, labelled: &taken, candidates: &candidates, rng, device };
    let picked = (rule.run)(&q, k)?;
    let nearest = match &inputs.embeddings {
        Some(source) => nearest(inputs, source, &picked.ids, labelled)?,
        None => Vec::new(),
    };
    let one = |(at, id): (usize, &u32)| Pick {
        id: *id,
        score: picked.scores.get(at).copied(),
        nearest: nearest.get(at).copied(),
    };
    let picks = picked.ids.iter().enumerate().map(one).collect();
    Ok(Selection { picks, candidates: picked.candidates })
}

/// Labelled rows compared with all picks at a time.
const DISTANCES: usize = 256;

/// Of every pick the distance to the nearest labelled row and its number; empty without labelled rows. Squared
/// distances are the canonical ones of [`pairwise_sq`], so they equal those that k-center compared.
fn nearest(inputs: &Inputs, source: &Source, picks: &[u32], labelled: &[u32]) -> Result<Vec<(f32, u32)>> {
    let [_, d] = source.sizes("N, D")?;
    let matrix = |ids: &[u32]| {
        let mut x = Tensor::stale(&Device::Cpu, [ids.len(), d], Dtype::F32)?;
        source.rows(ids, d, x.host_mut("distances")?)?;
        Ok::<_, Error>(x)
    };
    let x = matrix(picks)?;
    let mut best: Vec<(f32, u32)> = Vec::new();
    for ids in labelled.chunks(inputs.block(d).min(DISTANCES)) {
        let d2 = pairwise_sq(&x, &matrix(ids)?)?;
        best.resize(picks.len(), (f32::INFINITY, u32::MAX));
        for (best, row) in best.iter_mut().zip(d2.host::<f32>("distances")?.chunks_exact(ids.len())) {
            for (v, id) in row.iter().zip(ids) {
                if *v < best.0 {
                    *best = (*v, *id);
                }
            }
        }
    }
    best.iter_mut().for_each(|b| b.0 = b.0.sqrt());
    Ok(best)
}
