//! A checkpoint and images in; embeddings, probabilities and logits out: `dalcore embed`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::arrays::{Array, Kind, Sink};
use crate::data::{Images, Spec};
use crate::device::Device;
use crate::nn::checkpoint;
use crate::ops::{self, View};
use crate::rng::Rng;
use crate::tensor::Tensor;
use crate::train::{Model, Pass, Resident, extract_each};
use crate::{Error, Result, names};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The penultimate features h, (N, D).
    Embeddings,
    /// softmax of the logits, (N, C).
    Probabilities,
    /// (N, C)
    Logits,
}

impl What {
    /// All of them with their names.
    pub const ALL: [(&'static str, What); 3] =
        [("embeddings", What::Embeddings), ("probabilities", What::Probabilities), ("logits", What::Logits)];

    /// By name.
    pub fn find(name: &str) -> Result<What> {
        let found = What::ALL.iter().find(|(n, _)| names::same(n, name));
        found.map(|f| f.1).ok_or_else(|| names::unknown("--arrays", name, What::ALL.iter().map(|w| w.0)))
    }
}

/// A resolved command.
pub struct Request<'a> {
    /// The checkpoint.
    pub checkpoint: &'a Path,
    /// Constants of the data set; network and number of classes are the checkpoint's.
    pub spec: Spec,
    /// The images, numbered in their order.
    pub images: &'a Images,
    /// What to write.
    pub what: &'a [What],
    /// A file that ends in `.safetensors`, or a folder for `.npy` files.
    pub out: &'a Path,
    /// Images per batch; 0 for the data set's.
    pub batch: usize,
    /// Replay batches as CUDA graphs.
    pub graphs: bool,
    /// Set by Ctrl-C.
    pub stop: &'a AtomicBool,
}

/// The network that a checkpoint belongs to, with its weights. Network, width and number of classes are read off its
/// tensors; image size and channels must be those of `spec`.
pub fn model_of(path: &Path, spec: &Spec, device: &Device) -> Result<Model> {
    let about = |e: Error| {
        let why = match e {
            Error::Data { why, .. } => why,
            e => e.to_string(),
        };
        Error::Data { path: path.display().to_string(), why }
    };
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let (network, classes) = checkpoint::outline(&bytes).map_err(about)?;
    let spec = Spec { model: network, classes, ..spec.clone() };
    let mut model = Model::build(&spec, device, Rng::new(0))?;
    checkpoint::from_bytes(&mut model.params, &bytes).map_err(about).map_err(|e| match e {
        Error::Data { path, why } => {
            let size = format!("{}x{}x{}", spec.h, spec.w, spec.c);
            let why = format!(
                "{why} than {} of {classes} classes for images of {size}; give images of the size it was trained on \
                 (folder@HxW:PATH resizes), or its own data set",
                network.name()
            );
            Error::Data { path, why }
        }
        e => e,
    })?;
    Ok(model)
}

/// Runs the network over the images and writes what was asked for, batch by batch; `done(images)` follows each batch.
/// Returns the files.
pub fn run(r: &Request, device: &Device, mut done: impl FnMut(usize)) -> Result<Vec<PathBuf>> {
    let model = model_of(r.checkpoint, &r.spec, device)?;
    let (n, c, d) = (r.images.n, model.classes, model.net.embedding_width());
    let mut arrays = vec![
        Array { name: "ids", kind: Kind::U32, shape: vec![n] },
        Array { name: "labels", kind: Kind::U32, shape: vec![n] },
    ];
    let asked: Vec<_> = What::ALL.iter().filter(|(_, w)| r.what.contains(w)).collect();
    arrays.extend(asked.iter().map(|(name, what)| Array {
        name,
        kind: Kind::F32,
        shape: vec![n, if *what == What::Embeddings { d } else { c }],
    }));
    let ids: Vec<u32> = (0..n as u32).collect();
    let mut sink = match r.out.extension().is_some_and(|e| e == "safetensors") {
        true => Sink::safetensors(r.out, arrays)?,
        false => Sink::npy(r.out, arrays)?,
    };
    sink.write(0, 0, &ids)?;
    sink.write(1, 0, &r.images.labels)?;

    let view = View::plain(device, &r.spec.mean, &r.spec.std)?;
    let batch = if r.batch > 0 { r.batch } else { r.spec.batch_test };
    let images = Resident::new(device, r.images)?;
    let pass = Pass { view: &view, batch, graphs: r.graphs };
    extract_each(&model, &images, &ids, pass, |at, logits, embeddings| {
        if r.stop.load(Ordering::Relaxed) {
            let resume = "nothing was written; start the same command again".into();
            return Err(Error::Interrupted { resume });
        }
        let rows = logits.len() / c.max(1);
        for (array, (name, what)) in (2..).zip(&asked) {
            let values = match what {
                What::Embeddings => embeddings.to_host()?,
                What::Logits => logits.to_host()?,
                What::Probabilities => {
                    ops::softmax(&Tensor::from_buf(device, [rows, c], logits.clone())?)?.to_vec::<f32>()?
                }
            };
            if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
                let image = at + bad / (values.len() / rows.max(1)).max(1);
                let what =
                    format!("{name} of image {image} hold {}; the checkpoint diverged or is damaged", values[bad]);
                return Err(Error::NonFinite { what });
            }
            sink.write(array, at, &values)?;
        }
        done(rows);
        Ok(())
    })?;
    sink.finish()
}
