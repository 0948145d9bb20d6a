//! GTSRB, German traffic signs: PPM images of many sizes, resized to 32×32, with a CSV of labels per class.
//!
//! Two splits: the final one of the paper's text (39,209 / 12,630), and that of the online competition
//! (26,640 / 12,569), a part of it, which the published numbers come from. Training files are
//! `…/000CC/TTTTT_FFFFF.ppm` (class, track, frame) and `…/000CC/GT-000CC.csv`.
//!
//! The paper takes whole images. Cut to the sign's box (region of interest) of the CSV they are data sets of their own, so
//! that no result can be taken for one of the paper's.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use super::archive::{self, Member};
use super::{Augment, Budgets, DataDir, Dataset, Flip, Images, Model, RemoteFile, Spec, Sum, Verify};
use super::{cache, picture, pool_order, remedy};
use crate::error::{Error, Result};

const SIDE: usize = 32;
const CLASSES: usize = 43;

/// What of an image is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of it: the sign and a border of about a tenth around it.
    Whole,
    /// The box around the sign: columns X1 to X2 and rows Y1 to Y2, the second of each excluded, as in PIL.
    Sign,
}

const fn spec(id: &'static str, name: &'static str, about: &'static str, train_len: usize, test_len: usize) -> Spec {
    Spec {
        id: Cow::Borrowed(id),
        paper_name: Cow::Borrowed(name),
        about,
        classes: CLASSES,
        h: SIDE,
        w: SIDE,
        c: 3,
        train_len,
        test_len,
        mean: Cow::Borrowed(&[0.3337, 0.3064, 0.3171]),
        std: Cow::Borrowed(&[0.2672, 0.2564, 0.2629]),
        // A mirrored sign is another sign (keep left, keep right); the published numbers mirror them all the same.
        clean: Augment { crop_pad: 4, flip: Flip::Never },
        repro: Augment { crop_pad: 4, flip: Flip::Half },
        batch_train: 256,
        batch_test: 1024,
        model: Model::RESNET18,
        budgets: Budgets { start: 10, query: 5, end: 70 },
        epochs: 150,
        milestones: &[80, 120],
    }
}

/// The final split.
pub static FINAL: Spec =
    spec("gtsrb", "GTSRB", "traffic signs, final split; `dalcore data fetch gtsrb` downloads 349 MiB", 39_209, 12_630);
/// The split of the online competition.
pub static ONLINE: Spec = spec(
    "gtsrb-online",
    "GTSRB (online)",
    "traffic signs, split of the online competition and of the published logs",
    26_640,
    12_569,
);
/// The final split, cut to the signs.
pub static FINAL_ROI: Spec = spec("gtsrb-roi", "GTSRB (ROI)", "gtsrb, each image cut to its sign", 39_209, 12_630);
/// The split of the online competition, cut to the signs.
pub static ONLINE_ROI: Spec =
    spec("gtsrb-online-roi", "GTSRB (online, ROI)", "gtsrb-online, each image cut to its sign", 26_640, 12_569);

/// Images per class of the final training set, to know a complete one from another.
static FINAL_HISTOGRAM: [usize; CLASSES] = [
    210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780, 630, 420, 1110, 1200, 210,
    360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210, 2070, 300, 360, 240,
    240,
];

/// The final split: training images with labels, test images, test labels.
pub static FINAL_FILES: [RemoteFile; 3] = [
    RemoteFile {
        name: "GTSRB_Final_Training_Images.zip",
        len: 276_294_756,
        // No sha-256 of this file is published anywhere we know.
        sum: Sum::Md5("f33fd80ac59bff73c82d25ab499e03a3"),
        raw_sha256: None,
        also: &["GTSRB"],
    },
    RemoteFile {
        name: "GTSRB_Final_Test_Images.zip",
        len: 88_978_620,
        sum: Sum::Md5("c7e4e6327067d32654124b0fe9e82185"),
        raw_sha256: None,
        also: &["GTSRB"],
    },
    RemoteFile {
        name: "GTSRB_Final_Test_GT.zip",
        len: 99_620,
        sum: Sum::Md5("fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
        raw_sha256: None,
        also: &["GT-final_test.csv", "GTSRB"],
    },
];

/// The split of the online competition.
pub static ONLINE_FILES: [RemoteFile; 2] = [
    RemoteFile {
        name: "GTSRB-Training_fixed.zip",
        len: 187_490_228,
        sum: Sum::Md5("513f3c79a4c5141765e10e952eaa2478"),
        raw_sha256: None,
        also: &["GTSRB"],
    },
    RemoteFile {
        // One source only for this checksum, and none for the size: if the file you get from its home does not agree,
        // the checksum may be at fault; the number of images is checked as well.
        name: "GTSRB_Online-Test-Images-Sorted.zip",
        len: 0,
        sum: Sum::Md5("b7bba7dad2a4dc4bc54d6ba2716d163b"),
        raw_sha256: None,
        also: &["GTSRB"],
    },
];

/// The public archive that the benchmark's own page points to, and that page's older address.
pub static MIRRORS: [&str; 2] =
    ["https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/", "http://benchmark.ini.rub.de/Dataset/"];

/// Read the final split, or with [`Verify::ShapeOnly`] any number of images in its layout.
pub fn load_final(dir: &DataDir, verify: Verify, cut: Cut) -> Result<Dataset> {
    let sources = FINAL_FILES.iter().map(|f| dir.require(&FINAL.id, f)).collect::<Result<Vec<_>>>()?;
    let decode = || {
        check_archives(&FINAL, &FINAL_FILES, &sources, verify)?;
        let train = sorted(&FINAL, &sources[0], "Final_Training/Images/", cut)?;
        let images = below(&FINAL, &sources[1], "Final_Test/Images/")?;
        let remedy = remedy(&FINAL.id);
        // The other CSV, GT-final_test.test.csv, has no labels.
        let lists = archive::read(&sources[2], &remedy, |name| base(&name.to_lowercase()) == "gt-final_test.csv")?;
        let list = lists.first().ok_or_else(|| Error::Data {
            path: sources[2].display().to_string(),
            why: format!("GT-final_test.csv, the labels of the test set, is missing in it; {remedy}"),
        })?;
        let test = decode_all(rows(list, &images)?, cut)?;
        check_counts(&FINAL, &train, &test, &sources[0], verify)?;
        Ok((train, test))
    };
    let spec = if cut == Cut::Sign { &FINAL_ROI } else { &FINAL };
    cache::through(dir, &spec.id, &sources, &format!("{verify:?}"), decode, |_, _| spec.clone())
}

/// Read the split of the online competition, or with [`Verify::ShapeOnly`] any number of images in its layout.
pub fn load_online(dir: &DataDir, verify: Verify, cut: Cut) -> Result<Dataset> {
    let sources = ONLINE_FILES.iter().map(|f| dir.require(&ONLINE.id, f)).collect::<Result<Vec<_>>>()?;
    let decode = || {
        check_archives(&ONLINE, &ONLINE_FILES, &sources, verify)?;
        let train = sorted(&ONLINE, &sources[0], "Training/", cut)?;
        let test = sorted(&ONLINE, &sources[1], "Online-Test-sort/", cut)?;
        check_counts(&ONLINE, &train, &test, &sources[0], verify)?;
        Ok((train, test))
    };
    let spec = if cut == Cut::Sign { &ONLINE_ROI } else { &ONLINE };
    cache::through(dir, &spec.id, &sources, &format!("{verify:?}"), decode, |_, _| spec.clone())
}

fn check_archives(spec: &Spec, files: &[RemoteFile], sources: &[std::path::PathBuf], verify: Verify) -> Result<()> {
    let packed = files.iter().zip(sources).filter(|(f, path)| verify == Verify::Official && path.ends_with(f.name));
    packed.into_iter().try_for_each(|(file, path)| file.check(&spec.id, path))
}

fn check_counts(spec: &Spec, train: &Images, test: &Images, path: &Path, verify: Verify) -> Result<()> {
    let complete = (train.n, test.n) == (spec.train_len, spec.test_len);
    let known = spec.train_len != FINAL.train_len || train.histogram(CLASSES) == FINAL_HISTOGRAM;
    if verify == Verify::ShapeOnly || (complete && known) {
        return Ok(());
    }
    let why = format!(
        "{} training and {} test images, wanted {} and {} with the published number of each class; {}",
        train.n,
        test.n,
        spec.train_len,
        spec.test_len,
        remedy(&spec.id)
    );
    Err(Error::Data { path: path.display().to_string(), why })
}

fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or_default()
}

/// The members below `root`, by their name from there on.
fn below(spec: &Spec, path: &Path, root: &str) -> Result<HashMap<String, Member>> {
    let tail = |name: &str| name.strip_prefix("GTSRB/").unwrap_or(name).strip_prefix(root).map(str::to_string);
    let members = archive::read(path, &remedy(&spec.id), |name| tail(name).is_some())?;
    Ok(members.into_iter().filter_map(|m| Some((tail(&m.name)?, m))).collect())
}

/// A split in class folders, in a fixed order: class, track, frame, permuted.
fn sorted(spec: &Spec, path: &Path, root: &str, cut: Cut) -> Result<Images> {
    let members = below(spec, path, root)?;
    // The online test archive also has a folder of the same images without classes.
    let class_of = |name: &str| {
        let folder = name.split_once('/')?.0;
        (folder.len() == 5).then(|| folder.parse::<usize>().ok()).flatten()
    };
    let mut folders: Vec<HashMap<String, Member>> = Vec::new();
    for (name, member) in members {
        let Some(class) = class_of(&name) else { continue };
        if class >= CLASSES {
            let why = format!("class {class} is out of range: wanted 0 to {}; {}", CLASSES - 1, remedy(&spec.id));
            return Err(Error::Data { path: member.shown, why });
        }
        folders.resize_with(folders.len().max(class + 1), HashMap::new);
        folders[class].insert(base(&name).to_string(), member);
    }
    let mut frames = Vec::new();
    for (class, folder) in folders.iter().enumerate() {
        let refuse = |why: String| Error::Data {
            path: format!("{}/{root}{class:05}", path.display()),
            why: format!("{why}; {}", remedy(&spec.id)),
        };
        let name = format!("GT-{class:05}.csv");
        let list = folder.get(&name).ok_or_else(|| refuse(format!("{name} is missing in this class folder")))?;
        let here = rows(list, folder)?;
        if let Some(stray) = here.iter().find(|f| f.label as usize != class) {
            return Err(refuse(format!("{} says that {} is of class {}", list.shown, stray.file.shown, stray.label)));
        }
        if here.is_empty() {
            return Err(refuse("this class folder is empty".into()));
        }
        if here.len() + 1 < folder.len() {
            return Err(refuse(format!("{} images, and {} of them in {name}", folder.len() - 1, here.len())));
        }
        frames.extend(here);
    }
    if frames.is_empty() {
        let why = format!("no images below {root} in it; {}", remedy(&spec.id));
        return Err(Error::Data { path: path.display().to_string(), why });
    }
    frames.sort_by(|a, b| (a.label, &a.file.name).cmp(&(b.label, &b.file.name)));
    let order = pool_order(frames.len());
    decode_all(order.into_iter().map(|i| frames[i as usize]).collect(), cut)
}

/// An image with what its CSV says of it.
#[derive(Clone, Copy)]
struct Frame<'a> {
    file: &'a Member,
    h: usize,
    w: usize,
    /// X1, Y1, X2, Y2 of the sign, inside of the image.
    sign: [usize; 4],
    label: u32,
}

/// The rows of a CSV: `Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId` below a header.
fn rows<'a>(list: &Member, images: &'a HashMap<String, Member>) -> Result<Vec<Frame<'a>>> {
    let text = String::from_utf8_lossy(&list.bytes);
    let mut frames = Vec::new();
    for (i, line) in text.lines().enumerate().skip(1).filter(|(_, l)| !l.trim().is_empty()) {
        let refuse = |why: String| Error::Data {
            path: list.shown.clone(),
            why: format!("line {}: {why}; the file is damaged", i + 1),
        };
        let fields: Vec<&str> = line.trim().split(';').collect();
        let number = |k: usize| fields.get(k).and_then(|f| f.parse::<usize>().ok());
        let sign = [3, 4, 5, 6].map(number);
        let ([Some(x1), Some(y1), Some(x2), Some(y2)], Some(w), Some(h), Some(label)) =
            (sign, number(1), number(2), number(7))
        else {
            return Err(refuse(format!("`{}` is not name;width;height;box of four;class", line.trim())));
        };
        if label >= CLASSES {
            return Err(refuse(format!("class {label} is out of range: wanted 0 to {}", CLASSES - 1)));
        }
        if x1 >= x2 || x2 > w || y1 >= y2 || y2 > h {
            return Err(refuse(format!("the box {x1};{y1};{x2};{y2} is not inside of an image of {w} x {h} pixels")));
        }
        let file = images.get(fields[0]).ok_or_else(|| refuse(format!("the image {} is missing", fields[0])))?;
        frames.push(Frame { file, h, w, sign: [x1, y1, x2, y2], label: label as u32 });
    }
    Ok(frames)
}

fn decode_all(frames: Vec<Frame>, cut: Cut) -> Result<Images> {
    let labels = frames.iter().map(|f| f.label).collect();
    picture::stack([SIDE, SIDE, 3], labels, |i, place| {
        let Frame { file, h, w, sign, .. } = frames[i];
        let image = picture::decode(&file.bytes, &file.shown)?;
        if (image.h, image.w) != (h, w) {
            return Err(Error::Data {
                path: file.shown.clone(),
                why: format!(
                    "{}x{} pixels, but its CSV says {h}x{w}: these files do not belong together",
                    image.h, image.w
                ),
            });
        }
        let image = if cut == Cut::Sign { image.crop(sign) } else { image };
        place.copy_from_slice(&image.resize(SIDE, SIDE).pixels);
        Ok(())
    })
}
