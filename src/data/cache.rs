//! Decoded images, kept so that the second start needs no decoding.
//!
//! `<data dir>/decoded/<id>.bin`: magic, key, fingerprint, sizes, then pixels and labels of both splits. The key is a
//! sha-256 over name, size and time of change of every source file (hashing the sources themselves would take as long
//! as reading this file). The fingerprint is taken again on every read, so a torn or altered file is noticed; then, or
//! when the key differs, the sources are decoded again. It is written beside its place, synced and renamed.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::{DataDir, Dataset, Images, Spec, archive, fetch, fingerprint, hex};
use crate::error::{Error, Result};

/// Changes when the layout of the file changes or a decoder gives other bytes for the same sources.
const MAGIC: &[u8; 16] = b"dalcore decoded1";
const HEADER: u64 = 16 + 64 + 64 + 8 * 8;

/// The data set that `decode` makes of `sources` (files and folders), from the cache if it is there. `options` is
/// whatever else decides the result; `describe` gives the constants.
pub fn through(
    dir: &DataDir,
    id: &str,
    sources: &[PathBuf],
    options: &str,
    decode: impl FnOnce() -> Result<(Images, Images)>,
    describe: impl FnOnce(&Images, &Images) -> Spec,
) -> Result<Dataset> {
    let folder = dir.path.join("decoded");
    let path = folder.join(format!("{id}.bin"));
    let key = key(sources, options)?;
    if dir.cached
        && let Some((train, test, fingerprint)) = read(&path, &key)
    {
        return Ok(Dataset { spec: describe(&train, &test), train, test, fingerprint });
    }
    let (train, test) = decode()?;
    let dataset = Dataset::new(&describe(&train, &test), train, test);
    if dir.cached
        && let Err(e) = write(&folder, &path, &key, &dataset)
    {
        // A folder that cannot be written is no reason not to start.
        eprintln!("note: {e} (the decoded images were not kept, the next start decodes them again)");
    }
    Ok(dataset)
}

fn key(sources: &[PathBuf], options: &str) -> Result<String> {
    let mut sha = Sha256::new();
    let mut add = |name: &str, path: &Path| {
        let about = path.metadata().map_err(|e| Error::io(path, &e))?;
        let changed = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        sha.update(format!("{name}\0{}\0{}\n", about.len(), changed.as_nanos()));
        Ok(())
    };
    for source in sources {
        if source.is_dir() {
            archive::list(source)?.iter().try_for_each(|(name, path)| add(name, path))?;
        } else {
            add(&source.file_name().unwrap_or_default().to_string_lossy(), source)?;
        }
    }
    sha.update(options);
    Ok(hex(&sha.finalize()))
}

/// What the file holds, if it is whole and made from the same sources.
fn read(path: &Path, key: &str) -> Option<(Images, Images, String)> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    let mut header = [0; HEADER as usize];
    file.read_exact(&mut header).ok()?;
    let (magic, rest) = header.split_at(16);
    let (made_from, rest) = rest.split_at(64);
    let (sum, sizes) = rest.split_at(64);
    if magic != MAGIC || made_from != key.as_bytes() {
        return None;
    }
    let mut sizes = sizes.chunks_exact(8).map(|b| b.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b)));
    let mut splits = [[0u64; 4]; 2];
    splits.iter_mut().flatten().zip(&mut sizes).for_each(|(to, from)| *to = from);
    let bytes =
        |[n, h, w, c]: [u64; 4]| n.checked_mul(h)?.checked_mul(w)?.checked_mul(c)?.checked_add(n.checked_mul(4)?);
    // Before anything is allocated: a damaged header may claim any size.
    if bytes(splits[0])?.checked_add(bytes(splits[1])?)?.checked_add(HEADER)? != len {
        return None;
    }
    let mut split = |[n, h, w, c]: [u64; 4]| {
        let [n, h, w, c] = [n, h, w, c].map(|v| v as usize);
        let mut pixels = vec![0; n * h * w * c];
        let mut labels = vec![0u32; n];
        file.read_exact(&mut pixels).ok()?;
        file.read_exact(bytemuck::cast_slice_mut(&mut labels)).ok()?;
        labels.iter_mut().for_each(|l| *l = u32::from_le(*l));
        Some(Images { n, h, w, c, pixels, labels })
    };
    let (train, test) = (split(splits[0])?, split(splits[1])?);
    let found = fingerprint(&train, &test);
    (found.as_bytes() == sum).then_some((train, test, found))
}

fn write(folder: &Path, path: &Path, key: &str, dataset: &Dataset) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    let part = path.with_extension("bin.part");
    let refuse = |e: &std::io::Error| Error::io(&part, e);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&part).map_err(|e| refuse(&e))?;
    if file.try_lock().is_err() {
        return Ok(()); // another process is writing the same
    }
    let fill = || -> std::io::Result<()> {
        file.set_len(0)?;
        let mut out = BufWriter::new(&file);
        out.write_all(MAGIC)?;
        out.write_all(key.as_bytes())?;
        out.write_all(dataset.fingerprint.as_bytes())?;
        for images in [&dataset.train, &dataset.test] {
            for size in [images.n, images.h, images.w, images.c] {
                out.write_all(&(size as u64).to_le_bytes())?;
            }
        }
        for images in [&dataset.train, &dataset.test] {
            out.write_all(&images.pixels)?;
            images.labels.iter().try_for_each(|l| out.write_all(&l.to_le_bytes()))?;
        }
        out.flush()?;
        drop(out);
        file.sync_all()
    };
    if let Err(e) = fill().and_then(|()| std::fs::rename(&part, path)) {
        // Half a cache helps nobody and may be what filled the disk.
        std::fs::remove_file(&part).ok();
        return Err(refuse(&e));
    }
    fetch::sync_folder(folder)
}
