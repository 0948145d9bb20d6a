//! What a method may ask about the pool: computed on demand, cached, and never computed unasked.

use std::cell::OnceCell;
use std::rc::Rc;

use crate::clock::Clock;
use crate::data::{Pool, PoolIdx};
use crate::ops::View;
use crate::rng::Rng;
use crate::select::first_non_finite;
use crate::tensor::Tensor;
use crate::train::{Features, Model, Pass, Trainer, extract, sweep};
use crate::{Error, Result, ops};

/// One selection: the pool, the model of the round before, and lazily what follows from them. Labels of
/// unlabelled examples cannot be reached from here.
pub struct Query<'a> {
    /// The run's data set, recipe and seed, for methods that train something of their own in order to select.
    pub trainer: &'a Trainer<'a>,
    /// The model of the round before.
    pub model: &'a Model,
    /// The round that is selected for, 1 for the first.
    pub round: u32,
    pool: &'a Pool,
    view: &'a View,
    rng: Rng,
    unlabelled: OnceCell<Features>,
    labelled: OnceCell<Features>,
    all: OnceCell<Tensor>,
}

/// Lanes of the augmentation streams that training has.
const TRAINING_VIEWS: u32 = 2;

fn ids(of: &[PoolIdx]) -> Vec<u32> {
    of.iter().map(|i| i.0).collect()
}

/// The cached value, or the one `make` computes.
fn cached<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(v) => Ok(v),
        None => {
            let v = make()?;
            Ok(cell.get_or_init(|| v))
        }
    }
}

impl<'a> Query<'a> {
    /// `view` is the test transform in the precision of the run, `rng` the method's selection stream of this round.
    pub fn new(
        pool: &'a Pool,
        trainer: &'a Trainer<'a>,
        model: &'a Model,
        view: &'a View,
        round: u32,
        rng: Rng,
    ) -> Query<'a> {
        let (unlabelled, labelled, all) = Default::default();
        Query { trainer, model, round, pool, view, rng, unlabelled, labelled, all }
    }

    /// Unlabelled examples, ascending.
    pub fn unlabelled(&self) -> &[PoolIdx] {
        self.pool.unlabelled()
    }

    /// Labelled examples, ascending.
    pub fn labelled(&self) -> &[PoolIdx] {
        self.pool.labelled()
    }

    /// The labels of the labelled examples, in their order.
    pub fn labels(&self) -> Result<Vec<u32>> {
        let missing = || Error::Data { path: "pool".into(), why: "a labelled example has no label".into() };
        self.labelled().iter().map(|i| self.pool.label(*i).ok_or_else(missing)).collect()
    }

    /// N
    pub fn pool_len(&self) -> usize {
        self.pool.len()
    }

    /// C
    pub fn classes(&self) -> usize {
        self.model.classes
    }

    /// The method's random stream of this round.
    pub fn rng(&self) -> Rng {
        self.rng
    }

    /// Logits (U, C) of the unlabelled examples in ascending order.
    pub fn logits(&self) -> Result<&Tensor> {
        Ok(&self.features_unlabelled()?.logits)
    }

    /// Logits (U, C) of random view `view` of the unlabelled examples, by the training transform: draws of their own for
    /// every (seed, round, view, id), whatever training has seen.
    pub fn augmented_logits(&self, view: u32) -> Result<Tensor> {
        self.logits_of(self.trainer.train_view(self.round)?.lane(TRAINING_VIEWS + view))
    }

    /// Logits (U, C) of the unlabelled examples seen in a mirror.
    pub fn flipped_logits(&self) -> Result<Tensor> {
        self.logits_of(self.trainer.plain_view()?.flipped())
    }

    fn logits_of(&self, view: View) -> Result<Tensor> {
        let view = view.stored_as(self.trainer.recipe.precision.dtype());
        let (pass, images) = (Pass { view: &view, ..self.pass() }, &self.trainer.data.train);
        let step = |x: &Tensor, clock: &Rc<Clock>| Ok([self.model.output(x, clock)?.logits]);
        let [logits] = sweep(images, &ids(self.unlabelled()), pass, [self.classes()], step)?;
        Ok(logits)
    }

    /// Penultimate features (U, D) of the unlabelled examples in ascending order.
    pub fn features(&self) -> Result<&Tensor> {
        Ok(&self.features_unlabelled()?.embeddings)
    }

    /// Logits (L, C) of the labelled examples in ascending order.
    pub fn labelled_logits(&self) -> Result<&Tensor> {
        Ok(&self.features_labelled()?.logits)
    }

    /// Penultimate features (L, D) of the labelled examples in ascending order.
    pub fn labelled_features(&self) -> Result<&Tensor> {
        Ok(&self.features_labelled()?.embeddings)
    }

    /// Penultimate features (N, D) of the whole pool; row number = pool id.
    pub fn embeddings(&self) -> Result<&Tensor> {
        cached(&self.all, || {
            let (u, l) = (self.features()?, self.labelled_features()?);
            // Row of pool id i: its rank among the unlabelled, or after all of those its rank among the labelled.
            let mut row = vec![0u32; self.pool.len()];
            for (at, id) in self.unlabelled().iter().chain(self.labelled()).enumerate() {
                row[id.index()] = at as u32;
            }
            ops::gather_rows(&ops::concat_rows(&[u, l])?, &Tensor::new(u.device(), [row.len()], &row)?)
        })
    }

    /// What `step(images (n, H, W, C), clock)` makes of examples, by the test transform: matrices (M, widths), a row
    /// each in the order of `of`. Whatever `step` draws must not depend on the size of a batch.
    pub fn sweep<const N: usize>(
        &self,
        of: &[PoolIdx],
        widths: [usize; N],
        step: impl Fn(&Tensor, &Rc<Clock>) -> Result<[Tensor; N]>,
    ) -> Result<[Tensor; N]> {
        sweep(&self.trainer.data.train, &ids(of), self.pass(), widths, step)
    }

    /// How a pass goes over the pool.
    pub fn pass(&self) -> Pass<'a> {
        Pass { view: self.view, batch: self.trainer.eval_batch, graphs: self.trainer.graphs }
    }

    fn features_unlabelled(&self) -> Result<&Features> {
        cached(&self.unlabelled, || self.extract(self.unlabelled()))
    }

    fn features_labelled(&self) -> Result<&Features> {
        cached(&self.labelled, || self.extract(self.labelled()))
    }

    fn extract(&self, of: &[PoolIdx]) -> Result<Features> {
        extract(self.model, &self.trainer.data.train, &ids(of), self.pass())
    }

    /// Random unlabelled examples, ascending: `size` of them, but at least `n` (all if there are fewer, or `size` is 0).
    pub fn subset(&self, size: usize, n: usize) -> Vec<PoolIdx> {
        let all = self.unlabelled();
        if size == 0 || size.max(n) >= all.len() {
            return all.to_vec();
        }
        let order = self.rng.permutation(all.len());
        let mut some: Vec<PoolIdx> = order.into_iter().take(size.max(n)).map(|i| all[i as usize]).collect();
        some.sort_unstable();
        some
    }

    /// Refuses a NaN or an infinity in `rows` (U, D), of the unlabelled examples in ascending order, and names the example.
    pub fn check_finite(&self, what: &str, rows: &Tensor) -> Result<()> {
        match first_non_finite(rows)?.and_then(|row| self.unlabelled().get(row as usize)) {
            None => Ok(()),
            Some(id) => Err(Error::NonFinite {
                what: format!("{what} of pool id {} hold a NaN or an infinity; nothing was selected", id.0),
            }),
        }
    }

    /// The `n` unlabelled examples with the largest of `scores` (U), ties to the lowest id. A score that is not a number
    /// is an error that names the example.
    pub fn top(&self, method: &str, scores: &Tensor, n: usize) -> Result<Vec<PoolIdx>> {
        self.top_of(method, self.unlabelled(), scores, n)
    }

    /// As [`Query::top`], among `ids` (ascending), a score each.
    pub fn top_of(&self, method: &str, ids: &[PoolIdx], scores: &Tensor, n: usize) -> Result<Vec<PoolIdx>> {
        let n = n.min(ids.len());
        if n == 0 {
            return Ok(Vec::new());
        }
        let rows = ops::top_k(scores, n).map_err(|e| match e {
            Error::NonFinite { what } => Error::NonFinite {
                what: format!("{method}: {what} (rows count {} unlabelled examples in order)", ids.len()),
            },
            other => other,
        })?;
        Ok(rows.to_vec::<u32>()?.into_iter().map(|r| ids[r as usize]).collect())
    }
}
