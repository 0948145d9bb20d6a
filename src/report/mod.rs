//! From result files to tables, a figure and a page. A pure function of the files: the same runs give the same
//! bytes, and nothing is computed here that is not in them.
//!
//! ```text
//! runs/<preset>-<profile>/index.html                   the data sets beside each other
//! runs/<preset>-<profile>/<dataset>/results.csv        one line for each method, seed and planned round
//!                                   summary.csv        one line for each method
//!                                   summary.md         the same for people, with the manifests
//!                                   accuracy.svg       accuracy against budget
//!                                   report.html        all of it on one page that needs nothing else
//! ```

pub mod figure;
pub mod html;
pub mod picks;
pub mod published;
pub mod study;
pub mod table;

use crate::bench::metrics::{self, Rule, Stat};
use crate::bench::store::{self, Manifest, RoundRecord, Run};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use table::{MISSING, Table};

/// Turns a method's id into the name to print.
pub type NameOf<'a> = &'a dyn Fn(&str) -> String;

/// The id of the reference that API and cost are relative to.
pub const REFERENCE: &str = "random";

/// Characters in a line on the terminal: thirteen budgets and the longest name fit.
const WIDTH: usize = 110;

/// One method's results.
#[derive(Clone, Debug)]
pub struct Row {
    /// The method's id (with `+<trainer>` where it has one).
    pub id: String,
    /// Its name in print.
    pub name: String,
    /// The seeds that were started.
    pub seeds: Vec<u64>,
    /// Mean accuracy at each planned budget.
    pub curve: Vec<Option<Stat>>,
    /// Mean improvement over random, percentage points.
    pub api: Option<Stat>,
    /// The same as the paper printed it, where the preset is the paper's.
    pub published: Option<f64>,
    /// Selection seconds of a round.
    pub selection: Option<f64>,
    /// Training seconds of a round.
    pub training: Option<f64>,
    /// Evaluation seconds of a round.
    pub evaluation: Option<f64>,
    /// Cost of a round in seconds, by the profile's definition.
    pub cost: Option<f64>,
    /// Cost / cost of random.
    pub cost_ratio: Option<f64>,
}

/// Everything a report says about one data set.
#[derive(Clone, Debug)]
pub struct Results {
    /// The data set's id.
    pub dataset: String,
    /// The preset.
    pub preset: String,
    /// The profile.
    pub profile: String,
    /// Which epoch's accuracy is shown.
    pub rule: Rule,
    /// Size of the training pool.
    pub pool: u32,
    /// Labelled examples at each planned round.
    pub targets: Vec<u32>,
    /// One row for each method, random first, then in the paper's order.
    pub rows: Vec<Row>,
    /// The runs behind them.
    pub runs: Vec<Run>,
    /// What a reader must know: missing rounds, runs left out, divergence.
    pub notes: Vec<String>,
}

/// Where runs were made: labels and values.
pub type Environment = Vec<(&'static str, String)>;

/// What [`write_all`] did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The table for stdout.
    pub text: String,
    /// The remarks that belong to it.
    pub notes: Vec<String>,
    /// The files written.
    pub files: Vec<PathBuf>,
    /// The numbers, for whoever wants to go on computing.
    pub results: Results,
}

/// Report on one data set: read every run below `dir` and write the files named above into it.
pub fn write_all(dir: &Path, name_of: NameOf) -> Result<Summary> {
    let results = Results::read(dir, name_of)?;
    let files = [
        ("results.csv", results.per_round().csv()),
        ("summary.csv", results.per_method().csv()),
        ("summary.md", results.markdown()),
        ("accuracy.svg", figure::accuracy(&results, figure::Form::File)?),
        ("report.html", html::page(&results)?),
    ];
    let mut written = Vec::new();
    for (name, text) in files {
        written.push(write(dir, name, &text)?);
    }
    Ok(Summary { text: results.text(WIDTH), notes: results.notes.clone(), files: written, results })
}

/// Write `index.html` over the data sets that have a report in `dir` (`runs/<preset>-<profile>`).
pub fn write_index(dir: &Path, name_of: NameOf) -> Result<PathBuf> {
    let mut all = Vec::new();
    for dataset in folders(dir)? {
        if dataset.join("report.html").is_file() {
            all.push(Results::read(&dataset, name_of)?);
        }
    }
    write(dir, "index.html", &html::index(&all)?)
}

/// True for a folder of one data set's runs, `<method>/seed-<s>`.
pub fn is_of_runs(dir: &Path) -> bool {
    let of = |dir: &Path| folders(dir).unwrap_or_default();
    of(dir).iter().any(|method| of(method).iter().any(|seed| is_seed(seed)))
}

fn is_seed(dir: &Path) -> bool {
    dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with("seed-"))
}

/// Replace a file in one go. The process number keeps two reports at the same time apart.
fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    store::replace(dir, name, &format!(".{name}.{}.tmp", std::process::id()), text.as_bytes())?;
    Ok(dir.join(name))
}

/// The folders in a folder, by name.
fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, &e))? {
        let path = entry.map_err(|e| Error::io(dir, &e))?.path();
        if path.is_dir() {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

impl Results {
    /// Read every run below `<preset>-<profile>/<dataset>`. A run that cannot be read is left out and named in the
    /// notes; it must not hide the others.
    pub fn read(dir: &Path, name_of: NameOf) -> Result<Results> {
        let (mut runs, mut notes) = (Vec::new(), Vec::new());
        for method in folders(dir)? {
            let name = method.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.split('+').next() == Some(store::START) {
                continue;
            }
            for seed in folders(&method)? {
                if !is_seed(&seed) {
                    continue;
                }
                match store::read_run(&seed) {
                    Ok(run) => runs.push(run),
                    Err(e) => notes.push(format!("A run was left out because it cannot be read: {e}.")),
                }
            }
        }
        if runs.is_empty() {
            let why =
                format!("holds no run to report on{}", notes.iter().map(|n| format!("; {n}")).collect::<String>());
            return Err(Error::Data { path: dir.display().to_string(), why });
        }
        Results::of(runs, notes, name_of)
    }

    /// The results of these runs; `notes` are put before those that are added.
    pub fn of(mut runs: Vec<Run>, mut notes: Vec<String>, name_of: NameOf) -> Result<Results> {
        let key = |r: &Run| (published::rank(&r.manifest.method), r.manifest.method.clone(), r.manifest.seed);
        runs.sort_by_key(key);
        let Some(first) = runs.first().map(|r| r.manifest.clone()) else {
            return Err(Error::Data { path: "report".into(), why: "there is no run to report on".into() });
        };
        // Random sorts first. Curves over other budgets have no points in common with its curve.
        let same = |m: &Manifest| {
            (&m.dataset, &m.preset, &m.profile) == (&first.dataset, &first.preset, &first.profile)
                && m.targets == first.targets
                && m.pool == first.pool
        };
        runs.retain(|r| {
            let keep = same(&r.manifest);
            if !keep {
                notes.push(format!(
                    "{} was left out: its data set, preset, profile or budgets differ from those of {}.",
                    label(&r.manifest, name_of),
                    label(&first, name_of)
                ));
            }
            keep
        });
        let rule = Rule::of(&first.profile)?;
        let mut by_method: Vec<(&str, Vec<&Run>)> = Vec::new();
        for run in &runs {
            match by_method.last_mut().filter(|(id, _)| *id == run.manifest.method) {
                Some((_, of)) => of.push(run),
                None => by_method.push((&run.manifest.method, vec![run])),
            }
        }
        let random = by_method.iter().find(|(id, _)| *id == REFERENCE).map_or(vec![], |(_, of)| sound(of, rule));
        let mean =
            |of: &[&Run], f: &dyn Fn(&Run) -> Option<f64>| metrics::stat(of.iter().map(|r| f(r))).map(|s| s.mean);
        let row = |(id, all): &(&str, Vec<&Run>)| {
            let of = &sound(all, rule);
            Row {
                id: id.to_string(),
                name: name_of(id),
                seeds: all.iter().map(|r| r.manifest.seed).collect(),
                curve: match of.as_slice() {
                    [] => vec![None; first.targets.len()],
                    of => metrics::mean_curve(of, rule),
                },
                api: metrics::api_over_seeds(of, &random, rule),
                published: published::api(id, &first.dataset).filter(|_| first.preset == "paper"),
                selection: mean(of, &|r| metrics::seconds(r, |t| t.selection_s)),
                training: mean(of, &|r| metrics::seconds(r, |t| t.training_s)),
                evaluation: mean(of, &|r| metrics::seconds(r, |t| t.evaluation_s)),
                cost: mean(of, &|r| metrics::cost(r, rule)),
                cost_ratio: metrics::cost_ratio(of, &random, rule),
            }
        };
        let rows: Vec<Row> = by_method.iter().map(row).collect();
        remarks(&runs, &random, rule, name_of, &mut notes);
        Ok(Results {
            dataset: first.dataset,
            preset: first.preset,
            profile: first.profile,
            rule,
            pool: first.pool,
            targets: first.targets,
            rows,
            runs,
            notes,
        })
    }

    /// A budget in percent of the pool, as short as it may be.
    pub fn budget(&self, round: usize) -> String {
        let percent = self.budget_percent(round);
        let digits = if (percent - percent.round()).abs() < 0.005 { 0 } else { 1 };
        format!("{percent:.digits$} %")
    }

    /// A budget in percent of the pool.
    pub fn budget_percent(&self, round: usize) -> f64 {
        100.0 * f64::from(self.targets.get(round).copied().unwrap_or(0)) / f64::from(self.pool.max(1))
    }

    /// True when there is a published number to stand beside ours.
    pub fn has_published(&self) -> bool {
        self.rows.iter().any(|r| r.published.is_some())
    }

    /// The table of the command line.
    pub fn table(&self) -> Table {
        let budgets = (0..self.targets.len()).map(|i| self.budget(i));
        let mut head: Vec<String> = ["method".to_string()].into_iter().chain(budgets).collect();
        head.push("API pp".into());
        if self.has_published() {
            head.push("published".into());
        }
        head.extend(["selection s", "training s", "cost × random"].map(String::from));
        let mut table = Table::new(head);
        for row in &self.rows {
            let mut cells = vec![row.name.clone()];
            cells.extend(row.curve.iter().map(|p| table::percent(p.map(|s| s.mean))));
            cells.push(if row.id == REFERENCE { reference(row) } else { table::points(row.api) });
            if self.has_published() {
                cells.push(row.published.map_or(MISSING.into(), table::signed));
            }
            cells.extend([table::seconds(row.selection), table::seconds(row.training), table::times(row.cost_ratio)]);
            table.rows.push(cells);
        }
        table
    }

    /// The table and what a reader must know about it, `width` characters wide. What does not fit continues below,
    /// accuracies first.
    pub fn text(&self, width: usize) -> String {
        let notes: String = self.notes.iter().map(|n| format!("note: {n}\n")).collect();
        let whole = self.table();
        let table = if whole.plain(usize::MAX).lines().all(|l| l.chars().count() <= width) {
            whole.plain(width)
        } else {
            let (left, right) = whole.split(1 + self.targets.len());
            format!("{}\n{}", left.plain(width), right.plain(width))
        };
        format!("{}\n\n{table}\n{notes}", self.caption())
    }

    /// What the numbers are, in one paragraph.
    pub fn caption(&self) -> String {
        let seeds = self.rows.iter().map(|r| r.seeds.len()).max().unwrap_or(0);
        format!(
            "{}, preset {}, profile {}, {seeds} {}. Columns: labelled share of the {} images in the pool. In them, in %: \
             {}.",
            self.dataset,
            self.preset,
            self.profile,
            if seeds == 1 { "seed" } else { "seeds" },
            self.pool,
            self.rule.words()
        )
    }

    /// One line for each method, seed and planned round; cells of a missing round are empty.
    pub fn per_round(&self) -> Table {
        let mut table = Table::new([
            "method",
            "name",
            "seed",
            "round",
            "labelled",
            "budget_percent",
            "accuracy",
            "accuracy_last",
            "accuracy_best",
            "test_size",
            "selection_s",
            "training_s",
            "evaluation_s",
        ]);
        let number = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v:.6}"));
        for run in &self.runs {
            let m = &run.manifest;
            let name = self.rows.iter().find(|r| r.id == m.method).map_or("", |r| r.name.as_str());
            for (i, target) in self.targets.iter().enumerate() {
                let round = run.rounds.iter().find(|r| r.round as usize == i);
                let timing = run.timing.iter().find(|t| t.round as usize == i);
                let best =
                    round.filter(|r| r.test_size > 0).and_then(|r| r.correct.iter().max().zip(Some(r.test_size)));
                table.rows.push(vec![
                    m.method.clone(),
                    name.into(),
                    m.seed.to_string(),
                    i.to_string(),
                    target.to_string(),
                    format!("{:.4}", self.budget_percent(i)),
                    number(round.and_then(|r| self.rule.accuracy(r))),
                    number(round.and_then(|r| Rule::Last.accuracy(r))),
                    number(best.map(|(c, n)| f64::from(*c) / f64::from(n))),
                    round.map_or(String::new(), |r| r.test_size.to_string()),
                    number(timing.map(|t| t.selection_s)),
                    number(timing.map(|t| t.training_s)),
                    number(timing.map(|t| t.evaluation_s)),
                ]);
            }
        }
        table
    }

    /// One line for each method; what is undefined is empty.
    pub fn per_method(&self) -> Table {
        let mut table = Table::new([
            "method",
            "name",
            "seeds",
            "api_pp",
            "api_standard_error_pp",
            "published_api_pp",
            "final_accuracy",
            "selection_s",
            "training_s",
            "evaluation_s",
            "cost_s",
            "cost_over_random",
        ]);
        let number = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v:.6}"));
        for row in &self.rows {
            table.rows.push(vec![
                row.id.clone(),
                row.name.clone(),
                row.seeds.len().to_string(),
                number(row.api.map(|s| s.mean)),
                number(row.api.and_then(|s| s.se)),
                row.published.map_or(String::new(), |v| v.to_string()),
                number(row.curve.last().copied().flatten().map(|s| s.mean)),
                number(row.selection),
                number(row.training),
                number(row.evaluation),
                number(row.cost),
                number(row.cost_ratio),
            ]);
        }
        table
    }

    /// Seconds of a round by what they were spent on.
    pub fn cost_table(&self) -> Table {
        let mut table =
            Table::new(["method", "selection s", "training s", "evaluation s", "cost s", "cost × random", "seeds"]);
        for row in &self.rows {
            let seconds = [row.selection, row.training, row.evaluation, row.cost].map(table::seconds);
            let mut cells = vec![row.name.clone()];
            cells.extend(seconds);
            cells.extend([table::times(row.cost_ratio), row.seeds.len().to_string()]);
            table.rows.push(cells);
        }
        table
    }

    /// The environments that produced the numbers, each once as (fact, value), with the runs made there.
    pub fn environments(&self) -> Vec<(Environment, String)> {
        let mut all: BTreeMap<Environment, Vec<(&Run, u32)>> = BTreeMap::new();
        for run in &self.runs {
            let m = &run.manifest;
            let own = (0, &m.device, &m.driver, &m.commit, m.threads, &m.version);
            let later =
                m.continued.iter().map(|c| (c.from_round, &c.device, &c.driver, &c.commit, c.threads, &c.version));
            for (from, device, driver, commit, threads, version) in std::iter::once(own).chain(later) {
                let facts = vec![
                    ("model", format!("{}, {}", m.model, m.precision)),
                    ("device", format!("{device} ({})", m.device_kind)),
                    ("driver", if driver.is_empty() { MISSING.into() } else { driver.clone() }),
                    ("CPU threads", threads.to_string()),
                    ("dalcore", format!("{version}, commit {commit}")),
                    ("data", m.data_fingerprint.clone()),
                ];
                all.entry(facts).or_default().push((run, from));
            }
        }
        all.into_iter().map(|(facts, runs)| (facts, named(runs.into_iter()))).collect()
    }

    /// `summary.md`.
    pub fn markdown(&self) -> String {
        let mut text =
            format!("# {}: {} budgets, {}\n\n{}\n\n", self.dataset, self.preset, self.profile, self.caption());
        text += &self.table().markdown();
        text += &format!("\n## Seconds per round\n\n{}\n\n", self.cost_words());
        text += &self.cost_table().markdown();
        if !self.notes.is_empty() {
            text += "\n## Notes\n\n";
            text += &self.notes.iter().map(|n| format!("* {n}\n")).collect::<String>();
        }
        text += "\n## Made with\n";
        for (facts, runs) in self.environments() {
            text += "\n";
            text += &facts.iter().map(|(k, v)| format!("* {k}: {v}\n")).collect::<String>();
            text += &format!("* runs: {runs}\n");
        }
        text
    }

    /// What counts as cost, in words.
    pub fn cost_words(&self) -> &'static str {
        match self.rule {
            Rule::Last => "Means over rounds from 1 on and over seeds. Cost = selection + training.",
            Rule::Best => "Means over rounds from 1 on and over seeds. Cost = selection + training + evaluation.",
        }
    }
}

/// Random against itself is 0 by definition, and undefined only when it is incomplete.
fn reference(row: &Row) -> String {
    row.api.map_or(MISSING.into(), |_| "0.00".into())
}

/// Runs by method and seed, with the round from which they count: "random 10, 20; coreset 10 from round 3".
fn named<'a>(runs: impl Iterator<Item = (&'a Run, u32)>) -> String {
    let mut text = String::new();
    let mut last = "";
    for (run, from) in runs {
        let m = &run.manifest;
        text += &match (m.method == last, text.is_empty()) {
            (true, _) => ", ".into(),
            (false, true) => format!("{} seed ", m.method),
            (false, false) => format!("; {} seed ", m.method),
        };
        text += &m.seed.to_string();
        if from > 0 {
            text += &format!(" from round {from}");
        }
        last = &m.method;
    }
    text
}

fn label(m: &Manifest, name_of: NameOf) -> String {
    format!("{}, seed {}", name_of(&m.method), m.seed)
}

/// The runs that learned something. One that did not says nothing about its method: it is named, and no mean has it.
fn sound<'a>(runs: &[&'a Run], rule: Rule) -> Vec<&'a Run> {
    runs.iter().copied().filter(|r| at_chance(r, rule).is_none()).collect()
}

/// The first round whose model guesses.
fn at_chance(run: &Run, rule: Rule) -> Option<&RoundRecord> {
    let chance = published::chance(&run.manifest.dataset)?;
    run.rounds.iter().find(|r| rule.accuracy(r).is_some_and(|a| a <= chance + 0.005))
}

/// What the numbers do not show by themselves.
fn remarks(runs: &[Run], random: &[&Run], rule: Rule, name_of: NameOf, notes: &mut Vec<String>) {
    for run in runs {
        let (m, done) = (&run.manifest, run.rounds.len());
        let planned = m.targets.len();
        if done < planned {
            notes.push(format!(
                "{}: {done} of {planned} rounds are finished; what needs the others is undefined.",
                label(m, name_of)
            ));
        }
        if run.timing.len() < done {
            notes.push(format!("{}: the seconds of {} rounds are lost.", label(m, name_of), done - run.timing.len()));
        }
        if let Some(r) = at_chance(run, rule) {
            notes.push(format!(
                "{} diverged: in round {} it is at chance ({} %). The means are without this run.",
                label(m, name_of),
                r.round,
                table::percent(rule.accuracy(r))
            ));
        }
    }
    if random.is_empty() {
        notes.push("There is no run of random, so API and relative cost are undefined.".into());
    }
    let lonely = |run: &&Run| !random.is_empty() && !random.iter().any(|r| r.manifest.seed == run.manifest.seed);
    for run in runs.iter().filter(lonely) {
        notes.push(format!(
            "{}: random has no run with this seed, so the API is undefined.",
            label(&run.manifest, name_of)
        ));
    }
    let mut machines: Vec<(&str, usize)> = Vec::new();
    for run in runs {
        let own = (run.manifest.device.as_str(), run.manifest.threads);
        machines.push(own);
        machines.extend(run.manifest.continued.iter().map(|c| (c.device.as_str(), c.threads)));
    }
    machines.sort_unstable();
    machines.dedup();
    if machines.len() > 1 {
        notes
            .push("The runs were made on different devices or thread counts: their seconds cannot be compared.".into());
    }
}
