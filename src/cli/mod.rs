//! What was typed → what it means. Results go to stdout, progress and messages to stderr.
//!
//! Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted (everything finished is on disk).

mod data;
mod device_info;
mod embed;
mod experiment;
mod label;
mod select;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::bench::config::Profile;
use crate::bench::runner::Verbosity;
use crate::methods::METHODS;
use crate::{Error, device, pick};
use data::DataCommand;
use embed::EmbedArgs;
use experiment::{BenchArgs, StudyArgs, TrainArgs};
use label::LabelCommand;
use select::SelectArgs;

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
    /// Compare what methods pick from the same model: figures 2 and 3 of the paper (resumable)
    Study(Box<StudyArgs>),
    /// Train on all labels of a data set and keep model, curve and accuracy (resumable)
    Train(Box<TrainArgs>),
    /// Run a trained network over images and write embeddings, probabilities or logits
    Embed(Box<EmbedArgs>),
    /// Choose what to label next from your own arrays: embeddings, probabilities, logits; no training
    Select(Box<SelectArgs>),
    /// Label a pool batch by batch: choose, hand out, take back
    Label {
        #[command(subcommand)]
        command: LabelCommand,
    },
    /// Write table, CSV, figure and page again from the files of earlier runs
    Report {
        /// The folder of one preset and profile, for instance runs/quick-clean, or of one data set in it
        #[arg(default_value = "runs/quick-clean")]
        folder: PathBuf,
    },
    /// List the selection methods: what each needs, costs and remembers, and what select runs it on
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
        Command::Bench(args) => experiment::bench(args, verbosity),
        Command::Study(args) => experiment::study(args, verbosity),
        Command::Train(args) => experiment::train(args, verbosity),
        Command::Embed(args) => embed::embed(args, verbosity),
        Command::Select(args) => select::select(args, cli.quiet),
        Command::Label { command } => label::label(command, cli.quiet),
        Command::Report { folder } => experiment::report_command(folder),
        Command::Methods => {
            let row = |cells: [&str; 7]| {
                let [a, b, c, d, e, f, g] = cells;
                println!("{a:<17} {b:<36} {c:<26} {d:<22} {e:<10} {f:<16} {g}");
            };
            row([
                "method",
                "select runs it on",
                "needs in a run",
                "time, memory",
                "remembers",
                "in the paper",
                "about",
            ]);
            for m in METHODS {
                row([m.id, &pick::usable(m.id), m.needs, m.costs, m.remembers, m.paper_name, m.about]);
            }
            println!(
                "\nLetters: N pool, L labelled, U unlabelled, K picks, C classes, D width of the embeddings, T passes."
            );
            Ok(())
        }
        Command::Data { command } => data::data_command(command, cli.quiet),
        Command::Device { bench } => device_info::device_command(*bench),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "dalcore", &mut std::io::stdout());
            Ok(())
        }
    }
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

fn set_threads(threads: Option<usize>) -> Result<(), Error> {
    if threads == Some(0) {
        return Err(misuse("--threads", "at least one thread is needed"));
    }
    device::cpu::set_threads(threads.unwrap_or(0))
}

/// A flag that Ctrl-C and SIGTERM set. A second one ends the program at once; the files are sound at every moment.
fn watch_ctrl_c() -> anyhow::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
        signal_hook::flag::register_conditional_shutdown(signal, code, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .context("cannot watch for Ctrl-C")?;
    }
    Ok(stop)
}

/// A flag that SIGUSR1 sets, where there is such a thing.
fn watch_save() -> anyhow::Result<Arc<AtomicBool>> {
    let save = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, save.clone()).context("cannot watch for SIGUSR1")?;
    Ok(save)
}
