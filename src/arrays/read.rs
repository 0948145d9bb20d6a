//! An array of a file, read by blocks of rows.
//!
//! By positioned reads, not by mapping the file into memory: a file that another program shortens meanwhile is then
//! an ordinary error, where a mapping would end the program with SIGBUS; and what is read lies in buffers that can be
//! counted against a memory bound.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};

use super::npy;
use crate::error::{Error, Result, human_bytes};

/// Element types that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// 16-bit float.
    F16,
    /// 16-bit float with the exponent of a 32-bit one.
    Bf16,
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
    /// Signed integer of so many bytes.
    Signed(usize),
    /// Unsigned integer of so many bytes.
    Unsigned(usize),
}

impl Number {
    /// Bytes per element.
    pub fn width(self) -> usize {
        match self {
            Number::F16 | Number::Bf16 => 2,
            Number::F32 => 4,
            Number::F64 => 8,
            Number::Signed(w) | Number::Unsigned(w) => w,
        }
    }

    /// True for floats.
    pub fn is_float(self) -> bool {
        !matches!(self, Number::Signed(_) | Number::Unsigned(_))
    }

    /// How far a sum of numbers that were rounded to this type may be from the sum before, relative to it: half a unit
    /// in the last place of the 16-bit types; of the others, what a sum in 32-bit floats loses and more.
    pub fn sum_tolerance(self) -> f64 {
        match self {
            Number::F16 => 1e-3,
            Number::Bf16 => 5e-3,
            _ => 1e-4,
        }
    }
}

/// Where the elements are.
enum Content {
    /// From this byte of the file on.
    File(RefCell<File>, u64),
    /// Decompressed into memory.
    Memory(Vec<u8>),
}

/// An array of a file, row-major, that is read when rows are asked for.
pub struct Source {
    shown: String,
    shape: Vec<usize>,
    number: Number,
    /// The bytes of each element are in the other order than this machine's.
    big_endian: bool,
    content: Content,
}

const SAVE_AGAIN: &str = "save it with numpy.save, numpy.savez or safetensors";

impl Source {
    /// Opens the array that `text` names: `FILE.npy`, `FILE.npz:NAME` or `FILE.safetensors:NAME`, where `:NAME` may be
    /// left out when the file has one array. What kind of file it is, its first bytes say. A compressed array must be
    /// decompressed as a whole, in at most `room` bytes.
    pub fn open(text: &str, room: u64) -> Result<Source> {
        let (path, name) = match text.rsplit_once(':') {
            Some((path, name)) if !Path::new(text).exists() => (PathBuf::from(path), Some(name)),
            _ => (PathBuf::from(text), None),
        };
        let refuse = |why: String| Error::Data { path: path.display().to_string(), why };
        if path.is_dir() {
            return Err(refuse("a folder; name a file".into()));
        }
        let mut file = File::open(&path).map_err(|e| Error::io(&path, &e))?;
        let mut magic = [0; 12];
        let got = file.read(&mut magic).map_err(|e| Error::io(&path, &e))?;
        let start = magic.get(..got).unwrap_or_default();
        if start.starts_with(npy::MAGIC) {
            return match name {
                None => of_npy(path.display().to_string(), file, 0),
                Some(name) => Err(refuse(format!("an .npy file holds one array without a name; leave `:{name}` out"))),
            };
        }
        if start.starts_with(b"PK") {
            return of_npz(&path, file, name, room);
        }
        // The length of a JSON header; then the header.
        if start.get(8) == Some(&b'{') {
            return of_safetensors(&path, file, name);
        }
        if start.first() == Some(&0x80) {
            let why = "a Python pickle, which is never loaded because loading one runs whatever code is in it";
            return Err(refuse(format!("{why}; {SAVE_AGAIN}")));
        }
        Err(refuse(format!("neither .npy, .npz nor .safetensors by its first bytes; {SAVE_AGAIN}")))
    }

    /// File and array, for messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The sizes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    pub fn number(&self) -> Number {
        self.number
    }

    /// Bytes of memory it occupies: zero, but for a compressed array.
    pub fn held(&self) -> u64 {
        match &self.content {
            Content::File(..) => 0,
            Content::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// The error that says what is wrong with this array.
    pub fn refuse(&self, why: impl Into<String>) -> Error {
        Error::Data { path: self.shown.clone(), why: why.into() }
    }

    /// The sizes, which must be `N` and, for a matrix, such as `letters` say: `"N, D"`.
    pub fn sizes<const N: usize>(&self, letters: &str) -> Result<[usize; N]> {
        let sizes: Result<[usize; N], _> = self.shape.as_slice().try_into();
        sizes.map_err(|_| self.refuse(format!("has the shape {}; wanted ({letters})", shown(&self.shape))))
    }

    /// Elements from number `at` on as f32, in their order. One that is not finite, or that f32 cannot hold, is an
    /// error that names its row.
    pub fn floats(&self, at: usize, out: &mut [f32]) -> Result<()> {
        let width = self.number.width();
        if !self.number.is_float() {
            return Err(self.refuse("holds integers where floats are wanted; use .astype('float32')"));
        }
        let mut raw = vec![0; out.len().min(CHUNK) * width];
        for (i, out) in out.chunks_mut(CHUNK).enumerate() {
            let raw = raw.get_mut(..out.len() * width).unwrap_or_default();
            self.bytes(at + i * CHUNK, raw)?;
            match self.number {
                Number::F16 => decode(out, raw, |b| f16::from_le_bytes(b).to_f32()),
                Number::Bf16 => decode(out, raw, |b| bf16::from_le_bytes(b).to_f32()),
                Number::F32 => decode(out, raw, f32::from_le_bytes),
                _ => decode(out, raw, |b| f64::from_le_bytes(b) as f32),
            }
            if let Some(bad) = out.iter().position(|v| !v.is_finite()) {
                return Err(self.not_finite(at + i * CHUNK + bad, out[bad], raw.get(bad * width..)));
            }
        }
        Ok(())
    }

    /// The rows `ids` (any order) of a matrix (N, width) one after the other.
    pub fn rows(&self, ids: &[u32], width: usize, out: &mut [f32]) -> Result<()> {
        let mut from = 0;
        while from < ids.len() {
            // Rows that follow each other are one read.
            let to = (from + 1..ids.len()).find(|i| ids[*i] != ids[i - 1].wrapping_add(1)).unwrap_or(ids.len());
            self.floats(ids[from] as usize * width, &mut out[from * width..to * width])?;
            from = to;
        }
        Ok(())
    }

    /// All elements as integers; one that no i64 holds becomes the largest.
    pub fn integers(&self) -> Result<Vec<i64>> {
        if self.number.is_float() {
            return Err(self.refuse("holds floats where integers are wanted; use .astype('int64')"));
        }
        let (width, n) = (self.number.width(), self.shape.iter().product::<usize>());
        let mut raw = vec![0; n * width];
        self.bytes(0, &mut raw)?;
        let one = |bytes: &[u8]| {
            let value = bytes.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
            let unused = 64 - 8 * width as u32;
            match self.number {
                Number::Signed(_) => (value << unused) as i64 >> unused,
                _ => i64::try_from(value).unwrap_or(i64::MAX),
            }
        };
        Ok(raw.chunks_exact(width).map(one).collect())
    }

    /// The bytes of elements from number `at` on, lowest first.
    fn bytes(&self, at: usize, out: &mut [u8]) -> Result<()> {
        let start = at * self.number.width();
        let short = || self.refuse("became shorter while it was read; nothing was selected");
        match &self.content {
            Content::Memory(bytes) => out.copy_from_slice(bytes.get(start..start + out.len()).ok_or_else(short)?),
            Content::File(file, first) => {
                let mut file = file.borrow_mut();
                let read = file.seek(SeekFrom::Start(first + start as u64)).and_then(|_| file.read_exact(out));
                read.map_err(|e| match e.kind() {
                    std::io::ErrorKind::UnexpectedEof => short(),
                    _ => Error::io(&self.shown, &e),
                })?;
            }
        }
        if self.big_endian {
            out.chunks_exact_mut(self.number.width()).for_each(<[u8]>::reverse);
        }
        Ok(())
    }

    /// Element number `at` is not finite, or only before it was rounded to f32.
    fn not_finite(&self, at: usize, value: f32, raw: Option<&[u8]>) -> Error {
        let wide = raw.and_then(|r| r.first_chunk()).map(|b| f64::from_le_bytes(*b));
        let what = match wide.filter(|v| self.number == Number::F64 && v.is_finite()) {
            Some(v) => format!("{v:e}, which f32 cannot hold"),
            None if value.is_nan() => "a NaN".into(),
            None => "an infinity".into(),
        };
        let width = self.shape.last().map_or(1, |w| (*w).max(1));
        let (rows, row) = (self.shape.iter().nth_back(1).map_or(1, |r| (*r).max(1)), at / width);
        let place = match self.shape.len() {
            3 => format!("row {} of pass {}", row % rows, row / rows),
            _ => format!("row {row}"),
        };
        Error::NonFinite { what: format!("{}: {place} holds {what}; nothing was selected", self.shown) }
    }
}

/// Elements decoded at a time.
const CHUNK: usize = 1 << 16;

fn decode<const W: usize>(out: &mut [f32], raw: &[u8], of: impl Fn([u8; W]) -> f32) {
    let (raw, _) = raw.as_chunks::<W>();
    out.iter_mut().zip(raw).for_each(|(out, bytes)| *out = of(*bytes));
}

/// Sizes as Python shows them.
fn shown(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("({}{})", sizes.join(", "), if sizes.len() == 1 { "," } else { "" })
}

fn damaged(path: &str, why: impl std::fmt::Display) -> Error {
    Error::Data { path: path.into(), why: format!("{why}; {SAVE_AGAIN}") }
}

/// Element type and order of an `.npy` header.
fn element(shown: &str, header: &npy::Header) -> Result<(Number, bool)> {
    let refuse = |why: String| Err(Error::Data { path: shown.into(), why });
    if header.fortran && header.shape.len() > 1 {
        return refuse("in column-major (Fortran) order; save numpy.ascontiguousarray(a)".into());
    }
    let (order, kind, width) = header.element();
    let number = match (kind, width) {
        ('f', Some(2)) => Number::F16,
        ('f', Some(4)) => Number::F32,
        ('f', Some(8)) => Number::F64,
        ('i', Some(w @ (1 | 2 | 4 | 8))) => Number::Signed(w),
        ('u', Some(w @ (1 | 2 | 4 | 8))) => Number::Unsigned(w),
        ('O', _) => {
            let why = "holds Python objects (a pickle), which are never loaded because loading them runs whatever code \
                       is in them";
            return refuse(format!("{why}; save an array of numbers"));
        }
        ('V', Some(2)) => return refuse("of type V2: NumPy has no name for bf16; save it with safetensors".into()),
        _ => {
            let why = "only f16, f32, f64 and integers are read";
            return refuse(format!("elements of type {}; {why}, use .astype('float32')", header.descr));
        }
    };
    Ok((number, order == '>'))
}

fn of_npy(shown: String, mut file: File, at: u64) -> Result<Source> {
    let len = file.metadata().map_err(|e| Error::io(&shown, &e))?.len().saturating_sub(at);
    // Headers of version 1.0 are at most this long; longer ones describe structured arrays.
    let mut head = Vec::new();
    let got = file.seek(SeekFrom::Start(at)).and_then(|_| (&file).take(1 << 16 | 16).read_to_end(&mut head));
    got.map_err(|e| Error::io(&shown, &e))?;
    let header = npy::parse(&head).map_err(|why| damaged(&shown, why))?;
    let (number, big_endian) = element(&shown, &header)?;
    complete(&shown, &header, number, len)?;
    let content = Content::File(RefCell::new(file), at + header.start as u64);
    Ok(Source { shown, shape: header.shape, number, big_endian, content })
}

fn complete(shown: &str, header: &npy::Header, number: Number, len: u64) -> Result<()> {
    let wanted = header.bytes(number.width()).map(|b| b as u64 + header.start as u64);
    match wanted.is_some_and(|w| w <= len) {
        true => Ok(()),
        false => {
            let rest = len.saturating_sub(header.start as u64);
            Err(damaged(shown, format!("truncated: shape {:?}, and {rest} bytes follow", header.shape)))
        }
    }
}

fn of_npz(path: &Path, file: File, name: Option<&str>, room: u64) -> Result<Source> {
    let shown = path.display().to_string();
    let broken = |e: zip::result::ZipError| damaged(&shown, format!("a truncated or damaged zip archive ({e})"));
    let again = file.try_clone().map_err(|e| Error::io(path, &e))?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let all = archive.file_names().map(|n| n.map(|n| n.into_owned())).collect::<Result<Vec<_>, _>>().map_err(broken)?;
    let arrays: Vec<&str> = all.iter().filter_map(|n| n.strip_suffix(".npy")).collect();
    let name = choose(&shown, &arrays, name)?;
    let member = archive.by_name(&format!("{name}.npy")).map_err(broken)?;
    let shown = format!("{shown}:{name}");
    if let (zip::CompressionMethod::Stored, Some(start)) = (member.compression(), member.data_start()) {
        return of_npy(shown, again, start);
    }
    let bytes = member.size();
    if bytes > room {
        return Err(Error::Config {
            key: "--mem".into(),
            why: format!(
                "{shown} is compressed, so all its {} would have to be held in memory; save it with numpy.savez \
                 (without compression), which is read by rows",
                human_bytes(bytes as usize)
            ),
        });
    }
    let mut content = Vec::new();
    member.take(bytes).read_to_end(&mut content).map_err(|e| damaged(&shown, format!("damaged ({e})")))?;
    let header = npy::parse(&content).map_err(|why| damaged(&shown, why))?;
    let (number, big_endian) = element(&shown, &header)?;
    complete(&shown, &header, number, content.len() as u64)?;
    content.drain(..header.start);
    Ok(Source { shown, shape: header.shape, number, big_endian, content: Content::Memory(content) })
}

fn of_safetensors(path: &Path, mut file: File, name: Option<&str>) -> Result<Source> {
    #[derive(serde::Deserialize)]
    struct Entry {
        dtype: String,
        shape: Vec<usize>,
        data_offsets: [u64; 2],
    }
    let shown = path.display().to_string();
    let io = |e: std::io::Error| Error::io(path, &e);
    let len = file.metadata().map_err(io)?.len();
    let mut word = [0; 8];
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut word)).map_err(io)?;
    let header = u64::from_le_bytes(word);
    // The format's own limit on headers is 100 MB.
    if header > len.saturating_sub(8).min(100 << 20) {
        return Err(damaged(&shown, "truncated in its header, or no safetensors file"));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(io)?;
    let all: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&text).map_err(|e| damaged(&shown, format!("a damaged header ({e})")))?;
    let arrays: Vec<&str> = all.keys().map(String::as_str).filter(|k| *k != "__metadata__").collect();
    let name = choose(&shown, &arrays, name)?;
    let shown = format!("{shown}:{name}");
    let entry = all.get(name).cloned().unwrap_or_default();
    let entry: Entry = serde_json::from_value(entry).map_err(|e| damaged(&shown, format!("a damaged header ({e})")))?;
    let number = match entry.dtype.as_str() {
        "F16" => Number::F16,
        "BF16" => Number::Bf16,
        "F32" => Number::F32,
        "F64" => Number::F64,
        "I8" => Number::Signed(1),
        "I16" => Number::Signed(2),
        "I32" => Number::Signed(4),
        "I64" => Number::Signed(8),
        "U8" => Number::Unsigned(1),
        "U16" => Number::Unsigned(2),
        "U32" => Number::Unsigned(4),
        "U64" => Number::Unsigned(8),
        other => {
            let why = format!("elements of type {other}; only F16, BF16, F32, F64 and integers are read");
            return Err(Error::Data { path: shown, why });
        }
    };
    let bytes = entry.shape.iter().try_fold(number.width() as u64, |a, s| a.checked_mul(*s as u64));
    let [from, to] = entry.data_offsets;
    if to.checked_sub(from).is_none_or(|b| Some(b) != bytes) || to > len - 8 - header {
        return Err(damaged(&shown, format!("truncated: shape {:?}, in bytes {from} to {to}", entry.shape)));
    }
    let content = Content::File(RefCell::new(file), 8 + header + from);
    Ok(Source { shown, shape: entry.shape, number, big_endian: false, content })
}

/// The array that was named, or the only one.
fn choose<'a>(file: &str, arrays: &[&'a str], name: Option<&str>) -> Result<&'a str> {
    let all = || arrays.join(", ");
    let refuse = |why: String| Err(Error::Data { path: file.into(), why });
    match (arrays, name) {
        (all, Some(name)) if all.contains(&name) => Ok(all.iter().find(|a| **a == name).copied().unwrap_or_default()),
        (_, Some(name)) => refuse(format!("no array `{name}` in it; it has {}", all())),
        ([one], None) => Ok(one),
        ([], None) => refuse(format!("no array in it; {SAVE_AGAIN}")),
        _ => refuse(format!("holds {}; say which, for instance {file}:{}", all(), arrays[0])),
    }
}
