//! The files of one run: appended after each round, never edited, resumable after a kill at any moment.
//!
//! ```text
//! runs/<preset>-<profile>/<dataset>/<method>/seed-<s>/
//!     manifest.json       what was run: the resolved configuration, seed, device, commit
//!     rounds.jsonl        one RoundRecord a line
//!     picks.jsonl         one PickRecord a line; round 0 is the start set
//!     timing.jsonl        one TimingRecord a line; the only file that differs between two equal runs
//!     state.json          the authority: finished rounds, lengths of the files above, the method's own state
//!     model.safetensors   weights and statistics after the last finished round
//!     partial.bin         a round that was stopped in its training
//!     .lock               held while a process works here; dies with it
//! ```
//!
//! A round is committed in this order: lines appended and flushed to disk, the new model written beside the old
//! one, `state.json` replaced atomically (*this* is the commit), the model renamed into place. Whatever lies beyond
//! what `state.json` names, torn or whole, is cut off when the folder is opened again, and a rename that was missed
//! is made up for. The model goes into place *after* the commit because a model replaced before it could not be
//! taken back, and the next selection needs the one that belongs to the last finished round.
//!
//! `state.json` does not name the length of `timing.jsonl`, which would differ from run to run: there, the first
//! `finished_rounds` lines count.

use crate::error::{Error, Result};
use crate::train::TrainerKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";
const ROUNDS: &str = "rounds.jsonl";
const PICKS: &str = "picks.jsonl";
pub(super) const TIMING: &str = "timing.jsonl";
pub(super) const STATE: &str = "state.json";
pub(super) const MANIFEST_TMP: &str = "manifest.json.tmp";
pub(super) const STATE_TMP: &str = "state.json.tmp";
pub(super) const MODEL: &str = "model.safetensors";
const LOCK: &str = ".lock";
/// The folder beside the methods' that holds what they share: round 0.
pub const START: &str = "start";

/// What was run, in full: a number without a manifest does not enter a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The resolved configuration of this one run: nothing that changes when another method, seed or thread
    /// count is asked for beside it, because a folder refuses to continue under another configuration.
    pub config: Value,
    /// The run's seed.
    pub seed: u64,
    /// `clean` or `repro`.
    pub profile: String,
    /// `paper`, `quick` or `smoke`.
    pub preset: String,
    /// The data set's id.
    pub dataset: String,
    /// The method's id; `start` in the folder of a shared round 0.
    pub method: String,
    /// The network, with its width where it has one.
    pub model: String,
    /// `f32` or `bf16`.
    pub precision: String,
    /// `cpu` or `cuda`: part of the configuration, since the two agree only within tolerances.
    pub device_kind: String,
    /// The device in words.
    pub device: String,
    /// The driver's version, empty on the CPU.
    pub driver: String,
    /// The commit the binary was built from.
    pub commit: String,
    /// SHA-256 over the data set's files, or the generator's version and seed.
    pub data_fingerprint: String,
    /// Examples in the whole training pool.
    pub pool: u32,
    /// Labelled examples in each planned round, round 0 first. A report knows from it what is missing.
    pub targets: Vec<u32>,
    /// CPU threads; results do not depend on it, timings do.
    pub threads: usize,
    /// The crate's version.
    pub version: String,
    /// Rounds computed in another environment than the one above. Kept by the store: pass an empty list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub continued: Vec<Continued>,
}

/// The environment that took over a run at some round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Continued {
    /// The first round computed there.
    pub from_round: u32,
    /// As in [`Manifest`].
    pub device: String,
    /// As in [`Manifest`].
    pub driver: String,
    /// As in [`Manifest`].
    pub commit: String,
    /// As in [`Manifest`].
    pub threads: usize,
    /// As in [`Manifest`].
    pub version: String,
}

/// What one round measured. Counts instead of ratios: exact, and the same bytes on every machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRecord {
    /// The round, 0 for the start set.
    pub round: u32,
    /// Labelled examples the model was trained on, this round's picks included.
    pub labelled: u32,
    /// Examples picked for this round: the start set's size in round 0.
    pub picked: u32,
    /// Test images.
    pub test_size: u32,
    /// Correct test images after each epoch.
    pub correct: Vec<u32>,
    /// Training loss of each epoch, summed over its steps.
    pub loss: Vec<f64>,
}

/// Which examples a round added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PickRecord {
    /// The round these were picked for.
    pub round: u32,
    /// Pool ids in the order in which they were chosen.
    pub ids: Vec<u32>,
    /// One finite score for each id, where the method has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Vec<f32>>,
}

/// How long a round took, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimingRecord {
    /// The round.
    pub round: u32,
    /// Choosing its examples, forward passes over the pool included. 0 in round 0.
    pub selection_s: f64,
    /// Training.
    pub training_s: f64,
    /// Test passes after the epochs.
    pub evaluation_s: f64,
}

/// `state.json`: how much of every other file counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Rounds that are complete on disk.
    pub finished_rounds: u32,
    /// Bytes of `rounds.jsonl` that count.
    pub rounds_bytes: u64,
    /// Bytes of `picks.jsonl` that count.
    pub picks_bytes: u64,
    /// SHA-256 of the model after the last finished round.
    pub model: Option<String>,
    /// SHA-256 over everything in the manifest that results depend on.
    pub config_hash: String,
    /// What the method carries from round to round.
    pub method_state: Value,
}

/// One run's folder, locked and ready for its next round.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    state: State,
    rounds: Vec<RoundRecord>,
    picks: Vec<PickRecord>,
    timing: Vec<TimingRecord>,
    timing_bytes: u64,
    _lock: File,
}

impl RunDir {
    /// Create the folder, or resume what it holds. Fails at once when another process works in it.
    pub fn open(path: &Path, manifest: &Manifest) -> Result<RunDir> {
        RunDir::open_waiting(path, manifest, &mut || Err(busy(path)))
    }

    /// As [`RunDir::open`], but while another process holds the folder, `wait` is asked what to do: an error
    /// gives up, and after `Ok` (it may sleep) the lock is tried again.
    pub fn open_waiting(path: &Path, manifest: &Manifest, wait: &mut dyn FnMut() -> Result<()>) -> Result<RunDir> {
        fs::create_dir_all(path).map_err(|e| Error::io(path, &e))?;
        let lock = lock(path, wait)?;
        let fresh = State {
            finished_rounds: 0,
            rounds_bytes: 0,
            picks_bytes: 0,
            model: None,
            config_hash: manifest.hash(),
            method_state: Value::Null,
        };
        let old = read_json::<State>(path, STATE)?;
        let state = match old {
            Some(state) if state.finished_rounds > 0 => {
                manifest.take_over(path, &state.config_hash, state.finished_rounds)?;
                state
            }
            other => {
                // Nothing is finished, so nothing is lost by starting over, and another configuration is welcome.
                // Without a state.json that is only believed of files which are empty or not there.
                for name in [ROUNDS, PICKS] {
                    if other.is_none() && length(&path.join(name))? > 0 {
                        return Err(altered(path.join(STATE), &format!("is missing although {name} is not empty")));
                    }
                }
                manifest.write_new(path)?;
                if other.as_ref() != Some(&fresh) {
                    replace(path, STATE, STATE_TMP, &pretty(path, &fresh)?)?;
                }
                fresh
            }
        };
        cut(&path.join(ROUNDS), state.rounds_bytes)?;
        cut(&path.join(PICKS), state.picks_bytes)?;
        let (timing, timing_bytes) = read_timing(path, state.finished_rounds, |t: &TimingRecord| t.round)?;
        cut(&path.join(TIMING), timing_bytes)?;
        settle(path, MODEL, state.model.as_deref())?;
        for name in [MANIFEST_TMP, STATE_TMP] {
            remove(&path.join(name))?;
        }
        let rounds = read_lines::<RoundRecord>(path, ROUNDS, state.rounds_bytes)?;
        let picks = read_lines::<PickRecord>(path, PICKS, state.picks_bytes)?;
        holds(path, ROUNDS, state.finished_rounds, rounds.iter().map(|r| r.round))?;
        holds(path, PICKS, state.finished_rounds, picks.iter().map(|p| p.round))?;
        Ok(RunDir { path: path.to_path_buf(), state, rounds, picks, timing, timing_bytes, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rounds that are done; also the number of the next one.
    pub fn finished_rounds(&self) -> u32 {
        self.state.finished_rounds
    }

    /// The finished rounds.
    pub fn rounds(&self) -> &[RoundRecord] {
        &self.rounds
    }

    /// What was picked for each finished round.
    pub fn picks(&self) -> &[PickRecord] {
        &self.picks
    }

    /// Seconds of the finished rounds, as far as the file has them.
    pub fn timing(&self) -> &[TimingRecord] {
        &self.timing
    }

    /// What the method saved after the last finished round; null before the first.
    pub fn method_state(&self) -> &Value {
        &self.state.method_state
    }

    /// The model file of the last finished round, checked against its sum; none before the first round.
    pub fn model(&self) -> Result<Option<Vec<u8>>> {
        let Some(want) = &self.state.model else { return Ok(None) };
        let file = self.path.join(MODEL);
        let bytes = fs::read(&file).map_err(|e| Error::io(&file, &e))?;
        if sha256(&bytes) != *want {
            return Err(altered(file, "is not the model that state.json names"));
        }
        Ok(Some(bytes))
    }

    /// Make a finished round permanent. Either all of it is on disk when this returns, or, after an error or a
    /// kill, the round counts as not done; calling again is safe.
    pub fn commit_round(
        &mut self,
        round: RoundRecord,
        picks: PickRecord,
        timing: TimingRecord,
        method_state: Value,
        model: &[u8],
    ) -> Result<()> {
        self.check(&round, &picks, &timing)?;
        let (round_line, pick_line, timing_line) =
            (line(&self.path, &round)?, line(&self.path, &picks)?, line(&self.path, &timing)?);
        let state = State {
            finished_rounds: self.state.finished_rounds + 1,
            rounds_bytes: self.state.rounds_bytes + round_line.len() as u64,
            picks_bytes: self.state.picks_bytes + pick_line.len() as u64,
            model: Some(sha256(model)),
            config_hash: self.state.config_hash.clone(),
            method_state,
        };
        append(&self.path.join(TIMING), self.timing_bytes, &timing_line)?;
        append(&self.path.join(ROUNDS), self.state.rounds_bytes, &round_line)?;
        append(&self.path.join(PICKS), self.state.picks_bytes, &pick_line)?;
        write_whole(&self.path.join(next(MODEL)), model)?;
        sync_dir(&self.path)?;
        replace(&self.path, STATE, STATE_TMP, &pretty(&self.path, &state)?)?;
        rename(&self.path.join(next(MODEL)), &self.path.join(MODEL))?;
        sync_dir(&self.path)?;
        self.timing_bytes += timing_line.len() as u64;
        self.state = state;
        self.rounds.push(round);
        self.picks.push(picks);
        self.timing.push(timing);
        Ok(())
    }

    /// What would make the files contradict each other, or lose a number on its way through JSON.
    fn check(&self, round: &RoundRecord, picks: &PickRecord, timing: &TimingRecord) -> Result<()> {
        let next = self.state.finished_rounds;
        let bad = |why: String| Err(Error::Data { path: self.path.display().to_string(), why });
        if round.round != next || picks.round != next || timing.round != next {
            return bad(format!(
                "round {next} is next, but records of rounds {}, {} and {} were to be stored",
                round.round, picks.round, timing.round
            ));
        }
        let before = self.rounds.last().map_or(0, |r| r.labelled);
        if round.picked as usize != picks.ids.len() || round.labelled != before + round.picked {
            return bad(format!(
                "round {next}: {} ids on top of {before} labelled do not make picked {} and labelled {}",
                picks.ids.len(),
                round.picked,
                round.labelled
            ));
        }
        let mut known: HashSet<u32> = self.picks.iter().flat_map(|p| &p.ids).copied().collect();
        if let Some(id) = picks.ids.iter().find(|id| !known.insert(**id)) {
            return bad(format!("round {next}: pool id {id} was picked twice"));
        }
        if round.correct.len() != round.loss.len() || round.correct.iter().any(|c| *c > round.test_size) {
            return bad(format!(
                "round {next}: {} test counts (at most {} of {}) for {} epochs",
                round.correct.len(),
                round.correct.iter().max().copied().unwrap_or(0),
                round.test_size,
                round.loss.len()
            ));
        }
        let not_finite = |what: String| {
            let fix = "nothing of this round was stored, the finished rounds are kept";
            Err(Error::NonFinite { what: format!("{}: round {next}: {what}; {fix}", self.path.display()) })
        };
        if let Some(epoch) = round.loss.iter().position(|l| !l.is_finite()) {
            return not_finite(format!("the training loss of epoch {epoch} is {}", round.loss[epoch]));
        }
        if let Some(scores) = &picks.scores {
            if scores.len() != picks.ids.len() {
                return bad(format!("round {next}: {} scores for {} ids", scores.len(), picks.ids.len()));
            }
            if let Some(i) = scores.iter().position(|s| !s.is_finite()) {
                return not_finite(format!("the score of pool id {} is {}", picks.ids[i], scores[i]));
            }
        }
        if ![timing.selection_s, timing.training_s, timing.evaluation_s].iter().all(|s| s.is_finite()) {
            return not_finite(format!("a duration is not a number: {timing:?}"));
        }
        Ok(())
    }
}

/// Round 0 of one data set and seed, shared by every method that trains by the plain recipe: opened if it is
/// there, made by `make` if not. While another process makes it, `wait` is asked as in [`RunDir::open_waiting`].
///
/// The folder is a run of one round, so the same protocol makes it appear in one go. It is returned open; drop it
/// to let others read it.
pub fn shared_start(
    path: &Path,
    manifest: &Manifest,
    wait: &mut dyn FnMut() -> Result<()>,
    make: impl FnOnce() -> Result<(RoundRecord, PickRecord, TimingRecord, Vec<u8>)>,
) -> Result<RunDir> {
    let mut start = RunDir::open_waiting(path, manifest, wait)?;
    if start.finished_rounds() == 0 {
        let (round, picks, timing, model) = make()?;
        start.commit_round(round, picks, timing, Value::Null, &model)?;
    }
    Ok(start)
}

/// The name of the shared round 0 of a trainer.
pub fn start_id(trainer: TrainerKind) -> String {
    match trainer {
        TrainerKind::Supervised => START.into(),
        other => format!("{START}+{}", other.name()),
    }
}

/// `<out>/<preset>-<profile>/<dataset>`: everything one report is about.
pub fn dataset_dir(out: &Path, preset: &str, profile: &str, dataset: &str) -> PathBuf {
    out.join(format!("{preset}-{profile}")).join(dataset)
}

/// `<dataset dir>/<method>/seed-<seed>`; the shared round 0 has [`START`] for a method.
pub fn run_dir(dataset_dir: &Path, method: &str, seed: u64) -> PathBuf {
    dataset_dir.join(method).join(format!("seed-{seed}"))
}

/// A run as the report reads it. Rounds that are not finished are simply not there.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Where it was read from.
    pub path: PathBuf,
    /// What was run.
    pub manifest: Manifest,
    /// Finished rounds.
    pub rounds: Vec<RoundRecord>,
    /// What was picked for them; nothing where that was not published.
    pub picks: Vec<PickRecord>,
    /// Their seconds; a round may be missing.
    pub timing: Vec<TimingRecord>,
}

/// Read a run without locking or changing anything; a process may be working on it meanwhile. Of a run that was
/// published, what it picked, its state and its model may be missing, all of them: then every line of its rounds counts.
pub fn read_run(path: &Path) -> Result<Run> {
    // The state first: the files it names only grow, so what it describes stays readable.
    let state = read_json::<State>(path, STATE)?;
    let there = |name: &str| path.join(name).is_file();
    if state.is_none() && (there(PICKS) || !there(ROUNDS)) {
        return Err(altered(path.join(STATE), "is missing"));
    }
    let Some(manifest) = read_json::<Manifest>(path, MANIFEST)? else {
        return Err(altered(path.join(MANIFEST), "is missing"));
    };
    let bytes = state.as_ref().map_or(length(&path.join(ROUNDS)), |s| Ok(s.rounds_bytes))?;
    let rounds = read_lines::<RoundRecord>(path, ROUNDS, bytes)?;
    let finished = state.as_ref().map_or(rounds.len() as u32, |s| s.finished_rounds);
    holds(path, ROUNDS, finished, rounds.iter().map(|r| r.round))?;
    let picks = read_lines::<PickRecord>(path, PICKS, state.as_ref().map_or(0, |s| s.picks_bytes))?;
    if state.is_some() {
        holds(path, PICKS, finished, picks.iter().map(|p| p.round))?;
    }
    let (timing, _) = read_timing(path, finished, |t: &TimingRecord| t.round)?;
    Ok(Run { path: path.to_path_buf(), manifest, rounds, picks, timing })
}

/// The model of a run after its last finished round, checked against its sum; as [`read_run`], without a lock.
pub fn read_model(path: &Path) -> Result<Vec<u8>> {
    let file = path.join(MODEL);
    let state = read_json::<State>(path, STATE)?;
    let bytes = fs::read(&file).map_err(|e| Error::io(&file, &e))?;
    match state.and_then(|s| s.model) {
        Some(want) if want == sha256(&bytes) => Ok(bytes),
        _ => Err(altered(file, "is not the model that state.json names")),
    }
}

impl Manifest {
    /// Everything results depend on, as dotted keys in a fixed order.
    fn flat(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        flatten(String::new(), &self.config, &mut all);
        for (key, value) in [
            ("seed", Value::from(self.seed)),
            ("profile", Value::from(self.profile.as_str())),
            ("preset", Value::from(self.preset.as_str())),
            ("dataset", Value::from(self.dataset.as_str())),
            ("method", Value::from(self.method.as_str())),
            ("model", Value::from(self.model.as_str())),
            ("precision", Value::from(self.precision.as_str())),
            ("device", Value::from(self.device_kind.as_str())),
            ("data_fingerprint", Value::from(self.data_fingerprint.as_str())),
            ("pool", Value::from(self.pool)),
            ("targets", Value::from(self.targets.clone())),
        ] {
            // A `~` sorts after every letter: of several differences the configuration's own is named first.
            all.insert(format!("~{key}"), value.to_string());
        }
        all
    }

    pub(super) fn hash(&self) -> String {
        let text: Vec<String> = self.flat().into_iter().map(|(k, v)| format!("{k}={v}\n")).collect();
        sha256(text.concat().as_bytes())
    }

    /// Go on in a folder that holds `finished` rounds or epochs under the configuration `hash`: it must be this one, and
    /// another environment is noted in the manifest.
    pub(super) fn take_over(&self, path: &Path, hash: &str, finished: u32) -> Result<()> {
        let Some(made_by) = read_json::<Manifest>(path, MANIFEST)? else {
            return Err(altered(path.join(MANIFEST), "is missing although rounds are finished"));
        };
        made_by.same_results(self, path)?;
        if hash != self.hash() {
            return Err(altered(path.join(MANIFEST), "does not belong to the state.json beside it"));
        }
        let now = made_by.continue_as(self, finished);
        if now != made_by {
            replace(path, MANIFEST, MANIFEST_TMP, &pretty(path, &now)?)?;
        }
        Ok(())
    }

    /// Write the manifest of a run of which nothing is finished.
    pub(super) fn write_new(&self, path: &Path) -> Result<()> {
        replace(path, MANIFEST, MANIFEST_TMP, &pretty(path, self)?)
    }

    /// Refuse when `new` would compute something else than what the folder holds.
    fn same_results(&self, new: &Manifest, path: &Path) -> Result<()> {
        let (old, new) = (self.flat(), new.flat());
        let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let different: Vec<&String> = keys.into_iter().filter(|k| old.get(*k) != new.get(*k)).collect();
        let Some(first) = different.first() else { return Ok(()) };
        let show = |of: &BTreeMap<String, String>| of.get(*first).cloned().unwrap_or_else(|| "nothing".into());
        let others = match different.len() - 1 {
            0 => String::new(),
            n => {
                let names: Vec<&str> = different.iter().skip(1).take(3).map(|k| k.trim_start_matches('~')).collect();
                format!(" (and {n} more: {}{})", names.join(", "), if n > 3 { ", ..." } else { "" })
            }
        };
        Err(Error::Config {
            key: first.trim_start_matches('~').to_string(),
            why: format!(
                "{} holds finished rounds with {}, this run has {}{others}; give it the old value to continue them, \
                 or choose another --out",
                path.display(),
                show(&old),
                show(&new)
            ),
        })
    }

    /// This manifest, with a note if `now` is another environment than the one that made the last round.
    fn continue_as(&self, now: &Manifest, from_round: u32) -> Manifest {
        let environment = |m: &Manifest| Continued {
            from_round,
            device: m.device.clone(),
            driver: m.driver.clone(),
            commit: m.commit.clone(),
            threads: m.threads,
            version: m.version.clone(),
        };
        let mut all = self.clone();
        // An environment that took over but finished no round left no trace in the results.
        all.continued.retain(|c| c.from_round < from_round);
        let last = match all.continued.last() {
            Some(c) => Continued { from_round, ..c.clone() },
            None => environment(self),
        };
        let now = environment(now);
        if now != last {
            all.continued.push(now);
        }
        all
    }
}

fn flatten(prefix: String, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(key, value, into);
            }
        }
        leaf => {
            into.insert(prefix, leaf.to_string());
        }
    }
}

/// The records of a file tell the same story as the state.
fn holds(path: &Path, name: &str, finished: u32, mut rounds: impl Iterator<Item = u32>) -> Result<()> {
    if (0..finished).all(|r| rounds.next() == Some(r)) && rounds.next().is_none() {
        return Ok(());
    }
    let what = format!("does not hold the rounds 0 to {} once each", finished.max(1) - 1);
    Err(altered(path.join(name), &what))
}

/// Another process holds the lock.
pub(super) fn busy(path: &Path) -> Error {
    Error::Io {
        path: path.display().to_string(),
        why: "another dalcore process is working in this folder; wait until it is done, or choose another --out".into(),
    }
}

/// A file that this program would not have left behind.
pub(crate) fn altered(file: PathBuf, what: &str) -> Error {
    Error::Data {
        path: file.display().to_string(),
        why: format!(
            "{what}; it was changed from outside or the disk lost it. Restore the file, or move its folder away to \
             compute this run anew; nothing in it was touched"
        ),
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn lock(path: &Path, wait: &mut dyn FnMut() -> Result<()>) -> Result<File> {
    let name = path.join(LOCK);
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&name);
    let file = open.map_err(|e| Error::io(&name, &e))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => wait()?,
            Err(TryLockError::Error(e)) => {
                return Err(Error::Io {
                    path: name.display().to_string(),
                    why: format!("{e}: the file system cannot lock files; choose an --out on a local disk"),
                });
            }
        }
    }
}

pub(crate) fn pretty<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| unwritable(path, &e))?;
    text.push(b'\n');
    Ok(text)
}

pub(super) fn line<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(value).map_err(|e| unwritable(path, &e))?;
    text.push(b'\n');
    Ok(text)
}

fn unwritable(path: &Path, e: &serde_json::Error) -> Error {
    Error::Data { path: path.display().to_string(), why: format!("a record cannot be written as JSON: {e}") }
}

pub(super) fn read_json<T: for<'a> Deserialize<'a>>(dir: &Path, name: &str) -> Result<Option<T>> {
    let file = dir.join(name);
    match fs::read(&file) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(e) => Err(altered(file, &format!("cannot be read ({e})"))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(&file, &e)),
    }
}

/// The first `bytes` of a file of lines; none at all when nothing counts yet.
pub(super) fn read_lines<T: for<'a> Deserialize<'a>>(dir: &Path, name: &str, bytes: u64) -> Result<Vec<T>> {
    let file = dir.join(name);
    let mut text = Vec::new();
    if bytes > 0 {
        let open = File::open(&file).map_err(|e| Error::io(&file, &e))?;
        open.take(bytes).read_to_end(&mut text).map_err(|e| Error::io(&file, &e))?;
    }
    if (text.len() as u64) < bytes {
        return Err(altered(file, &format!("has {} bytes, state.json counts on {bytes}", text.len())));
    }
    let mut all = Vec::new();
    for (i, one) in text.split_inclusive(|b| *b == b'\n').enumerate() {
        match serde_json::from_slice(one) {
            Ok(value) => all.push(value),
            Err(e) => return Err(altered(file, &format!("line {} cannot be read ({e})", i + 1))),
        }
    }
    Ok(all)
}

/// The leading whole lines of at most `finished` rounds, and their bytes. Lost timings cost no result, so a
/// damaged file is no reason to refuse: what is missing stays missing.
pub(super) fn read_timing<T: for<'a> Deserialize<'a>>(
    dir: &Path,
    finished: u32,
    number: impl Fn(&T) -> u32,
) -> Result<(Vec<T>, u64)> {
    let file = dir.join(TIMING);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io(&file, &e)),
    };
    let (mut all, mut bytes) = (Vec::new(), 0);
    for one in text.split_inclusive(|b| *b == b'\n').take(finished as usize) {
        match serde_json::from_slice::<T>(one) {
            Ok(record) if one.ends_with(b"\n") && number(&record) < finished => all.push(record),
            _ => break,
        }
        bytes += one.len() as u64;
    }
    Ok((all, bytes))
}

/// The name of a file until the state that names it is on disk.
pub(crate) fn next(name: &str) -> String {
    format!("{name}.next")
}

/// Put the file that the state names, a model, in its place and clear away what a kill left beside it.
pub(super) fn settle(path: &Path, name: &str, want: Option<&str>) -> Result<()> {
    let (model, next) = (path.join(name), path.join(next(name)));
    let Some(want) = want else { return remove(&next) };
    let is = |file: &Path| match fs::read(file) {
        Ok(bytes) => Ok(sha256(&bytes) == want),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io(file, &e)),
    };
    if is(&model)? {
        return remove(&next);
    }
    if is(&next)? {
        rename(&next, &model)?;
        return sync_dir(path);
    }
    Err(altered(model, "is not the model that state.json names"))
}

// The file operations. `step` and `put` are where the tests below pull the plug.

pub(super) fn length(file: &Path) -> Result<u64> {
    match fs::metadata(file) {
        Ok(meta) => Ok(meta.len()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::io(file, &e)),
    }
}

/// Cut a file off behind `bytes`.
pub(super) fn cut(file: &Path, bytes: u64) -> Result<()> {
    let len = length(file)?;
    if len < bytes {
        return Err(altered(file.into(), &format!("has {len} bytes, state.json counts on {bytes}")));
    }
    if len == bytes {
        return Ok(());
    }
    let shorten = || {
        step()?;
        let file = OpenOptions::new().write(true).open(file)?;
        file.set_len(bytes)?;
        file.sync_all()
    };
    shorten().map_err(|e| Error::io(file, &e))
}

/// Write behind the first `at` bytes, dropping whatever an attempt that failed left there.
pub(super) fn append(file: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    let write = || {
        step()?;
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(file)?;
        file.set_len(at)?;
        file.seek(SeekFrom::Start(at))?;
        put(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(file, &e))
}

pub(crate) fn write_whole(file: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        step()?;
        let mut file = File::create(file)?;
        put(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(file, &e))
}

/// Replace a file in one go: readers and a kill see the old one or the new one.
pub(crate) fn replace(dir: &Path, name: &str, temporary: &str, bytes: &[u8]) -> Result<()> {
    let temporary = dir.join(temporary);
    write_whole(&temporary, bytes)?;
    rename(&temporary, &dir.join(name))?;
    sync_dir(dir)
}

pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    step().and_then(|()| fs::rename(from, to)).map_err(|e| Error::io(to, &e))
}

pub(crate) fn remove(file: &Path) -> Result<()> {
    match step().and_then(|()| fs::remove_file(file)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(file, &e)),
        _ => Ok(()),
    }
}

/// A rename is permanent only when its folder is.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    step().map_err(|e| Error::io(dir, &e))?;
    if cfg!(unix) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, &e))?;
    }
    Ok(())
}

#[cfg(not(test))]
fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(not(test))]
fn put(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)
}

#[cfg(test)]
use tests::{put, step};

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! { pub(in crate::bench) static FUSE: Cell<Option<u64>> = const { Cell::new(None) } }

    /// One file operation, or one byte of a write, burns one unit; at zero everything fails, as after a kill.
    fn burn(most: u64) -> u64 {
        FUSE.with(|f| match f.get() {
            None => most,
            Some(left) => {
                f.set(Some(left.saturating_sub(most)));
                left.min(most)
            }
        })
    }

    pub(super) fn step() -> io::Result<()> {
        if burn(1) == 1 { Ok(()) } else { Err(io::Error::other("killed")) }
    }

    pub(super) fn put(file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let n = burn(bytes.len() as u64) as usize;
        file.write_all(&bytes[..n])?;
        if n == bytes.len() { Ok(()) } else { Err(io::Error::other("killed")) }
    }

    pub(in crate::bench) fn manifest() -> Manifest {
        Manifest {
            config: serde_json::json!({"train": {"epochs": 2, "lr": 0.1}}),
            seed: 10,
            profile: "clean".into(),
            preset: "smoke".into(),
            dataset: "synthetic".into(),
            method: "coreset".into(),
            model: "lenet".into(),
            precision: "f32".into(),
            device_kind: "cpu".into(),
            device: "test".into(),
            driver: String::new(),
            commit: "abc".into(),
            data_fingerprint: "1".into(),
            pool: 100,
            targets: vec![2, 4, 6],
            threads: 1,
            version: "0".into(),
            continued: vec![],
        }
    }

    /// A run whose every round depends on the model and the method's state after the one before it.
    fn work(path: &Path) -> Result<()> {
        let mut dir = RunDir::open(path, &manifest())?;
        while dir.finished_rounds() < 3 {
            let r = dir.finished_rounds();
            let before = dir.model()?.map_or(7, |m| u32::from(m[0]) + m.len() as u32);
            let state = dir.method_state()["sum"].as_f64().unwrap_or(0.1) * 1.1;
            dir.commit_round(
                RoundRecord {
                    round: r,
                    labelled: 2 * r + 2,
                    picked: 2,
                    test_size: 1000,
                    correct: vec![before, before + 1],
                    loss: vec![state, 0.1 + 0.2],
                },
                PickRecord { round: r, ids: vec![50 - r, r], scores: Some(vec![0.1, state as f32]) },
                TimingRecord { round: r, selection_s: 0.5, training_s: 1.0, evaluation_s: 0.25 },
                serde_json::json!({ "sum": state }),
                &vec![before as u8 + 3; 20 + r as usize],
            )?;
        }
        Ok(())
    }

    pub(in crate::bench) fn snapshot(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let entry = |e: io::Result<fs::DirEntry>| {
            let e = e.unwrap();
            (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())
        };
        fs::read_dir(path).unwrap().map(entry).collect()
    }

    pub(in crate::bench) fn scratch(name: &str) -> PathBuf {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() { shm.into() } else { std::env::temp_dir() };
        let path = base.join(format!("dalcore-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    /// Killed at every file operation and every byte written, and once more while resuming, a run ends with the
    /// very files of a run that was left alone.
    #[test]
    fn a_kill_anywhere_changes_nothing() {
        let path = scratch("kill");
        FUSE.set(Some(u64::MAX));
        work(&path).unwrap();
        let total = u64::MAX - FUSE.get().unwrap();
        FUSE.set(None);
        let want = snapshot(&path);
        assert_eq!(want.len(), 7, "{:?}", want.keys());
        assert!(total > 1500, "{total} places to fail are too few to be a test");
        for first in 0..total {
            fs::remove_dir_all(&path).unwrap();
            FUSE.set(Some(first));
            assert!(work(&path).is_err(), "survived a kill after {first} steps");
            // The second kill comes soon after the first, among the repairs.
            FUSE.set(Some(first * 31 % 23));
            let _ = work(&path);
            FUSE.set(None);
            let dir = RunDir::open(&path, &manifest()).unwrap();
            let lengths = [ROUNDS, PICKS].map(|name| length(&path.join(name)).unwrap());
            let counted = [dir.state.rounds_bytes, dir.state.picks_bytes];
            assert_eq!(lengths, counted, "killed after {first} steps: opening leaves whole records only");
            drop(dir);
            work(&path).unwrap_or_else(|e| panic!("killed after {first} of {total} steps: {e}"));
            let got = snapshot(&path);
            for (name, bytes) in &want {
                let text = String::from_utf8_lossy(got.get(name).map_or(&[][..], |b| &b[..])).into_owned();
                assert!(got.get(name) == Some(bytes), "killed after {first} of {total} steps: {name} is {text}");
            }
            assert_eq!(got.len(), want.len(), "killed after {first} steps: {:?}", got.keys());
        }
        fs::remove_dir_all(&path).unwrap();
    }

    /// An attempt that failed in the middle (a full disk, say) can be repeated in the same process.
    #[test]
    fn a_failed_commit_can_be_repeated() {
        let path = scratch("repeat");
        work(&path).unwrap();
        let want = snapshot(&path);
        let commit = |dir: &mut RunDir| {
            let r = dir.finished_rounds() as usize;
            let read = read_run(&scratch_done(&path)).unwrap();
            dir.commit_round(
                read.rounds[r].clone(),
                read.picks[r].clone(),
                read.timing[r].clone(),
                serde_json::json!({ "sum": read.rounds[r].loss[0] }),
                &vec![read.rounds[r].correct[0] as u8 + 3; 20 + r],
            )
        };
        fs::rename(&path, scratch_done(&path)).unwrap();
        let mut dir = RunDir::open(&path, &manifest()).unwrap();
        for fuse in 0.. {
            if dir.finished_rounds() == 3 {
                break;
            }
            FUSE.set(Some(fuse % 700));
            let _ = commit(&mut dir);
            FUSE.set(None);
        }
        assert_eq!(snapshot(&path), want);
        fs::remove_dir_all(&path).unwrap();
        fs::remove_dir_all(scratch_done(&path)).unwrap();
    }

    fn scratch_done(path: &Path) -> PathBuf {
        path.with_extension("done")
    }
}
