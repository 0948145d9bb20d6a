//! CIFAR-10 and CIFAR-100: the binary or the Python archive, packed or unpacked.
//!
//! Binary: records of a label byte (CIFAR-100: coarse, then fine; the fine one is used) and 1,024 bytes each of red,
//! green and blue. Python: a pickled dictionary per file with the same bytes as an array `data`.

use std::borrow::Cow;

use super::{Augment, Budgets, DataDir, Dataset, Flip, Images, Model, RemoteFile, Spec, Sum, Verify};
use super::{archive, cache, pickle, remedy};
use crate::error::{Error, Result};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

const fn spec(id: &'static str, paper_name: &'static str, about: &'static str, classes: usize) -> Spec {
    let augment = Augment { crop_pad: 4, flip: Flip::Half };
    Spec {
        id: Cow::Borrowed(id),
        paper_name: Cow::Borrowed(paper_name),
        about,
        classes,
        h: SIDE,
        w: SIDE,
        c: 3,
        train_len: 50_000,
        test_len: 10_000,
        mean: Cow::Borrowed(if classes == 10 { &[0.4914, 0.4822, 0.4465] } else { &[0.5071, 0.4867, 0.4408] }),
        std: Cow::Borrowed(if classes == 10 { &[0.2470, 0.2435, 0.2616] } else { &[0.2675, 0.2565, 0.2761] }),
        clean: augment,
        repro: augment,
        batch_train: 256,
        batch_test: 512,
        model: Model::RESNET18,
        budgets: Budgets { start: 10, query: 5, end: 70 },
        epochs: 150,
        milestones: &[80, 120],
    }
}

/// The description of CIFAR-10.
pub static CIFAR10: Spec =
    spec("cifar10", "CIFAR-10", "photos of ten kinds of things; `dalcore data fetch cifar10` downloads 162 MiB", 10);
/// The description of CIFAR-100.
pub static CIFAR100: Spec = spec(
    "cifar100",
    "CIFAR-100",
    "photos of 100 kinds of things; `dalcore data fetch cifar100` downloads 161 MiB",
    100,
);

/// What is downloaded for CIFAR-10.
pub static FILES10: [RemoteFile; 1] = [RemoteFile {
    name: "cifar-10-binary.tar.gz",
    len: 170_052_171,
    sum: Sum::Sha256("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    raw_sha256: None,
    also: &["cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-batches-py"],
}];

/// What is downloaded for CIFAR-100.
pub static FILES100: [RemoteFile; 1] = [RemoteFile {
    name: "cifar-100-binary.tar.gz",
    len: 168_513_733,
    sum: Sum::Sha256("58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    raw_sha256: None,
    also: &["cifar-100-binary", "cifar-100-python.tar.gz", "cifar-100-python"],
}];

/// The home of both. No other place with the same bytes is known to us; `--mirror` takes one.
pub static MIRRORS: [&str; 2] = ["https://www.cs.toronto.edu/~kriz/", "http://www.cs.toronto.edu/~kriz/"];

/// The files of one format, each with the checksum of its content: that of an archive would say less, since an
/// unpacked folder has none.
struct Format {
    train: &'static [(&'static str, Sum)],
    test: (&'static str, Sum),
}

struct Layout {
    spec: &'static Spec,
    file: &'static RemoteFile,
    binary: Format,
    python: Format,
    /// Label bytes of a binary record; the last one counts.
    labels: usize,
    /// Where the Python format has the labels.
    key: &'static str,
}

static LAYOUT10: Layout = Layout {
    spec: &CIFAR10,
    file: &FILES10[0],
    binary: Format {
        train: &[
            ("data_batch_1.bin", Sum::Sha256("cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5")),
            ("data_batch_2.bin", Sum::Sha256("a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed")),
            ("data_batch_3.bin", Sum::Sha256("bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67")),
            ("data_batch_4.bin", Sum::Sha256("014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48")),
            ("data_batch_5.bin", Sum::Sha256("755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add")),
        ],
        test: ("test_batch.bin", Sum::Sha256("8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b")),
    },
    python: Format {
        train: &[
            ("data_batch_1", Sum::Md5("c99cafc152244af753f735de768cd75f")),
            ("data_batch_2", Sum::Md5("d4bba439e000b95fd0a9bffe97cbabec")),
            ("data_batch_3", Sum::Md5("54ebc095f3ab1f0389bbae665268c751")),
            ("data_batch_4", Sum::Md5("634d18415352ddfa80567beed471001a")),
            ("data_batch_5", Sum::Md5("482c414d41f54cd18b22e5b47cb7c3cb")),
        ],
        test: ("test_batch", Sum::Md5("40351d587109b95175f43aff81a1287e")),
    },
    labels: 1,
    key: "labels",
};

static LAYOUT100: Layout = Layout {
    spec: &CIFAR100,
    file: &FILES100[0],
    binary: Format {
        train: &[("train.bin", Sum::Sha256("f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"))],
        test: ("test.bin", Sum::Sha256("d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a")),
    },
    python: Format {
        train: &[("train", Sum::Md5("16019d7e3df5f24257cddd939b257f8d"))],
        test: ("test", Sum::Md5("f0ef6b0ae62326f3e7ffdfab6717acfc")),
    },
    labels: 2,
    key: "fine_labels",
};

/// Read CIFAR-10, or with [`Verify::ShapeOnly`] any archive of its layout.
pub fn load10(dir: &DataDir, verify: Verify) -> Result<Dataset> {
    load(&LAYOUT10, dir, verify)
}

/// Read CIFAR-100, or with [`Verify::ShapeOnly`] any archive of its layout.
pub fn load100(dir: &DataDir, verify: Verify) -> Result<Dataset> {
    load(&LAYOUT100, dir, verify)
}

fn load(layout: &Layout, dir: &DataDir, verify: Verify) -> Result<Dataset> {
    let id = &layout.spec.id;
    let path = dir.require(id, layout.file)?;
    let decode = || {
        let python = path.file_name().is_some_and(|n| n.to_string_lossy().contains("-py") || n == "cifar-100-python");
        let format = if python { &layout.python } else { &layout.binary };
        let base = |name: &str| name.rsplit('/').next().unwrap_or_default().to_string();
        let all = || format.train.iter().chain([&format.test]);
        let members = archive::read(&path, &remedy(id), |name| all().any(|(wanted, _)| *wanted == base(name)))?;
        let split = |files: &[(&str, Sum)]| {
            let mut images = Images { n: 0, h: SIDE, w: SIDE, c: 3, pixels: Vec::new(), labels: Vec::new() };
            for (name, sum) in files {
                let member = members.iter().find(|m| base(&m.name) == *name).ok_or_else(|| Error::Data {
                    path: path.display().to_string(),
                    why: format!("`{name}` is missing in it; {}", remedy(id)),
                })?;
                let refuse =
                    |why: String| Error::Data { path: member.shown.clone(), why: format!("{why}; {}", remedy(id)) };
                if verify == Verify::Official {
                    let verdict = sum.check(&member.bytes[..]).map_err(|e| Error::io(&path, &e))?;
                    verdict.map_err(|sums| refuse(format!("not the official file: {sums}")))?;
                }
                if python {
                    from_pickle(&member.bytes, layout, &mut images).map_err(refuse)?;
                } else {
                    from_records(&member.bytes, layout, &mut images).map_err(refuse)?;
                }
            }
            images.n = images.labels.len();
            Ok(images)
        };
        Ok((split(format.train)?, split(&[format.test])?))
    };
    cache::through(dir, id, std::slice::from_ref(&path), &format!("{verify:?}"), decode, |_, _| layout.spec.clone())
}

fn from_records(bytes: &[u8], layout: &Layout, images: &mut Images) -> Result<(), String> {
    let size = layout.labels + 3 * PLANE;
    if !bytes.len().is_multiple_of(size) || bytes.is_empty() {
        return Err(format!("truncated: {} bytes are not a whole number of records of {size}", bytes.len()));
    }
    for (i, record) in bytes.chunks_exact(size).enumerate() {
        let (labels, planes) = record.split_at(layout.labels);
        push(images, i, i64::from(labels[layout.labels - 1]), planes, layout)?;
    }
    Ok(())
}

fn from_pickle(bytes: &[u8], layout: &Layout, images: &mut Images) -> Result<(), String> {
    use pickle::Value;
    let value = pickle::parse(bytes)?;
    let (data, labels) = match (value.get("data"), value.get(layout.key)) {
        (Some(Value::Array(shape, data)), Some(Value::List(labels))) if shape.get(1) == Some(&(3 * PLANE)) => {
            (*data, labels)
        }
        _ => return Err(format!("no dictionary with `data` of n x {} bytes and `{}`", 3 * PLANE, layout.key)),
    };
    let n = data.len() / (3 * PLANE);
    if n != labels.len() {
        return Err(format!("{} labels for {n} images", labels.len()));
    }
    for (i, (label, planes)) in labels.iter().zip(data.chunks_exact(3 * PLANE)).enumerate() {
        let Value::Int(label) = label else { return Err(format!("the label of example {i} is no number")) };
        push(images, i, *label, planes, layout)?;
    }
    Ok(())
}

/// Append one image, from planes to pixels.
fn push(images: &mut Images, i: usize, label: i64, planes: &[u8], layout: &Layout) -> Result<(), String> {
    let top = layout.spec.classes - 1;
    let label = u32::try_from(label).ok().filter(|l| *l as usize <= top);
    images.labels.push(label.ok_or_else(|| format!("the label of example {i} is out of range: wanted 0 to {top}"))?);
    images.pixels.extend((0..PLANE).flat_map(|p| [planes[p], planes[PLANE + p], planes[2 * PLANE + p]]));
    Ok(())
}
