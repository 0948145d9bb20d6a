//! `dalcore bench`, `train` and `report`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::{DataDirArg, misuse, profile_of, set_threads, watch_ctrl_c, watch_save};
use crate::bench::config::{self, Preset};
use crate::bench::runner::{self, Plan, Verbosity};
use crate::bench::{study, training};
use crate::data::{self, DataDir};
use crate::device::Choice;
use crate::methods::{self, Kind, METHODS};
use crate::train::TrainerKind;
use crate::{Error, names, report};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    dalcore bench --method coreset\n  \
    dalcore bench -m coreset,least-confidence -d mnist --preset paper --profile repro --seeds 2\n  \
    dalcore bench -m ssl-diff2aug-direct -d mnist --preset paper\n  \
    dalcore bench -m badge --trainer mixmatch -d mnist\n  \
    dalcore bench -m coreset --set train.lr=0.05 --set budget.end=10 --dry-run\n\n\
    Presets: paper = the paper's budgets and epochs, five seeds; quick = five budgets, a third of the epochs, one\n\
    seed; smoke = two rounds of two epochs. Starting the same command again resumes where it stopped.")]
pub struct BenchArgs {
    /// Method to run; repeatable or comma-separated. Random is always run as the reference [default: the paper's]
    #[arg(short, long = "method", value_delimiter = ',', value_name = "NAME")]
    methods: Vec<String>,
    /// Train every method but the reference by this: supervised or mixmatch (also on unlabelled images). Combinations that
    /// are not the paper's are named METHOD+TRAINER in results [default: each method's own]
    #[arg(long, value_name = "NAME")]
    trainer: Option<String>,
    /// Save a round that MixMatch trains when this many seconds have passed since the last time; SIGUSR1 saves it now,
    /// Ctrl-C and SIGTERM save it and stop
    #[arg(long, value_name = "SECONDS", default_value_t = 180.0)]
    save_every: f64,
    /// Runs side by side, each on a stream of its own; never changes a result
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    dalcore train                               LeNet on the built-in images, under a minute\n  \
    dalcore train -d mnist --preset paper --profile repro\n  \
    dalcore train -d cifar10 --set model.width=64 --set train.epochs=30\n  \
    dalcore train -d folder:photos --seeds 3\n  \
    dalcore train -d mnist --set train.epochs=0 writes the fresh network\n\n\
    Writes <out>/train-<preset>-<profile>/<data set>/<network>/seed-<seed>/:\n  \
    manifest.json      what was run: every setting, device, commit, checksum of the data\n  \
    curve.jsonl        per epoch: learning rate, loss summed over the steps, correct test images\n  \
    timing.jsonl       its seconds; the only file that differs between two equal runs\n  \
    model.safetensors  weights by torchvision's names; in Python: safetensors.torch.load_file\n  \
    curve.svg, summary.txt, and what resuming needs\n\n\
    Starting the same command again resumes after the last epoch on disk, and ends with the\n\
    same bytes. Ctrl-C finishes the epoch and saves it; a second Ctrl-C stops at once.")]
pub struct TrainArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Save finished epochs when this many seconds have passed since the last time (0: every epoch)
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    save_every: f64,
    /// Also write steps.jsonl: loss and images of every step, in order
    #[arg(long)]
    log_steps: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    dalcore study selection -d mnist --preset paper --profile repro\n  \
    dalcore study selection --seeds 5\n\n\
    selection: what the four methods that MixMatch trains pick from the same model (2 % labelled, 1 % picked): diversity,\n\
    uncertainty and inconsistency of the picks, and the accuracy they lead to. Writes selection.csv, figure2.svg (the\n\
    numbers) and figure3.svg (the picks among a part of the pool, on its first two principal components) beside the runs.")]
pub struct StudyArgs {
    /// selection
    #[arg(value_name = "STUDY")]
    study: String,
    #[command(flatten)]
    run: RunArgs,
}

/// What all experiments have in common.
#[derive(Args)]
struct RunArgs {
    /// Data set, or your own as folder:PATH (a folder per class), folder@HxW:PATH (resized) or npy:PATH; repeatable or
    /// comma-separated [default: synthetic]
    #[arg(short, long = "dataset", value_delimiter = ',', value_name = "NAME")]
    datasets: Vec<String>,
    /// paper, quick or smoke [default: quick]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// clean (no known bugs) or repro (what most probably made the published numbers) [default: clean]
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Run the first N of the seeds 10, 20, 30, … [default: the preset's; train: 1]
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    seeds: Option<usize>,
    /// Run these seeds
    #[arg(long, value_delimiter = ',', value_name = "SEED")]
    seed: Vec<u64>,
    /// Folder for results [default: runs]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// CPU threads; never changes a result [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// TOML file with any of the options and the tables model, train, ssl, eval, budget
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change one setting, for instance train.lr=0.05 (repeatable; --dry-run lists them)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the plan with every setting, and stop
    #[arg(long)]
    dry_run: bool,
    /// Launch every kernel by itself instead of replaying CUDA graphs; the results are the same bytes
    #[arg(long)]
    no_graph: bool,
    #[command(flatten)]
    dir: DataDirArg,
}

/// The first of what was typed, the file and the default that says anything.
fn chosen(typed: &[String], from_file: &[String], default: &[&str]) -> Vec<String> {
    let first = [typed, from_file].into_iter().find(|v| !v.is_empty());
    first.map_or_else(|| default.iter().map(|s| s.to_string()).collect(), <[String]>::to_vec)
}

/// Keys of a configuration file; the tables are settings as after `--set`.
#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct File {
    methods: Vec<String>,
    trainer: Option<String>,
    datasets: Vec<String>,
    preset: Option<String>,
    profile: Option<String>,
    seeds: Option<usize>,
    seed: Vec<u64>,
    out: Option<PathBuf>,
    device: Option<String>,
    threads: Option<usize>,
    /// Everything else: the tables of settings.
    #[serde(flatten)]
    settings: toml::Table,
}

fn read_file(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).map_err(|e| misuse("--config", format!("{}: {e}", path.display())))?;
    toml::from_str(&text)
        .map_err(|e| misuse("--config", format!("{}: {}", path.display(), e.to_string().trim())).into())
}

pub fn bench(args: &BenchArgs, verbosity: Verbosity) -> anyhow::Result<()> {
    let file = args.run.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    let all: Vec<&str> = METHODS.iter().filter(|m| m.kind != Kind::Extra).map(|m| m.id).collect();
    let mut entries = vec![methods::find("random")?];
    for name in chosen(&args.methods, &file.methods, &all) {
        let entry = methods::find(&name)?;
        if !entries.iter().any(|e| e.id == entry.id) {
            entries.push(entry);
        }
    }
    let trainer = args.trainer.as_deref().or(file.trainer.as_deref()).map(TrainerKind::find).transpose()?;
    let every = seconds(args.save_every)?;
    let (plan, device) = plan_of(&args.run, file, entries, verbosity)?;
    let plan = Plan { trainer, every, jobs: args.jobs, ..plan };
    if args.run.dry_run {
        print!("{}", runner::describe(&plan, &device.open()?)?);
        return Ok(());
    }
    print!("{}", runner::run(&plan, device)?);
    Ok(())
}

pub fn study(args: &StudyArgs, verbosity: Verbosity) -> anyhow::Result<()> {
    if args.study != "selection" {
        return Err(names::unknown("study", &args.study, ["selection"].into_iter()).into());
    }
    let file = args.run.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    let methods = study::METHODS.iter().map(|id| methods::find(id)).collect::<Result<Vec<_>, _>>()?;
    let (mut plan, device) = plan_of(&args.run, file, methods, verbosity)?;
    plan.out = plan.out.join("study-selection");
    // Whatever the user set comes after.
    let budget = study::BUDGET.iter().map(|(key, v)| (key.to_string(), toml::Value::Float(*v)));
    plan.settings = budget.chain(plan.settings).collect();
    let text = match args.run.dry_run {
        true => runner::describe(&plan, &device.open()?)?,
        false => study::run(&plan, device)?,
    };
    print!("{text}");
    Ok(())
}

pub fn train(args: &TrainArgs, verbosity: Verbosity) -> anyhow::Result<()> {
    let mut file = args.run.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    for table in ["budget", "ssl"] {
        file.settings.remove(table); // a file may be shared with bench
    }
    // One seed unless more are asked for.
    let seeds = args.run.seeds.or(file.seeds).unwrap_or(1);
    file.seeds = Some(seeds);
    let options = training::Options { every: seconds(args.save_every)?, log_steps: args.log_steps };
    let (plan, device) = plan_of(&args.run, file, Vec::new(), verbosity)?;
    let text = match args.run.dry_run {
        true => training::describe(&plan, &device.open()?)?,
        false => training::run(&plan, &options, &device.open()?)?,
    };
    print!("{text}");
    Ok(())
}

fn seconds(save_every: f64) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(save_every)
        .map_err(|_| misuse("--save-every", format!("{save_every} is not a number of seconds")))
}

/// Everything an experiment needs but its device, which is opened last.
fn plan_of(
    args: &RunArgs,
    file: File,
    methods: Vec<&'static methods::Entry>,
    verbosity: Verbosity,
) -> anyhow::Result<(Plan, Choice)> {
    let (preset_id, preset) = Preset::find(args.preset.as_deref().or(file.preset.as_deref()).unwrap_or("quick"))?;
    let profile = profile_of(args.profile.as_deref().or(file.profile.as_deref()).unwrap_or("clean"))?;
    let seeds = match (&args.seed, args.seeds, &file.seed, file.seeds) {
        (s, ..) if !s.is_empty() => s.clone(),
        (_, Some(n), ..) => config::standard_seeds(n),
        (_, _, s, _) if !s.is_empty() => s.clone(),
        (.., n) => config::standard_seeds(n.unwrap_or(preset.seeds)),
    };
    if seeds.is_empty() {
        return Err(misuse("--seeds", "at least one seed is needed").into());
    }
    let mut settings = Vec::new();
    settings.extend(config::settings_of(&file.settings));
    for text in &args.set {
        settings.push(config::parse_setting(text)?);
    }
    set_threads(args.threads.or(file.threads))?;
    let device: Choice = args.device.as_deref().or(file.device.as_deref()).unwrap_or("auto").parse()?;
    let data_dir = DataDir::resolve(args.dir.data_dir.as_deref())?;
    let mut sets: Vec<data::Source> = Vec::new();
    for name in chosen(&args.datasets, &file.datasets, &["synthetic"]) {
        let set = data::Source::open(&name, profile, &data_dir)?;
        match sets.iter().find(|s| s.spec().id == set.spec().id) {
            None => sets.push(set),
            Some(data::Source::Own(first)) if matches!(&set, data::Source::Own(d) if d.fingerprint != first.fingerprint) =>
            {
                let why = format!("`{name}` and another would both be called {}; rename one", first.spec.id);
                return Err(misuse("--dataset", why).into());
            }
            Some(_) => {}
        }
    }
    let stop = watch_ctrl_c()?;
    let plan = Plan {
        methods,
        datasets: sets,
        preset_id,
        preset,
        profile,
        seeds,
        settings,
        out: args.out.clone().or(file.out).unwrap_or_else(|| "runs".into()),
        data_dir,
        graphs: !args.no_graph,
        verbosity,
        stop,
        save: watch_save()?,
        trainer: None,
        jobs: 1,
        every: Duration::from_secs(180),
    };
    Ok((plan, device))
}

pub fn report_command(folder: &Path) -> anyhow::Result<()> {
    if report::is_of_runs(folder) {
        println!("{}", report::write_all(folder, &methods::paper_name)?.text);
        return Ok(());
    }
    let sets = std::fs::read_dir(folder).map_err(|e| Error::io(folder, &e))?;
    let mut sets: Vec<PathBuf> = sets.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    sets.sort();
    anyhow::ensure!(!sets.is_empty(), "{}: no data set has been run here", folder.display());
    for set in &sets {
        println!("{}", report::write_all(set, &methods::paper_name)?.text);
    }
    report::write_index(folder, &methods::paper_name)?;
    Ok(())
}
