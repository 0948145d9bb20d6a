//! Matrices to files row by row: `.npy` files, or one `.safetensors` file.
//!
//! Sizes are known beforehand, so headers are written first and every row has its place. Files are written under
//! another name and renamed when they are whole: after a kill or on a full disk there is no half file under the name
//! that was asked for.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::npy;
use crate::error::{Error, Result};

/// Element types of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 32-bit float.
    F32,
    /// 32-bit unsigned integer.
    U32,
}

impl Kind {
    fn npy(self) -> &'static str {
        match self {
            Kind::F32 => "<f4",
            Kind::U32 => "<u4",
        }
    }

    fn safetensors(self) -> &'static str {
        match self {
            Kind::F32 => "F32",
            Kind::U32 => "U32",
        }
    }
}

/// An array to be written: its name, element type and sizes, the first of which counts rows.
#[derive(Clone, Debug)]
pub struct Array {
    /// Name of the tensor, or of the file without its ending.
    pub name: &'static str,
    /// Element type; four bytes each.
    pub kind: Kind,
    /// (N, …)
    pub shape: Vec<usize>,
}

impl Array {
    /// Bytes of a row.
    fn row(&self) -> u64 {
        4 * self.shape.iter().skip(1).product::<usize>() as u64
    }

    fn bytes(&self) -> u64 {
        4 * self.shape.iter().product::<usize>() as u64
    }
}

/// One file on its way.
struct Half {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Half {
    fn create(path: PathBuf, header: &[u8]) -> Result<Half> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.tmp"));
        let mut file = File::create(&temporary).map_err(|e| Error::io(&temporary, &e))?;
        file.write_all(header).map_err(|e| Error::io(&temporary, &e))?;
        Ok(Half { file, temporary, path })
    }
}

/// Arrays on their way to disk. Dropped before [`Sink::finish`], it leaves nothing behind.
pub struct Sink {
    arrays: Vec<Array>,
    /// File and place of each array's first row.
    places: Vec<(usize, u64)>,
    files: Vec<Half>,
}

impl Sink {
    /// `NAME.npy` for each array in `folder`, which is made.
    pub fn npy(folder: &Path, arrays: Vec<Array>) -> Result<Sink> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
        let mut sink = Sink { arrays, places: Vec::new(), files: Vec::new() };
        for i in 0..sink.arrays.len() {
            let array = &sink.arrays[i];
            let header = npy::header(&format!("'{}'", array.kind.npy()), &array.shape);
            sink.places.push((i, header.len() as u64));
            sink.files.push(Half::create(folder.join(format!("{}.npy", sink.arrays[i].name)), &header)?);
        }
        Ok(sink)
    }

    /// All arrays in one file, whose folder is made.
    pub fn safetensors(path: &Path, arrays: Vec<Array>) -> Result<Sink> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
        let header = safetensors_header(&arrays);
        let mut at = header.len() as u64;
        let mut places = Vec::new();
        for a in &arrays {
            places.push((0, at));
            at += a.bytes();
        }
        Ok(Sink { arrays, places, files: vec![Half::create(path.to_path_buf(), &header)?] })
    }

    /// Writes rows of array number `array` from row `row` on.
    pub fn write<T: bytemuck::Pod>(&mut self, array: usize, row: usize, values: &[T]) -> Result<()> {
        let (file, start) = self.places[array];
        let at = start + row as u64 * self.arrays[array].row();
        let half = &mut self.files[file];
        let put = |f: &mut File| {
            f.seek(SeekFrom::Start(at))?;
            f.write_all(bytemuck::cast_slice(values))
        };
        put(&mut half.file).map_err(|e| Error::io(&half.temporary, &e))
    }

    /// Makes the files permanent under their names, which are returned.
    pub fn finish(mut self) -> Result<Vec<PathBuf>> {
        for half in &self.files {
            half.file.sync_all().map_err(|e| Error::io(&half.temporary, &e))?;
        }
        let mut paths = Vec::new();
        for half in &mut self.files {
            fs::rename(&half.temporary, &half.path).map_err(|e| Error::io(&half.path, &e))?;
            paths.push(half.path.clone());
        }
        self.files.clear();
        Ok(paths)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        for half in &self.files {
            let _ = fs::remove_file(&half.temporary);
        }
    }
}

/// The length in eight bytes, then the JSON of names, types and places, padded to eight bytes.
fn safetensors_header(arrays: &[Array]) -> Vec<u8> {
    let mut at = 0;
    let mut all = serde_json::Map::new();
    for a in arrays {
        let end = at + a.bytes();
        let entry = serde_json::json!({ "dtype": a.kind.safetensors(), "shape": a.shape, "data_offsets": [at, end] });
        all.insert(a.name.to_string(), entry);
        at = end;
    }
    let mut json = serde_json::Value::Object(all).to_string();
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrays() -> Vec<Array> {
        vec![
            Array { name: "x", kind: Kind::F32, shape: vec![3, 2] },
            Array { name: "ids", kind: Kind::U32, shape: vec![3] },
        ]
    }

    fn fill(sink: &mut Sink) -> Result<()> {
        // Not in order: rows have their places.
        sink.write(0, 1, &[3.0f32, 4.0, 5.0, 6.0])?;
        sink.write(1, 0, &[7u32, 8, 9])?;
        sink.write(0, 0, &[1.0f32, 2.0])
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("dalcore-arrays-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn rows_find_their_places() {
        let dir = scratch("rows");
        let mut sink = Sink::safetensors(&dir.join("new/all.safetensors"), arrays()).unwrap();
        fill(&mut sink).unwrap();
        assert!(!dir.join("new/all.safetensors").exists(), "not before it is whole");
        let bytes = fs::read(&sink.finish().unwrap()[0]).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let x: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!((file.tensor("x").unwrap().data(), file.tensor("x").unwrap().shape()), (&x[..], &[3, 2][..]));
        assert_eq!(file.tensor("ids").unwrap().shape(), [3]);

        let mut sink = Sink::npy(&dir, arrays()).unwrap();
        fill(&mut sink).unwrap();
        sink.finish().unwrap();
        let bytes = fs::read(dir.join("x.npy")).unwrap();
        assert_eq!((&bytes[..8], bytes.len(), &bytes[128..]), (&b"\x93NUMPY\x01\x00"[..], 128 + 24, &x[..]));
        assert_eq!(&bytes[10..69], b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }");
        assert_eq!(bytes[127], b'\n');
        assert!(
            fs::read(dir.join("ids.npy")).unwrap()[10..]
                .starts_with(b"{'descr': '<u4', 'fortran_order': False, 'shape': (3,), }")
        );
        fs::remove_dir_all(dir).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_the_old_file_and_nothing_else() {
        let dir = scratch("full");
        fs::write(dir.join("all.safetensors"), "old").unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.join(".all.safetensors.tmp")).unwrap();
        let e = Sink::safetensors(&dir.join("all.safetensors"), arrays()).map(drop).unwrap_err().to_string();
        assert!(e.contains("free some space"), "{e}");
        let mut sink = Sink::npy(&dir, arrays()).unwrap();
        fill(&mut sink).unwrap();
        drop(sink); // an error or Ctrl-C
        let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|n| !n.to_string_lossy().ends_with(".npy")), "{left:?}");
        assert!(left.iter().all(|n| !n.to_string_lossy().ends_with(".npy.tmp")), "{left:?}");
        assert_eq!(fs::read(dir.join("all.safetensors")).unwrap(), b"old");
        fs::remove_dir_all(dir).unwrap();
    }
}
