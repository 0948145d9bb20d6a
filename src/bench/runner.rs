//! Runs an experiment: data sets × seeds × methods, round by round, resumable after every round.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::config::{Config, Preset, Profile};
use super::partial::{Partial, Round as PartialRound};
use super::progress::Progress;
pub use super::progress::Verbosity;
use super::store::{self, Manifest, PickRecord, RoundRecord, RunDir, START, TimingRecord};
use crate::data::{self, DataDir, Dataset, Pool, PoolIdx, Verify};
use crate::device::{Choice, Device, launch};
use crate::methods::{self, Query, Round};
use crate::nn::checkpoint;
use crate::rng::{Purpose, Rng, lane_of};
use crate::train::{DeviceData, EpochEnd, MixMatch, Model, Trainer, TrainerKind};
use crate::{Error, Result, report};

/// A resolved command.
pub struct Plan {
    /// Random first; none for a fully supervised training.
    pub methods: Vec<&'static methods::Entry>,
    /// The trainer of all of them but random; each method's own when absent.
    pub trainer: Option<TrainerKind>,
    /// A round that MixMatch trains is saved this often.
    pub every: Duration,
    /// At least one.
    pub datasets: Vec<data::Source>,
    /// Name of the preset.
    pub preset_id: &'static str,
    /// The preset.
    pub preset: Preset,
    /// clean or repro.
    pub profile: Profile,
    /// At least one.
    pub seeds: Vec<u64>,
    /// From the file, then from `--set`.
    pub settings: Vec<(String, toml::Value)>,
    /// Folder of all results.
    pub out: PathBuf,
    /// Folder of all data.
    pub data_dir: DataDir,
    /// Replay CUDA graphs.
    pub graphs: bool,
    /// How much is said.
    pub verbosity: Verbosity,
    /// Set by Ctrl-C.
    pub stop: Arc<AtomicBool>,
    /// Runs side by side.
    pub jobs: usize,
    /// Set by a signal that asks for a save.
    pub save: Arc<AtomicBool>,
}

impl Plan {
    pub(super) fn config(&self, set: &data::Source) -> Result<Config> {
        let config = Config::base(set.spec(), &self.preset, self.profile).with(&self.settings)?;
        if config.train.epochs == 0 {
            let why = "must be at least 1: a selection needs a model that has learned something";
            return Err(Error::Config { key: "train.epochs".into(), why: why.into() });
        }
        Ok(config)
    }

    /// The methods with their trainers; a trainer that a method cannot have is an error.
    fn runs(&self, config: &Config) -> Result<Vec<methods::Run>> {
        let run = |entry: &&'static methods::Entry| match self.trainer {
            Some(trainer) if entry.id != report::REFERENCE => methods::Run::with(entry, trainer, config),
            _ => Ok(methods::Run::plain(entry, config)),
        };
        self.methods.iter().map(run).collect()
    }

    /// True after Ctrl-C.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What manifests say of every run of a plan; the method, its configuration and its targets are left to the caller.
pub(super) fn manifest(plan: &Plan, config: &Config, data: &DeviceData, fingerprint: &str, seed: u64) -> Manifest {
    let device = &data.device;
    Manifest {
        method: String::new(),
        dataset: data.spec.id.to_string(),
        preset: plan.preset_id.into(),
        profile: plan.profile.name().into(),
        seed,
        config: serde_json::Value::Null,
        model: data.spec.model.name(),
        precision: config.train.precision.name().into(),
        data_fingerprint: fingerprint.into(),
        device_kind: if device.is_cpu() { "cpu" } else { "cuda" }.into(),
        device: device.name(),
        driver: device.driver(),
        threads: rayon::current_num_threads(),
        commit: launch::COMMIT.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        pool: data.train.len() as u32,
        targets: Vec::new(),
        continued: Vec::new(),
    }
}

/// What one supervised round costs: images trained on and tested, the unit of progress and estimates.
pub(super) fn work(config: &Config, labelled: usize, test: usize) -> u64 {
    u64::from(config.train.epochs) * (labelled as u64 + test as u64 / TEST_IS_CHEAPER)
}

/// A test image costs about a third of a training image: one pass of three.
const TEST_IS_CHEAPER: u64 = 3;

/// What a round costs by either trainer. MixMatch goes over the whole pool once an epoch: for each image it trains on three
/// and makes guesses for two.
fn cost(config: &Config, trainer: TrainerKind, labelled: usize, spec: &data::Spec) -> u64 {
    match trainer {
        TrainerKind::Supervised => work(config, labelled, spec.test_len),
        TrainerKind::MixMatch => work(config, 3 * spec.train_len + 2 * spec.train_len / 3, spec.test_len),
    }
}

/// The plan in words: round sizes, settings and an estimate measured on this device.
pub fn describe(plan: &Plan, device: &Device) -> Result<String> {
    let mut text = String::new();
    let rate = measure(device)?;
    let mut total = 0;
    for set in &plan.datasets {
        let config = plan.config(set)?;
        let spec = set.spec();
        let targets = config.budget.targets(spec.train_len)?;
        let runs = plan.runs(&config)?;
        for trainer in TrainerKind::ALL {
            let one: u64 = targets.iter().map(|t| cost(&config, trainer, *t, spec)).sum();
            let start = targets.first().map_or(0, |t| cost(&config, trainer, *t, spec));
            let methods = runs.iter().filter(|r| r.trainer == trainer).count() as u64;
            total += plan.seeds.len() as u64 * (methods * one - methods.saturating_sub(1) * start);
        }
        let names: Vec<String> = runs.iter().map(methods::Run::id).collect();
        let _ = writeln!(text, "{} ({} profile, {} preset)", spec.id, plan.profile.name(), plan.preset_id);
        let _ = writeln!(text, "  methods   {}", names.join(", "));
        let _ = writeln!(text, "  seeds     {:?}", plan.seeds);
        let _ = writeln!(text, "  labelled  {targets:?} of {}", spec.train_len);
        let _ = writeln!(
            text,
            "  results   {}",
            store::dataset_dir(&plan.out, plan.preset_id, plan.profile.name(), &spec.id).display()
        );
        let toml = toml::to_string(&config).unwrap_or_default();
        let _ = writeln!(text, "  settings (change with --set table.key=value)");
        for line in toml.lines().filter(|l| !l.is_empty()) {
            let _ = writeln!(text, "    {line}");
        }
    }
    let seconds = total as f64 / rate;
    let _ = writeln!(
        text,
        "estimate    about {} on {} at {rate:.0} training images/s, selection not counted",
        human(seconds),
        device.name()
    );
    Ok(text)
}

/// Seconds as people say them.
fn human(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Training images per second of a short run on generated images.
fn measure(device: &Device) -> Result<f64> {
    let spec = &data::synthetic::SPEC;
    let images = data::synthetic::generate(1, data::synthetic::Split::Train, 1024);
    let labels: Vec<(PoolIdx, u32)> = (0..).map(PoolIdx).zip(images.labels.iter().copied()).collect();
    let data = DeviceData::new(device, &Dataset::new(spec, images.clone(), images))?;
    let preset = Preset::find("smoke")?.1;
    let config = Config::base(spec, &preset, Profile::Clean);
    let trainer = Trainer {
        data: &data,
        recipe: &config.train,
        eval_batch: config.eval.batch,
        graphs: true,
        seed: 0,
        on_epoch: &|_| Ok(()),
        check: &|| Ok(()),
        mixmatch: None,
    };
    let fit = trainer.fit(0, &labels)?;
    Ok(f64::from(config.train.epochs) * 1024.0 / fit.training_s.max(1e-6))
}

/// Runs everything that is not on disk yet; returns the tables.
pub fn run(plan: &Plan, choice: Choice) -> Result<String> {
    let device = &choice.open()?;
    // Refuse a wrong plan before any data is read or any file written.
    let mut total = 0;
    for set in &plan.datasets {
        let config = plan.config(set)?;
        let targets = config.budget.targets(set.spec().train_len)?;
        for run in plan.runs(&config)? {
            let one: u64 = targets.iter().map(|t| cost(&config, run.trainer, *t, set.spec())).sum();
            total += one * plan.seeds.len() as u64;
        }
    }
    let progress = Progress::new(plan.verbosity, total);
    let mut text = String::new();
    for set in &plan.datasets {
        let host = set.load(&plan.data_dir, Verify::Official)?;
        let config = plan.config(set)?;
        let runs = plan.runs(&config)?;
        let tasks: Vec<(u64, methods::Run)> =
            plan.seeds.iter().flat_map(|seed| runs.iter().map(move |run| (*seed, *run))).collect();
        let next = AtomicUsize::new(0);
        let jobs = plan.jobs.clamp(1, tasks.len().max(1));
        // Each job drops its share once the images are on its device.
        let host = Arc::new(host);
        let shares: Vec<_> = (0..jobs).map(|_| host.clone()).collect();
        drop(host);
        let work = |device: &Device, host: Arc<Cow<Dataset>>| -> Result<()> {
            let one = Experiment {
                plan,
                data: DeviceData::new(device, &host)?.with_model(config.network()),
                config: config.clone(),
                labels: host.train.labels.as_slice().into(),
                fingerprint: host.fingerprint.clone(),
                progress: &progress,
            };
            drop(host);
            while let Some((seed, run)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                one.run(run, *seed)?;
            }
            Ok(())
        };
        side_by_side(plan, shares, device, choice, work)?;
        let folder = store::dataset_dir(&plan.out, plan.preset_id, plan.profile.name(), &set.spec().id);
        let summary = report::write_all(&folder, &methods::paper_name)?;
        let _ = writeln!(text, "{}", summary.text);
        let _ = writeln!(text, "report: {}\n", folder.join("report.html").display());
    }
    progress.finish();
    report::write_index(&plan.out.join(format!("{}-{}", plan.preset_id, plan.profile.name())), &methods::paper_name)?;
    Ok(text)
}

/// Works with each share, the first on this thread and `device`, every other one on a thread and a device (a stream of the
/// same GPU) of its own. An error stops the others as Ctrl-C does, and is what is returned.
fn side_by_side<T: Send>(
    plan: &Plan,
    mut shares: Vec<T>,
    device: &Device,
    choice: Choice,
    work: impl Fn(&Device, T) -> Result<()> + Sync,
) -> Result<()> {
    let first = shares.pop();
    let stopping = |done: Result<()>| done.inspect_err(|_| plan.stop.store(true, Ordering::Relaxed));
    let own = |share| stopping(choice.open().and_then(|device| work(&device, share)));
    let all: Vec<Result<()>> = std::thread::scope(|scope| {
        let others: Vec<_> = shares.into_iter().map(|share| scope.spawn(|| own(share))).collect();
        let here = first.map_or(Ok(()), |share| stopping(work(device, share)));
        let lost = |_| Err(Error::Device { op: "bench", why: "a job panicked".into() });
        std::iter::once(here).chain(others.into_iter().map(|job| job.join().unwrap_or_else(lost))).collect()
    });
    let (stopped, failed): (Vec<_>, Vec<_>) =
        all.into_iter().filter_map(Result::err).partition(|e| matches!(e, Error::Interrupted { .. }));
    failed.into_iter().chain(stopped).next().map_or(Ok(()), Err)
}

/// One data set's part of a plan.
struct Experiment<'a> {
    plan: &'a Plan,
    config: Config,
    data: DeviceData,
    labels: Arc<[u32]>,
    fingerprint: String,
    progress: &'a Progress,
}

fn pick_record(round: usize, picks: &[PoolIdx]) -> PickRecord {
    PickRecord { round: round as u32, ids: picks.iter().map(|p| p.0).collect(), scores: None }
}

/// A round under way.
struct Task<'a> {
    run: &'a methods::Run,
    seed: u64,
    round: usize,
    /// In words.
    what: String,
}

/// What a round leaves behind.
struct Done {
    record: RoundRecord,
    timing: TimingRecord,
    model: Model,
}

impl Experiment<'_> {
    /// Of a run with the id `id`, whose settings are those of the method `of`.
    fn manifest(&self, id: &str, of: &str, trainer: TrainerKind, seed: u64) -> Result<Manifest> {
        Ok(Manifest {
            method: id.into(),
            config: self.config.of_method(of, trainer)?,
            targets: self.config.budget.targets(self.labels.len())?.into_iter().map(|t| t as u32).collect(),
            ..manifest(self.plan, &self.config, &self.data, &self.fingerprint, seed)
        })
    }

    fn run(&self, run: &methods::Run, seed: u64) -> Result<()> {
        let (spec, id) = (&self.data.spec, run.id());
        let targets = self.config.budget.targets(self.labels.len())?;
        let cost = |t: usize| cost(&self.config, run.trainer, t, spec);
        let folder = store::run_dir(&self.folder(), &id, seed);
        let manifest = self.manifest(&id, run.entry.id, run.trainer, seed)?;
        let mut dir = RunDir::open(&folder, &manifest)?;
        let finished = dir.finished_rounds() as usize;
        self.progress.skip(targets.iter().take(finished).map(|t| cost(*t)).sum());
        if finished >= targets.len() {
            return Ok(());
        }
        let mut pool = Pool::new(self.labels.clone())?;
        for picks in dir.picks() {
            pool.reveal(&picks.ids.iter().map(|i| PoolIdx(*i)).collect::<Vec<_>>())?;
        }
        let mut chooser = (run.entry.make)(&self.config);
        let mut model = None;
        if finished > 0 {
            chooser.restore(dir.method_state())?;
            model = Some(self.saved(&*chooser, &dir.model()?.unwrap_or_default(), &folder)?);
        }
        for (round, target) in targets.iter().enumerate().skip(finished) {
            let what = format!("{} {id} seed {seed} · {target} labelled", spec.id);
            let task = Task { run, seed, round, what };
            self.progress.round(&task.what, self.config.train.epochs);
            // A round that was stopped in its training has its picks already.
            let mut partial = Partial::open(&folder, round as u32, &manifest)?;
            let start = Instant::now();
            let (picks, selection_s) = match (partial.begun(), &model) {
                (Some(begun), _) => {
                    chooser.restore(&begun.method_state)?;
                    (begun.picks.iter().map(|i| PoolIdx(*i)).collect(), begun.selection_s)
                }
                (None, None) => (pool.start_set(Rng::new(seed), *target)?, 0.0),
                (None, Some(m)) => {
                    let n = target - pool.labelled().len();
                    let picks = self.select(&task, &mut *chooser, (&pool, m), n)?;
                    (picks, start.elapsed().as_secs_f64())
                }
            };
            pool.reveal(&picks)?;
            let mut done = if round == 0 && chooser.trains_plainly() {
                self.start_round(&task, &pool, &mut *chooser, &picks)?
            } else {
                partial.begin(PartialRound {
                    picks: picks.iter().map(|p| p.0).collect(),
                    selection_s,
                    method_state: chooser.save(),
                });
                self.train(&task, &pool, &mut *chooser, &partial)?
            };
            done.timing.selection_s = selection_s;
            let bytes = checkpoint::to_bytes(&done.model.params)?;
            done.record.picked = picks.len() as u32;
            let (epochs, last) = (done.record.correct.len(), done.record.correct.last().copied().unwrap_or(0));
            dir.commit_round(done.record, pick_record(round, &picks), done.timing.clone(), chooser.save(), &bytes)?;
            Partial::clear(&folder)?;
            self.progress.line(&format!(
                "{}: {:.2} % after {} epochs, selection {:.2} s, training {:.1} s",
                task.what,
                100.0 * f64::from(last) / spec.test_len.max(1) as f64,
                epochs,
                done.timing.selection_s,
                done.timing.training_s
            ));
            model = Some(done.model);
        }
        Ok(())
    }

    /// A trainer of this run.
    fn trainer<'a>(
        &'a self,
        seed: u64,
        on_epoch: &'a dyn Fn(&EpochEnd) -> Result<()>,
        check: &'a dyn Fn() -> Result<()>,
    ) -> Trainer<'a> {
        let (data, recipe) = (&self.data, &self.config.train);
        let (eval_batch, graphs) = (self.config.eval.batch, self.plan.graphs);
        Trainer { data, recipe, eval_batch, graphs, seed, on_epoch, check, mixmatch: None }
    }

    fn select(
        &self,
        task: &Task,
        chooser: &mut dyn methods::Method,
        (pool, model): (&Pool, &Model),
        n: usize,
    ) -> Result<Vec<PoolIdx>> {
        let (id, round) = (task.run.entry.id, task.round as u32);
        let rng = Rng::new(task.seed).at(Purpose::Select, round, 0).lane(lane_of(id));
        let check = || self.interrupted(&task.what);
        let trainer = self.trainer(task.seed, &|_| Ok(()), &check);
        let view = trainer.plain_view()?;
        let query = Query::new(pool, &trainer, model, &view, round, rng);
        let picks = chooser.select(&query, n)?;
        self.data.device.synchronize()?;
        methods::check_picks(id, &picks, pool.unlabelled(), n)?;
        Ok(picks)
    }

    /// Round 0 is the same for every method with the same trainer: trained once per seed, then taken from disk.
    fn start_round(
        &self,
        task: &Task,
        pool: &Pool,
        chooser: &mut dyn methods::Method,
        picks: &[PoolIdx],
    ) -> Result<Done> {
        let (trainer, seed) = (task.run.trainer, task.seed);
        let id = store::start_id(trainer);
        let folder = store::run_dir(&self.folder(), &id, seed);
        let what = format!("{} seed {seed} · shared start", self.data.spec.id);
        let task = Task { run: task.run, seed, round: 0, what };
        let manifest = self.manifest(&id, START, trainer, seed)?;
        let mut trained = false;
        // Another process may be training the same start: wait for it.
        let mut wait = || {
            std::thread::sleep(Duration::from_millis(200));
            self.interrupted(&task.what)
        };
        let start = store::shared_start(&folder, &manifest, &mut wait, || {
            trained = true;
            let mut partial = Partial::open(&folder, 0, &manifest)?;
            partial.begin(PartialRound::default());
            let mut done = self.train(&task, pool, chooser, &partial)?;
            done.record.picked = picks.len() as u32;
            Ok((done.record, pick_record(0, picks), done.timing, checkpoint::to_bytes(&done.model.params)?))
        })?;
        Partial::clear(&folder)?;
        if !trained {
            self.progress.skip(cost(&self.config, trainer, pool.labelled().len(), &self.data.spec));
        }
        let lost = || Error::Data {
            path: folder.display().to_string(),
            why: "the shared start is incomplete; remove this folder to train it again".into(),
        };
        let record = start.rounds().first().ok_or_else(lost)?.clone();
        let timing = start.timing().first().ok_or_else(lost)?.clone();
        let model = self.saved(chooser, &start.model()?.ok_or_else(lost)?, &folder)?;
        Ok(Done { record, timing, model })
    }

    /// The model as an earlier start of this run saved it in `folder`.
    fn saved(&self, chooser: &dyn methods::Method, bytes: &[u8], folder: &Path) -> Result<Model> {
        let mut model = chooser.model(&self.data, 0, 0)?;
        model.params.set_precision(self.config.train.precision)?;
        checkpoint::from_bytes(&mut model.params, bytes).map_err(|e| Error::Data {
            path: folder.display().to_string(),
            why: format!("its model cannot be loaded ({e}); remove this folder to train it again"),
        })?;
        Ok(model)
    }

    /// The folder of this data set's results.
    fn folder(&self) -> PathBuf {
        store::dataset_dir(&self.plan.out, self.plan.preset_id, self.plan.profile.name(), &self.data.spec.id)
    }

    /// The error that ends the program after Ctrl-C.
    fn interrupted(&self, what: &str) -> Result<()> {
        if !self.plan.stopped() {
            return Ok(());
        }
        self.progress.finish();
        Err(Error::Interrupted {
            resume: format!("{what} was stopped; what is finished is on disk and the same command goes on from there"),
        })
    }

    fn train(&self, task: &Task, pool: &Pool, chooser: &mut dyn methods::Method, partial: &Partial) -> Result<Done> {
        let missing = || Error::Data { path: "pool".into(), why: "a labelled example has no label".into() };
        let labelled = pool
            .labelled()
            .iter()
            .map(|id| Ok((*id, pool.label(*id).ok_or_else(missing)?)))
            .collect::<Result<Vec<_>>>()?;
        let (spec, round) = (&self.data.spec, task.round as u32);
        let epochs = u64::from(self.config.train.epochs);
        let each = cost(&self.config, task.run.trainer, labelled.len(), spec) / epochs;
        let seen = Cell::new(0u32);
        let on_epoch = |e: &EpochEnd| {
            // Epochs of an earlier start are on disk.
            let before = u64::from(e.epoch - seen.get());
            self.progress.skip(each * before);
            seen.set(e.epoch + 1);
            self.progress.resume(e.epoch as usize);
            self.progress.epoch(e, spec.test_len, each);
            match task.run.trainer {
                TrainerKind::Supervised => self.interrupted(&task.what),
                TrainerKind::MixMatch => Ok(()), // stops when its state is saved
            }
        };
        let check = || self.interrupted(&task.what);
        let keep = partial.keeper(self.plan.every, &self.plan.save, &self.plan.stop, &check);
        let mut trainer = self.trainer(task.seed, &on_epoch, &check);
        if task.run.trainer == TrainerKind::MixMatch {
            trainer.mixmatch = Some(MixMatch { ssl: &self.config.ssl, keep: &keep });
            self.warn_of_missing_classes(&labelled, &task.what);
        }
        let fit = chooser.fit(&Round { trainer: &trainer, number: round, labelled: &labelled })?;
        let record = RoundRecord {
            round,
            labelled: labelled.len() as u32,
            picked: 0,
            test_size: spec.test_len as u32,
            correct: fit.correct,
            loss: fit.loss,
        };
        let timing =
            TimingRecord { round, selection_s: 0.0, training_s: fit.training_s, evaluation_s: fit.evaluation_s };
        Ok(Done { record, timing, model: fit.model })
    }

    /// A class without a label is never guessed either: worth knowing before hours of training.
    fn warn_of_missing_classes(&self, labelled: &[(PoolIdx, u32)], what: &str) {
        let mut missing: Vec<u32> = (0..self.data.spec.classes as u32).collect();
        missing.retain(|c| labelled.iter().all(|(_, label)| label != c));
        if !missing.is_empty() {
            let n = missing.len();
            missing.truncate(10);
            self.progress.line(&format!("{what}: {n} classes have no labelled example, such as {missing:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn plan() -> Plan {
        let (preset_id, preset) = Preset::find("smoke").unwrap();
        Plan {
            methods: Vec::new(),
            trainer: None,
            every: Duration::MAX,
            datasets: Vec::new(),
            preset_id,
            preset,
            profile: Profile::Clean,
            seeds: vec![10],
            settings: Vec::new(),
            out: PathBuf::new(),
            data_dir: DataDir::resolve(Some(Path::new("."))).unwrap(),
            graphs: true,
            verbosity: Verbosity::Quiet,
            stop: Arc::new(AtomicBool::new(false)),
            jobs: 3,
            save: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Every share is worked with once; where one fails the others are stopped, and its error is what is told, whichever it
    /// is: one that was only stopped says nothing new.
    #[test]
    fn an_error_of_one_job_stops_the_others() {
        let done = Mutex::new(Vec::new());
        let work = |_: &Device, share: u32| {
            done.lock().unwrap().push(share);
            Ok(())
        };
        side_by_side(&plan(), vec![1, 2, 3], &Device::Cpu, Choice::Cpu, work).unwrap();
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, [1, 2, 3]);
        for bad in 0..3 {
            let plan = plan();
            let work = |_: &Device, share: u32| {
                if share == bad {
                    return Err(Error::NonFinite { what: "the bad one".into() });
                }
                let start = Instant::now();
                while !plan.stopped() {
                    assert!(start.elapsed() < Duration::from_secs(60), "nobody stops share {share}");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(Error::Interrupted { resume: "stopped".into() })
            };
            let e = side_by_side(&plan, vec![0, 1, 2], &Device::Cpu, Choice::Cpu, work).unwrap_err();
            assert!(e.to_string().contains("the bad one"), "{bad}: {e}");
        }
        let plan = plan();
        let stopped = |_: &Device, _: u32| Err(Error::Interrupted { resume: "stopped".into() });
        let e = side_by_side(&plan, vec![0, 1, 2], &Device::Cpu, Choice::Cpu, stopped).unwrap_err();
        assert!(matches!(e, Error::Interrupted { .. }), "{e}");
    }
}
