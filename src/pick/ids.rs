//! Row numbers and names, from the files people have.

use std::path::Path;

use crate::arrays::Source;
use crate::csv;
use crate::{Error, Result};

/// Names of the items, by row.
pub struct Names(Vec<String>);

fn refuse(path: &Path, why: String) -> Error {
    Error::Data { path: path.display().to_string(), why }
}

pub(crate) fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    String::from_utf8(bytes).map_err(|_| refuse(path, "not UTF-8 text".into()))
}

fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// The column of this name, or the only one; and the records below the head. A head is a first line that has the name
/// or, with one column, is no number.
fn column<'a>(path: &Path, records: &'a [csv::Record], name: &str) -> Result<(usize, &'a [csv::Record])> {
    let Some((head, rest)) = records.split_first() else { return Ok((0, records)) };
    match head.cells.iter().position(|c| c.trim().eq_ignore_ascii_case(name)) {
        Some(at) => Ok((at, rest)),
        None if head.cells.len() == 1 => Ok((0, records)),
        None => Err(refuse(path, format!("no column `{name}` in its first line: {}", head.cells.join(", ")))),
    }
}

/// The rows that a file lists, ascending. The ending says how: `.npy` and `.npz` are arrays (N), `.json` is an array of
/// numbers, `.jsonl` has an object with `id` per line, `.csv` a column `id` or a single column; all else is numbers
/// between white space or commas, `#` starting a comment. A number twice or not below `rows` is refused.
pub fn read_ids(name: &str, rows: usize, room: u64) -> Result<Vec<u32>> {
    let path = Path::new(name);
    let wrong = |place: String, value: &str| {
        refuse(path, format!("{place} `{value}` is no row number; rows are numbered from 0 to {}", rows - 1))
    };
    // (where it stands, what stands there)
    let mut found: Vec<(String, i64)> = Vec::new();
    let mut take = |place: String, value: &str| {
        let number = value.trim().parse::<i64>().map_err(|_| wrong(place.clone(), value))?;
        found.push((place, number));
        Ok::<_, Error>(())
    };
    let file = name.rsplit_once(':').filter(|_| !path.exists()).map_or(name, |(file, _)| file);
    match ending(Path::new(file)).as_str() {
        "npy" | "npz" | "safetensors" => {
            let source = Source::open(name, room)?;
            let [n] = source.sizes("N")?;
            if (n as u64).saturating_mul(48) > room {
                return Err(source.refuse(format!("{n} numbers are more than --mem allows")));
            }
            for (at, number) in source.integers()?.into_iter().enumerate() {
                found.push((format!("element {at}:"), number));
            }
        }
        "json" => {
            let bad = |e: serde_json::Error| refuse(path, format!("no array of row numbers ({e})"));
            let all: Vec<serde_json::Number> = serde_json::from_str(&text(path)?).map_err(bad)?;
            for (at, v) in all.iter().enumerate() {
                take(format!("element {at}:"), &v.to_string())?;
            }
        }
        "jsonl" => {
            for (at, line) in text(path)?.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                let bad = |e: serde_json::Error| refuse(path, format!("line {} is no JSON ({e})", at + 1));
                let value: serde_json::Value = serde_json::from_str(line).map_err(bad)?;
                take(format!("line {}: `id`", at + 1), &value["id"].to_string())?;
            }
        }
        "csv" => {
            let records = csv::parse(&text(path)?).map_err(|why| refuse(path, why))?;
            let (at, records) = column(path, &records, "id")?;
            for r in records {
                take(format!("line {}:", r.line), r.cells.get(at).map_or("", String::as_str))?;
            }
        }
        _ => {
            for (at, line) in text(path)?.lines().enumerate() {
                let line = line.split('#').next().unwrap_or_default();
                let numbers = line.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty());
                numbers.into_iter().try_for_each(|w| take(format!("line {}:", at + 1), w))?;
            }
        }
    }
    let mut ids = Vec::with_capacity(found.len());
    for (place, number) in &found {
        let id = u32::try_from(*number).ok().filter(|i| (*i as usize) < rows);
        ids.push(id.ok_or_else(|| wrong(place.clone(), &number.to_string()))?);
    }
    ids.sort_unstable();
    match ids.windows(2).find(|w| w[0] == w[1]) {
        Some(w) => Err(refuse(path, format!("row {} is listed twice", w[0]))),
        None => Ok(ids),
    }
}

impl Names {
    /// One per row of the pool: a `.csv` with a column `name` (and perhaps `id`, which must then count the rows), or a
    /// text with a name per line. None for `rows`: as many as there are.
    pub fn read(path: &Path, rows: Option<usize>) -> Result<Names> {
        let text = text(path)?;
        let names: Vec<String> = match ending(path).as_str() {
            "csv" => {
                let records = csv::parse(&text).map_err(|why| refuse(path, why))?;
                let (at, below) = column(path, &records, "name")?;
                let id = records[..records.len() - below.len()].iter().flat_map(|head| &head.cells);
                let id = id.map(|c| c.trim()).position(|c| c.eq_ignore_ascii_case("id"));
                for (row, r) in below.iter().enumerate() {
                    let number = id.and_then(|id| r.cells.get(id));
                    if number.is_some_and(|n| n.trim() != row.to_string()) {
                        let got = number.map_or("", String::as_str);
                        return Err(refuse(path, format!("line {}: id {got} where row {row} is next", r.line)));
                    }
                }
                below.iter().map(|r| r.cells.get(at).cloned().unwrap_or_default()).collect()
            }
            _ => text.lines().map(str::to_string).collect(),
        };
        match rows.filter(|rows| *rows != names.len()) {
            None => Ok(Names(names)),
            Some(rows) => Err(refuse(path, format!("{} names for {rows} rows; one per row is wanted", names.len()))),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The name of a row.
    pub fn of(&self, row: u32) -> &str {
        self.0.get(row as usize).map_or("", String::as_str)
    }
}
