//! What was typed → what it means. Results go to stdout, progress and messages to stderr.
//!
//! Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted (everything finished is on disk).

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::bench::config::{self, Preset, Profile};
use crate::bench::runner::{self, Plan, Verbosity};
use crate::bench::training;
use crate::data::fetch::{Fetched, Progress};
use crate::data::{self, DataDir, FetchOptions, Presence};
use crate::device::{self, Choice, Cuda};
use crate::embed::{self, What};
use crate::methods::{self, Kind, METHODS};
use crate::{Error, report};

/// A hand-written CUDA compute engine for deep active learning; the same program runs on a CPU.
#[derive(Parser)]
#[command(
    name = "dalcore",
    version = version(),
    after_help = "Start with:  dalcore bench --method coreset\n\
                  It needs no data and no GPU, takes under a minute and ends with a table and runs/…/report.html.\n\
                  dalcore train -d mnist trains on all labels and keeps the model.",
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    /// Print nothing but results and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print a line per round or epoch even when stderr is not a terminal
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run methods on data sets round by round and compare them with random sampling (resumable)
    Bench(Box<BenchArgs>),
    /// Train on all labels of a data set and keep model, curve and accuracy (resumable)
    Train(Box<TrainArgs>),
    /// Run a trained network over images and write embeddings, probabilities or logits
    Embed(Box<EmbedArgs>),
    /// Write table, CSV, figure and page again from the files of earlier runs
    Report {
        /// The folder of one preset and profile, for instance runs/quick-clean
        #[arg(default_value = "runs/quick-clean")]
        folder: PathBuf,
    },
    /// List the selection methods
    Methods,
    /// List, download and check data sets
    Data {
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Say which device would be used and, if it is not CUDA, exactly why
    Device {
        /// Measure what each device can do at most: copy, multiply-add and, on a GPU, tensor cores
        #[arg(long)]
        bench: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Clone)]
struct DataDirArg {
    /// Folder of the data sets [default: the cache folder of this user, e.g. ~/.cache/dalcore]
    #[arg(long, env = "DALCORE_DATA", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Which data sets there are, and whether they are on this machine
    List(DataDirArg),
    /// Download a data set, resuming and verifying
    Fetch {
        /// Its name, for instance mnist
        dataset: String,
        #[command(flatten)]
        dir: DataDirArg,
        /// A folder on the web to try first (repeatable)
        #[arg(long, value_name = "URL")]
        mirror: Vec<String>,
    },
    /// Check the files of a data set (all of them when none is named)
    Verify {
        /// Its name
        dataset: Option<String>,
        #[command(flatten)]
        dir: DataDirArg,
    },
    /// Write a contact sheet: a row per class, images as they are and as training sees them
    Preview {
        /// Its name, or folder:PATH, folder@HxW:PATH, npy:PATH
        dataset: String,
        #[command(flatten)]
        dir: DataDirArg,
        /// The PNG file to write [default: the name of the data set with .png]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// clean or repro
        #[arg(long, value_name = "NAME", default_value = "clean")]
        profile: String,
        /// The seed of the run whose images are shown
        #[arg(long, default_value_t = 10)]
        seed: u64,
    },
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    dalcore bench --method coreset\n  \
    dalcore bench -m coreset,least-confidence -d mnist --preset paper --profile repro --seeds 2\n  \
    dalcore bench -m coreset --set train.lr=0.05 --set budget.end=10 --dry-run\n\n\
    Presets: paper = the paper's budgets and epochs, five seeds; quick = five budgets, a third of the epochs, one\n\
    seed; smoke = two rounds of two epochs. Starting the same command again resumes where it stopped.")]
struct BenchArgs {
    /// Method to run; repeatable or comma-separated. Random is always run as the reference [default: the paper's]
    #[arg(short, long = "method", value_delimiter = ',', value_name = "NAME")]
    methods: Vec<String>,
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
struct TrainArgs {
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
    dalcore embed -c model.safetensors -d mnist --split test --out mnist-test\n  \
    dalcore embed -c model.safetensors -d folder:photos --out photos.safetensors\n  \
    dalcore embed -c model.safetensors -d npy:images.npz --arrays logits,embeddings --out out\n\n\
    The checkpoint is dalcore's, or a PyTorch state dict with torchvision's names that was saved\n\
    with safetensors.torch.save_file; network, width and classes are read off its tensors.\n\
    Rows are the images of the split in their order; ids (their numbers) and labels are written\n\
    too. Images are normalised by their own data set's constants: give --mean and --std where the\n\
    network was trained with others. An output is written whole or not at all.")]
struct EmbedArgs {
    /// Weights, a safetensors file
    #[arg(short, long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// Data set, or your own as folder:PATH, folder@HxW:PATH (resized) or npy:PATH
    #[arg(short, long, value_name = "NAME")]
    dataset: String,
    /// train or test
    #[arg(long, value_name = "SPLIT", default_value = "train")]
    split: String,
    /// A file that ends in .safetensors, or a folder for .npy files
    #[arg(short, long, value_name = "PATH")]
    out: PathBuf,
    /// embeddings, probabilities, logits; comma-separated
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "embeddings,probabilities")]
    arrays: Vec<String>,
    /// Mean of each channel in units of white, comma-separated [default: the data set's]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', requires = "std")]
    mean: Vec<f32>,
    /// Standard deviation of each channel
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', requires = "mean")]
    std: Vec<f32>,
    /// Images per batch; changes memory and speed, never a result [default: the data set's]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// CPU threads; never changes a result [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Launch every kernel by itself instead of replaying CUDA graphs
    #[arg(long)]
    no_graph: bool,
    #[command(flatten)]
    dir: DataDirArg,
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
    /// TOML file with any of the options and the tables model, train, eval, budget
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

/// Version, commit and CUDA architectures.
pub fn version() -> &'static str {
    use crate::device::launch::{ARCHITECTURES, COMMIT};
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TEXT.get_or_init(|| {
        let cuda = if ARCHITECTURES.is_empty() { "CPU only, built without nvcc" } else { ARCHITECTURES };
        format!("{} (commit {COMMIT}, CUDA architectures: {cuda})", env!("CARGO_PKG_VERSION"))
    })
}

/// Parses the command line, runs it, prints an error once, and gives the exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match execute(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(match e.downcast_ref::<Error>() {
                Some(Error::Interrupted { .. }) => 130,
                Some(e) if e.is_misuse() => 2,
                _ => 1,
            })
        }
    }
}

fn execute(cli: &Cli) -> anyhow::Result<()> {
    let verbosity = match (cli.quiet, cli.verbose, std::io::stderr().is_terminal()) {
        (true, ..) => Verbosity::Quiet,
        (_, true, false) => Verbosity::Lines,
        (_, _, false) => Verbosity::Quiet,
        _ => Verbosity::Bars,
    };
    match &cli.command {
        Command::Bench(args) => bench(args, verbosity),
        Command::Train(args) => train(args, verbosity),
        Command::Embed(args) => embed(args, verbosity),
        Command::Report { folder } => report_command(folder),
        Command::Methods => {
            let row = |a, b, c, d, e, f| println!("{a:<18} {b:<18} {c:<24} {d:<24} {e:<18} {f}");
            row("method", "in the paper", "needs", "costs (time, memory)", "remembers", "about");
            METHODS.iter().for_each(|m| row(m.id, m.paper_name, m.needs, m.costs, m.remembers, m.about));
            Ok(())
        }
        Command::Data { command } => data_command(command, cli.quiet),
        Command::Device { bench } => device_command(*bench),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "dalcore", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn report_command(folder: &Path) -> anyhow::Result<()> {
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

fn profile_of(name: &str) -> Result<Profile, Error> {
    match name {
        "clean" => Ok(Profile::Clean),
        "repro" => Ok(Profile::Repro),
        other => Err(crate::names::unknown("--profile", other, ["clean", "repro"].into_iter())),
    }
}

fn misuse(key: &str, why: impl Into<String>) -> Error {
    Error::Config { key: key.into(), why: why.into() }
}

fn read_file(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).map_err(|e| misuse("--config", format!("{}: {e}", path.display())))?;
    toml::from_str(&text)
        .map_err(|e| misuse("--config", format!("{}: {}", path.display(), e.to_string().trim())).into())
}

fn bench(args: &BenchArgs, verbosity: Verbosity) -> anyhow::Result<()> {
    let file = args.run.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    let all: Vec<&str> = METHODS.iter().filter(|m| m.kind != Kind::Extra).map(|m| m.id).collect();
    let mut entries = vec![methods::find("random")?];
    for name in chosen(&args.methods, &file.methods, &all) {
        let entry = methods::find(&name)?;
        if !entries.iter().any(|e| e.id == entry.id) {
            entries.push(entry);
        }
    }
    let (plan, device) = plan_of(&args.run, file, entries, verbosity)?;
    if args.run.dry_run {
        print!("{}", runner::describe(&plan, &device.open()?)?);
        return Ok(());
    }
    print!("{}", runner::run(&plan, &device.open()?)?);
    Ok(())
}

fn train(args: &TrainArgs, verbosity: Verbosity) -> anyhow::Result<()> {
    let mut file = args.run.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    file.settings.remove("budget"); // a file may be shared with bench
    // One seed unless more are asked for.
    let seeds = args.run.seeds.or(file.seeds).unwrap_or(1);
    file.seeds = Some(seeds);
    let every = std::time::Duration::try_from_secs_f64(args.save_every)
        .map_err(|_| misuse("--save-every", format!("{} is not a number of seconds", args.save_every)))?;
    let options = training::Options { every, log_steps: args.log_steps };
    let (plan, device) = plan_of(&args.run, file, Vec::new(), verbosity)?;
    let text = match args.run.dry_run {
        true => training::describe(&plan, &device.open()?)?,
        false => training::run(&plan, &options, &device.open()?)?,
    };
    print!("{text}");
    Ok(())
}

fn set_threads(threads: Option<usize>) -> Result<(), Error> {
    if threads == Some(0) {
        return Err(misuse("--threads", "at least one thread is needed"));
    }
    device::cpu::set_threads(threads.unwrap_or(0))
}

/// A flag that Ctrl-C sets. A second Ctrl-C ends the program at once; the files are sound at every moment.
fn watch_ctrl_c() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register_conditional_shutdown(signal_hook::consts::SIGINT, 130, stop.clone())
        .and_then(|_| signal_hook::flag::register(signal_hook::consts::SIGINT, stop.clone()))
        .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}

fn embed(args: &EmbedArgs, verbosity: Verbosity) -> anyhow::Result<()> {
    let what = args.arrays.iter().map(|n| What::find(n)).collect::<Result<Vec<_>, _>>()?;
    if args.batch == Some(0) {
        return Err(misuse("--batch", "at least one image is needed").into());
    }
    set_threads(args.threads)?;
    let device: Choice = args.device.parse()?;
    let dir = DataDir::resolve(args.dir.data_dir.as_deref())?;
    let source = data::Source::open(&args.dataset, Profile::Clean, &dir)?;
    let mut spec = source.spec().clone();
    if !args.mean.is_empty() {
        if args.mean.len() != spec.c || args.std.len() != spec.c || args.std.iter().any(|s| s.is_nan() || *s <= 0.0) {
            let why = format!("{} numbers each are wanted, one per channel; deviations above 0", spec.c);
            return Err(misuse("--mean and --std", why).into());
        }
        (spec.mean, spec.std) = (args.mean.clone().into(), args.std.clone().into());
    }
    let test = match args.split.as_str() {
        "train" => false,
        "test" => true,
        other => return Err(crate::names::unknown("--split", other, ["train", "test"].into_iter()).into()),
    };
    let host = source.load(&dir, data::Verify::Official)?;
    let images = if test { &host.test } else { &host.train };
    let stop = watch_ctrl_c()?;
    let request = embed::Request {
        checkpoint: &args.checkpoint,
        spec,
        images,
        what: &what,
        out: &args.out,
        batch: args.batch.unwrap_or(0),
        graphs: !args.no_graph,
        stop: &stop,
    };
    let bar = match verbosity {
        Verbosity::Bars => indicatif::ProgressBar::new(images.n as u64),
        _ => indicatif::ProgressBar::hidden(),
    };
    let files = embed::run(&request, &device.open()?, |n| bar.inc(n as u64));
    bar.finish_and_clear();
    for file in files? {
        println!("{}", file.display());
    }
    Ok(())
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
    };
    Ok((plan, device))
}

fn data_command(command: &DataCommand, quiet: bool) -> anyhow::Result<()> {
    let resolve = |d: &DataDirArg| DataDir::resolve(d.data_dir.as_deref());
    match command {
        DataCommand::List(dir) => {
            let dir = resolve(dir)?;
            println!("{:<14} {:>14} {:>8}  {:<44} about", "data set", "train / test", "classes", "where");
            for row in data::list(&dir) {
                let spec = row.entry.spec;
                let place = match row.presence {
                    Presence::BuiltIn => "built in".to_string(),
                    Presence::Present(p) => format!("{} ({:.1} MiB)", p.display(), row.bytes as f64 / 1048576.0),
                    Presence::Missing(_) => format!("absent: dalcore data fetch {}", spec.id),
                };
                let sizes = format!("{} / {}", spec.train_len, spec.test_len);
                println!("{:<14} {sizes:>14} {:>8}  {place:<44} {}", spec.id, spec.classes, spec.about);
            }
            println!("folder: {} (from {})", dir.path.display(), dir.chosen_by);
        }
        DataCommand::Fetch { dataset, dir, mirror } => {
            let (entry, dir) = (data::find(dataset)?, resolve(dir)?);
            let options = FetchOptions {
                mirrors: mirror.clone(),
                progress: if quiet { Progress::Quiet } else { Progress::Bars },
                ..FetchOptions::default()
            };
            for file in data::fetch(entry, &dir, &options)? {
                match file {
                    Fetched::AlreadyThere(path) => println!("{} is there and valid", path.display()),
                    Fetched::Downloaded(path, url) => println!("{} downloaded from {url}", path.display()),
                }
            }
        }
        DataCommand::Verify { dataset, dir } => {
            let dir = resolve(dir)?;
            let entries: Vec<&data::Entry> = match dataset {
                Some(name) => vec![data::find(name)?],
                None => data::DATASETS.iter().collect(),
            };
            let mut bad = 0;
            for entry in entries {
                if entry.files.is_empty() {
                    println!("{:<14} built in, nothing to check", entry.spec.id);
                }
                for f in data::verify(entry, &dir) {
                    match &f.verdict {
                        Ok(()) => println!("{:<14} {:<36} ok", entry.spec.id, f.name),
                        Err(e) => {
                            bad += 1;
                            println!("{:<14} {:<36} {e}", entry.spec.id, f.name);
                        }
                    }
                }
            }
            anyhow::ensure!(bad == 0, "{bad} files are missing or wrong (see above)");
        }
        DataCommand::Preview { dataset, dir, out, profile, seed } => {
            let (profile, dir) = (profile_of(profile)?, resolve(dir)?);
            let source = data::Source::open(dataset, profile, &dir)?;
            let spec = source.spec();
            let augment = if profile == Profile::Repro { spec.repro } else { spec.clean };
            let out = out.clone().unwrap_or_else(|| format!("{}.png", spec.id).into());
            data::preview::sheet(&*source.load(&dir, data::Verify::Official)?, augment, *seed)?.save(&out)?;
            println!(
                "{}: {} classes of {}, crop {}, {:?}",
                out.display(),
                spec.classes,
                spec.id,
                augment.crop_pad,
                augment.flip
            );
        }
    }
    Ok(())
}

fn device_command(bench: bool) -> anyhow::Result<()> {
    device::cpu::set_threads(0)?;
    println!("CPU: {}, {} threads", device::cpu::name(), rayon::current_num_threads());
    match Cuda::open(0) {
        Ok(c) => {
            let (major, minor) = c.capability();
            let (free, total) = c.memory()?;
            println!(
                "CUDA: {}, compute capability {major}.{minor}, {} multiprocessors, {} of {} MiB free, driver {}",
                c.name(),
                c.multiprocessors(),
                free >> 20,
                total >> 20,
                c.driver_version()
            );
            println!("--device auto uses CUDA");
        }
        Err(why) => {
            println!("CUDA: not used, because {why}");
            println!("--device auto uses the CPU");
        }
    }
    if bench {
        println!("measured, best of eight:");
        let cuda = Choice::Cuda(0).open().ok();
        for device in [Some(device::Device::Cpu), cuda].into_iter().flatten() {
            let r = device::roofline::rates(&device)?;
            let tensor = r.tensor.map_or(String::new(), |t| format!(", bf16 tensor {:.1} TFLOP/s", t * 1e-12));
            let (copy, fma) = (r.copy * 1e-9, r.fma * 1e-9);
            println!("  {}: copy {copy:.1} GB/s, f32 multiply-add {fma:.1} GFLOP/s{tensor}", device.name());
        }
    }
    Ok(())
}
