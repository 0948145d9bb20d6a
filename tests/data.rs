//! Data sets: every bad input has its sentence, the generated set is the same everywhere, the pool keeps its rules.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dalcore::data::synthetic::{SEED, Split, generate};
use dalcore::data::{self, Budgets, DATASETS, DataDir, Images, Pool, PoolIdx, Presence, Verify, mnist};
use dalcore::rng::{Purpose, Rng};
use sha2::{Digest, Sha256};

/// A folder of its own for one test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("dalcore-data-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir_all(path.join("mnist")).unwrap();
        Scratch(path)
    }

    fn dir(&self) -> DataDir {
        DataDir::at(&self.0)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn idx(magic: u32, sizes: &[u32], payload: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    sizes.iter().for_each(|s| bytes.extend(s.to_be_bytes()));
    bytes.extend(payload);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// Six training and three test images of 2×3, in four files, some gzipped, in both places.
fn tiny(name: &str) -> Scratch {
    let s = Scratch::new(name);
    let pixels: Vec<u8> = (0..54).collect();
    s.write("mnist/train-images-idx3-ubyte", &idx(0x803, &[6, 2, 3], &pixels[..36]));
    s.write("mnist/train-labels-idx1-ubyte.gz", &gzip(&idx(0x801, &[6], &[0, 9, 1, 8, 2, 7])));
    s.write("t10k-images-idx3-ubyte.gz", &gzip(&idx(0x803, &[3, 2, 3], &pixels[36..])));
    s.write("t10k-labels-idx1-ubyte", &idx(0x801, &[3], &[3, 4, 5]));
    s
}

/// The message of loading these files, which must name every one of `words`.
fn refusal(s: &Scratch, verify: Verify, words: &[&str]) -> String {
    let message = mnist::load(&s.dir(), verify).expect_err("this must be refused").to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    message
}

#[test]
fn idx_round_trip_gzipped_or_not() {
    let s = tiny("round-trip");
    let set = mnist::load(&s.dir(), Verify::ShapeOnly).unwrap();
    let train = Images { n: 6, h: 2, w: 3, c: 1, pixels: (0..36).collect(), labels: vec![0, 9, 1, 8, 2, 7] };
    assert_eq!(set.train, train);
    assert_eq!((set.test.n, &set.test.labels), (3, &vec![3, 4, 5]));
    assert_eq!(set.fingerprint.len(), 64);

    let before = set.fingerprint;
    s.write("t10k-labels-idx1-ubyte", &idx(0x801, &[3], &[3, 4, 6]));
    assert_ne!(mnist::load(&s.dir(), Verify::ShapeOnly).unwrap().fingerprint, before);
}

#[test]
fn a_missing_file_is_named_with_the_places_and_the_remedy() {
    for file in &mnist::FILES {
        let s = tiny("missing");
        for path in s.dir().candidates("mnist", file) {
            std::fs::remove_file(path).ok();
        }
        let place = s.0.display().to_string();
        let words = [file.also[0], "missing", &place, "dalcore data fetch mnist", "--data-dir"];
        refusal(&s, Verify::ShapeOnly, &words);
    }
}

#[test]
fn damaged_idx_files_are_refused_with_the_numbers() {
    let images = "mnist/train-images-idx3-ubyte";
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        (images, idx(0x801, &[6, 2, 3], &[0; 36]), &["0x00000803 (images)", "0x00000801 (labels)"]),
        (images, b"<!DOCTYPE html>  ".to_vec(), &["wrong magic", "0x3c21444f"]),
        (images, idx(0x803, &[6, 2, 3], &[0; 35]), &["truncated", "6x2x3 = 36", "35 follow"]),
        (images, idx(0x803, &[6, 2, 3], &[0; 38]), &["2 trailing bytes", "6x2x3 = 36", "38 follow"]),
        (images, idx(0x803, &[6], &[]), &["truncated", "8 bytes", "16 of the IDX header"]),
        (images, vec![], &["truncated", "0 bytes"]),
        (images, idx(0x803, &[u32::MAX; 3], &[0; 9]), &["more than can be addressed"]),
        (images, idx(0x803, &[5, 2, 3], &[0; 30]), &["train-labels", "6 labels for the 5 images", "belong together"]),
        (images, idx(0x803, &[6, 3, 2], &[0; 36]), &["3x2", "2x3", "belong together"]),
        ("t10k-labels-idx1-ubyte", idx(0x801, &[3], &[3, 10, 5]), &["label 10 of example 1", "0 to 9"]),
        ("t10k-images-idx3-ubyte.gz", b"hello".to_vec(), &["not a gzip file", "5 bytes", "dalcore data fetch mnist"]),
    ];
    for (file, bytes, words) in cases {
        let s = tiny("damaged");
        s.write(file, bytes);
        refusal(&s, Verify::ShapeOnly, words);
    }
}

#[test]
fn corrupt_gzip_is_refused() {
    let s = tiny("gzip");
    let good = gzip(&idx(0x803, &[3, 2, 3], &[7; 18]));
    s.write("t10k-images-idx3-ubyte.gz", &good[..good.len() - 9]);
    refusal(&s, Verify::ShapeOnly, &["t10k-images-idx3-ubyte.gz", "corrupt or truncated gzip", "data fetch"]);
    let mut flipped = good.clone();
    let crc = flipped.len() - 6;
    flipped[crc] ^= 1;
    s.write("t10k-images-idx3-ubyte.gz", &flipped);
    refusal(&s, Verify::ShapeOnly, &["corrupt or truncated gzip"]);
}

#[test]
fn another_checksum_is_refused_with_both_sums() {
    let s = tiny("checksum");
    let found = data::mnist::FILES[0].raw_sha256.unwrap();
    let mine: String = Sha256::digest(std::fs::read(s.0.join("mnist/train-images-idx3-ubyte")).unwrap())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    refusal(&s, Verify::Official, &[&mine, found, "not the official file", "dalcore data fetch mnist"]);
    // A truncated official file is called truncated, which says more than two sums.
    s.write("mnist/train-images-idx3-ubyte", &idx(0x803, &[60_000, 28, 28], &[0; 1000]));
    refusal(&s, Verify::Official, &["truncated", "60000x28x28 = 47040000", "1000 follow", "data fetch mnist"]);
}

#[test]
fn verify_and_list_report_every_file() {
    let s = tiny("list");
    let entry = data::find("mnist").unwrap();
    let verdicts = data::verify(entry, &s.dir());
    assert_eq!(verdicts.len(), 4);
    assert!(verdicts.iter().all(|v| v.verdict.is_err() && v.path.is_some()));
    let rows = data::list(&s.dir());
    assert_eq!(rows.len(), DATASETS.len());
    assert_eq!(rows[0].presence, Presence::BuiltIn);
    assert_eq!(rows[1].presence, Presence::Present(s.0.join("mnist")));
    assert!(rows[1].bytes > 0);
    std::fs::remove_file(s.0.join("t10k-labels-idx1-ubyte")).unwrap();
    assert_eq!(data::list(&s.dir())[1].presence, Presence::Missing(vec!["t10k-labels-idx1-ubyte.gz"]));
}

#[test]
fn names_are_found_leniently_and_suggested() {
    for name in ["mnist", "MNIST", "m-n_ist"] {
        assert_eq!(data::find(name).unwrap().spec.id, "mnist");
    }
    let message = data::find("mnits").unwrap_err().to_string();
    assert!(message.contains("`mnits`") && message.contains("did you mean `mnist`?"), "{message}");
    let message = data::find("xyz").unwrap_err().to_string();
    assert!(!message.contains("did you mean") && message.contains("synthetic, mnist"), "{message}");
}

#[test]
fn the_table_is_consistent() {
    for e in DATASETS {
        let s = e.spec;
        assert_eq!((s.mean.len(), s.std.len()), (s.c, s.c), "{}", s.id);
        assert!(s.milestones.iter().all(|m| *m < s.epochs), "{}", s.id);
        assert_eq!(e.files.is_empty(), e.mirrors.is_empty(), "{}", s.id);
    }
    let b = Budgets { start: 2, query: 2, end: 20 };
    assert_eq!(b.targets(60_000), (1..=10).map(|r| 1200 * r).collect::<Vec<_>>());
    // GTSRB: flooring each target gives exactly thirteen points, not fourteen.
    let targets = Budgets { start: 10, query: 5, end: 70 }.targets(39_209);
    assert_eq!((targets.len(), targets[0], targets[12]), (13, 3920, 27_446));
}

#[test]
fn the_data_folder_is_resolved_in_order() {
    let env = |set: &'static [(&str, &str)]| {
        move |name: &str| set.iter().find(|(k, _)| *k == name).map(|(_, v)| std::ffi::OsString::from(v))
    };
    let path = |arg: Option<&str>, set| DataDir::resolve_with(arg.map(Path::new), env(set)).map(|d| d.path);
    let all = &[("DALCORE_DATA", "/d"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
    assert_eq!(path(Some("/a"), all).unwrap(), Path::new("/a"));
    assert_eq!(path(None, all).unwrap(), Path::new("/d"));
    assert_eq!(path(None, &all[1..]).unwrap(), Path::new("/x/dalcore"));
    if cfg!(all(unix, not(target_os = "macos"))) {
        assert_eq!(path(None, &all[2..]).unwrap(), Path::new("/h/.cache/dalcore"));
        // XDG: a relative path is invalid and to be ignored.
        assert_eq!(path(None, &[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]).unwrap(), Path::new("/h/.cache/dalcore"));
    }
    let message = path(None, &[("DALCORE_DATA", "")]).unwrap_err().to_string();
    assert!(message.contains("--data-dir"), "{message}");
}

#[test]
fn real_mnist_has_its_histogram() {
    let Some(dir) = std::env::var_os("DALCORE_DATA").map(|_| DataDir::resolve(None).unwrap()) else {
        eprintln!("skipped: DALCORE_DATA is not set");
        return;
    };
    if mnist::FILES.iter().any(|f| dir.locate("mnist", f).is_none()) {
        eprintln!("skipped: MNIST is not in {}", dir.path.display());
        return;
    }
    let set = mnist::load(&dir, Verify::Official).unwrap();
    assert_eq!(set.train.histogram(10), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
    assert_eq!(set.test.histogram(10), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
    assert_eq!((set.train.h, set.train.w), (28, 28));
    assert!(data::verify(data::find("mnist").unwrap(), &dir).iter().all(|f| f.verdict.is_ok()));
}

/// Sha-256 over the pixels and labels of both splits.
fn digest(images: &[&Images]) -> String {
    let mut sha = Sha256::new();
    for i in images {
        sha.update(&i.pixels);
        i.labels.iter().for_each(|l| sha.update(l.to_le_bytes()));
    }
    sha.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn synthetic_is_the_same_everywhere() {
    let (train, test) = (generate(SEED, Split::Train, 12_000), generate(SEED, Split::Test, 2_000));
    assert_eq!(digest(&[&train, &test]), "b7d803f23855db6eb630ba09242f5d0dd27aa5292b55665753ae24e2c6ac5744");
    assert_eq!(train.histogram(10), [1200; 10]);
    assert_eq!(test.histogram(10), [200; 10]);
    // Neither blank nor saturated, and no image twice.
    let distinct: std::collections::HashSet<_> = train.pixels.chunks(784).chain(test.pixels.chunks(784)).collect();
    assert_eq!(distinct.len(), 14_000);
    assert!(distinct.iter().all(|p| p.iter().max().unwrap() - p.iter().min().unwrap() > 90));
}

#[test]
fn synthetic_does_not_depend_on_threads_or_length() {
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let a = one.install(|| generate(SEED, Split::Train, 305));
    let b = three.install(|| generate(SEED, Split::Train, 305));
    assert_eq!(a, b);
    let shorter = generate(SEED, Split::Train, 57);
    assert_eq!((&shorter.pixels[..], &shorter.labels[..]), (&a.pixels[..57 * 784], &a.labels[..57]));
    assert_ne!(generate(SEED + 1, Split::Train, 57).pixels, shorter.pixels);
    assert_ne!(generate(SEED, Split::Test, 57).pixels, shorter.pixels);
    assert_eq!(generate(SEED, Split::Test, 0).n, 0);
}

fn ids(list: &[u32]) -> Vec<PoolIdx> {
    list.iter().map(|&i| PoolIdx(i)).collect()
}

#[test]
fn the_pool_partitions_its_examples() {
    // Random queries of random sizes: after each, both lists are ascending, disjoint, complete, and exactly the
    // labelled examples have labels.
    for trial in 0..30u32 {
        let rng = Rng::new(trial.into()).at(Purpose::Select, 0, 0);
        let n = 1 + (rng.u32(0) % 60) as usize;
        let labels: Arc<[u32]> = (0..n as u32).map(|i| i * 7 % 10).collect();
        let mut pool = Pool::new(labels.clone()).unwrap();
        let order = rng.lane(1).permutation(n);
        let mut done = 0;
        while done < n {
            let k = (1 + rng.u32(1 + done as u64) as usize % 9).min(n - done);
            pool.reveal(&ids(&order[done..done + k])).unwrap();
            done += k;
            let mut expect = order[..done].to_vec();
            expect.sort_unstable();
            assert_eq!(pool.labelled(), ids(&expect));
            let rest: Vec<u32> = (0..n as u32).filter(|i| !expect.contains(i)).collect();
            assert_eq!(pool.unlabelled(), ids(&rest));
            for i in 0..n as u32 + 2 {
                assert_eq!(pool.label(PoolIdx(i)), expect.contains(&i).then(|| labels[i as usize]));
            }
        }
    }
}

#[test]
fn the_pool_refuses_whole_queries() {
    let mut pool = Pool::new(vec![1, 2, 3, 4, 5].into()).unwrap();
    pool.reveal(&ids(&[2])).unwrap();
    pool.reveal(&[]).unwrap();
    for (query, words) in [
        (&[0, 3, 0][..], "example 0 was chosen twice"),
        (&[1, 2], "example 2 is already labelled"),
        (&[1, 5], "no example 5: the pool has 5"),
    ] {
        let message = pool.reveal(&ids(query)).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
        assert_eq!((pool.labelled(), pool.unlabelled()), (&ids(&[2])[..], &ids(&[0, 1, 3, 4])[..]));
    }
}

#[test]
fn the_start_set_depends_on_the_seed_alone() {
    let pool = Pool::new(vec![0; 500].into()).unwrap();
    let start = pool.start_set(Rng::new(10), 20).unwrap();
    assert_eq!(start, pool.start_set(Rng::new(10), 20).unwrap());
    assert_ne!(start, pool.start_set(Rng::new(20), 20).unwrap());
    assert!(start.windows(2).all(|w| w[0] < w[1]));
    let larger = pool.start_set(Rng::new(10), 40).unwrap();
    assert!(start.iter().all(|id| larger.contains(id)), "a larger start set contains the smaller one");
    let message = pool.start_set(Rng::new(10), 501).unwrap_err().to_string();
    assert!(message.contains("501") && message.contains("500"), "{message}");
}
