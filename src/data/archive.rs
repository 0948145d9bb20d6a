//! Files of a data set, read into memory from a folder, a tar (gzipped or not), a zip, or one by one.
//!
//! Nothing is ever unpacked to disk. An entry whose name leads out of the archive is refused all the same: whoever
//! made it meant harm, or another archive than this one.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::{Error, Result};

/// A file of an archive or a folder.
pub struct Member {
    /// Path below the archive or the folder, with `/` between its parts.
    pub name: String,
    /// Where it lies, for messages.
    pub shown: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The members of one archive may have this much content together: a small archive can expand without end, and arrays
/// of the largest of the paper's data sets have a sixth of it.
const LIMIT: u64 = 8 << 30;

/// Every regular file of which `wanted` approves, ordered by name. `remedy` ends the message about a damaged archive.
pub fn read(path: &Path, remedy: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Member>> {
    let damaged = |why: String| Error::Data { path: path.display().to_string(), why: format!("{why}; {remedy}") };
    let mut found = Vec::new();
    let mut room = LIMIT;
    let mut take = |name: String, content: &mut dyn Read| {
        let shown = format!("{}/{name}", path.display());
        let mut bytes = Vec::new();
        content.take(room + 1).read_to_end(&mut bytes).map_err(|e| damaged(format!("`{name}` is damaged ({e})")))?;
        room = room.checked_sub(bytes.len() as u64).ok_or_else(|| {
            damaged(format!("`{name}` and the files before it hold more than {} GiB, which is not read", LIMIT >> 30))
        })?;
        found.push(Member { name, shown, bytes });
        Ok(())
    };
    let kind = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let open = || File::open(path).map(BufReader::new).map_err(|e| Error::io(path, &e));
    if path.is_dir() {
        for (name, path) in list(path)?.into_iter().filter(|(name, _)| wanted(name)) {
            take(name, &mut File::open(&path).map_err(|e| Error::io(&path, &e))?)?;
        }
    } else if kind.ends_with(".zip") || kind.ends_with(".npz") {
        let broken = |e: zip::result::ZipError| damaged(format!("a truncated or damaged zip archive ({e})"));
        let mut archive = zip::ZipArchive::new(open()?).map_err(broken)?;
        for i in 0..archive.len() {
            let mut entry = archive.by_index(i).map_err(broken)?;
            let name = entry.name().map_err(broken)?.into_owned();
            let name = plain(Path::new(&name)).ok_or_else(|| damaged(escapes(&name)))?;
            if entry.is_file() && wanted(&name) {
                take(name, &mut entry)?;
            }
        }
    } else if kind.ends_with(".tar") {
        tar_members(open()?, &damaged, &wanted, &mut take)?;
    } else if kind.ends_with(".tar.gz") || kind.ends_with(".tgz") {
        tar_members(MultiGzDecoder::new(open()?), &damaged, &wanted, &mut take)?;
    } else if wanted(&kind) {
        take(kind, &mut open()?)?;
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn tar_members(
    content: impl Read,
    damaged: &dyn Fn(String) -> Error,
    wanted: &dyn Fn(&str) -> bool,
    take: &mut dyn FnMut(String, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let broken = |e: io::Error| damaged(format!("a truncated or damaged archive ({e})"));
    let mut archive = tar::Archive::new(content);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        let name = plain(&path).ok_or_else(|| damaged(escapes(&path.to_string_lossy())))?;
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            return Err(damaged(format!("its entry `{name}` is a link, where a file was expected")));
        }
        if kind.is_file() && wanted(&name) {
            take(name, &mut entry)?;
        }
    }
    // To the end: only there does gzip say whether all of it arrived.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    Ok(())
}

fn escapes(name: &str) -> String {
    format!("its entry `{name}` leads out of the archive; this is not the official file, do not unpack it")
}

/// The path with `/` between its parts; nothing if it is absolute or goes up.
fn plain(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// Every file below a folder as (path relative to it, path), ordered; names that start with a dot are left out.
pub fn list(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
        let refuse = |e: &io::Error| Error::io(folder, e);
        for entry in std::fs::read_dir(folder).map_err(|e| refuse(&e))? {
            let path = entry.map_err(|e| refuse(&e))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{name}");
            // Follows links: people keep large folders elsewhere.
            match path.is_dir() {
                true => walk(&path, &format!("{name}/"), found)?,
                false => found.push((name, path)),
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found)?;
    found.sort();
    Ok(found)
}
