//! A folder in which people label what a rule chooses: `dalcore label`.
//!
//! ```text
//! pool.csv        id,name                every row of the pool, written once
//! labels.csv      id,name,label          what is labelled; replaced as a whole by each ingest
//! state.json      embeddings, batches    what was handed out; replaced as a whole by each batch
//! batch-001.csv   id,name,label          to be filled: a copy may go anywhere, under any name
//! .lock           held while a process works here; dies with it
//! ```
//!
//! Every step commits by replacing one file, so a kill at any moment leaves the step done or not begun. A batch is
//! written beside its place, `state.json` that names it is the commit, and the rename that a kill prevented is made up
//! for by the next step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bench::store::{self, next};
use crate::csv;
use crate::device::Device;
use crate::pick::{self, Arrays, Choice, Inputs, Names};
use crate::{Error, Result};

const STATE: &str = "state.json";
const POOL: &str = "pool.csv";
const LABELS: &str = "labels.csv";
const HEAD: [&str; 3] = ["id", "name", "label"];

/// What was handed out to be labelled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// The rule that chose it.
    pub method: String,
    /// Its seed.
    pub seed: u64,
    /// Rows, in the order they were chosen.
    pub ids: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Of the pool.
    rows: usize,
    /// The array of its embeddings, where one was named.
    embeddings: Option<String>,
    /// Batch n is number n − 1.
    batches: Vec<Batch>,
}

/// The folder of one pool.
pub struct Folder {
    path: PathBuf,
    names: Vec<String>,
    state: State,
    labels: BTreeMap<u32, String>,
    _lock: Option<File>,
}

/// What an ingest did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// Labels that are new.
    pub new: usize,
    /// Labels that were known already.
    pub known: usize,
    /// Lines without a label that were passed over because that was asked for.
    pub empty: usize,
}

/// One line of the curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The batch; none for labels that no batch asked for.
    pub batch: Option<Batch>,
    /// Rows of it that have labels.
    pub labelled: Vec<u32>,
    /// Different labels up to here.
    pub classes: usize,
    /// The coverage radius up to here, where embeddings are known.
    pub radius: Option<f32>,
}

fn data(path: &Path, why: impl Into<String>) -> Error {
    Error::Data { path: path.display().to_string(), why: why.into() }
}

fn lock(path: &Path) -> Result<File> {
    let busy = "another dalcore process is working in this folder; wait until it is done and start again";
    store::lock(path, &mut || Err(Error::Io { path: path.display().to_string(), why: busy.into() }))
}

fn batch_file(number: usize) -> String {
    format!("batch-{number:03}.csv")
}

impl Folder {
    /// Makes the folder of a pool with these embeddings, these names, or both, and with what is labelled already.
    pub fn init(path: &Path, embeddings: Option<&str>, names: Option<&Path>, labels: &[PathBuf]) -> Result<Folder> {
        let arrays = Arrays { embeddings: embeddings.map(String::from), ..Arrays::default() };
        let mut rows = match embeddings {
            Some(_) => Some(Inputs::open(&arrays, u64::MAX)?.rows()),
            None => None,
        };
        let names = names.map(|path| Names::read(path, rows)).transpose()?;
        rows = rows.or(names.as_ref().map(Names::count));
        let Some(rows) = rows.filter(|n| *n > 0) else {
            let why = "the pool has no rows; give --embeddings, --names or both";
            return Err(Error::Config { key: "label init".into(), why: why.into() });
        };
        if path.join(STATE).exists() {
            let why = format!("{} is the folder of a pool already; choose another", path.display());
            return Err(Error::Config { key: "label init".into(), why });
        }
        let names: Vec<String> =
            (0..rows as u32).map(|id| names.as_ref().map_or(String::new(), |n| n.of(id).to_string())).collect();
        let state = State { rows, embeddings: embeddings.map(absolute), batches: Vec::new() };
        let mut folder = Folder { path: path.into(), names, state, labels: BTreeMap::new(), _lock: None };
        folder.labels =
            folder.check(labels, false).map_err(|wrong| data(path, refusal("nothing was made", &wrong)))?.labels;
        std::fs::create_dir_all(path).map_err(|e| Error::io(path, &e))?;
        folder._lock = Some(lock(path)?);
        let lines = folder.names.iter().enumerate().map(|(id, name)| csv::line(&[&id.to_string(), name]));
        let pool: String = std::iter::once(csv::line(&HEAD[..2])).chain(lines).collect();
        store::replace(path, POOL, &next(POOL), pool.as_bytes())?;
        folder.write_labels()?;
        folder.write_state()?;
        Ok(folder)
    }

    /// Opens a folder to change it; another process that does so is kept out meanwhile.
    pub fn open(path: &Path) -> Result<Folder> {
        if !path.join(STATE).exists() {
            return Err(data(path, "not the folder of a pool; dalcore label init makes one"));
        }
        let lock = lock(path)?;
        let folder = Folder { _lock: Some(lock), ..Folder::look(path)? };
        folder.settle()?;
        Ok(folder)
    }

    /// Opens a folder to look at it.
    pub fn look(path: &Path) -> Result<Folder> {
        let file = path.join(STATE);
        let bytes = match std::fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(data(path, "not the folder of a pool; dalcore label init makes one"));
            }
            other => other.map_err(|e| Error::io(&file, &e))?,
        };
        let state: State = serde_json::from_slice(&bytes).map_err(|e| store::altered(file, &e.to_string()))?;
        let file = path.join(POOL);
        let pool = csv::parse(&pick::text(&file)?).map_err(|why| data(&file, why))?;
        let mut names: Vec<String> =
            pool.into_iter().skip(1).map(|r| r.cells.into_iter().nth(1).unwrap_or_default()).collect();
        names.shrink_to_fit();
        if names.len() != state.rows {
            return Err(store::altered(file, &format!("has {} rows, state.json counts {}", names.len(), state.rows)));
        }
        let mut folder = Folder { path: path.into(), names, state, labels: BTreeMap::new(), _lock: None };
        let file = path.join(LABELS);
        let known = folder.check(std::slice::from_ref(&file), false);
        folder.labels = known.map_err(|wrong| store::altered(file, &refusal("it cannot be used", &wrong)))?.labels;
        Ok(folder)
    }

    /// Makes up for what a kill prevented.
    fn settle(&self) -> Result<()> {
        for number in 1..=self.state.batches.len() + 1 {
            let name = batch_file(number);
            let waiting = self.path.join(next(&name));
            match waiting.exists() {
                false => {}
                true if number > self.state.batches.len() => store::remove(&waiting)?,
                true => store::rename(&waiting, &self.path.join(name))?,
            }
        }
        Ok(())
    }

    /// Rows of the pool.
    pub fn rows(&self) -> usize {
        self.state.rows
    }

    /// The array of the embeddings.
    pub fn embeddings(&self) -> Option<&str> {
        self.state.embeddings.as_deref()
    }

    /// Labels by row.
    pub fn labels(&self) -> &BTreeMap<u32, String> {
        &self.labels
    }

    /// Rows that were handed out and have no label yet, ascending.
    pub fn pending(&self) -> Vec<u32> {
        let handed = self.state.batches.iter().flat_map(|b| &b.ids);
        let pending: BTreeSet<u32> = handed.copied().filter(|id| !self.labels.contains_key(id)).collect();
        pending.into_iter().collect()
    }

    /// Number of the next batch, which is also the round of its random stream.
    pub fn next_number(&self) -> usize {
        self.state.batches.len() + 1
    }

    /// Chooses a batch and writes its file, which is returned. Rows that are handed out are not handed out again, and
    /// cover what is near them.
    pub fn next(&mut self, inputs: &Inputs, choice: &Choice) -> Result<PathBuf> {
        if inputs.rows() != self.state.rows {
            let why = format!("the arrays have {} rows, this pool has {}", inputs.rows(), self.state.rows);
            return Err(data(&self.path, why));
        }
        let name = batch_file(self.next_number());
        let file = self.path.join(&name);
        pick::refuse_existing(&file, false)
            .map_err(|_| data(&file, "is in the way of the next batch; move it away"))?;
        let labelled: Vec<u32> = self.labels.keys().copied().collect();
        let selection = pick::select(inputs, choice, &labelled, &self.pending())?;
        let ids: Vec<u32> = selection.picks.iter().map(|p| p.id).collect();
        let line = |id: &u32| csv::line(&[&id.to_string(), self.name(*id), ""]);
        let text: String = std::iter::once(csv::line(&HEAD)).chain(ids.iter().map(line)).collect();
        store::write_whole(&self.path.join(next(&name)), text.as_bytes())?;
        self.state.batches.push(Batch { method: choice.rule.id.into(), seed: choice.seed, ids });
        self.write_state()?;
        store::rename(&self.path.join(next(&name)), &file)?;
        store::sync_dir(&self.path)?;
        Ok(file)
    }

    /// Takes the labels of filled files, all or none: whatever is wrong with any line of any file is listed and nothing
    /// changes. Taking the same labels again changes nothing. Lines without a label are wrong unless `skip_empty`.
    pub fn ingest(&mut self, files: &[PathBuf], skip_empty: bool) -> Result<Ingested> {
        let refused = |wrong: Vec<String>| data(&self.path, refusal("nothing was ingested", &wrong));
        let Checked { labels, empty } = self.check(files, skip_empty).map_err(refused)?;
        let before = self.labels.len();
        let all = labels.len();
        self.labels.extend(labels);
        let new = self.labels.len() - before;
        if new > 0 {
            self.write_labels()?;
        }
        Ok(Ingested { new, known: all - new, empty })
    }

    /// The labels of files, or all that is wrong with them.
    fn check(&self, files: &[PathBuf], skip_empty: bool) -> Result<Checked, Vec<String>> {
        let mut wrong: Vec<String> = Vec::new();
        let mut found: BTreeMap<u32, (String, String)> = BTreeMap::new(); // label, where it is from
        let mut empty = 0;
        for file in files {
            let shown = file.display();
            let records = match pick::text(file).and_then(|t| csv::parse(&t).map_err(|why| data(file, why))) {
                Ok(records) => records,
                Err(e) => {
                    wrong.push(e.to_string());
                    continue;
                }
            };
            let head = records.first().map_or(&[][..], |r| &r.cells);
            let column = |name: &str| head.iter().position(|c| c.trim().eq_ignore_ascii_case(name));
            let (Some(id), Some(label)) = (column("id"), column("label")) else {
                wrong.push(format!("{shown}: line 1: columns id and label are wanted, it has: {}", head.join(", ")));
                continue;
            };
            let name = column("name");
            let mut here: BTreeMap<u32, usize> = BTreeMap::new();
            for r in &records[1..] {
                let cell = |at: usize| r.cells.get(at).map_or("", |c| c.trim());
                let place = format!("{shown}: line {}", r.line);
                let number = cell(id).parse::<u32>().ok().filter(|n| (*n as usize) < self.state.rows);
                let Some(number) = number else {
                    wrong.push(format!("{place}: unknown id `{}`; ids are 0 to {}", cell(id), self.state.rows - 1));
                    continue;
                };
                if let Some(line) = here.insert(number, r.line) {
                    wrong.push(format!("{place}: id {number} is on line {line} too"));
                    continue;
                }
                let own = self.name(number).trim();
                if let Some(other) = name.map(cell).filter(|n| !n.is_empty() && !own.is_empty() && *n != own) {
                    wrong.push(format!("{place}: id {number} is named `{other}`, in the pool `{own}`"));
                }
                let label = cell(label);
                if label.is_empty() {
                    empty += 1;
                    if !skip_empty {
                        wrong.push(format!("{place}: id {number} has no label"));
                    }
                    continue;
                }
                let known = self.labels.get(&number).map(|l| (l.as_str(), LABELS));
                let known = known.or(found.get(&number).map(|(l, place)| (l.as_str(), place.as_str())));
                if let Some((other, from)) = known.filter(|(l, _)| *l != label) {
                    wrong.push(format!("{place}: id {number} is labelled `{label}`, but `{other}` in {from}"));
                }
                found.entry(number).or_insert_with(|| (label.to_string(), place));
            }
        }
        match wrong.is_empty() {
            true => Ok(Checked { labels: found.into_iter().map(|(id, (label, _))| (id, label)).collect(), empty }),
            false => Err(wrong),
        }
    }

    /// The curve so far: labels that no batch asked for, then every batch. `inputs` and a device give the radius.
    pub fn steps(&self, pool: Option<(&Inputs, &Device)>) -> Result<Vec<Step>> {
        let asked: BTreeSet<u32> = self.state.batches.iter().flat_map(|b| b.ids.iter().copied()).collect();
        let start: Vec<u32> = self.labels.keys().copied().filter(|id| !asked.contains(id)).collect();
        let of = |b: &Batch| b.ids.iter().copied().filter(|id| self.labels.contains_key(id)).collect();
        let groups: Vec<Vec<u32>> = std::iter::once(start).chain(self.state.batches.iter().map(of)).collect();
        let radius = match pool {
            Some((inputs, device)) => pick::coverage(inputs, &groups, device)?,
            None => vec![None; groups.len()],
        };
        let mut classes = BTreeSet::new();
        let batches = std::iter::once(None).chain(self.state.batches.iter().cloned().map(Some));
        let step = |((batch, labelled), radius): ((Option<Batch>, Vec<u32>), Option<f32>)| {
            classes.extend(labelled.iter().filter_map(|id| self.labels.get(id)));
            Step { batch, labelled, classes: classes.len(), radius }
        };
        Ok(batches.zip(groups).zip(radius).map(step).collect())
    }

    fn name(&self, id: u32) -> &str {
        self.names.get(id as usize).map_or("", String::as_str)
    }

    fn write_labels(&self) -> Result<()> {
        let line = |(id, label): (&u32, &String)| csv::line(&[&id.to_string(), self.name(*id), label]);
        let text: String = std::iter::once(csv::line(&HEAD)).chain(self.labels.iter().map(line)).collect();
        store::replace(&self.path, LABELS, &next(LABELS), text.as_bytes())
    }

    fn write_state(&self) -> Result<()> {
        let bytes = store::pretty(&self.path, &self.state)?;
        store::replace(&self.path, STATE, &next(STATE), &bytes)
    }
}

struct Checked {
    labels: BTreeMap<u32, String>,
    empty: usize,
}

/// Lines of a refusal that are shown.
const SHOWN: usize = 50;

fn refusal(what: &str, wrong: &[String]) -> String {
    let more = match wrong.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    let lines: String = wrong.iter().take(SHOWN).map(|w| format!("\n  {w}")).collect();
    format!("{what}, because of{lines}{more}")
}

/// The array, whatever folder a later command is started in.
fn absolute(array: &str) -> String {
    let whole = |path: &str| std::path::absolute(path).map_or(path.into(), |p| p.display().to_string());
    match array.rsplit_once(':') {
        Some((path, name)) if !Path::new(array).exists() => format!("{}:{name}", whole(path)),
        _ => whole(array),
    }
}
