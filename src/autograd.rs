//! Reverse-mode differentiation: eager, define-by-run, a graph of closures.
//!
//! An operation computes its result, then attaches its backward rule with [`Tensor::with_grad`]. Gradients are
//! returned, never stored inside tensors, so there is nothing to zero and nothing stale. Closures must capture
//! *detached* tensors: a tracked one would make a reference cycle and leak a batch per step.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::nn::Params;
use crate::tensor::Tensor;
use crate::{Error, Result, ops};

/// Which inputs of an operation want a gradient.
pub struct Need(Vec<bool>);

impl Need {
    /// Computes the gradient of input `i` only if it is wanted.
    pub fn then(&self, i: usize, f: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
        if self.wants(i) { f().map(Some) } else { Ok(None) }
    }

    /// True when input `i` wants a gradient.
    pub fn wants(&self, i: usize) -> bool {
        self.0.get(i).copied().unwrap_or(false)
    }
}

/// From the gradient of the output to those of the inputs, in input order.
type Back = Box<dyn Fn(&Tensor, &Need) -> Result<Vec<Option<Tensor>>>>;

pub(crate) struct Node {
    op: &'static str,
    inputs: Vec<Tensor>,
    back: Back,
}

/// Marks a tensor as a parameter: which one, of which set, at which state of the set.
#[derive(Clone, Copy)]
pub(crate) struct Leaf {
    pub(crate) set: u64,
    pub(crate) index: usize,
    pub(crate) generation: u64,
}

/// Gradients, addressed by tensor or by parameter.
#[derive(Default)]
pub struct Grads {
    by_id: HashMap<u64, Tensor>,
    by_param: BTreeMap<usize, Tensor>,
}

impl Grads {
    /// The gradient with respect to `t`; none when the result does not depend on it.
    pub fn of(&self, t: &Tensor) -> Option<&Tensor> {
        self.by_id.get(&t.0.id)
    }

    /// The gradients of the parameters that were used, by index.
    pub fn params(&self) -> impl Iterator<Item = (usize, &Tensor)> {
        self.by_param.iter().map(|(i, t)| (*i, t))
    }

    /// Adds the gradients of the parameters of another result.
    pub fn add(&mut self, other: Grads) -> Result<()> {
        other.by_param.into_iter().try_for_each(|(i, g)| accumulate(&mut self.by_param, i, g))
    }
}

impl Tensor {
    /// Attaches the backward rule. Keeps `self` as it is when no input is tracked.
    pub fn with_grad<F>(self, op: &'static str, inputs: &[&Tensor], back: F) -> Tensor
    where
        F: Fn(&Tensor, &Need) -> Result<Vec<Option<Tensor>>> + 'static,
    {
        if !inputs.iter().any(|t| t.is_tracked()) {
            return self;
        }
        let node = Node { op, inputs: inputs.iter().map(|t| (*t).clone()).collect(), back: Box::new(back) };
        let i = &self.0;
        Tensor::build(i.shape.clone(), i.data.clone(), i.device.clone(), true, Some(node), None)
    }

    /// Gradients of this scalar with respect to `wrt` only. Nothing off the path to them is computed.
    pub fn grad(&self, wrt: &[&Tensor]) -> Result<Grads> {
        self.grad_from(&ops::ones_for(self, "grad")?, wrt)
    }

    /// Gradients with respect to `wrt` for a given gradient of this tensor.
    pub fn grad_from(&self, dy: &Tensor, wrt: &[&Tensor]) -> Result<Grads> {
        let ids: HashSet<u64> = wrt.iter().map(|t| t.0.id).collect();
        self.run(dy, |t| ids.contains(&t.0.id), None)
    }

    /// Gradients of this scalar for every parameter of `params` that was used.
    pub fn backward(&self, params: &Params) -> Result<Grads> {
        let set = params.set();
        self.run(&ops::ones_for(self, "backward")?, |t| t.0.leaf.is_some_and(|l| l.set == set), Some(params))
    }

    fn run(&self, dy: &Tensor, wanted: impl Fn(&Tensor) -> bool, params: Option<&Params>) -> Result<Grads> {
        if dy.shape() != self.shape() {
            return Err(dy.shape().refuse("backward", format!("{:?}", self.shape())));
        }
        // Every tracked tensor below this one, smallest id first: inputs come before what is made of them.
        let mut all: BTreeMap<u64, Tensor> = BTreeMap::new();
        let mut stack = vec![self.clone()];
        while let Some(t) = stack.pop() {
            if !t.is_tracked() || all.contains_key(&t.0.id) {
                continue;
            }
            if let Some(n) = &t.0.node {
                stack.extend(n.inputs.iter().cloned());
            }
            all.insert(t.0.id, t);
        }
        let mut on_path: HashSet<u64> = HashSet::new();
        for (id, t) in &all {
            let leads = t.0.node.iter().flat_map(|n| &n.inputs).any(|i| on_path.contains(&i.0.id));
            if leads || wanted(t) {
                on_path.insert(*id);
            }
        }
        let mut grads = Grads::default();
        let mut pending: HashMap<u64, Tensor> = HashMap::from([(self.0.id, dy.detach())]);
        while let Some((id, t)) = all.pop_last() {
            let Some(dy) = pending.remove(&id) else { continue };
            if wanted(&t) {
                match (t.0.leaf, params) {
                    (Some(leaf), Some(p)) => {
                        if leaf.generation != p.generation() {
                            return Err(Error::Stale { what: "backward" });
                        }
                        accumulate(&mut grads.by_param, leaf.index, dy.clone())?;
                    }
                    _ => drop(grads.by_id.insert(id, dy.clone())),
                }
            }
            let Some(node) = &t.0.node else { continue };
            let need = Need(node.inputs.iter().map(|i| on_path.contains(&i.0.id)).collect());
            if !need.0.iter().any(|n| *n) {
                continue;
            }
            let d = (node.back)(&dy, &need)?;
            for (input, g) in node.inputs.iter().zip(d) {
                let Some(g) = g else { continue };
                if g.shape() != input.shape() {
                    return Err(g.shape().refuse(node.op, format!("a gradient of {:?}", input.shape())));
                }
                if let Some(sum) = pending.remove(&input.0.id) {
                    pending.insert(input.0.id, ops::add(&sum, &g)?);
                } else {
                    pending.insert(input.0.id, g.detach());
                }
            }
        }
        Ok(grads)
    }
}

fn accumulate(into: &mut BTreeMap<usize, Tensor>, key: usize, g: Tensor) -> Result<()> {
    let sum = match into.remove(&key) {
        Some(old) => ops::add(&old, &g)?,
        None => g,
    };
    into.insert(key, sum);
    Ok(())
}
