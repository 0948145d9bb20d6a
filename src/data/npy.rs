//! The user's own arrays: an `.npz`, or a folder of `.npy` files, with `x_train` (u8, N×H×W×C or N×H×W) and `y_train`
//! (integers, N), and either `x_test` and `y_test` or a fifth of every class held out.

use std::path::Path;

use super::archive::{self, Member};
use super::{Dataset, Images, Spec, folder, hold_out};
use crate::arrays::npy;
use crate::error::{Error, Result};

const REMEDY: &str = "save it again with numpy.save or numpy.savez";

/// Read the arrays at `path`.
pub fn load(path: &Path) -> Result<Dataset> {
    let path = &path.canonicalize().map_err(|e| Error::io(path, &e))?;
    let known = ["x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"];
    let members = archive::read(path, REMEDY, |name| known.contains(&name))?;
    let find = |name: &str| members.iter().find(|m| m.name == name);
    let need = |name: &str| {
        find(name).ok_or_else(|| Error::Data {
            path: path.display().to_string(),
            why: format!("no array `{name}` in it; wanted x_train and y_train, and perhaps x_test and y_test"),
        })
    };
    let mut train = split(need("x_train.npy")?, need("y_train.npy")?)?;
    let test = match find("x_test.npy") {
        Some(x) => Some(split(x, need("y_test.npy")?)?),
        None => None,
    };
    let classes = train.labels.iter().max().map_or(0, |l| *l as usize + 1);
    let refuse = |name: &str, why: String| Error::Data { path: format!("{}/{name}", path.display()), why };
    // Checked by counting at most as many classes as there are images: a label of four billion must not be believed.
    let counts = train.histogram(classes.min(train.n));
    if let Some(hole) = counts.iter().position(|n| *n == 0).or((classes > train.n).then_some(train.n)) {
        let why = format!("labels up to {}, but no image of class {hole}; number the classes from 0", classes - 1);
        return Err(refuse("y_train.npy", why));
    }
    let test = match test {
        Some(test) => test,
        None => {
            let (pool, held) = hold_out(&train.labels);
            let all = train;
            train = all.pick(&pool);
            all.pick(&held)
        }
    };
    if classes < 2 || test.n == 0 {
        return Err(refuse("y_train.npy", format!("{classes} classes and {} test images are too few", test.n)));
    }
    if (train.h, train.w, train.c) != (test.h, test.w, test.c) {
        let size = |i: &Images| format!("{}x{}x{}", i.h, i.w, i.c);
        let why = format!("images of {}, but x_train has {}; all must have one size", size(&test), size(&train));
        return Err(refuse("x_test.npy", why));
    }
    if let Some(i) = test.labels.iter().position(|l| *l as usize >= classes) {
        let (label, top) = (test.labels[i], classes - 1);
        return Err(refuse(
            "y_test.npy",
            format!("label {label} of example {i} is out of range: y_train has 0 to {top}"),
        ));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let id = format!("npy-{}", folder::file_safe(&name));
    let spec = Spec::of_own(id, "your own arrays", classes, &train, &test);
    Ok(Dataset::new(&spec, train, test))
}

fn split(images: &Member, labels: &Member) -> Result<Images> {
    let refuse = |m: &Member, why: String| Error::Data { path: m.shown.clone(), why };
    let x = parse(&images.bytes).map_err(|why| refuse(images, format!("{why}; {REMEDY}")))?;
    let y = parse(&labels.bytes).map_err(|why| refuse(labels, format!("{why}; {REMEDY}")))?;
    let ([n, h, w, c], 'u', 1) = (
        match *x.shape.as_slice() {
            [n, h, w] => [n, h, w, 1],
            [n, h, w, c] if (1..=4).contains(&c) => [n, h, w, c],
            _ => {
                return Err(refuse(
                    images,
                    format!("shape {:?}; wanted (N, H, W) or (N, H, W, C), C up to 4", x.shape),
                ));
            }
        },
        x.kind,
        x.width,
    ) else {
        return Err(refuse(images, "pixels are not of type uint8; convert them, from 0 to 255".into()));
    };
    if n == 0 || h == 0 || w == 0 {
        return Err(refuse(images, format!("shape {:?} has no pixels", x.shape)));
    }
    if !matches!(y.kind, 'u' | 'i') || !matches!(*y.shape.as_slice(), [_] | [_, 1]) {
        return Err(refuse(labels, "wanted one integer per image".into()));
    }
    if y.shape[0] != n {
        return Err(refuse(labels, format!("{} labels for the {n} images of {}", y.shape[0], images.shown)));
    }
    let number = |(i, bytes): (usize, &[u8])| {
        let value = bytes.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        // Negative ones have their highest bit set, and are as far out of range as any number above u32.
        let negative = y.kind == 'i' && bytes.last().is_some_and(|b| b & 0x80 != 0);
        u32::try_from(value).ok().filter(|v| !negative && *v < u32::MAX).ok_or_else(|| {
            refuse(labels, format!("the label of example {i} is out of range; number the classes from 0"))
        })
    };
    let labels = y.content.chunks_exact(y.width).enumerate().map(number).collect::<Result<Vec<_>>>()?;
    Ok(Images { n, h, w, c, pixels: x.content.to_vec(), labels })
}

struct Array<'a> {
    shape: Vec<usize>,
    /// `u` or `i`, or what else numpy calls its types.
    kind: char,
    /// Bytes per element.
    width: usize,
    content: &'a [u8],
}

/// An array whose elements follow its header exactly.
fn parse(bytes: &[u8]) -> Result<Array<'_>, String> {
    let header = npy::parse(bytes)?;
    let (content, descr, shape) = (bytes.get(header.start..).unwrap_or_default(), &header.descr, &header.shape);
    let (order, kind, width) = header.element();
    let width = width.filter(|w| *w <= 8 && (*w == 1 || order == '<'));
    let width = width.ok_or_else(|| format!("elements of type {descr} are not read"))?;
    if header.fortran {
        return Err("in column-major order; use numpy.ascontiguousarray".into());
    }
    let wanted = header.bytes(width);
    if wanted != Some(content.len()) {
        let kind = if wanted.is_none_or(|w| w > content.len()) { "truncated" } else { "too long" };
        return Err(format!("{kind}: shape {shape:?} of type {descr}, and {} bytes follow", content.len()));
    }
    Ok(Array { shape: header.shape, kind, width, content })
}
