//! The files of one fully supervised training: resumable after a kill at any moment, at the granularity of an epoch.
//!
//! ```text
//! runs/train-<preset>-<profile>/<dataset>/<model>/seed-<s>/
//!     manifest.json         what was run: the resolved configuration, seed, device, commit
//!     curve.jsonl           one EpochRecord a line
//!     steps.jsonl           one StepRecord a line, with --log-steps
//!     timing.jsonl          one EpochTiming a line; the only file that differs between two equal runs
//!     state.json            the authority: finished epochs, lengths of the files above, sums of the files below
//!     model.safetensors     weights and statistics, in PyTorch's names and order
//!     momentum.safetensors  the optimizer's velocities under the same names
//!     curve.svg summary.txt made from curve.jsonl when the training is done
//! ```
//!
//! The protocol is that of [`super::store`]: lines appended, new models written beside the old ones, `state.json`
//! replaced (this is the commit), models renamed into place.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::store::{self, MANIFEST_TMP, MODEL, Manifest, STATE, STATE_TMP, TIMING, altered};
use crate::{Error, Result};

const CURVE: &str = "curve.jsonl";
const STEPS: &str = "steps.jsonl";
const MOMENTUM: &str = "momentum.safetensors";

/// What an epoch measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    /// 0-based.
    pub epoch: u32,
    /// The learning rate.
    pub rate: f32,
    /// Its steps.
    pub steps: u32,
    /// Sum over the steps of the mean training loss.
    pub loss: f64,
    /// Test images classified correctly.
    pub correct: u32,
    /// Test images.
    pub test_size: u32,
}

/// One step, for `--log-steps`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRecord {
    /// 0-based.
    pub epoch: u32,
    /// 0-based, from the start of the epoch.
    pub step: u32,
    /// Mean loss of the batch before the step.
    pub loss: f32,
    /// The images of the batch: numbers in the training split.
    pub ids: Vec<u32>,
}

/// How long an epoch took, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochTiming {
    /// The epoch.
    pub epoch: u32,
    /// Training.
    pub training_s: f64,
    /// The test pass.
    pub evaluation_s: f64,
}

/// `state.json`: how much of every other file counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    finished_epochs: u32,
    curve_bytes: u64,
    steps_bytes: u64,
    model: Option<String>,
    momentum: Option<String>,
    config_hash: String,
}

/// An epoch that is not on disk yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Its numbers.
    pub record: EpochRecord,
    /// Its seconds.
    pub timing: EpochTiming,
    /// Its steps, when they are logged.
    pub steps: Vec<StepRecord>,
}

/// One training's folder, locked and ready for its next epoch.
#[derive(Debug)]
pub struct EpochDir {
    path: PathBuf,
    state: State,
    curve: Vec<EpochRecord>,
    timing_bytes: u64,
    _lock: File,
}

impl EpochDir {
    /// Create the folder, or resume what it holds. Fails at once when another process works in it.
    pub fn open(path: &Path, manifest: &Manifest) -> Result<EpochDir> {
        fs::create_dir_all(path).map_err(|e| Error::io(path, &e))?;
        let lock = store::lock(path, &mut || Err(store::busy(path)))?;
        let fresh = State {
            finished_epochs: 0,
            curve_bytes: 0,
            steps_bytes: 0,
            model: None,
            momentum: None,
            config_hash: manifest.hash(),
        };
        let state = match store::read_json::<State>(path, STATE)? {
            Some(state) if state.finished_epochs > 0 => {
                manifest.take_over(path, &state.config_hash, state.finished_epochs)?;
                state
            }
            other => {
                // Without a state.json, a curve was not left by this program.
                if other.is_none() && store::length(&path.join(CURVE))? > 0 {
                    return Err(altered(path.join(STATE), &format!("is missing although {CURVE} is not empty")));
                }
                manifest.write_new(path)?;
                if other.as_ref() != Some(&fresh) {
                    store::replace(path, STATE, STATE_TMP, &store::pretty(path, &fresh)?)?;
                }
                fresh
            }
        };
        store::cut(&path.join(CURVE), state.curve_bytes)?;
        store::cut(&path.join(STEPS), state.steps_bytes)?;
        let (_, timing_bytes) = store::read_timing(path, state.finished_epochs, |t: &EpochTiming| t.epoch)?;
        store::cut(&path.join(TIMING), timing_bytes)?;
        store::settle(path, MODEL, state.model.as_deref())?;
        store::settle(path, MOMENTUM, state.momentum.as_deref())?;
        for name in [MANIFEST_TMP, STATE_TMP] {
            store::remove(&path.join(name))?;
        }
        let curve = store::read_lines::<EpochRecord>(path, CURVE, state.curve_bytes)?;
        if !curve.iter().map(|r| r.epoch).eq(0..state.finished_epochs) {
            let last = state.finished_epochs.max(1) - 1;
            return Err(altered(path.join(CURVE), &format!("does not hold the epochs 0 to {last} once each")));
        }
        Ok(EpochDir { path: path.to_path_buf(), state, curve, timing_bytes, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The finished epochs.
    pub fn curve(&self) -> &[EpochRecord] {
        &self.curve
    }

    /// Model and momentum after the last finished epoch, checked against their sums.
    pub fn models(&self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let (Some(model), Some(momentum)) = (&self.state.model, &self.state.momentum) else { return Ok(None) };
        let read = |name: &str, want: &str| {
            let file = self.path.join(name);
            let bytes = fs::read(&file).map_err(|e| Error::io(&file, &e))?;
            if store::sha256(&bytes) != want {
                return Err(altered(file, "is not the file that state.json names"));
            }
            Ok(bytes)
        };
        Ok(Some((read(MODEL, model)?, read(MOMENTUM, momentum)?)))
    }

    /// Make finished epochs and the models after them permanent, all or nothing. With no epoch: the fresh model.
    pub fn commit(&mut self, epochs: &[Pending], model: &[u8], momentum: &[u8]) -> Result<()> {
        let (mut curve, mut steps, mut timing) = (Vec::new(), Vec::new(), Vec::new());
        for (next, e) in (self.state.finished_epochs..).zip(epochs) {
            if e.record.epoch != next || !e.record.loss.is_finite() {
                let why = format!("epoch {next} is next, not {:?}", e.record);
                return Err(Error::Data { path: self.path.display().to_string(), why });
            }
            curve.extend(store::line(&self.path, &e.record)?);
            timing.extend(store::line(&self.path, &e.timing)?);
            for step in &e.steps {
                steps.extend(store::line(&self.path, step)?);
            }
        }
        let state = State {
            finished_epochs: self.state.finished_epochs + epochs.len() as u32,
            curve_bytes: self.state.curve_bytes + curve.len() as u64,
            steps_bytes: self.state.steps_bytes + steps.len() as u64,
            model: Some(store::sha256(model)),
            momentum: Some(store::sha256(momentum)),
            config_hash: self.state.config_hash.clone(),
        };
        store::append(&self.path.join(TIMING), self.timing_bytes, &timing)?;
        store::append(&self.path.join(CURVE), self.state.curve_bytes, &curve)?;
        if state.steps_bytes > 0 {
            store::append(&self.path.join(STEPS), self.state.steps_bytes, &steps)?;
        }
        for (name, bytes) in [(MODEL, model), (MOMENTUM, momentum)] {
            store::write_whole(&self.path.join(store::next(name)), bytes)?;
        }
        store::sync_dir(&self.path)?;
        store::replace(&self.path, STATE, STATE_TMP, &store::pretty(&self.path, &state)?)?;
        for name in [MODEL, MOMENTUM] {
            store::rename(&self.path.join(store::next(name)), &self.path.join(name))?;
        }
        store::sync_dir(&self.path)?;
        self.timing_bytes += timing.len() as u64;
        self.state = state;
        self.curve.extend(epochs.iter().map(|e| e.record.clone()));
        Ok(())
    }

    /// Write a file that follows from the others.
    pub fn derive(&self, name: &str, text: &str) -> Result<()> {
        store::replace(&self.path, name, &format!("{name}.tmp"), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::store::tests::{FUSE, manifest, scratch, snapshot};
    use super::*;

    /// Five epochs, two of them committed together, each depending on the files of the one before.
    fn work(path: &Path) -> Result<()> {
        let mut dir = EpochDir::open(path, &manifest())?;
        if dir.models()?.is_none() {
            dir.commit(&[], &[7; 30], &[1; 30])?;
        }
        while dir.curve().len() < 5 {
            let Some((model, momentum)) = dir.models()? else { return Err(altered(path.into(), "lost its models")) };
            let first = dir.curve().len() as u32;
            let last = dir.curve().last().map_or(0.1, |r| r.loss);
            let pending: Vec<Pending> = (first..if first == 1 { 3 } else { first + 1 })
                .map(|epoch| Pending {
                    record: EpochRecord {
                        epoch,
                        rate: 0.1,
                        steps: 2,
                        loss: last * 1.1 + f64::from(model[0]),
                        correct: 5,
                        test_size: 9,
                    },
                    timing: EpochTiming { epoch, training_s: 1.0, evaluation_s: 0.5 },
                    steps: vec![StepRecord { epoch, step: 0, loss: 0.1, ids: vec![epoch, 3] }],
                })
                .collect();
            dir.commit(&pending, &[model[0] + 1; 31], &[momentum[0] + 2; 33])?;
        }
        dir.derive("summary.txt", "done\n")
    }

    /// As the test of the same name in the store: after a kill at any operation or byte, a run ends as if it had been
    /// left alone.
    #[test]
    fn a_kill_anywhere_changes_nothing() {
        let path = scratch("epochs");
        work(&path).unwrap();
        let want = snapshot(&path);
        assert!(["steps.jsonl", "momentum.safetensors"].iter().all(|n| want.contains_key(*n)), "{:?}", want.keys());
        for fuse in (0..).step_by(7) {
            fs::remove_dir_all(&path).unwrap();
            FUSE.set(Some(fuse));
            let done = work(&path).is_ok();
            FUSE.set(Some(fuse / 3));
            let _ = work(&path); // and a second time while it resumes
            FUSE.set(None);
            work(&path).unwrap();
            let mut got = snapshot(&path);
            // What is derived is written aside first; its rest is written over the next time, and is no result.
            got.remove("summary.txt.tmp");
            assert!(got == want, "killed after {fuse} steps");
            if done {
                assert!(fuse > 1000, "{fuse}");
                break;
            }
        }
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn damage_and_another_configuration_are_refused() {
        let path = scratch("epochs-damage");
        work(&path).unwrap();
        let mut other = manifest();
        other.config["train"]["lr"] = serde_json::json!(0.2);
        let e = EpochDir::open(&path, &other).unwrap_err();
        assert!(e.is_misuse() && e.to_string().contains("train.lr"), "{e}");
        let held = EpochDir::open(&path, &manifest()).unwrap();
        assert!(EpochDir::open(&path, &manifest()).unwrap_err().to_string().contains("another dalcore process"));
        drop(held);
        fs::write(path.join("momentum.safetensors"), "other").unwrap();
        let e = EpochDir::open(&path, &manifest()).unwrap_err().to_string();
        assert!(e.contains("momentum.safetensors") && e.contains("state.json"), "{e}");
        fs::remove_dir_all(&path).unwrap();
    }
}
