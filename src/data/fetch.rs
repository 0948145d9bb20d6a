//! Downloads: several mirrors, a temporary file that survives an interruption, a checksum before anything counts.
//!
//! A file is written to `<name>.part`, resumed with a range request, verified, synced and renamed. So a file
//! under its final name is always complete, and an interrupted download loses nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ureq::Agent;

use super::{DataDir, Entry, FileStatus, RemoteFile, verify_file};
use crate::error::{Error, Result};

/// Whether to draw progress bars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// On stderr, when it is a terminal.
    Bars,
    /// Never.
    Quiet,
}

/// How to download.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Tried before the official mirrors: folders on the web, with or without the slash at the end.
    pub mirrors: Vec<String>,
    /// Whether to try the official mirrors at all.
    pub official: bool,
    /// Progress bars.
    pub progress: Progress,
    /// To connect, and to wait for an answer. A body gets four times as long, then a new request resumes it.
    pub timeout: Duration,
}

impl Default for FetchOptions {
    fn default() -> FetchOptions {
        FetchOptions { mirrors: Vec::new(), official: true, progress: Progress::Bars, timeout: Duration::from_secs(30) }
    }
}

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was there and is valid.
    AlreadyThere(PathBuf),
    /// It was downloaded from this address.
    Downloaded(PathBuf, String),
}

/// Download what is missing or damaged of a data set into `<dir>/<home>`. One result per file, in table order.
pub fn fetch(entry: &Entry, dir: &DataDir, options: &FetchOptions) -> Result<Vec<Fetched>> {
    let agent = agent(options);
    let mut results = Vec::with_capacity(entry.files.len());
    for file in entry.files {
        if let FileStatus { path: Some(path), verdict: Ok(()), .. } = verify_file(entry, dir, file) {
            results.push(Fetched::AlreadyThere(path));
            continue;
        }
        let own = options.mirrors.iter().map(String::as_str);
        let official = entry.mirrors.iter().copied().filter(|_| options.official);
        let urls: Vec<_> = own.chain(official).map(|m| format!("{}/{}", m.trim_end_matches('/'), file.name)).collect();
        let path = dir.path.join(entry.home).join(file.name);
        let url = download(&agent, file, &path, &urls, options)?;
        results.push(Fetched::Downloaded(path, url));
    }
    Ok(results)
}

fn agent(options: &FetchOptions) -> Agent {
    let wait = Some(options.timeout);
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(wait)
        .timeout_connect(wait)
        .timeout_send_request(wait)
        .timeout_recv_response(wait)
        // There is no time-out per read; a stalled body would hang for good without this one.
        .timeout_recv_body(Some(4 * options.timeout))
        .user_agent(concat!("dalcore/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// Why an attempt ended. Only the first is worth another mirror.
enum Trouble {
    /// The mirror or the way to it.
    Mirror(String),
    /// Our own disk.
    Local(Error),
}

/// Download one file to `path` from the first of `urls` that delivers it; gives the address that did.
fn download(agent: &Agent, file: &RemoteFile, path: &Path, urls: &[String], options: &FetchOptions) -> Result<String> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let mut out =
        OpenOptions::new().create(true).append(true).read(true).open(&part).map_err(|e| Error::io(&part, &e))?;
    match out.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::Io {
                path: part.display().to_string(),
                why: "another dalcore is downloading this file; wait for it to finish".into(),
            });
        }
        // Some network file systems have no locks; a damaged file would still fail its checksum.
        Err(TryLockError::Error(_)) => {}
    }
    let bar = match options.progress {
        Progress::Bars => ProgressBar::with_draw_target(Some(file.len), ProgressDrawTarget::stderr()),
        Progress::Quiet => ProgressBar::hidden(),
    };
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(file.name);

    let mut reasons = Vec::new();
    for url in urls {
        match from_mirror(agent, file, &part, &mut out, url, &bar) {
            Ok(()) => {
                out.sync_all().map_err(|e| Error::io(&part, &e))?;
                std::fs::rename(&part, path).map_err(|e| Error::io(path, &e))?;
                sync_folder(folder)?;
                bar.finish_and_clear();
                return Ok(url.clone());
            }
            Err(Trouble::Local(e)) => return Err(e),
            Err(Trouble::Mirror(why)) => reasons.push(format!("\n  {url}: {why}")),
        }
    }
    bar.finish_and_clear();
    if size(&part, &out)? == 0 {
        // Nothing to resume: leave no litter. A failure to tidy up must not hide the real reason.
        std::fs::remove_file(&part).ok();
    }
    Err(Error::Data {
        path: path.display().to_string(),
        why: format!(
            "no mirror delivered this file; check the connection and run the command again (it resumes), or \
             name another folder on the web with --mirror{}",
            reasons.concat()
        ),
    })
}

/// Fill the part file from one mirror, resuming after interruptions as long as each attempt brings something.
fn from_mirror(
    agent: &Agent,
    file: &RemoteFile,
    part: &Path,
    out: &mut File,
    url: &str,
    bar: &ProgressBar,
) -> Result<(), Trouble> {
    // A mirror that keeps cutting the line is given up even if it creeps forward.
    const ATTEMPTS: usize = 60;
    let mut len = file.len;
    let mut fruitless = 0;
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        let before = size(part, out).map_err(Trouble::Local)?;
        if before < len || len == 0 {
            bar.set_position(before);
            if let Err(trouble) = attempt(agent, &mut len, part, out, url, bar) {
                let Trouble::Mirror(why) = trouble else {
                    return Err(trouble);
                };
                last = why;
            }
        }
        let after = size(part, out).map_err(Trouble::Local)?;
        if after >= len && len > 0 {
            let content = File::open(part).and_then(|f| file.sum.check(f));
            let Err(sums) = content.map_err(|e| Trouble::Local(Error::io(part, &e)))? else {
                return Ok(());
            };
            truncate(part, out).map_err(Trouble::Local)?;
            last = format!("wrong content: {sums}");
            // What an earlier mirror left may be to blame, so this one gets a fresh start.
            if before == 0 {
                break;
            }
            continue;
        }
        // One fruitless attempt may be the answer to a stale range; the second is the mirror's fault.
        fruitless = if after > before { 0 } else { fruitless + 1 };
        if fruitless == 2 || (fruitless == 1 && before == 0) {
            break;
        }
    }
    Err(Trouble::Mirror(last))
}

/// One request: append what it delivers to the part file. A `len` of 0 is replaced by what the server says.
fn attempt(
    agent: &Agent,
    len: &mut u64,
    part: &Path,
    out: &mut File,
    url: &str,
    bar: &ProgressBar,
) -> Result<(), Trouble> {
    let mirror = |e: &dyn std::fmt::Display| Trouble::Mirror(e.to_string());
    let have = size(part, out).map_err(Trouble::Local)?;
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|e| mirror(&e))?;
    let status = response.status();
    let start = match status.as_u16() {
        200 => 0,
        206 => {
            let range = response.headers().get("Content-Range").and_then(|v| v.to_str().ok());
            match range.and_then(range_start) {
                Some(start) => start,
                None => {
                    truncate(part, out).map_err(Trouble::Local)?;
                    let range = range.unwrap_or("missing");
                    return Err(Trouble::Mirror(format!("HTTP 206 with an unusable Content-Range: {range}")));
                }
            }
        }
        416 => {
            truncate(part, out).map_err(Trouble::Local)?;
            return Err(Trouble::Mirror(format!("HTTP 416: nothing beyond byte {have}")));
        }
        _ => return Err(Trouble::Mirror(format!("HTTP {status}"))),
    };
    // Not what was asked for: a server without ranges starts over, and so do we.
    if start != have {
        truncate(part, out).map_err(Trouble::Local)?;
        if start != 0 {
            return Err(Trouble::Mirror(format!("asked for bytes from {have}, got them from {start}")));
        }
        bar.set_position(0);
    }
    if *len == 0 {
        let said = response.headers().get("Content-Length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let rest =
            said.filter(|n| *n > 0).ok_or_else(|| Trouble::Mirror("does not say how long the file is".into()))?;
        *len = start.saturating_add(rest);
        bar.set_length(*len);
    }
    let len = *len;
    // One byte more than wanted is enough to fail the checksum; a server cannot fill the disk.
    let mut body = response.into_body().into_reader().take(len.saturating_sub(start).saturating_add(1));
    let mut buffer = vec![0; 1 << 16];
    let mut got = start;
    loop {
        match body.read(&mut buffer) {
            Ok(0) if got < len => {
                return Err(Trouble::Mirror(format!("ended after {got} of {len} bytes")));
            }
            Ok(0) => return Ok(()),
            Ok(n) => {
                let bytes = buffer.get(..n).unwrap_or_default();
                out.write_all(bytes).map_err(|e| Trouble::Local(Error::io(part, &e)))?;
                got += n as u64;
                bar.set_position(got);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => {
                return Err(Trouble::Mirror(format!("broke off after {got} of {len} bytes: {e}")));
            }
        }
    }
}

/// `bytes 100-199/200` → 100.
fn range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

fn size(part: &Path, out: &File) -> Result<u64> {
    out.metadata().map(|m| m.len()).map_err(|e| Error::io(part, &e))
}

fn truncate(part: &Path, out: &File) -> Result<()> {
    out.set_len(0).map_err(|e| Error::io(part, &e))
}

/// Make the rename durable. Only Unix can open a folder to sync it.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, &e))?;
    }
    Ok(())
}
