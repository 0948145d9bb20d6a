//! `dalcore embed`.

use std::path::PathBuf;

use clap::Args;

use super::{DataDirArg, misuse, set_threads, watch_ctrl_c};
use crate::bench::config::Profile;
use crate::bench::runner::Verbosity;
use crate::data::{self, DataDir};
use crate::device::Choice;
use crate::embed::{self, What};

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
pub struct EmbedArgs {
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

pub fn embed(args: &EmbedArgs, verbosity: Verbosity) -> anyhow::Result<()> {
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
