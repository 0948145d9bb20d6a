//! `dalcore select`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{misuse, set_threads};
use crate::device::Choice as DeviceChoice;
use crate::pick::{self, Arrays, Choice, Form, Format, Inputs, Names, Selection};
use crate::{Error, report};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    dalcore select --method coreset --embeddings e.npy --labeled ids.txt -k 100 -o picks.csv\n  \
    dalcore select -m least-confidence --logits out.safetensors:logits -k 100 --report page.html\n  \
    dalcore embed -c model.safetensors -d folder:photos --out photos.safetensors\n  \
    dalcore select -m entropy --probs photos.safetensors:probabilities \\\n  \
    \x20   --embeddings photos.safetensors:embeddings -k 500 -o next.csv\n\n\
    Which arrays a method needs, `dalcore methods` says. Methods that need a model in training run in\n\
    dalcore bench only.\n\n\
    Arrays are .npy, .npz (FILE:NAME) or .safetensors (FILE:NAME), f16, bf16, f32 or f64, one row per\n\
    item; they are read by blocks of rows and computed with as f32. Rows of probabilities must sum to 1\n\
    within 1e-4 (f16: 1e-3, bf16: 5e-3); logits are never taken for probabilities, nor the reverse. A NaN\n\
    or an infinity anywhere is refused with its row.\n\n\
    The output has a line per pick, best first: rank, id (its row, from 0), name, score (what it is,\n\
    depends on the method; random has none), distance to the nearest labelled row and which one that is\n\
    (both need --embeddings). Equal scores are taken by the lowest row. The same command gives the same\n\
    bytes, whatever the number of threads and the free memory.")]
pub struct SelectArgs {
    /// Which rule chooses; dalcore methods lists them
    #[arg(short, long, value_name = "NAME")]
    method: String,
    #[command(flatten)]
    arrays: ArrayArgs,
    /// Rows that are labelled: numbers in a text, .csv (column id), .json, .jsonl or .npy [default: none]
    #[arg(long, visible_alias = "labelled", value_name = "FILE")]
    labeled: Option<String>,
    /// How many to choose
    #[arg(short, value_name = "K")]
    k: usize,
    /// Names of the rows for the output: a line each, or a .csv with a column name
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// Where the picks go: .csv, .jsonl or .npy [default: CSV to stdout]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write a page: scores, coverage radius against picks, and a map of pool, labelled and picked rows
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    limits: LimitArgs,
}

/// The arrays of a pool.
#[derive(Args)]
pub struct ArrayArgs {
    /// Embeddings (N, D)
    #[arg(long, value_name = "ARRAY")]
    embeddings: Option<String>,
    /// Probabilities (N, C)
    #[arg(long, value_name = "ARRAY", conflicts_with = "logits")]
    probs: Option<String>,
    /// Logits (N, C)
    #[arg(long, value_name = "ARRAY")]
    logits: Option<String>,
    /// Probabilities of T stochastic (MC-dropout) passes (T, N, C)
    #[arg(long, value_name = "ARRAY")]
    mc_probs: Option<String>,
}

impl ArrayArgs {
    /// What was typed.
    pub fn arrays(&self) -> Arrays {
        let probs = self.probs.clone().map(|a| (Form::Probabilities, a));
        Arrays {
            embeddings: self.embeddings.clone(),
            predictions: probs.or_else(|| self.logits.clone().map(|a| (Form::Logits, a))),
            passes: self.mc_probs.clone(),
        }
    }
}

/// What a selection may use.
#[derive(Args)]
pub struct LimitArgs {
    /// Memory for arrays and all that is computed from them; more is never used: what does not fit is read in blocks,
    /// or refused with the amount it would need
    #[arg(long, value_name = "SIZE", default_value = "8GiB")]
    mem: String,
    /// Seed of methods that draw
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// CPU threads; never changes a result [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl LimitArgs {
    /// The bound in bytes.
    pub fn memory(&self) -> Result<u64, Error> {
        bytes(&self.mem)
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Starts the threads and reads the name of the device.
    pub fn device(&self) -> Result<DeviceChoice, Error> {
        set_threads(self.threads)?;
        self.device.parse()
    }
}

/// `4GiB`, `512 MB`, `1.5G` (binary) or plain bytes.
fn bytes(text: &str) -> Result<u64, Error> {
    let refuse = || misuse("--mem", format!("`{text}` is no amount of memory; write for instance 4GiB or 512MiB"));
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number: f64 = text[..at].trim().parse().map_err(|_| refuse())?;
    let unit = match text[at..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1048576.0,
        "g" | "gib" => 1073741824.0,
        "t" | "tib" => 1099511627776.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(refuse()),
    };
    let bytes = number * unit;
    if !(1.0..1e18).contains(&bytes) {
        return Err(refuse());
    }
    Ok(bytes as u64)
}

pub fn select(args: &SelectArgs, quiet: bool) -> anyhow::Result<()> {
    let rule = pick::find(&args.method)?;
    let format = args.out.as_deref().map_or(Ok(Format::Csv), Format::of)?;
    args.out.iter().chain(&args.report).try_for_each(|path| pick::refuse_existing(path, args.force))?;
    let device = args.limits.device()?;
    let memory = args.limits.memory()?;
    let inputs = Inputs::open(&args.arrays.arrays(), memory)?;
    for input in inputs.unused(rule).filter(|_| !quiet) {
        eprintln!("note: {} does not use {}", rule.id, input.options());
    }
    if let Some(note) = pick::note(&inputs, rule).filter(|_| !quiet) {
        eprintln!("note: {note}");
    }
    let labelled = match &args.labeled {
        Some(file) => pick::read_ids(file, inputs.rows(), memory)?,
        None => Vec::new(),
    };
    let names = args.names.as_deref().map(|path| Names::read(path, Some(inputs.rows()))).transpose()?;
    let device = device.open()?;
    let choice = Choice { rule, k: args.k, seed: args.limits.seed(), round: 0, device: &device };
    let selection = pick::select(&inputs, &choice, &labelled, &[])?;
    let content = format.write(&selection.picks, names.as_ref());
    let page =
        args.report.is_some().then(|| page(&inputs, &choice, &labelled, &selection, names.as_ref())).transpose()?;
    match &args.out {
        None => std::io::stdout().write_all(&content).context("stdout")?,
        Some(path) => {
            pick::publish(path, &content, args.force)?;
            println!("{}", path.display());
        }
    }
    if let (Some(path), Some(page)) = (&args.report, page) {
        pick::publish(path, page.as_bytes(), args.force)?;
        // Without --out, stdout is the picks alone.
        args.out.iter().for_each(|_| println!("{}", path.display()));
    }
    Ok(())
}

/// Points of the coverage curve.
const STEPS: usize = 40;

fn page(
    inputs: &Inputs,
    choice: &Choice,
    labelled: &[u32],
    selection: &Selection,
    names: Option<&Names>,
) -> Result<String, Error> {
    let ids: Vec<u32> = selection.picks.iter().map(|p| p.id).collect();
    let step = ids.len().div_ceil(STEPS);
    let groups: Vec<Vec<u32>> = std::iter::once(labelled).chain(ids.chunks(step)).map(<[u32]>::to_vec).collect();
    let radius = pick::coverage(inputs, &groups, choice.device)?;
    let counts = (0..groups.len()).map(|at| (at * step).min(ids.len()));
    let radius: Vec<(usize, f32)> = counts.zip(radius).filter_map(|(k, r)| Some((k, r?))).collect();
    let mut facts = vec![
        format!("{} rows", inputs.rows()),
        format!("{} labelled", labelled.len()),
        format!("{} picks", ids.len()),
        format!("seed {}", choice.seed),
    ];
    facts.extend(inputs.embeddings().map(|s| s.shown().to_string()));
    report::picks::page(&report::picks::Page {
        method: choice.rule.id,
        score: choice.rule.score,
        facts: &facts,
        picks: &selection.picks,
        candidates: &selection.candidates,
        radius: &radius,
        map: &pick::map(inputs, labelled, &ids)?,
        names,
    })
}
