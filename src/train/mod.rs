//! Training and evaluation: data resident on the device, fixed-shape steps that can be captured as graphs.

mod adversarial;
mod eval;
mod mixmatch;
mod supervised;
mod wasserstein;

pub use adversarial::{Adversarial, Game, Kl};
pub use eval::{Evaluator, Features, Pass, evaluate, extract, extract_each, sweep, sweep_each};
pub use mixmatch::{Forget, Keep, Learner, MixMatch, Ssl};
pub use supervised::{AfterEpoch, CrossEntropy, EpochEnd, Fit, Model, Objective, Recipe, Steps, Trainer, Training};
pub use wasserstein::{Duel, Sign, Stakes};

use crate::data::{Images, Spec};
use crate::device::Device;
use crate::error::human_bytes;
use crate::tensor::{Buf, Tensor};
use crate::{Error, Result, names};

/// How a round's model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainerKind {
    /// On what is labelled.
    Supervised,
    /// By MixMatch, on the unlabelled examples too.
    MixMatch,
}

impl TrainerKind {
    /// All of them.
    pub const ALL: [TrainerKind; 2] = [TrainerKind::Supervised, TrainerKind::MixMatch];

    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            TrainerKind::Supervised => "supervised",
            TrainerKind::MixMatch => "mixmatch",
        }
    }

    /// Looks it up.
    pub fn find(name: &str) -> Result<TrainerKind> {
        let all = TrainerKind::ALL.map(TrainerKind::name);
        let at = all.iter().position(|n| names::same(n, name));
        at.map(|i| TrainerKind::ALL[i]).ok_or_else(|| names::unknown("--trainer", name, all.into_iter()))
    }
}

/// A split on the device.
pub struct Resident {
    /// (N, H, W, C), u8
    pub pixels: Tensor,
    /// 0, 1, …, N − 1: the order of evaluation.
    pub identity: Tensor,
}

impl Resident {
    /// Copies the pixels to `device`, once.
    pub fn new(device: &Device, images: &Images) -> Result<Resident> {
        let ids: Vec<u32> = (0..images.n as u32).collect();
        let pixels = Tensor::new(device, [images.n, images.h, images.w, images.c], &images.pixels)?;
        Ok(Resident { pixels, identity: Tensor::new(device, [images.n], &ids)? })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.identity.len()
    }

    /// True without images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A whole data set on the device. The labels of the pool stay on the host until they are revealed.
pub struct DeviceData {
    /// Its constants.
    pub spec: Spec,
    /// Where it is.
    pub device: Device,
    /// The pool.
    pub train: Resident,
    /// The test set.
    pub test: Resident,
    /// (N) labels of the test set.
    pub test_labels: Buf<u32>,
}

impl DeviceData {
    /// Copies a data set to `device`.
    pub fn new(device: &Device, data: &crate::data::Dataset) -> Result<DeviceData> {
        let copy = || {
            Ok(DeviceData {
                spec: data.spec.clone(),
                device: device.clone(),
                train: Resident::new(device, &data.train)?,
                test: Resident::new(device, &data.test)?,
                test_labels: Buf::from_host(device, &data.test.labels)?,
            })
        };
        copy().map_err(|e: Error| {
            e.needed_for(|| {
                let bytes = human_bytes(data.train.pixels.len() + data.test.pixels.len());
                let images = data.train.n + data.test.n;
                (format!("keeping the {images} images of {} ({bytes})", data.spec.id), "use smaller images".into())
            })
        })
    }

    /// The same data for another network.
    pub fn with_model(mut self, model: crate::data::Model) -> DeviceData {
        self.spec.model = model;
        self
    }
}
