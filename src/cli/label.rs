//! `dalcore label`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::select::{ArrayArgs, LimitArgs};
use crate::label::Folder;
use crate::pick::{self, Choice, Inputs};
use crate::report::table::{MISSING, Table};

#[derive(Subcommand)]
pub enum LabelCommand {
    /// Make the folder of a pool
    Init(InitArgs),
    /// Choose a batch and write a file for people to fill
    Next(Box<NextArgs>),
    /// Take the labels of filled files, all or none
    Ingest(IngestArgs),
    /// Show what is labelled, batch by batch
    Status(StatusArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    dalcore label init pool --embeddings e.npy --names files.txt\n  \
    dalcore label init pool --names files.txt --labels labelled-already.csv\n\n\
    Rows are numbered from 0 in the order of the array and of the names: these numbers are the ids.")]
pub struct InitArgs {
    /// A folder to be made
    folder: PathBuf,
    /// Embeddings (N, D): .npy, FILE.npz:NAME or FILE.safetensors:NAME
    #[arg(long, value_name = "ARRAY")]
    embeddings: Option<String>,
    /// Names of the rows: a line each, or a .csv with a column name
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// What is labelled already: a .csv with columns id and label (repeatable)
    #[arg(long, value_name = "FILE")]
    labels: Vec<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    dalcore label next pool -m coreset -k 100\n  \
    dalcore label next pool -m entropy --probs p.npy -k 100\n\n\
    Writes batch-001.csv and so on with columns id, name and an empty label: any spreadsheet or\n\
    labelling tool reads it. Rows that are labelled or handed out are not chosen again. Train on\n\
    labels.csv of the folder, make embeddings and probabilities of the whole pool anew, and give them\n\
    here; without --embeddings those of init are used.")]
pub struct NextArgs {
    /// The folder of the pool
    folder: PathBuf,
    /// Which rule chooses; dalcore methods lists them
    #[arg(short, long, value_name = "NAME")]
    method: String,
    /// How many to choose
    #[arg(short, value_name = "K")]
    k: usize,
    #[command(flatten)]
    arrays: ArrayArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Args)]
#[command(
    after_help = "A file is a .csv with columns id and label; name, if there is one, must be the pool's; other\n\
    columns are ignored. It may be a part of a batch, or several batches. Ids that are not in the pool, an\n\
    id twice in a file, labels that contradict each other or labels.csv, and lines without a label are\n\
    all listed, and then nothing is taken. Taking the same file again changes nothing."
)]
pub struct IngestArgs {
    /// The folder of the pool
    folder: PathBuf,
    /// Filled files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Pass over lines without a label
    #[arg(long)]
    skip_empty: bool,
}

#[derive(Args)]
pub struct StatusArgs {
    /// The folder of the pool
    folder: PathBuf,
    /// Embeddings for the coverage radius [default: those of init]
    #[arg(long, value_name = "ARRAY")]
    embeddings: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
}

pub fn label(command: &LabelCommand, quiet: bool) -> anyhow::Result<()> {
    match command {
        LabelCommand::Init(args) => init(args),
        LabelCommand::Next(args) => next(args, quiet),
        LabelCommand::Ingest(args) => ingest(&args.folder, &args.files, args.skip_empty),
        LabelCommand::Status(args) => status(args, quiet),
    }
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let folder = Folder::init(&args.folder, args.embeddings.as_deref(), args.names.as_deref(), &args.labels)?;
    println!("{}: {} rows, {} labelled", args.folder.display(), folder.rows(), folder.labels().len());
    Ok(())
}

fn next(args: &NextArgs, quiet: bool) -> anyhow::Result<()> {
    let rule = pick::find(&args.method)?;
    let device = args.limits.device()?;
    let mut folder = Folder::open(&args.folder)?;
    let mut arrays = args.arrays.arrays();
    arrays.embeddings = arrays.embeddings.or(folder.embeddings().map(String::from));
    let inputs = Inputs::open(&arrays, args.limits.memory()?)?;
    let pending = folder.pending().len();
    if pending > 0 && !quiet {
        eprintln!("note: {pending} rows of earlier batches have no label yet; they are not handed out again");
    }
    if let Some(note) = pick::note(&inputs, rule).filter(|_| !quiet) {
        eprintln!("note: {note}");
    }
    let (device, round) = (device.open()?, folder.next_number() as u32);
    let choice = Choice { rule, k: args.k, seed: args.limits.seed(), round, device: &device };
    println!("{}", folder.next(&inputs, &choice)?.display());
    Ok(())
}

fn ingest(path: &Path, files: &[PathBuf], skip_empty: bool) -> anyhow::Result<()> {
    let mut folder = Folder::open(path)?;
    let done = folder.ingest(files, skip_empty)?;
    let (all, rows) = (folder.labels().len(), folder.rows());
    println!(
        "{} new labels, {} known already, {} lines empty; {all} of {rows} rows are labelled",
        done.new, done.known, done.empty
    );
    Ok(())
}

fn status(args: &StatusArgs, quiet: bool) -> anyhow::Result<()> {
    let folder = Folder::look(&args.folder)?;
    let device = args.limits.device()?.open()?;
    let embeddings = args.embeddings.clone().or(folder.embeddings().map(String::from));
    let arrays = pick::Arrays { embeddings, ..pick::Arrays::default() };
    // The curve is worth showing also where the embeddings have gone.
    let inputs = match arrays.embeddings {
        Some(_) => Inputs::open(&arrays, args.limits.memory()?).map_err(|e| match quiet {
            true => {}
            false => eprintln!("note: no coverage radius: {e}"),
        }),
        None => Err(()),
    };
    let steps = folder.steps(inputs.as_ref().ok().map(|i| (i, &device)))?;
    let mut t = Table::new(["batch", "method", "asked", "labelled", "in all", "classes", "coverage radius"]);
    let mut all = 0;
    for (number, step) in steps.iter().enumerate() {
        all += step.labelled.len();
        let (name, method, asked) = match &step.batch {
            // Nothing was given beforehand: no line for it.
            None if step.labelled.is_empty() => continue,
            None => ("given".into(), String::new(), String::new()),
            Some(b) => (number.to_string(), b.method.clone(), b.ids.len().to_string()),
        };
        let radius = step.radius.map_or(MISSING.into(), |r| format!("{r:.4}"));
        t.rows.push(vec![
            name,
            method,
            asked,
            step.labelled.len().to_string(),
            all.to_string(),
            step.classes.to_string(),
            radius,
        ]);
    }
    print!("{}", t.plain(120));
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    folder.labels().values().for_each(|l| *counts.entry(l).or_default() += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(label, n)| (std::cmp::Reverse(*n), *label));
    let shown: Vec<String> = counts.iter().take(20).map(|(label, n)| format!("{label} {n}")).collect();
    println!(
        "\n{all} of {} rows labelled, {} handed out; {} classes: {}{}",
        folder.rows(),
        folder.pending().len(),
        counts.len(),
        shown.join(", "),
        if counts.len() > 20 { ", …" } else { "" }
    );
    Ok(())
}
