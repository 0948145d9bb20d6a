//! Picks as a file: CSV, JSON lines, or a structured NumPy array.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::{Names, Pick};
use crate::arrays::npy;
use crate::csv;
use crate::{Error, Result};

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated, with a head.
    Csv,
    /// A JSON object per line.
    JsonLines,
    /// A structured array; absent numbers are NaN and −1.
    Npy,
}

impl Format {
    /// By the ending of the file.
    pub fn of(path: &Path) -> Result<Format> {
        match path.extension().and_then(OsStr::to_str) {
            Some("csv") => Ok(Format::Csv),
            Some("jsonl") => Ok(Format::JsonLines),
            Some("npy") => Ok(Format::Npy),
            _ => Err(Error::Config {
                key: "--out".into(),
                why: format!("{} must end in .csv, .jsonl or .npy", path.display()),
            }),
        }
    }

    /// The picks in this format. Numbers are the shortest texts that read back as the same f32.
    pub fn write(self, picks: &[Pick], names: Option<&Names>) -> Vec<u8> {
        match self {
            Format::Csv => table(picks, names).into_bytes(),
            Format::JsonLines => lines(picks, names).into_bytes(),
            Format::Npy => array(picks, names),
        }
    }
}

const COLUMNS: [&str; 6] = ["rank", "id", "name", "score", "distance", "nearest"];

fn table(picks: &[Pick], names: Option<&Names>) -> String {
    let number = |v: Option<f32>| v.map_or(String::new(), |v| v.to_string());
    let line = |(at, p): (usize, &Pick)| {
        let name = names.map_or(String::new(), |n| n.of(p.id).to_string());
        let nearest = p.nearest.map_or(String::new(), |n| n.1.to_string());
        let distance = number(p.nearest.map(|n| n.0));
        csv::line(&[(at + 1).to_string(), p.id.to_string(), name, number(p.score), distance, nearest])
    };
    std::iter::once(csv::line(&COLUMNS)).chain(picks.iter().enumerate().map(line)).collect()
}

fn lines(picks: &[Pick], names: Option<&Names>) -> String {
    let line = |(at, p): (usize, &Pick)| {
        let name = names.map(|n| n.of(p.id));
        let (distance, nearest) = p.nearest.unzip();
        let number = |v: Option<f32>| v.map_or("null".into(), |v| v.to_string());
        format!(
            "{{\"rank\":{},\"id\":{},\"name\":{},\"score\":{},\"distance\":{},\"nearest\":{}}}\n",
            at + 1,
            p.id,
            serde_json::json!(name),
            number(p.score),
            number(distance),
            serde_json::json!(nearest)
        )
    };
    picks.iter().enumerate().map(line).collect()
}

fn array(picks: &[Pick], names: Option<&Names>) -> Vec<u8> {
    let letters = |p: &Pick| names.map_or(0, |n| n.of(p.id).chars().count());
    let longest = picks.iter().map(letters).max().unwrap_or(0).max(1);
    let types = ["<u4", "<u4", &format!("<U{longest}"), "<f4", "<f4", "<i8"];
    let columns: Vec<String> = COLUMNS.iter().zip(types).map(|(name, of)| format!("('{name}', '{of}')")).collect();
    let mut out = npy::header(&format!("[{}]", columns.join(", ")), &[picks.len()]);
    for (at, p) in picks.iter().enumerate() {
        out.extend((at as u32 + 1).to_le_bytes());
        out.extend(p.id.to_le_bytes());
        let name = names.map_or("", |n| n.of(p.id)).chars().map(u32::from).chain(std::iter::repeat(0));
        name.take(longest).for_each(|c| out.extend(c.to_le_bytes()));
        let (distance, nearest) = p.nearest.unzip();
        out.extend(p.score.unwrap_or(f32::NAN).to_le_bytes());
        out.extend(distance.unwrap_or(f32::NAN).to_le_bytes());
        out.extend(nearest.map_or(-1, i64::from).to_le_bytes());
    }
    out
}

fn exists(path: &Path) -> Error {
    let why = format!("{} exists; give --force to replace it, or another name", path.display());
    Error::Config { key: "--out".into(), why }
}

/// Before any work is done: an output that is there is not replaced unless `force` says so.
pub fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    match force || path.symlink_metadata().is_err() {
        true => Ok(()),
        false => Err(exists(path)),
    }
}

/// Writes a file whole or not at all. Without `force`, one that appeared meanwhile is not replaced either.
pub fn publish(path: &Path, bytes: &[u8], force: bool) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if force {
            return fs::rename(&temporary, path).map(|()| true);
        }
        // A link is refused where a file is, which a rename would replace.
        match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(_) if path.symlink_metadata().is_ok() => Ok(false),
            // Not every file system has links.
            Err(_) => fs::rename(&temporary, path).map(|()| true),
            Ok(()) => Ok(true),
        }
    };
    let written = write();
    let _ = fs::remove_file(&temporary);
    match written {
        Ok(true) => Ok(()),
        Ok(false) => Err(exists(path)),
        Err(e) => Err(Error::io(path, &e)),
    }
}
