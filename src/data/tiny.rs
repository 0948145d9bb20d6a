//! Tiny-ImageNet: 200 classes of 64×64 JPEG images; the official validation set is the test set.
//!
//! `wnids.txt` (the classes), `train/<wnid>/images/*.JPEG`, `val/images/*.JPEG` with `val/val_annotations.txt`
//! (file TAB wnid TAB box). The label is the rank of the wnid in alphabetical order. Grey images become three channels.

use std::borrow::Cow;
use std::collections::HashMap;

use super::archive::{self, Member};
use super::{Augment, Budgets, DataDir, Dataset, Flip, Images, Model, RemoteFile, Spec, Sum, Verify};
use super::{cache, picture, pool_order, remedy};
use crate::error::{Error, Result};

const SIDE: usize = 64;

/// The description of the data set.
pub static SPEC: Spec = Spec {
    id: Cow::Borrowed("tiny-imagenet"),
    paper_name: Cow::Borrowed("Tiny-ImageNet"),
    about: "photos of 200 kinds of things; `dalcore data fetch tiny-imagenet` downloads 237 MiB",
    classes: 200,
    h: SIDE,
    w: SIDE,
    c: 3,
    train_len: 100_000,
    test_len: 10_000,
    mean: Cow::Borrowed(&[0.485, 0.456, 0.406]),
    std: Cow::Borrowed(&[0.229, 0.224, 0.225]),
    clean: Augment { crop_pad: 4, flip: Flip::Half },
    repro: Augment { crop_pad: 4, flip: Flip::Half },
    batch_train: 256,
    batch_test: 512,
    model: Model::RESNET18,
    budgets: Budgets { start: 10, query: 5, end: 70 },
    epochs: 150,
    milestones: &[80, 120],
};

/// What is downloaded.
pub static FILES: [RemoteFile; 1] = [RemoteFile {
    name: "tiny-imagenet-200.zip",
    len: 248_100_043,
    sum: Sum::Sha256("6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"),
    raw_sha256: None,
    also: &["tiny-imagenet-200"],
}];

/// Its home. No other place with the same bytes is known to us; `--mirror` takes one.
pub static MIRRORS: [&str; 2] = ["http://cs231n.stanford.edu/", "https://cs231n.stanford.edu/"];

/// Read Tiny-ImageNet, or with [`Verify::ShapeOnly`] any number of classes and images in its layout.
pub fn load(dir: &DataDir, verify: Verify) -> Result<Dataset> {
    let path = dir.require(&SPEC.id, &FILES[0])?;
    let decode = || {
        if verify == Verify::Official && path.ends_with(FILES[0].name) {
            FILES[0].check(&SPEC.id, &path)?;
        }
        let remedy = remedy(&SPEC.id);
        let refuse = |why: String| Error::Data { path: path.display().to_string(), why: format!("{why}; {remedy}") };
        let plain = |name: &str| name.strip_prefix("tiny-imagenet-200/").unwrap_or(name).to_string();
        let wanted = |name: &str| {
            let name = plain(name);
            name == "wnids.txt"
                || name == "val/val_annotations.txt"
                || (name.ends_with(".JPEG") && !name.starts_with("test/"))
        };
        let members: HashMap<String, Member> =
            archive::read(&path, &remedy, wanted)?.into_iter().map(|m| (plain(&m.name), m)).collect();
        let text = |name: &str| {
            let member = members.get(name).ok_or_else(|| refuse(format!("{name} is missing in it")))?;
            Ok(String::from_utf8_lossy(&member.bytes))
        };
        let ids = text("wnids.txt")?;
        let mut classes: Vec<&str> = ids.split_whitespace().collect();
        classes.sort_unstable();
        if classes.len() > SPEC.classes {
            return Err(refuse(format!(
                "wnids.txt names {} classes, at most {} are read",
                classes.len(),
                SPEC.classes
            )));
        }
        let label_of = |wnid: &str| classes.binary_search(&wnid).ok().map(|i| i as u32);

        let mut train = Vec::new();
        let mut empty = vec![true; classes.len()];
        for (name, member) in &members {
            let Some((wnid, _)) = name.strip_prefix("train/").and_then(|n| n.split_once('/')) else { continue };
            let label = label_of(wnid).ok_or_else(|| refuse(format!("{name}: wnids.txt does not have this class")))?;
            empty[label as usize] = false;
            train.push((label, member));
        }
        if let Some(class) = empty.iter().position(|e| *e) {
            return Err(refuse(format!("the class {} has no training image", classes[class])));
        }
        train.sort_by_key(|(label, member)| (*label, &member.name));
        let train: Vec<_> = pool_order(train.len()).into_iter().map(|i| train[i as usize]).collect();

        let mut test = Vec::new();
        for line in text("val/val_annotations.txt")?.lines().filter(|l| !l.trim().is_empty()) {
            let mut fields = line.split('\t').map(str::trim);
            let (file, wnid) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            let label = label_of(wnid)
                .ok_or_else(|| refuse(format!("val_annotations.txt: {file} is of class `{wnid}`, not in wnids.txt")))?;
            let member = members.get(&format!("val/images/{file}"));
            test.push((label, member.ok_or_else(|| refuse(format!("val/images/{file} is missing in it")))?));
        }
        if verify == Verify::Official && (train.len(), test.len()) != (SPEC.train_len, SPEC.test_len) {
            let (want, test_want) = (SPEC.train_len, SPEC.test_len);
            let found = format!("{} training and {} validation images", train.len(), test.len());
            return Err(refuse(format!("{found}, wanted {want} and {test_want}")));
        }
        Ok((decode_all(train)?, decode_all(test)?))
    };
    cache::through(dir, &SPEC.id, std::slice::from_ref(&path), &format!("{verify:?}"), decode, |_, _| SPEC.clone())
}

fn decode_all(files: Vec<(u32, &Member)>) -> Result<Images> {
    picture::stack([SIDE, SIDE, 3], files.iter().map(|f| f.0).collect(), |i, place| {
        let (_, file) = files[i];
        let image = picture::decode(&file.bytes, &file.shown)?;
        if (image.h, image.w) != (SIDE, SIDE) {
            return Err(Error::Data {
                path: file.shown.clone(),
                why: format!(
                    "{}x{} pixels, wanted {SIDE}x{SIDE}; this is not a file of Tiny-ImageNet",
                    image.h, image.w
                ),
            });
        }
        place.copy_from_slice(&image.pixels);
        Ok(())
    })
}
