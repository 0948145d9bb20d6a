//! Fully supervised training on the whole training split, Table 2 of the paper: `dalcore train`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::config::{Config, Profile};
use super::epochs::{EpochDir, EpochRecord, EpochTiming, Pending, StepRecord};
use super::progress::Progress;
use super::runner::{self, Plan, work};
use super::store;
use crate::data::{self, PoolIdx, Verify};
use crate::device::Device;
use crate::nn::checkpoint;
use crate::optim::rate_at;
use crate::report::{figure, published};
use crate::train::{CrossEntropy, DeviceData, EpochEnd, Steps, Trainer, Training};
use crate::{Error, Result};

/// What `dalcore train` is asked for beyond a [`Plan`], whose methods it does not use.
pub struct Options {
    /// Finished epochs go to disk when so much time has passed since the last time, and at the end.
    pub every: Duration,
    /// Keep the loss and the images of every step.
    pub log_steps: bool,
}

/// The method's name in manifests.
const METHOD: &str = "fully-supervised";

fn config_of(plan: &Plan, set: &data::Source) -> Result<Config> {
    let other = plan.settings.iter().find(|(key, _)| ["budget", "ssl"].contains(&key.split('.').next().unwrap_or("")));
    if let Some((key, _)) = other {
        let why = "training uses the whole training split with its labels; budgets and ssl belong to dalcore bench";
        return Err(Error::Config { key: format!("setting {key}"), why: why.into() });
    }
    Config::base(set.spec(), &plan.preset, plan.profile).with(&plan.settings)
}

/// The configuration without what a training has no use for.
fn settings(config: &Config) -> Result<serde_json::Value> {
    let failed = |e: serde_json::Error| Error::Config { key: "config".into(), why: e.to_string() };
    let mut value = serde_json::to_value(config).map_err(failed)?;
    if let Some(table) = value.as_object_mut() {
        table.shift_remove("budget");
        table.shift_remove("ssl");
    }
    Ok(value)
}

fn folder_of(plan: &Plan, dataset: &str, config: &Config, seed: u64) -> PathBuf {
    let preset = format!("train-{}", plan.preset_id);
    let dataset = store::dataset_dir(&plan.out, &preset, plan.profile.name(), dataset);
    store::run_dir(&dataset, &config.network().name(), seed)
}

/// The plan in words.
pub fn describe(plan: &Plan, device: &Device) -> Result<String> {
    let mut text = String::new();
    for set in &plan.datasets {
        let (config, spec) = (config_of(plan, set)?, set.spec());
        let _ = writeln!(text, "{} ({} profile, {} preset)", spec.id, plan.profile.name(), plan.preset_id);
        let _ = writeln!(text, "  network   {}, {} classes", config.network().name(), spec.classes);
        let _ = writeln!(text, "  images    {} to train on, {} to test on", spec.train_len, spec.test_len);
        for seed in &plan.seeds {
            let _ = writeln!(text, "  results   {}", folder_of(plan, &spec.id, &config, *seed).display());
        }
        let _ = writeln!(text, "  settings (change with --set table.key=value)");
        let toml = toml::Value::try_from(settings(&config)?).ok().and_then(|v| toml::to_string(&v).ok());
        for line in toml.unwrap_or_default().lines().filter(|l| !l.is_empty()) {
            let _ = writeln!(text, "    {line}");
        }
    }
    let _ = writeln!(text, "device      {}", device.name());
    Ok(text)
}

/// Trains everything that is not on disk yet; returns a line for each run.
pub fn run(plan: &Plan, options: &Options, device: &Device) -> Result<String> {
    let mut total = 0;
    for set in &plan.datasets {
        let (config, spec) = (config_of(plan, set)?, set.spec());
        total += plan.seeds.len() as u64 * work(&config, spec.train_len, spec.test_len);
    }
    let progress = Progress::new(plan.verbosity, total);
    let mut text = String::new();
    for set in &plan.datasets {
        let config = config_of(plan, set)?;
        let host = set.load(&plan.data_dir, Verify::Official)?;
        let one = One {
            plan,
            options,
            data: DeviceData::new(device, &host)?.with_model(config.network()),
            config,
            labelled: (0..).map(PoolIdx).zip(host.train.labels.iter().copied()).collect(),
            fingerprint: host.fingerprint.clone(),
            progress: &progress,
        };
        drop(host);
        for seed in &plan.seeds {
            let done = one.run(*seed);
            if done.is_err() {
                progress.finish();
            }
            text += &done?;
        }
    }
    progress.finish();
    Ok(text)
}

/// One data set's trainings.
struct One<'a> {
    plan: &'a Plan,
    options: &'a Options,
    config: Config,
    data: DeviceData,
    labelled: Vec<(PoolIdx, u32)>,
    fingerprint: String,
    progress: &'a Progress,
}

impl One<'_> {
    fn run(&self, seed: u64) -> Result<String> {
        let (spec, recipe) = (&self.data.spec, &self.config.train);
        let folder = folder_of(self.plan, &spec.id, &self.config, seed);
        let manifest = store::Manifest {
            method: METHOD.into(),
            config: settings(&self.config)?,
            targets: vec![self.labelled.len() as u32],
            ..runner::manifest(self.plan, &self.config, &self.data, &self.fingerprint, seed)
        };
        let mut dir = EpochDir::open(&folder, &manifest)?;
        let trainer = Trainer {
            data: &self.data,
            recipe,
            eval_batch: self.config.eval.batch,
            graphs: self.plan.graphs,
            seed,
            on_epoch: &|_| Ok(()),
            check: &|| Ok(()),
            mixmatch: None,
        };
        let mut training = trainer.start(0)?;
        match dir.models()? {
            Some(models) => restore(&mut training, &dir, models)?,
            None => commit(&mut dir, &[], &training)?,
        }
        let what = format!("{} {} seed {seed}", spec.id, spec.model.name());
        let each = work(&self.config, self.labelled.len(), spec.test_len) / u64::from(recipe.epochs.max(1));
        let finished = dir.curve().len();
        self.progress.skip(each * finished as u64);
        self.progress.round(&what, recipe.epochs);
        self.progress.resume(finished);

        let (mut pending, mut last) = (Vec::new(), Instant::now());
        let went = trainer.go_on(&CrossEntropy, 0, &self.labelled, &mut training, &mut |end, training, steps| {
            pending.push(self.pending(end, steps));
            let stop = self.plan.stopped();
            if stop || last.elapsed() >= self.options.every {
                commit(&mut dir, &pending, training)?;
                pending.clear();
                last = Instant::now();
            }
            self.progress.epoch(end, spec.test_len, each);
            self.progress.line(&format!(
                "{what}: epoch {} of {}: loss {:.4}, test accuracy {:.2} %, {:.0} images/s",
                end.epoch + 1,
                recipe.epochs,
                end.loss / steps.losses.len().max(1) as f64,
                percent(end.correct, spec.test_len),
                end.images_per_second
            ));
            let done = end.epoch + 1;
            match stop && done < recipe.epochs {
                false => Ok(()),
                true => Err(Error::Interrupted {
                    resume: format!("{what} was stopped after {done} epochs; the same command goes on from there"),
                }),
            }
        });
        went?;
        if !pending.is_empty() {
            commit(&mut dir, &pending, &training)?;
        }
        self.finish(&dir, &what)
    }

    fn pending(&self, end: &EpochEnd, steps: &Steps) -> Pending {
        let recipe = &self.config.train;
        let batches = (0..).zip(steps.losses).zip(steps.order.chunks(steps.batch));
        let step = |((step, loss), ids): ((u32, &f32), &[u32])| StepRecord {
            epoch: end.epoch,
            step,
            loss: *loss,
            ids: ids.to_vec(),
        };
        Pending {
            record: EpochRecord {
                epoch: end.epoch,
                rate: rate_at(recipe.lr, &recipe.milestones, end.epoch),
                steps: steps.losses.len() as u32,
                loss: end.loss,
                correct: end.correct,
                test_size: self.data.spec.test_len as u32,
            },
            timing: EpochTiming { epoch: end.epoch, training_s: end.training_s, evaluation_s: end.evaluation_s },
            steps: if self.options.log_steps { batches.map(step).collect() } else { Vec::new() },
        }
    }

    /// Writes what follows from the curve, and says how it went.
    fn finish(&self, dir: &EpochDir, what: &str) -> Result<String> {
        let (curve, spec) = (dir.curve(), &self.data.spec);
        let summary = format!("{what}: {}\n", summary(curve, self.plan.profile, &spec.id));
        if !curve.is_empty() {
            dir.derive("curve.svg", &figure::training(what, curve)?)?;
        }
        dir.derive("summary.txt", &summary)?;
        Ok(format!("{summary}  {}\n", dir.path().join(store::MODEL).display()))
    }
}

fn percent(correct: u32, of: usize) -> f64 {
    100.0 * f64::from(correct) / of.max(1) as f64
}

/// The accuracy as the profile states it, and the other one beside it.
fn summary(curve: &[EpochRecord], profile: Profile, dataset: &str) -> String {
    let Some(last) = curve.last() else { return "not trained (0 epochs)".into() };
    let accuracy = |r: &EpochRecord| percent(r.correct, r.test_size as usize);
    // The first of the best epochs.
    let best = curve.iter().rev().max_by_key(|r| r.correct).unwrap_or(last);
    let best = format!("{:.2} % after epoch {} (best, a choice made on the test set)", accuracy(best), best.epoch + 1);
    let last = format!("{:.2} % after epoch {} (last)", accuracy(last), last.epoch + 1);
    let (first, second) = if profile == Profile::Repro { (best, last) } else { (last, best) };
    let paper = published::full(dataset).map_or(String::new(), |p| format!("; the paper prints {p:.2} %"));
    format!("test accuracy {first}, {second}{paper}")
}

fn commit(dir: &mut EpochDir, epochs: &[Pending], training: &Training) -> Result<()> {
    let params = &training.model.params;
    dir.commit(epochs, &checkpoint::to_bytes(params)?, &checkpoint::momentum_to_bytes(params, &training.sgd)?)
}

/// The training as it was after the last epoch in `dir`.
fn restore(training: &mut Training, dir: &EpochDir, (model, momentum): (Vec<u8>, Vec<u8>)) -> Result<()> {
    let lost = |path: &Path, e: Error| Error::Data {
        path: path.display().to_string(),
        why: format!("its model cannot be loaded ({e}); move this folder away to train it anew"),
    };
    let Training { model: to, sgd, .. } = training;
    checkpoint::from_bytes(&mut to.params, &model).map_err(|e| lost(dir.path(), e))?;
    checkpoint::momentum_from_bytes(&to.params, sgd, &momentum).map_err(|e| lost(dir.path(), e))?;
    training.correct = dir.curve().iter().map(|r| r.correct).collect();
    training.loss = dir.curve().iter().map(|r| r.loss).collect();
    Ok(())
}
