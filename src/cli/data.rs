//! `dalcore data`.

use std::path::PathBuf;

use clap::Subcommand;

use super::{DataDirArg, profile_of};
use crate::bench::config::Profile;
use crate::data::fetch::{Fetched, Progress};
use crate::data::{self, DataDir, FetchOptions, Presence};

#[derive(Subcommand)]
pub enum DataCommand {
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

pub fn data_command(command: &DataCommand, quiet: bool) -> anyhow::Result<()> {
    let resolve = |d: &DataDirArg| DataDir::resolve(d.data_dir.as_deref());
    match command {
        DataCommand::List(dir) => {
            let dir = resolve(dir)?;
            println!("{:<16} {:>14} {:>8}  {:<44} about", "data set", "train / test", "classes", "where");
            for row in data::list(&dir) {
                let spec = row.entry.spec;
                let place = match row.presence {
                    Presence::BuiltIn => "built in".to_string(),
                    Presence::Present(p) => format!("{} ({:.1} MiB)", p.display(), row.bytes as f64 / 1048576.0),
                    Presence::Missing(_) => format!("absent: dalcore data fetch {}", spec.id),
                };
                let sizes = format!("{} / {}", spec.train_len, spec.test_len);
                println!("{:<16} {sizes:>14} {:>8}  {place:<44} {}", spec.id, spec.classes, spec.about);
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
                // Those that share another's files would count them twice.
                None => data::DATASETS.iter().filter(|e| e.home == e.spec.id).collect(),
            };
            let mut bad = 0;
            for entry in entries {
                if entry.files.is_empty() {
                    println!("{:<16} built in, nothing to check", entry.spec.id);
                }
                for f in data::verify(entry, &dir) {
                    match &f.verdict {
                        Ok(()) => println!("{:<16} {:<36} ok", entry.spec.id, f.name),
                        Err(e) => {
                            bad += 1;
                            println!("{:<16} {:<36} {e}", entry.spec.id, f.name);
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
