//! What a method may ask about the pool: computed on demand, cached, and never computed unasked.

use std::cell::OnceCell;

use crate::data::{Pool, PoolIdx};
use crate::rng::Rng;
use crate::tensor::Tensor;
use crate::train::{Features, Model, Pass, Resident, extract};
use crate::{Result, ops};

/// One selection: the pool, the model of the round before, and lazily what follows from them. Labels of
/// unlabelled examples cannot be reached from here.
pub struct Query<'a> {
    pool: &'a Pool,
    images: &'a Resident,
    model: &'a Model,
    pass: Pass<'a>,
    rng: Rng,
    unlabelled: OnceCell<Features>,
    labelled: OnceCell<Features>,
    all: OnceCell<Tensor>,
}

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
    /// `rng` is the method's selection stream of this round, `pass` how to go over the pool.
    pub fn new(pool: &'a Pool, images: &'a Resident, model: &'a Model, pass: Pass<'a>, rng: Rng) -> Query<'a> {
        let (unlabelled, labelled, all) = Default::default();
        Query { pool, images, model, pass, rng, unlabelled, labelled, all }
    }

    /// Unlabelled examples, ascending.
    pub fn unlabelled(&self) -> &[PoolIdx] {
        self.pool.unlabelled()
    }

    /// Labelled examples, ascending.
    pub fn labelled(&self) -> &[PoolIdx] {
        self.pool.labelled()
    }

    /// The method's random stream of this round.
    pub fn rng(&self) -> Rng {
        self.rng
    }

    /// Logits (U, C) of the unlabelled examples in ascending order.
    pub fn logits(&self) -> Result<&Tensor> {
        Ok(&self.features_unlabelled()?.logits)
    }

    /// Penultimate features (N, D) of the whole pool; row number = pool id.
    pub fn embeddings(&self) -> Result<&Tensor> {
        cached(&self.all, || {
            let (u, l) = (self.features_unlabelled()?, self.features_labelled()?);
            let d = self.model.net.embedding_width();
            let device = self.images.pixels.device();
            let mut both = Tensor::stale(device, [self.pool.len(), d], crate::tensor::Dtype::F32)?;
            let into = both.buf_mut::<f32>("embeddings")?;
            ops::copy_into(into, 0, u.embeddings.buf("embeddings")?, device)?;
            ops::copy_into(into, u.embeddings.len(), l.embeddings.buf("embeddings")?, device)?;
            // Row of pool id i: its rank among the unlabelled, or after all of those its rank among the labelled.
            let mut row = vec![0u32; self.pool.len()];
            for (at, id) in self.unlabelled().iter().chain(self.labelled()).enumerate() {
                row[id.index()] = at as u32;
            }
            ops::gather_rows(&both, &Tensor::new(device, [row.len()], &row)?)
        })
    }

    fn features_unlabelled(&self) -> Result<&Features> {
        cached(&self.unlabelled, || self.extract(self.unlabelled()))
    }

    fn features_labelled(&self) -> Result<&Features> {
        cached(&self.labelled, || self.extract(self.labelled()))
    }

    fn extract(&self, of: &[PoolIdx]) -> Result<Features> {
        extract(self.model, self.images, &ids(of), self.pass)
    }
}
