//! Runs an experiment: data sets × seeds × methods, round by round, resumable after every round.

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::config::{Config, Preset, Profile};
use super::progress::Progress;
pub use super::progress::Verbosity;
use super::store::{self, Manifest, PickRecord, RoundRecord, RunDir, START, TimingRecord};
use crate::data::{self, DataDir, Dataset, Pool, PoolIdx, Verify};
use crate::device::{Device, launch};
use crate::methods::{self, Query, Round};
use crate::nn::checkpoint;
use crate::rng::{Purpose, Rng, lane_of};
use crate::train::{DeviceData, EpochEnd, Model, Trainer};
use crate::{Error, Result, report};

/// A resolved command.
pub struct Plan {
    /// Random first; none for a fully supervised training.
    pub methods: Vec<&'static methods::Entry>,
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
}

impl Plan {
    fn config(&self, set: &data::Source) -> Result<Config> {
        let config = Config::base(set.spec(), &self.preset, self.profile).with(&self.settings)?;
        if config.train.epochs == 0 {
            let why = "must be at least 1: a selection needs a model that has learned something";
            return Err(Error::Config { key: "train.epochs".into(), why: why.into() });
        }
        Ok(config)
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

/// What one round costs: images trained on and tested, the unit of progress and estimates.
pub(super) fn work(config: &Config, labelled: usize, test: usize) -> u64 {
    u64::from(config.train.epochs) * (labelled as u64 + test as u64 / TEST_IS_CHEAPER)
}

/// A test image costs about a third of a training image: one pass of three.
const TEST_IS_CHEAPER: u64 = 3;

/// The plan in words: round sizes, settings and an estimate measured on this device.
pub fn describe(plan: &Plan, device: &Device) -> Result<String> {
    let mut text = String::new();
    let rate = measure(device)?;
    let mut total = 0;
    for set in &plan.datasets {
        let config = plan.config(set)?;
        let spec = set.spec();
        let targets = config.budget.targets(spec.train_len)?;
        let one: u64 = targets.iter().map(|t| work(&config, *t, spec.test_len)).sum();
        let start = targets.first().map_or(0, |t| work(&config, *t, spec.test_len));
        let methods = plan.methods.len() as u64;
        let sum = plan.seeds.len() as u64 * (methods * one - (methods - 1) * start);
        total += sum;
        let names: Vec<&str> = plan.methods.iter().map(|m| m.id).collect();
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
    };
    let fit = trainer.fit(0, &labels)?;
    Ok(f64::from(config.train.epochs) * 1024.0 / fit.training_s.max(1e-6))
}

/// Runs everything that is not on disk yet; returns the tables.
pub fn run(plan: &Plan, device: &Device) -> Result<String> {
    // Refuse a wrong plan before any data is read or any file written.
    let mut total = 0;
    for set in &plan.datasets {
        let config = plan.config(set)?;
        let targets = config.budget.targets(set.spec().train_len)?;
        let one: u64 = targets.iter().map(|t| work(&config, *t, set.spec().test_len)).sum();
        total += one * (plan.methods.len() * plan.seeds.len()) as u64;
    }
    let progress = Progress::new(plan.verbosity, total);
    let mut text = String::new();
    for set in &plan.datasets {
        let host = set.load(&plan.data_dir, Verify::Official)?;
        let config = plan.config(set)?;
        let one = Experiment {
            plan,
            data: DeviceData::new(device, &host)?.with_model(config.network()),
            config,
            labels: host.train.labels.as_slice().into(),
            fingerprint: host.fingerprint.clone(),
            progress: &progress,
        };
        drop(host);
        for seed in &plan.seeds {
            for method in &plan.methods {
                one.run(method, *seed)?;
            }
        }
        let folder = one.folder();
        let summary = report::write_all(&folder, &methods::paper_name)?;
        let _ = writeln!(text, "{}", summary.text);
        let _ = writeln!(text, "report: {}\n", folder.join("report.html").display());
    }
    progress.finish();
    report::write_index(&plan.out.join(format!("{}-{}", plan.preset_id, plan.profile.name())), &methods::paper_name)?;
    Ok(text)
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

/// What a round leaves behind.
struct Done {
    record: RoundRecord,
    timing: TimingRecord,
    model: Model,
}

impl Experiment<'_> {
    fn manifest(&self, method: &str, seed: u64) -> Result<Manifest> {
        Ok(Manifest {
            method: method.into(),
            config: self.config.of_method(method)?,
            targets: self.config.budget.targets(self.labels.len())?.into_iter().map(|t| t as u32).collect(),
            ..manifest(self.plan, &self.config, &self.data, &self.fingerprint, seed)
        })
    }

    fn run(&self, method: &methods::Entry, seed: u64) -> Result<()> {
        let spec = &self.data.spec;
        let targets = self.config.budget.targets(self.labels.len())?;
        let cost = |t: usize| work(&self.config, t, spec.test_len);
        let folder = store::run_dir(&self.folder(), method.id, seed);
        let mut dir = RunDir::open(&folder, &self.manifest(method.id, seed)?)?;
        let finished = dir.finished_rounds() as usize;
        self.progress.skip(targets.iter().take(finished).map(|t| cost(*t)).sum());
        if finished >= targets.len() {
            return Ok(());
        }
        let mut pool = Pool::new(self.labels.clone())?;
        for picks in dir.picks() {
            pool.reveal(&picks.ids.iter().map(|i| PoolIdx(*i)).collect::<Vec<_>>())?;
        }
        let mut chooser = (method.make)(&self.config);
        let mut model = None;
        if finished > 0 {
            chooser.restore(dir.method_state())?;
            model = Some(self.saved(&*chooser, &dir.model()?.unwrap_or_default(), &folder)?);
        }
        for (round, target) in targets.iter().enumerate().skip(finished) {
            let what = format!("{} {} seed {seed} · {target} labelled", spec.id, method.id);
            self.progress.round(&what, self.config.train.epochs);
            let start = Instant::now();
            let picks = match &model {
                None => pool.start_set(Rng::new(seed), *target)?,
                Some(m) => {
                    let n = target - pool.labelled().len();
                    self.select(method, &mut *chooser, (&pool, m), (seed, round), n, &what)?
                }
            };
            let selection_s = if round == 0 { 0.0 } else { start.elapsed().as_secs_f64() };
            pool.reveal(&picks)?;
            let mut done = match round {
                0 if chooser.trains_plainly() => self.start_round(&pool, &mut *chooser, seed, &picks)?,
                _ => self.train(&pool, &mut *chooser, seed, round, &what)?,
            };
            done.timing.selection_s = selection_s;
            let bytes = checkpoint::to_bytes(&done.model.params)?;
            done.record.picked = picks.len() as u32;
            let (epochs, last) = (done.record.correct.len(), done.record.correct.last().copied().unwrap_or(0));
            dir.commit_round(done.record, pick_record(round, &picks), done.timing.clone(), chooser.save(), &bytes)?;
            self.progress.line(&format!(
                "{what}: {:.2} % after {} epochs, selection {:.2} s, training {:.1} s",
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
        Trainer { data, recipe, eval_batch: self.config.eval.batch, graphs: self.plan.graphs, seed, on_epoch, check }
    }

    fn select(
        &self,
        method: &methods::Entry,
        chooser: &mut dyn methods::Method,
        (pool, model): (&Pool, &Model),
        (seed, round): (u64, usize),
        n: usize,
        what: &str,
    ) -> Result<Vec<PoolIdx>> {
        let rng = Rng::new(seed).at(Purpose::Select, round as u32, 0).lane(lane_of(method.id));
        let check = || self.interrupted(what);
        let trainer = self.trainer(seed, &|_| Ok(()), &check);
        let view = trainer.plain_view()?;
        let query = Query::new(pool, &trainer, model, &view, round as u32, rng);
        let picks = chooser.select(&query, n)?;
        self.data.device.synchronize()?;
        methods::check_picks(method.id, &picks, pool.unlabelled(), n)?;
        Ok(picks)
    }

    /// Round 0 is the same for every method with the plain recipe: trained once per seed, then taken from disk.
    fn start_round(
        &self,
        pool: &Pool,
        chooser: &mut dyn methods::Method,
        seed: u64,
        picks: &[PoolIdx],
    ) -> Result<Done> {
        let folder = store::run_dir(&self.folder(), START, seed);
        let what = format!("{} seed {seed} · shared start", self.data.spec.id);
        let mut trained = false;
        // Another process may be training the same start: wait for it.
        let mut wait = || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            self.interrupted(&what)
        };
        let start = store::shared_start(&folder, &self.manifest(START, seed)?, &mut wait, || {
            trained = true;
            let mut done = self.train(pool, chooser, seed, 0, &what)?;
            done.record.picked = picks.len() as u32;
            Ok((done.record, pick_record(0, picks), done.timing, checkpoint::to_bytes(&done.model.params)?))
        })?;
        if !trained {
            self.progress.skip(work(&self.config, pool.labelled().len(), self.data.spec.test_len));
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
            resume: format!("{what} was stopped; finished rounds are on disk and the same command goes on from there"),
        })
    }

    fn train(
        &self,
        pool: &Pool,
        chooser: &mut dyn methods::Method,
        seed: u64,
        round: usize,
        what: &str,
    ) -> Result<Done> {
        let missing = || Error::Data { path: "pool".into(), why: "a labelled example has no label".into() };
        let labelled = pool
            .labelled()
            .iter()
            .map(|id| Ok((*id, pool.label(*id).ok_or_else(missing)?)))
            .collect::<Result<Vec<_>>>()?;
        let each = work(&self.config, labelled.len(), self.data.spec.test_len) / u64::from(self.config.train.epochs);
        let seen = Cell::new(0u32);
        let on_epoch = |e: &EpochEnd| {
            seen.set(seen.get() + 1);
            self.progress.epoch(e, self.data.spec.test_len, each);
            self.interrupted(what)
        };
        let check = || self.interrupted(what);
        let trainer = self.trainer(seed, &on_epoch, &check);
        let fit = chooser.fit(&Round { trainer: &trainer, number: round as u32, labelled: &labelled })?;
        let record = RoundRecord {
            round: round as u32,
            labelled: labelled.len() as u32,
            picked: 0,
            test_size: self.data.spec.test_len as u32,
            correct: fit.correct,
            loss: fit.loss,
        };
        let timing = TimingRecord {
            round: round as u32,
            selection_s: 0.0,
            training_s: fit.training_s,
            evaluation_s: fit.evaluation_s,
        };
        Ok(Done { record, timing, model: fit.model })
    }
}
