//! A round that was stopped while it was trained: its picks and the state of the training, beside the finished rounds.
//!
//! `partial.bin` is a line of JSON and behind it the state, replaced in one go. It counts only for the round and the
//! configuration that it names and if the state has the checksum that it names; anything else is left from another time
//! and is as good as not there. A round that is committed removes it.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::store::{self, Manifest};
use crate::train::Keep;
use crate::{Error, Result};

const PARTIAL: &str = "partial.bin";

/// What a round knows before it is trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// What was picked for it.
    pub picks: Vec<u32>,
    /// How long that took.
    pub selection_s: f64,
    /// What the method carries, its selection included.
    pub method_state: serde_json::Value,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    round: u32,
    config_hash: String,
    state: String,
    begun: Round,
}

/// The place of a round's unfinished training.
pub struct Partial {
    folder: PathBuf,
    round: u32,
    config_hash: String,
    begun: Option<Round>,
    state: Option<Vec<u8>>,
}

impl Partial {
    /// What there is in `folder` for a round of a run.
    pub fn open(folder: &Path, round: u32, manifest: &Manifest) -> Result<Partial> {
        let config_hash = manifest.hash();
        let mut partial = Partial { folder: folder.into(), round, config_hash, begun: None, state: None };
        let file = folder.join(PARTIAL);
        let bytes = match fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(partial),
            other => other.map_err(|e| Error::io(&file, &e))?,
        };
        let Some(end) = bytes.iter().position(|b| *b == b'\n') else { return Ok(partial) };
        let (head, state) = (&bytes[..end], &bytes[end + 1..]);
        let Ok(head) = serde_json::from_slice::<Head>(head) else { return Ok(partial) };
        let ours = head.round == round && head.config_hash == partial.config_hash;
        if ours && head.state == store::sha256(state) {
            (partial.begun, partial.state) = (Some(head.begun), Some(state.into()));
        }
        Ok(partial)
    }

    /// What an earlier start knew of the round.
    pub fn begun(&self) -> Option<&Round> {
        self.begun.as_ref()
    }

    /// From here on states are saved with this.
    pub fn begin(&mut self, round: Round) {
        self.begun = Some(round);
    }

    /// The round of a folder is finished.
    pub fn clear(folder: &Path) -> Result<()> {
        store::remove(&folder.join(PARTIAL))
    }

    /// Saves states `every` so often, when `save` is set, and when `stop` is, after which `check` says why it stops.
    pub fn keeper<'a>(
        &'a self,
        every: Duration,
        save: &'a AtomicBool,
        stop: &'a AtomicBool,
        check: &'a dyn Fn() -> Result<()>,
    ) -> impl Keep + 'a {
        Keeper { partial: self, last: Cell::new(Instant::now()), every, save, stop, check }
    }

    fn write(&self, state: &[u8]) -> Result<()> {
        let head = Head {
            round: self.round,
            config_hash: self.config_hash.clone(),
            state: store::sha256(state),
            begun: self.begun.clone().unwrap_or_default(),
        };
        let mut bytes = store::line(&self.folder, &head)?;
        bytes.extend(state);
        store::replace(&self.folder, PARTIAL, "partial.bin.tmp", &bytes)
    }
}

struct Keeper<'a> {
    partial: &'a Partial,
    last: Cell<Instant>,
    every: Duration,
    save: &'a AtomicBool,
    stop: &'a AtomicBool,
    check: &'a dyn Fn() -> Result<()>,
}

impl Keep for Keeper<'_> {
    fn take(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.partial.state.clone())
    }

    fn due(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.save.swap(false, Ordering::Relaxed)
            || self.last.get().elapsed() >= self.every
    }

    fn put(&self, state: &[u8]) -> Result<()> {
        self.partial.write(state)?;
        self.last.set(Instant::now());
        (self.check)()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::store::tests::manifest;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("dalcore-partial-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A state counts for its round and its configuration, and whole; a round that ended leaves none.
    #[test]
    fn a_state_of_something_else_is_as_good_as_none() {
        let (folder, manifest) = (scratch("else"), manifest());
        let open = |round, manifest: &Manifest| Partial::open(&folder, round, manifest).unwrap();
        let round = Round { picks: vec![3, 1], selection_s: 0.5, method_state: serde_json::json!({"sum": 1}) };
        let mut first = open(2, &manifest);
        assert!(first.begun().is_none() && first.state.is_none());
        first.begin(round.clone());
        first.write(b"one\ntwo").unwrap();
        let again = open(2, &manifest);
        assert_eq!((again.begun(), again.state.as_deref()), (Some(&round), Some(&b"one\ntwo"[..])));
        let none = |p: Partial| p.begun().is_none() && p.state.is_none();
        assert!(none(open(1, &manifest)), "another round");
        let other = Manifest { config: serde_json::json!({"train": {"epochs": 3}}), ..manifest.clone() };
        assert!(none(open(2, &other)), "another configuration");
        let whole = fs::read(folder.join(PARTIAL)).unwrap();
        for broken in [&whole[..whole.len() - 1], &whole[..10], b"", b"\n", b"{}\n"] {
            fs::write(folder.join(PARTIAL), broken).unwrap();
            assert!(none(open(2, &manifest)), "{} bytes of {}", broken.len(), whole.len());
        }
        fs::write(folder.join(PARTIAL), &whole).unwrap();
        assert!(!none(open(2, &manifest)));
        Partial::clear(&folder).unwrap();
        assert!(none(open(2, &manifest)) && fs::read_dir(&folder).unwrap().next().is_none());
        fs::remove_dir_all(&folder).unwrap();
    }

    /// When time has passed, once when asked to, and when it has to stop; then it does.
    #[test]
    fn states_are_saved_when_it_is_time() {
        let (folder, manifest) = (scratch("time"), manifest());
        let partial = Partial::open(&folder, 0, &manifest).unwrap();
        let (save, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let check = || match stop.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted { resume: "stopped".into() }),
            false => Ok(()),
        };
        let never = partial.keeper(Duration::MAX, &save, &stop, &check);
        assert!(!never.due());
        save.store(true, Ordering::Relaxed);
        assert!(never.due() && !never.due(), "once");
        never.put(b"state").unwrap();
        assert_eq!(
            Partial::open(&folder, 0, &manifest).unwrap().keeper(Duration::MAX, &save, &stop, &check).take().unwrap(),
            Some(b"state".to_vec())
        );
        stop.store(true, Ordering::Relaxed);
        assert!(never.due() && never.put(b"last").is_err(), "it stops, and has saved");
        assert_eq!(Partial::open(&folder, 0, &manifest).unwrap().state.as_deref(), Some(&b"last"[..]));
        stop.store(false, Ordering::Relaxed);
        assert!(partial.keeper(Duration::ZERO, &save, &stop, &check).due());
        let rarely = partial.keeper(Duration::from_millis(200), &save, &stop, &check);
        assert!(!rarely.due());
        std::thread::sleep(Duration::from_millis(250));
        assert!(rarely.due());
        rarely.put(b"state").unwrap();
        assert!(!rarely.due(), "the time counts from the last one");
        drop(rarely);
        fs::remove_dir_all(&folder).unwrap();
    }
}
