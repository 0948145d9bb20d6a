//! MNIST: four IDX files, gzipped or not.
//!
//! IDX is big-endian: u32 magic (0x00000803 for images, 0x00000801 for labels), u32 per dimension, u8 payload.

use std::borrow::Cow;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::{Augment, Budgets, DataDir, Dataset, Flip, Images, Model, RemoteFile, Spec, Sum, Verify, hex, remedy};
use crate::error::{Error, Result};

/// The description of the data set.
pub static SPEC: Spec = Spec {
    id: Cow::Borrowed("mnist"),
    paper_name: Cow::Borrowed("MNIST"),
    about: "handwritten digits; `dalcore data fetch mnist` downloads 11 MiB",
    classes: 10,
    h: 28,
    w: 28,
    c: 1,
    train_len: 60_000,
    test_len: 10_000,
    mean: Cow::Borrowed(&[0.1307]),
    std: Cow::Borrowed(&[0.3081]),
    clean: Augment { crop_pad: 2, flip: Flip::Never },
    repro: Augment { crop_pad: 0, flip: Flip::Half },
    batch_train: 128,
    batch_test: 1024,
    model: Model::LeNet,
    budgets: Budgets { start: 2, query: 2, end: 20 },
    epochs: 50,
    milestones: &[20, 40],
};

/// The official files: training images and labels, test images and labels.
pub static FILES: [RemoteFile; 4] = [
    RemoteFile {
        name: "train-images-idx3-ubyte.gz",
        len: 9_912_422,
        sum: Sum::Sha256("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        raw_sha256: Some("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        also: &["train-images-idx3-ubyte"],
    },
    RemoteFile {
        name: "train-labels-idx1-ubyte.gz",
        len: 28_881,
        sum: Sum::Sha256("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        raw_sha256: Some("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        also: &["train-labels-idx1-ubyte"],
    },
    RemoteFile {
        name: "t10k-images-idx3-ubyte.gz",
        len: 1_648_877,
        sum: Sum::Sha256("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        raw_sha256: Some("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        also: &["t10k-images-idx3-ubyte"],
    },
    RemoteFile {
        name: "t10k-labels-idx1-ubyte.gz",
        len: 4_542,
        sum: Sum::Sha256("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        raw_sha256: Some("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
        also: &["t10k-labels-idx1-ubyte"],
    },
];

/// Where the official files can be had; identical bytes everywhere, and each is checked.
pub static MIRRORS: [&str; 3] = [
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
];

/// Read MNIST, or with [`Verify::ShapeOnly`] any four IDX files of these names.
pub fn load(dir: &DataDir, verify: Verify) -> Result<Dataset> {
    let [train_images, train_labels, test_images, test_labels] = &FILES;
    let train = load_split(dir, train_images, train_labels, verify)?;
    let test = load_split(dir, test_images, test_labels, verify)?;
    if (train.h, train.w) != (test.h, test.w) {
        return Err(Error::Data {
            path: dir.path.display().to_string(),
            why: format!(
                "training images are {}x{} but test images {}x{}: these files do not belong together",
                train.h, train.w, test.h, test.w
            ),
        });
    }
    Ok(Dataset::new(&SPEC, train, test))
}

fn load_split(dir: &DataDir, images: &RemoteFile, labels: &RemoteFile, verify: Verify) -> Result<Images> {
    let (image_path, image_bytes) = read(dir, &SPEC.id, images, verify)?;
    let (label_path, label_bytes) = read(dir, &SPEC.id, labels, verify)?;
    let ([n, h, w], pixels) = parse_idx::<3>(&image_bytes, &image_path)?;
    let ([m], label_bytes) = parse_idx::<1>(&label_bytes, &label_path)?;
    if n != m {
        return Err(Error::Data {
            path: label_path,
            why: format!("{m} labels for the {n} images of {image_path}: these files do not belong together"),
        });
    }
    if let Some((i, label)) = label_bytes.iter().enumerate().find(|(_, l)| usize::from(**l) >= SPEC.classes) {
        let top = SPEC.classes - 1;
        return Err(Error::Data {
            path: label_path,
            why: format!("label {label} of example {i} is out of range: wanted 0 to {top}; the file is damaged"),
        });
    }
    Ok(Images { n, h, w, c: 1, pixels: pixels.to_vec(), labels: label_bytes.iter().map(|&l| l.into()).collect() })
}

/// Find a file, decompress it if it is gzipped, and check it. Gives its path, for messages, and its content.
pub(super) fn read(dir: &DataDir, id: &str, file: &RemoteFile, verify: Verify) -> Result<(String, Vec<u8>)> {
    let path = dir.require(id, file)?;
    let shown = path.display().to_string();
    let remedy = remedy(id);
    let content = decompress(&path, &remedy)?;
    if let (Verify::Official, Some(wanted)) = (verify, file.raw_sha256) {
        let sum = hex(&Sha256::digest(&content));
        if sum != wanted {
            // The format says more about what happened than the sum can.
            check_size(&content, file, &shown, &remedy)?;
            return Err(Error::Data {
                path: shown,
                why: format!(
                    "not the official file: the sha-256 of its uncompressed content is {sum}, wanted {wanted}; {remedy}"
                ),
            });
        }
    }
    Ok((shown, content))
}

fn check_size(content: &[u8], file: &RemoteFile, shown: &str, remedy: &str) -> Result<()> {
    // A wrong magic, a truncated payload and trailing bytes are named by the parser; a consistent file of
    // another size is left to the checksum.
    let parsed = if file.name.contains("idx3") {
        parse_idx::<3>(content, shown).map(|_| ())
    } else {
        parse_idx::<1>(content, shown).map(|_| ())
    };
    parsed.map_err(|e| match e {
        Error::Data { path, why } => Error::Data { path, why: format!("{why}; {remedy}") },
        other => other,
    })
}

/// The content of a file, decompressed if it starts with the gzip magic, whatever its name.
fn decompress(path: &Path, remedy: &str) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        if path.extension().is_some_and(|e| e == "gz") {
            return Err(Error::Data {
                path: path.display().to_string(),
                why: format!("not a gzip file although its name says so ({} bytes); {remedy}", bytes.len()),
            });
        }
        return Ok(bytes);
    }
    let mut content = Vec::with_capacity(bytes.len().saturating_mul(4));
    // A small archive can expand without end; nothing we read is near this large.
    const LIMIT: u64 = 1 << 30;
    let outcome = MultiGzDecoder::new(bytes.as_slice()).take(LIMIT + 1).read_to_end(&mut content);
    let why = match outcome {
        Ok(_) if content.len() as u64 <= LIMIT => return Ok(content),
        Ok(_) => format!("expands to more than {} MiB", LIMIT >> 20),
        Err(e) => format!("corrupt or truncated gzip data after {} bytes of content ({e})", content.len()),
    };
    Err(Error::Data { path: path.display().to_string(), why: format!("{why}; {remedy}") })
}

/// Parse an IDX file of u8 with `D` dimensions: its sizes and its payload. `path` is for messages.
pub fn parse_idx<'a, const D: usize>(bytes: &'a [u8], path: &str) -> Result<([usize; D], &'a [u8])> {
    let refuse = |why: String| Error::Data { path: path.into(), why };
    let header = 4 + 4 * D;
    let Some((head, payload)) = bytes.split_at_checked(header) else {
        let len = bytes.len();
        return Err(refuse(format!("truncated: {len} bytes are fewer than the {header} of the IDX header")));
    };
    let mut words = head.chunks_exact(4).map(|b| b.iter().fold(0u32, |v, &b| v << 8 | u32::from(b)));
    let (found, wanted) = (words.next().unwrap_or(0), 0x0800 | D as u32);
    if found != wanted {
        let kind = |magic| match magic {
            0x0803 => " (images)",
            0x0801 => " (labels)",
            _ => "",
        };
        return Err(refuse(format!(
            "wrong magic number: wanted {wanted:#010x}{}, found {found:#010x}{}; this is not the file its name says",
            kind(wanted),
            kind(found)
        )));
    }
    let mut sizes = [0; D];
    for (size, word) in sizes.iter_mut().zip(words) {
        *size = word as usize;
    }
    let shape = sizes.map(|s| s.to_string()).join("x");
    let len = sizes
        .iter()
        .try_fold(1usize, |a, &s| a.checked_mul(s))
        .ok_or_else(|| refuse(format!("the header claims {shape} bytes, more than can be addressed")))?;
    match payload.len() {
        got if got < len => Err(refuse(format!("truncated: the header claims {shape} = {len} bytes, {got} follow"))),
        got if got > len => {
            Err(refuse(format!("{} trailing bytes: the header claims {shape} = {len} bytes, {got} follow", got - len)))
        }
        _ => Ok((sizes, payload)),
    }
}
