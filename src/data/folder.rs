//! The user's own images: one folder per class of PNG, JPEG or PPM files.
//!
//! `PATH/<class>/…` gives a pool, and a fifth of every class as test set; `PATH/train/<class>/…` with
//! `PATH/test/<class>/…` (or `val`) gives both. Classes are numbered in alphabetical order.

use std::path::{Path, PathBuf};

use super::{DataDir, Dataset, Images, Spec, archive, cache, hold_out, picture, pool_order};
use crate::error::{Error, Result};

/// `32` or `32x48`: height and width to resize to.
pub fn parse_size(text: &str) -> Result<[usize; 2]> {
    let side = |t: &str| t.parse::<usize>().ok().filter(|s| (1..=1024).contains(s));
    let (h, w) = text.split_once('x').unwrap_or((text, text));
    side(h).zip(side(w)).map(|(h, w)| [h, w]).ok_or_else(|| Error::Config {
        key: "dataset".into(),
        why: format!("`{text}` is not a size; write folder@32:PATH or folder@HxW:PATH with sides from 1 to 1024"),
    })
}

/// Read the images below `path`, resized to `size` if one is given. They are greyscale if every pixel is.
pub fn load(dir: &DataDir, path: &Path, size: Option<[usize; 2]>) -> Result<Dataset> {
    let path = &path.canonicalize().map_err(|e| Error::io(path, &e))?;
    let test = ["test", "val"].map(|n| path.join(n)).into_iter().find(|p| p.is_dir());
    let (root, test) = match test {
        Some(test) if path.join("train").is_dir() => (path.join("train"), Some(test)),
        _ => (path.clone(), None),
    };
    let classes = class_names(&root)?;
    if classes.len() < 2 {
        return Err(Error::Data {
            path: root.display().to_string(),
            why: format!("{} class folders; wanted two or more, each with the images of one class", classes.len()),
        });
    }
    let decode = || {
        let files = files(&root, &classes)?;
        let shape = Shape::of(&files, size, path)?;
        let Some(test) = &test else {
            let all = shape.read(&files)?;
            let (train, test) = hold_out(&all.labels);
            if test.is_empty() {
                let why = "fewer than five images in every class: too few to hold out a fifth as test set; add a \
                           folder `train` and a folder `test`";
                return Err(Error::Data { path: path.display().to_string(), why: why.into() });
            }
            return Ok(grey_if_grey(all.pick(&train), all.pick(&test)));
        };
        if let Some(extra) = class_names(test)?.into_iter().find(|c| !classes.contains(c)) {
            let why = format!("there is no class of this name in {}; both must have the same", root.display());
            return Err(Error::Data { path: test.join(extra).display().to_string(), why });
        }
        let test = self::files(test, &classes)?;
        let train = pool_order(files.len()).into_iter().map(|i| files[i as usize].clone()).collect::<Vec<_>>();
        Ok(grey_if_grey(shape.read(&train)?, shape.read(&test)?))
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let id = format!("folder-{}", file_safe(&name));
    let options = format!("{} {size:?}", path.display());
    let sources = [Some(root.clone()), test.clone()].into_iter().flatten().collect::<Vec<_>>();
    cache::through(dir, &id, &sources, &options, decode, |train, test| {
        Spec::of_own(id.clone(), "your own folder of images", classes.len(), train, test)
    })
}

/// Part of a file name on every system.
pub(super) fn file_safe(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect()
}

fn class_names(root: &Path) -> Result<Vec<String>> {
    let refuse = |e: std::io::Error| Error::io(root, &e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Label and path of every file of every class.
fn files(root: &Path, classes: &[String]) -> Result<Vec<(u32, PathBuf)>> {
    let mut files = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let folder = root.join(class);
        if !folder.is_dir() {
            let why =
                "this class has no folder here, but one among the training images; both must have the same classes";
            return Err(Error::Data { path: folder.display().to_string(), why: why.into() });
        }
        let here = archive::list(&folder)?;
        if here.is_empty() {
            let why = "this class folder is empty; put images into it or remove it";
            return Err(Error::Data { path: folder.display().to_string(), why: why.into() });
        }
        files.extend(here.into_iter().map(|(_, path)| (label as u32, path)));
    }
    Ok(files)
}

fn open(path: &Path) -> Result<picture::Picture> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    picture::decode(&bytes, &path.display().to_string())
}

/// The size every image has, or is given.
struct Shape {
    h: usize,
    w: usize,
    resize: bool,
    first: PathBuf,
    path: PathBuf,
}

impl Shape {
    /// Without a size the first image decides.
    fn of(files: &[(u32, PathBuf)], size: Option<[usize; 2]>, path: &Path) -> Result<Shape> {
        let first = files.first().map(|f| f.1.clone()).unwrap_or_default();
        let [h, w] = match size {
            Some(size) => size,
            None => open(&first).map(|p| [p.h, p.w])?,
        };
        Ok(Shape { h, w, resize: size.is_some(), first, path: path.into() })
    }

    fn read(&self, files: &[(u32, PathBuf)]) -> Result<Images> {
        let (h, w) = (self.h, self.w);
        picture::stack([h, w, 3], files.iter().map(|f| f.0).collect(), |i, place| {
            let path = &files[i].1;
            let mut image = open(path)?;
            if self.resize {
                image = image.resize(h, w);
            }
            if (image.h, image.w) != (h, w) {
                let why = format!(
                    "{}x{} pixels, but {} has {h}x{w}; all must have one size: name the data set folder@{h}x{w}:{} to \
                     resize them",
                    image.h,
                    image.w,
                    self.first.display(),
                    self.path.display()
                );
                return Err(Error::Data { path: path.display().to_string(), why });
            }
            place.copy_from_slice(&image.pixels);
            Ok(())
        })
    }
}

/// One channel is enough if all three are equal everywhere.
fn grey_if_grey(train: Images, test: Images) -> (Images, Images) {
    let grey = |i: &Images| i.pixels.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]);
    if !grey(&train) || !grey(&test) {
        return (train, test);
    }
    let one = |i: Images| Images { c: 1, pixels: i.pixels.iter().step_by(3).copied().collect(), ..i };
    (one(train), one(test))
}
