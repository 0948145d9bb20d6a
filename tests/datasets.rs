//! The loaders of the larger data sets and of the user's own files, on tiny archives made here: what they read, the
//! sentence for every bad input, and the cache of decoded images.

use std::io::Write;
use std::path::{Path, PathBuf};

use dalcore::bench::config::Profile;
use dalcore::data::{
    self, DataDir, Dataset, Flip, Images, Source, Verify, cifar, folder, gtsrb, gtsrb::Cut, npy, preview, tiny,
};

/// A folder of its own for one test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("dalcore-datasets-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path.canonicalize().unwrap())
    }

    fn dir(&self) -> DataDir {
        DataDir::at(&self.0)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// The message of an error, which must name every one of `words`.
fn refused<T: std::fmt::Debug>(result: dalcore::Result<T>, words: &[&str]) -> String {
    let message = result.expect_err("this must be refused").to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    message
}

type Files = Vec<(String, Vec<u8>)>;

/// A tar whose names are written as they are: the crate would not write those that lead out.
fn tar(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        builder.append(&header, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zip(files: &Files) -> Vec<u8> {
    let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        out.start_file(name.as_str(), zip::write::SimpleFileOptions::default()).unwrap();
        out.write_all(bytes).unwrap();
    }
    out.finish().unwrap().into_inner()
}

/// The planes of example `i` of a batch: red its number, green the position, blue the batch.
fn planes(batch: u8, i: u8) -> Vec<u8> {
    [vec![i; 1024], (0..1024).map(|p| (p / 4) as u8).collect(), vec![batch; 1024]].concat()
}

const BATCHES: [&str; 6] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];

/// CIFAR-10 with two images per batch, labelled 0 and 9.
fn cifar_bin() -> Files {
    let records = |b: u8| [vec![0], planes(b, 0), vec![9], planes(b, 1)].concat();
    (0..).zip(BATCHES).map(|(b, n)| (format!("cifar-10-batches-bin/{n}.bin"), records(b))).collect()
}

/// A pickle as Python 2 wrote it.
fn pickle(label_key: &str, labels: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03".to_vec();
    out.extend([&[b'U', label_key.len() as u8], label_key.as_bytes(), b"q\x04]q\x05("].concat());
    labels.iter().for_each(|l| out.extend([b'K', *l]));
    out.extend(
        b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09U\x01bq\n",
    );
    out.extend(b"\x87q\x0bRq\x0c(K\x01K");
    out.push((data.len() / 3072) as u8);
    out.extend(
        b"M\x00\x0c\x86q\x0dcnumpy\ndtype\nq\x0eU\x02u1q\x0fK\x00K\x01\x87q\x10Rq\x11(K\x03U\x01|q\x12NNNJ\xff\xff",
    );
    out.extend(b"\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b\x89T");
    out.extend((data.len() as u32).to_le_bytes());
    out.extend([data, b"q\x14tq\x15bu."].concat());
    out
}

fn cifar_py() -> Files {
    let content = |b| pickle("labels", &[0, 9], &[planes(b, 0), planes(b, 1)].concat());
    (0..).zip(BATCHES).map(|(b, n)| (format!("cifar-10-batches-py/{n}"), content(b))).collect()
}

fn cifar10(s: &Scratch) -> dalcore::Result<Dataset> {
    cifar::load10(&s.dir(), Verify::ShapeOnly)
}

#[test]
fn cifar_is_the_same_from_every_form() {
    let mut seen = Vec::new();
    for form in ["bin.tar.gz", "bin", "py.tar.gz", "py"] {
        let s = Scratch::new(&format!("cifar-{form}"));
        let files = if form.starts_with("bin") { cifar_bin() } else { cifar_py() };
        match form {
            "bin.tar.gz" => s.write("cifar10/cifar-10-binary.tar.gz", &gzip(&tar(&files))),
            "py.tar.gz" => s.write("cifar-10-python.tar.gz", &gzip(&tar(&files))),
            _ => files.iter().for_each(|(name, bytes)| s.write(&format!("cifar10/{name}"), bytes)),
        }
        let set = cifar10(&s).unwrap();
        assert_eq!((set.train.n, set.test.n), (10, 2));
        assert_eq!(set.train.labels, [0, 9].repeat(5));
        assert_eq!((&set.train.pixels[3072..3075], &set.train.pixels[3069..3072]), (&[1, 0, 0][..], &[0, 255, 0][..]));
        assert_eq!(set.test.pixels[..3], [0, 0, 5]);
        seen.push(set.fingerprint);
    }
    assert!(seen.iter().all(|f| *f == seen[0]), "{seen:?}");
}

#[test]
fn cifar100_takes_the_fine_label() {
    let s = Scratch::new("cifar100");
    for name in ["train", "test"] {
        s.write(&format!("cifar-100-binary/{name}.bin"), &[vec![3, 99], planes(1, 1)].concat());
    }
    let set = cifar::load100(&s.dir(), Verify::ShapeOnly).unwrap();
    assert_eq!((set.train.labels, set.test.n, set.spec.classes), (vec![99], 1, 100));
    let s = Scratch::new("cifar100-py");
    for name in ["train", "test"] {
        s.write(&format!("cifar-100-python/{name}"), &pickle("fine_labels", &[99], &planes(1, 1)));
    }
    assert_eq!(cifar::load100(&s.dir(), Verify::ShapeOnly).unwrap().fingerprint, set.fingerprint);
}

#[test]
fn damaged_cifar_archives_are_refused() {
    let archive = "cifar10/cifar-10-binary.tar.gz";
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = cifar_bin();
        change(&mut files);
        gzip(&tar(&files))
    };
    let good = with(&|_| ());
    let mut flipped = good.clone();
    let crc = flipped.len() - 6;
    flipped[crc] ^= 1;
    let long: Files = [cifar_bin(), vec![("../../evil.bin".into(), vec![1])]].concat();
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("half", good[..good.len() / 2].to_vec(), &["damaged", "dalcore data fetch cifar10"]),
        ("tail", good[..good.len() - 4].to_vec(), &["truncated or damaged archive"]),
        ("crc", flipped, &["truncated or damaged archive"]),
        ("html", b"<!DOCTYPE html>".to_vec(), &["truncated or damaged archive"]),
        ("empty", vec![], &["truncated or damaged archive"]),
        ("nothing", gzip(&tar(&vec![])), &["`data_batch_1.bin` is missing in it"]),
        ("escape", gzip(&tar(&long)), &["`../../evil.bin` leads out of the archive"]),
        ("absolute", with(&|f| f[0].0 = "/etc/data_batch_1.bin".into()), &["leads out of the archive"]),
        ("absent", with(&|f| drop(f.remove(3))), &["`data_batch_4.bin` is missing"]),
        ("short", with(&|f| f[1].1.truncate(6000)), &["data_batch_2.bin", "6000 bytes", "records of 3073"]),
        ("label", with(&|f| f[2].1[3073] = 10), &["data_batch_3.bin", "example 1 is out of range", "0 to 9"]),
    ];
    for (name, bytes, words) in cases {
        let s = Scratch::new(&format!("cifar-bad-{name}"));
        s.write(archive, bytes);
        let message = refused(cifar10(&s), words);
        assert!(message.contains("cifar-10-binary.tar.gz"), "{message}");
        assert!(!s.path("decoded").exists(), "nothing of a refused archive is kept");
    }
    let s = Scratch::new("cifar-link");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "cifar-10-batches-bin/data_batch_1.bin", "/etc/passwd").unwrap();
    s.write(archive, &gzip(&builder.into_inner().unwrap()));
    refused(cifar10(&s), &["is a link"]);
    // Well-formed, but not CIFAR-10.
    s.write(archive, &good);
    refused(cifar::load10(&s.dir(), Verify::Official), &["data_batch_1.bin", "not the official file", "sha-256"]);
    std::fs::remove_file(s.path(archive)).unwrap();
    refused(cifar10(&s), &["missing", "cifar-10-binary.tar.gz", "cifar-10-batches-py", "dalcore data fetch cifar10"]);
}

#[test]
fn a_pickle_that_could_run_a_program_is_refused() {
    let load = |content: &[u8]| {
        let s = Scratch::new("pickle");
        cifar_py().iter().for_each(|(name, bytes)| s.write(name, bytes));
        s.write("cifar-10-batches-py/data_batch_3", content);
        cifar10(&s)
    };
    let good = pickle("labels", &[0], &planes(0, 0));
    load(&good).unwrap();
    let evil = b"\x80\x02cos\nsystem\nq\x01U\x04trueq\x02\x85q\x03R.";
    refused(load(evil), &["data_batch_3", "`os.system`", "do not trust this file"]);
    refused(load(&good[..good.len() - 100]), &["data_batch_3", "truncated"]);
    refused(load(&pickle("labels", &[10], &planes(0, 0))), &["example 0 is out of range"]);
    refused(load(&pickle("labels", &[1, 2], &planes(0, 0))), &["2 labels for 1 images"]);
    refused(load(&pickle("tables", &[1], &planes(0, 0))), &["no dictionary with `data`"]);
}

#[test]
fn the_second_start_reads_the_cache_and_a_damaged_cache_is_rebuilt() {
    let s = Scratch::new("cache");
    let archive = "cifar10/cifar-10-binary.tar.gz";
    s.write(archive, &gzip(&tar(&cifar_bin())));
    let first = cifar10(&s).unwrap();
    let cache = s.path("decoded/cifar10.bin");
    let good = std::fs::read(&cache).unwrap();
    let same = |set: &Dataset| {
        assert_eq!((&set.train, &set.test, &set.fingerprint), (&first.train, &first.test, &first.fingerprint));
    };

    // Whatever a killed process or a bad disk leaves: ignored, and a sound one put in its place.
    let mut torn: Vec<Vec<u8>> =
        [0, 10, 100, 150, 208, good.len() / 2, good.len() - 1].map(|n| good[..n].to_vec()).into();
    torn.push([&good[..], b"x"].concat());
    for at in [3, 20, 100, 150, 215, 300, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        torn.push(bad);
    }
    for bad in &torn {
        std::fs::write(&cache, bad).unwrap();
        same(&cifar10(&s).unwrap());
        assert!(std::fs::read(&cache).unwrap() == good, "the cache was rebuilt");
    }
    // What was being written when the process was killed.
    std::fs::write(s.path("decoded/cifar10.bin.part"), &good[..500]).unwrap();
    std::fs::remove_file(&cache).unwrap();
    same(&cifar10(&s).unwrap());
    assert!(std::fs::read(&cache).unwrap() == good && !s.path("decoded/cifar10.bin.part").exists());

    // It is really read: with rubbish of the same size and age as source, it alone can give the images.
    let source = s.path(archive);
    let about = source.metadata().unwrap();
    std::fs::write(&source, vec![0; about.len() as usize]).unwrap();
    let file = std::fs::File::options().write(true).open(&source).unwrap();
    file.set_modified(about.modified().unwrap()).unwrap();
    same(&cifar10(&s).unwrap());
    assert!(cifar::load10(&s.dir().without_cache(), Verify::ShapeOnly).is_err());
    // Another time of change, another way of checking: not taken for the same.
    assert!(cifar::load10(&s.dir(), Verify::Official).is_err());
    file.set_modified(about.modified().unwrap() + std::time::Duration::from_secs(1)).unwrap();
    assert!(cifar10(&s).is_err());
}

#[test]
fn a_folder_that_takes_no_cache_is_no_obstacle() {
    let s = Scratch::new("no-cache");
    cifar_bin().iter().for_each(|(name, bytes)| s.write(name, bytes));
    s.write("decoded", b"a file where the folder should be");
    assert_eq!(cifar10(&s).unwrap().train.n, 10);
}

fn ppm(h: usize, w: usize, colour: [u8; 3]) -> Vec<u8> {
    [format!("P6\n{w} {h}\n255\n").into_bytes(), colour.repeat(h * w)].concat()
}

const HEADER: &str = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n";

/// Two classes of two frames and three test images; the names start at `GTSRB/`.
fn signs(root: &str) -> Files {
    let mut files = Vec::new();
    for class in 0..2u8 {
        let folder = format!("GTSRB/{root}0000{class}");
        let mut list = HEADER.to_string();
        for frame in 0..2u8 {
            files.push((format!("{folder}/00000_0000{frame}.ppm"), ppm(20, 30, [class, frame, 9])));
            list += &format!("00000_0000{frame}.ppm;30;20;5;5;25;15;{class}\r\n");
        }
        files.push((format!("{folder}/GT-0000{class}.csv"), list.into_bytes()));
    }
    files
}

fn gtsrb_final(s: &Scratch, change: impl Fn(&mut [Files; 3])) {
    let test = (0..3).map(|i| (format!("GTSRB/Final_Test/Images/0000{i}.ppm"), ppm(40, 50, [7, i, 1]))).collect();
    let list =
        format!("{HEADER}00000.ppm;50;40;5;5;25;15;1\n00001.ppm;50;40;5;5;25;15;0\n00002.ppm;50;40;5;5;25;15;42\n");
    let mut all: [Files; 3] =
        [signs("Final_Training/Images/"), test, vec![("GT-final_test.csv".into(), list.into_bytes())]];
    change(&mut all);
    for (file, content) in gtsrb::FINAL_FILES.iter().zip(&all) {
        s.write(&format!("gtsrb/{}", file.name), &zip(content));
    }
}

/// Label, and second value of the first pixel, of every example.
fn summary(images: &Images) -> Vec<(u32, u8)> {
    let mut all: Vec<_> = images.labels.iter().copied().zip(images.pixels.chunks(32 * 32 * 3).map(|p| p[1])).collect();
    all.sort_unstable();
    all
}

#[test]
fn gtsrb_is_read_in_both_splits_and_both_forms() {
    let s = Scratch::new("gtsrb");
    gtsrb_final(&s, |_| ());
    let set = gtsrb::load_final(&s.dir(), Verify::ShapeOnly, Cut::Whole).unwrap();
    assert_eq!((set.train.h, set.train.w, set.train.c), (32, 32, 3));
    assert_eq!(summary(&set.train), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    assert_eq!(set.test.labels, [1, 0, 42]);
    assert!(set.test.pixels.chunks(3).all(|p| p[0] == 7 && p[2] == 1), "one colour stays that colour");
    refused(
        gtsrb::load_final(&s.dir(), Verify::Official, Cut::Whole),
        &["Final_Training_Images.zip", "not the official", "md5"],
    );

    let unpacked = Scratch::new("gtsrb-unpacked");
    gtsrb_final(&s, |all| {
        all[0].iter().chain(&all[1]).for_each(|(name, bytes)| unpacked.write(name, bytes));
        unpacked.write("GTSRB/GT-final_test.csv", &all[2][0].1);
        unpacked.write("GTSRB/Final_Test/Images/GT-final_test.test.csv", b"no labels");
    });
    assert_eq!(gtsrb::load_final(&unpacked.dir(), Verify::ShapeOnly, Cut::Whole).unwrap().fingerprint, set.fingerprint);
    refused(
        gtsrb::load_final(&unpacked.dir(), Verify::Official, Cut::Whole),
        &["4 training and 3 test images", "39209"],
    );

    let s = Scratch::new("gtsrb-online");
    s.write("GTSRB-Training_fixed.zip", &zip(&signs("Training/")));
    let mut test = signs("Online-Test-sort/");
    test.push(("GTSRB/Online-Test-sort/Images/00000.ppm".into(), b"a stray copy".to_vec()));
    s.write("GTSRB_Online-Test-Images-Sorted.zip", &zip(&test));
    let online = gtsrb::load_online(&s.dir(), Verify::ShapeOnly, Cut::Whole).unwrap();
    assert_eq!((summary(&online.train), online.test.n), (summary(&set.train), 4));
}

/// Grey outside of the box of its CSV and of one colour inside; the box touches no edge.
#[test]
fn signs_are_cut_out_where_that_is_asked_for() {
    let framed = |colour: u8| {
        let mut file = ppm(20, 30, [50, 50, 50]);
        let start = file.len() - 20 * 30 * 3;
        for (i, pixel) in file[start..].chunks_exact_mut(3).enumerate() {
            if (6..15).contains(&(i / 30)) && (3..25).contains(&(i % 30)) {
                pixel.fill(colour);
            }
        }
        file
    };
    let s = Scratch::new("gtsrb-roi");
    gtsrb_final(&s, |all| {
        let (images, lists): (Vec<_>, Vec<_>) = all[0].iter_mut().partition(|f| f.0.ends_with("ppm"));
        images.into_iter().zip(1..).for_each(|(f, i)| f.1 = framed(60 * i));
        for list in lists {
            list.1 = String::from_utf8_lossy(&list.1).replace(";5;5;25;15;", ";3;6;25;15;").into_bytes();
        }
        all[1].iter_mut().for_each(|f| f.1 = ppm(40, 50, [200; 3]));
    });
    let dir = DataDir { cached: true, ..s.dir() };
    let whole = gtsrb::load_final(&dir, Verify::ShapeOnly, Cut::Whole).unwrap();
    let cut = gtsrb::load_final(&dir, Verify::ShapeOnly, Cut::Sign).unwrap();
    assert_eq!((&*whole.spec.id, &*cut.spec.id), ("gtsrb", "gtsrb-roi"));
    assert_eq!((&whole.train.labels, cut.train.n, cut.test.n), (&cut.train.labels, 4, 3));
    assert!(whole.train.pixels.chunks(3072).all(|image| image[0] == 50), "the border is there");
    let colours: Vec<u8> = cut.train.pixels.chunks(3072).map(|image| image[0]).collect();
    assert!(cut.train.pixels.chunks(3072).zip(&colours).all(|(image, c)| image.iter().all(|p| p == c)), "no border");
    let mut sorted = colours.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [60, 120, 180, 240]);
    // Each form has decoded images of its own, and the same files.
    let again = |cut| gtsrb::load_final(&dir, Verify::ShapeOnly, cut).unwrap().fingerprint;
    assert_eq!((again(Cut::Whole), again(Cut::Sign)), (whole.fingerprint.clone(), cut.fingerprint.clone()));
    assert_ne!(whole.fingerprint, cut.fingerprint);
    let entry = data::find("gtsrb-roi").unwrap();
    assert!(data::verify(entry, &dir).iter().all(|f| f.path.is_some()), "found where `gtsrb` has them");
    let missing = (entry.load)(&DataDir::at("nowhere"), Verify::ShapeOnly).unwrap_err().to_string();
    assert!(missing.contains("dalcore data fetch gtsrb`"), "{missing}");
    let open = |profile| Source::open("gtsrb-roi", profile, &DataDir::at("nowhere")).unwrap().spec().id.to_string();
    assert_eq!((open(Profile::Clean), open(Profile::Repro)), ("gtsrb-roi".into(), "gtsrb-online-roi".into()));
}

#[test]
fn cut_signs_are_the_pixels_of_their_box() {
    // Red is the row and green the column; the box is as large as the result, so the resize changes nothing.
    let marked: Vec<u8> = (0..36).flat_map(|y| (0..40).flat_map(move |x| [y, x, 200])).collect();
    let boxed: Vec<u8> = (2..34).flat_map(|y| (5..37).flat_map(move |x| [y, x, 200])).collect();
    let s = Scratch::new("gtsrb-online-roi");
    for (file, root) in gtsrb::ONLINE_FILES.iter().zip(["Training/", "Online-Test-sort/"]) {
        let inside = |name: &str| format!("GTSRB/{root}00000/{name}");
        let image = [b"P6 40 36 255\n", &marked[..]].concat();
        let list = format!("{HEADER}0.ppm;40;36;5;2;37;34;0");
        let files = vec![(inside("0.ppm"), image), (inside("GT-00000.csv"), list.into())];
        s.write(&format!("gtsrb-online/{}", file.name), &zip(&files));
    }
    let load = |id: &str| (data::find(id).unwrap().load)(&s.dir(), Verify::ShapeOnly).unwrap();
    let (whole, cut) = (load("gtsrb-online"), load("gtsrb-online-roi"));
    assert!(cut.train.pixels == boxed && cut.test.pixels == boxed);
    assert!(whole.train.pixels != boxed && whole.test.pixels != boxed);
    // And so in the contact sheet, whose tiles are twice as large.
    let sheet = preview::sheet(&cut, cut.spec.clean, 10).unwrap();
    for (y, x) in [(0, 0), (9, 30), (31, 31)] {
        let at = ((2 + 2 * y) * sheet.w + 28 + 2 * x) * 3;
        assert_eq!(sheet.pixels[at..at + 3], [y as u8 + 2, x as u8 + 5, 200]);
    }
}

#[test]
fn the_profile_decides_which_signs() {
    let open = |profile| Source::open("gtsrb", profile, &DataDir::at("nowhere")).unwrap().spec().id.to_string();
    assert_eq!((open(Profile::Clean), open(Profile::Repro)), ("gtsrb".into(), "gtsrb-online".into()));
    let signs = data::find("gtsrb").unwrap().spec;
    assert_eq!((signs.clean.flip, signs.repro.flip), (Flip::Never, Flip::Half));
}

#[test]
fn damaged_signs_are_refused() {
    type Change = fn(&mut [Files; 3]);
    let cases: &[(Change, &[&str])] = &[
        (|f| f[0][1].1 = b"P6\n4000000000 4000000000\n255\n".to_vec(), &["00000_00001.ppm", "4000000000x4000000000"]),
        (|f| f[0][0].1.truncate(100), &["00000/00000_00000.ppm", "truncated", "20x30x3 = 1800"]),
        (|f| f[0][0].1 = ppm(30, 20, [0; 3]), &["30x20 pixels", "its CSV says 20x30"]),
        (|f| drop(f[0].remove(0)), &["GT-00000.csv", "line 2", "00000_00000.ppm is missing"]),
        (|f| drop(f[0].remove(2)), &["00000", "GT-00000.csv is missing"]),
        (|f| f[0][2].1 = HEADER.into(), &["Images/00000", "this class folder is empty"]),
        (|f| f[0][2].1.truncate(HEADER.len() + 35), &["2 images, and 1 of them in GT-00000.csv"]),
        (|f| f[0][2].1 = [HEADER, "00000_00000.ppm;30;20;5;5;25;15;1"].concat().into(), &["is of class 1"]),
        (|f| f[0][2].1 = [HEADER, "00000_00000.ppm;30;20;5;5;25;15;43"].concat().into(), &["class 43 is out of range"]),
        (|f| f[0][2].1 = [HEADER, "00000_00000.ppm,30,20"].concat().into(), &["line 2", "is not name;width;height"]),
        (
            |f| f[0][2].1 = [HEADER, "00000_00000.ppm;30;20;5;5;31;15;0"].concat().into(),
            &["GT-00000.csv", "line 2", "box 5;5;31;15 is not inside of an image of 30 x 20"],
        ),
        (|f| f[0][2].1 = [HEADER, "00000_00000.ppm;30;20;5;5;25;5;0"].concat().into(), &["box 5;5;25;5 is not inside"]),
        (|f| f[0][2].1 = [HEADER, "00000_00000.ppm;30;20;-5;5;25;15;0"].concat().into(), &["is not name;width;height"]),
        (|f| f[0].push(("GTSRB/Final_Training/Images/00043/x.ppm".into(), vec![])), &["class 43 is out of range"]),
        (|f| f[0].clear(), &["no images below Final_Training/Images/"]),
        (|f| f[2].clear(), &["GT-final_test.csv", "missing"]),
        (|f| f[0].push(("../evil.ppm".into(), vec![1])), &["`../evil.ppm` leads out of the archive"]),
    ];
    for (i, (change, words)) in cases.iter().enumerate() {
        let s = Scratch::new(&format!("signs-{i}"));
        gtsrb_final(&s, change);
        refused(gtsrb::load_final(&s.dir(), Verify::ShapeOnly, Cut::Whole), words);
    }
    let s = Scratch::new("signs-zip");
    gtsrb_final(&s, |_| ());
    let path = s.path("gtsrb/GTSRB_Final_Training_Images.zip");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(
        gtsrb::load_final(&s.dir(), Verify::ShapeOnly, Cut::Whole),
        &["truncated or damaged zip archive", "data fetch gtsrb"],
    );
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new("tests/fixtures").join(name)).unwrap()
}

/// Two classes with two training images each, in an order of their own, and two validation images.
fn photos() -> Files {
    let mut files: Files = vec![
        ("wnids.txt".into(), b"n02\nn01\n".to_vec()),
        ("val/val_annotations.txt".into(), b"val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n".to_vec()),
        ("val/images/val_0.JPEG".into(), fixture("colour.jpg")),
        ("val/images/val_1.JPEG".into(), fixture("grey.jpg")),
        ("test/images/test_0.JPEG".into(), b"not looked at".to_vec()),
    ];
    for class in ["n01", "n02"] {
        for (i, jpeg) in ["colour.jpg", "grey.jpg"].iter().enumerate() {
            files.push((format!("train/{class}/images/{class}_{i}.JPEG"), fixture(jpeg)));
        }
        files.push((format!("train/{class}/{class}_boxes.txt"), b"ignored".to_vec()));
    }
    files
}

fn tiny_set(name: &str, change: impl Fn(&mut Files)) -> dalcore::Result<Dataset> {
    let s = Scratch::new(name);
    let mut files = photos();
    change(&mut files);
    files.iter().for_each(|(name, bytes)| s.write(&format!("tiny-imagenet-200/{name}"), bytes));
    tiny::load(&s.dir(), Verify::ShapeOnly)
}

#[test]
fn tiny_imagenet_is_read_packed_and_unpacked() {
    let set = tiny_set("tiny", |_| ()).unwrap();
    assert_eq!((set.train.n, set.train.h, set.train.c), (4, 64, 3));
    assert_eq!(set.train.histogram(2), [2, 2]);
    assert_eq!(set.test.labels, [1, 0], "the rank in alphabetical order, not the line of wnids.txt");
    let (colour, grey) = set.test.pixels.split_at(64 * 64 * 3);
    assert!(grey.chunks(3).all(|p| p[0] == p[1] && p[1] == p[2]) && colour.chunks(3).any(|p| p[0] != p[1]));
    let s = Scratch::new("tiny-zip");
    let packed = photos().into_iter().map(|(name, bytes)| (format!("tiny-imagenet-200/{name}"), bytes)).collect();
    s.write("tiny-imagenet/tiny-imagenet-200.zip", &zip(&packed));
    assert_eq!(tiny::load(&s.dir(), Verify::ShapeOnly).unwrap().fingerprint, set.fingerprint);
    refused(tiny::load(&s.dir(), Verify::Official), &["tiny-imagenet-200.zip", "not the official file"]);
}

#[test]
fn damaged_photos_are_refused_by_name_and_not_skipped() {
    let at = |files: &mut Files, name: &str| files.iter().position(|f| f.0.ends_with(name)).unwrap();
    type Change<'a> = &'a dyn Fn(&mut Files);
    let cases: &[(Change, &[&str])] = &[
        (
            &|f| {
                let i = at(f, "n01_1.JPEG");
                f[i].1.truncate(400)
            },
            &["train/n01/images/n01_1.JPEG", "damaged JPEG"],
        ),
        (
            &|f| {
                let i = at(f, "n02_0.JPEG");
                f[i].1[300..420].fill(0xff)
            },
            &["n02_0.JPEG", "damaged JPEG"],
        ),
        (
            &|f| {
                let i = at(f, "n02_1.JPEG");
                f[i].1 = ppm(64, 65, [0; 3])
            },
            &["n02_1.JPEG", "64x65", "64x64"],
        ),
        (&|f| f.retain(|f| !f.0.starts_with("train/n02/images")), &["the class n02 has no training image"]),
        (&|f| f[0].1 = b"n01\n".to_vec(), &["n02", "wnids.txt"]),
        (&|f| f[1].1 = b"val_0.JPEG\tn77\t0\n".to_vec(), &["val_0.JPEG is of class `n77`"]),
        (&|f| drop(f.remove(2)), &["val/images/val_0.JPEG is missing"]),
        (&|f| drop(f.remove(1)), &["val/val_annotations.txt is missing"]),
    ];
    for (i, (change, words)) in cases.iter().enumerate() {
        refused(tiny_set(&format!("photos-{i}"), change), words);
    }
}

fn png(h: usize, w: usize, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, w as u32, h as u32);
    encoder.set_color(if pixels.len() == h * w { png::ColorType::Grayscale } else { png::ColorType::Rgb });
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    bytes
}

/// `n` images of each class, of one colour.
fn own(s: &Scratch, root: &str, n: u8, h: usize, w: usize) {
    for class in ["cat", "dog"] {
        for i in 0..n {
            s.write(&format!("{root}/{class}/{i}.png"), &png(h, w, &[i, 100, class.as_bytes()[0]].repeat(h * w)));
        }
    }
}

#[test]
fn a_folder_of_images_becomes_a_data_set() {
    let s = Scratch::new("folder");
    own(&s, "pets", 10, 16, 24);
    s.write("pets/cat/deep/er.ppm", &ppm(16, 24, [77, 0, 0]));
    s.write("pets/README.txt", b"not a class");
    let set = folder::load(&s.dir(), &s.path("pets"), None).unwrap();
    assert_eq!((set.train.n, set.test.n, set.spec.classes, set.spec.id.as_ref()), (17, 4, 2, "folder-pets"));
    assert_eq!((set.train.histogram(2), set.test.histogram(2)), (vec![9, 8], vec![2, 2]));
    assert_eq!((set.train.h, set.train.w, set.train.c, set.spec.mean.len()), (16, 24, 3, 3));
    let again = folder::load(&s.dir(), &s.path("pets"), None).unwrap();
    assert!(s.path("decoded/folder-pets.bin").is_file() && again.fingerprint == set.fingerprint);

    // Two splits of the user's own, grey, with JPEG among them.
    own(&s, "two/train", 3, 16, 16);
    own(&s, "two/test", 1, 16, 16);
    let name = format!("folder@8:{}", s.path("two").display());
    let two = Source::open(&name, Profile::Clean, &s.dir()).unwrap();
    assert_eq!((two.spec().train_len, two.spec().test_len, two.spec().h), (6, 2, 8));
    for class in ["a", "b"] {
        s.write(&format!("grey/train/{class}/1.jpg"), &fixture("grey.jpg"));
        s.write(&format!("grey/test/{class}/1.png"), &png(64, 64, &[3; 4096]));
    }
    assert_eq!(folder::load(&s.dir(), &s.path("grey"), None).unwrap().train.c, 1);
}

#[test]
fn folders_that_cannot_be_used_are_refused() {
    let s = Scratch::new("folder-bad");
    let load = |name: &str| folder::load(&s.dir(), &s.path(name), None);
    own(&s, "mixed", 5, 16, 16);
    s.write("mixed/dog/7.png", &png(16, 17, &[0; 16 * 17]));
    let message = refused(load("mixed"), &["mixed/dog/7.png", "16x17", "16x16", "cat/0.png"]);
    assert!(message.contains(&format!("folder@16x16:{}", s.path("mixed").display())), "{message}");
    assert_eq!(folder::load(&s.dir(), &s.path("mixed"), Some([16, 16])).unwrap().train.h, 16);

    own(&s, "empty", 5, 16, 16);
    std::fs::create_dir(s.path("empty/cow")).unwrap();
    refused(load("empty"), &["empty/cow", "this class folder is empty", "remove it"]);
    own(&s, "odd", 5, 16, 16);
    s.write("odd/cat/notes.txt", b"hello");
    refused(load("odd"), &["odd/cat/notes.txt", "neither a PNG nor a JPEG"]);
    own(&s, "cut", 5, 16, 16);
    s.write("cut/dog/3.png", &png(16, 16, &[9; 256])[..50]);
    refused(load("cut"), &["cut/dog/3.png", "damaged PNG"]);
    own(&s, "few", 4, 16, 16);
    refused(load("few"), &["fewer than five images", "`test`"]);
    s.write("one/cat/1.png", &png(1, 1, &[0]));
    refused(load("one"), &["1 class folders", "two or more"]);
    refused(load("nowhere"), &["nowhere"]);
    own(&s, "halves/train", 2, 16, 16);
    s.write("halves/test/cat/1.png", &png(16, 16, &[0; 256]));
    refused(load("halves"), &["halves/test/dog", "both must have the same classes"]);
    s.write("halves/test/dog/1.png", &png(16, 16, &[0; 256]));
    s.write("halves/test/eel/1.png", &png(16, 16, &[0; 256]));
    refused(load("halves"), &["halves/test/eel", "there is no class of this name"]);
    for name in ["folder@0:x", "folder@9x:x", "folder@2000:x", "fodler:x", "npy@32:x", "mnits"] {
        let e = Source::open(name, Profile::Clean, &s.dir()).unwrap_err();
        assert!(e.is_misuse(), "{e}");
    }
}

/// numpy.save of version 1.
fn array(descr: &str, shape: &str, content: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}").into_bytes();
    header.resize((header.len() + 11).next_multiple_of(64) - 11, b' ');
    header.push(b'\n');
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], &header, content].concat()
}

#[test]
fn arrays_become_a_data_set() {
    let s = Scratch::new("npy");
    let pixels: Vec<u8> = (0..10 * 4 * 4).map(|i| i as u8).collect();
    let labels: Vec<u8> = (0..10i64).flat_map(|i| (i % 2).to_le_bytes()).collect();
    let files: Files = vec![
        ("x_train.npy".into(), array("|u1", "(10, 4, 4)", &pixels)),
        ("y_train.npy".into(), array("<i8", "(10, 1)", &labels)),
        ("other.npy".into(), b"not looked at".to_vec()),
    ];
    s.write("mine.npz", &zip(&files));
    let set = npy::load(&s.path("mine.npz")).unwrap();
    assert_eq!((set.train.n, set.test.n, set.train.c, set.spec.id.as_ref()), (8, 2, 1, "npy-mine"));
    assert_eq!((set.train.histogram(2), set.test.histogram(2)), (vec![4, 4], vec![1, 1]));
    files.iter().for_each(|(name, bytes)| s.write(&format!("mine/{name}"), bytes));
    assert_eq!(npy::load(&s.path("mine")).unwrap().fingerprint, set.fingerprint);
    s.write("mine/x_test.npy", &array("|u1", "(1, 4, 4, 1)", &pixels[..16]));
    s.write("mine/y_test.npy", &array("|u1", "(1,)", &[1]));
    let set = npy::load(&s.path("mine")).unwrap();
    assert_eq!((set.train.n, set.test.labels.as_slice(), &set.train.pixels), (10, &[1][..], &pixels));

    let x = |descr: &str, shape: &str, n: usize| ("x_train.npy", array(descr, shape, &vec![1; n]));
    let y = |descr: &str, shape: &str, content: &[u8]| ("y_train.npy", array(descr, shape, content));
    let fortran = String::from_utf8_lossy(&array("|u1", "(2, 2, 2)", b"12345678")).replace("False", "True ");
    type Case<'a> = ((&'a str, Vec<u8>), &'a [&'a str]);
    let cases: &[Case] = &[
        (x("|u1", "(10, 4, 4)", 159), &["x_train.npy", "truncated", "159 bytes follow", "numpy.save"]),
        (x("|u1", "(10, 4, 4)", 161), &["too long"]),
        (x("|u1", "(10, 99999999999999999999, 4)", 160), &["a size of"]),
        (x("|u1", "(9223372036854775807, 4, 4)", 160), &["truncated"]),
        (x("<f4", "(10, 4, 1)", 160), &["not of type uint8"]),
        (x("|u1", "(10, 16)", 160), &["shape [10, 16]", "(N, H, W, C)"]),
        (x("|u1", "(10, 2, 1, 8)", 160), &["C up to 4"]),
        (x("|u1", "(0, 4, 4)", 0), &["has no pixels"]),
        (x("|O", "(10,)", 160), &["of type |O"]),
        (("x_train.npy", b"\x93NUMPY\x01\x00\xff\xff{'descr".to_vec()), &["truncated in its header"]),
        (("x_train.npy", b"PK".to_vec()), &["not an npy file"]),
        (("x_train.npy", fortran.into_bytes()), &["not an npy file"]),
        (y("|u1", "(9,)", &[0, 1, 0, 1, 0, 1, 0, 1, 0]), &["9 labels for the 10 images"]),
        (y("|i1", "(10,)", &[0, 1, 0, 1, 0, 1, 0, 1, 0, 255]), &["example 9 is out of range"]),
        (y("|u1", "(10,)", &[0, 1, 0, 1, 0, 1, 0, 1, 0, 3]), &["labels up to 3", "no image of class 2"]),
        (y("|u1", "(10,)", &[0, 1, 0, 1, 0, 1, 0, 1, 0, 250]), &["labels up to 250", "no image of class 2"]),
        (y("<u8", "(10,)", &[0xfe; 80]), &["out of range"]),
        (y("<f8", "(10,)", &[0; 80]), &["one integer per image"]),
        (y("|u1", "(10,)", &[0; 10]), &["1 classes"]),
    ];
    for ((name, bytes), words) in cases {
        let s = Scratch::new("npy-bad");
        files.iter().for_each(|(name, bytes)| s.write(name, bytes));
        s.write(name, bytes);
        refused(npy::load(&s.0), words);
    }
    s.write("mine/y_test.npy", &array("|u1", "(1,)", &[2]));
    refused(npy::load(&s.path("mine")), &["y_test.npy", "label 2 of example 0 is out of range", "0 to 1"]);
    s.write("mine/x_test.npy", &array("|u1", "(1, 2, 8, 1)", &pixels[..16]));
    refused(npy::load(&s.path("mine")), &["x_test.npy", "2x8x1", "4x4x1"]);
    refused(npy::load(&s.path("nowhere.npz")), &["nowhere.npz"]);
    s.write("none/readme", b"");
    refused(npy::load(&s.path("none")), &["no array `x_train.npy`"]);
}

#[test]
fn the_contact_sheet_shows_what_training_sees() {
    let s = Scratch::new("sheet");
    own(&s, "pets", 10, 16, 24);
    let set = folder::load(&s.dir(), &s.path("pets"), None).unwrap();
    let sheet = |flip, crop_pad, seed| preview::sheet(&set, data::Augment { crop_pad, flip }, seed).unwrap();
    let plain = sheet(Flip::Never, 0, 1);
    assert_eq!(plain.pixels.len(), plain.h * plain.w * 3);
    // 24 wide is shown twice as large; the first tile is the first cat of the pool, in its colours.
    let first = set.train.labels.iter().position(|l| *l == 0).unwrap();
    let wanted = &set.train.pixels[first * 16 * 24 * 3..][..3];
    assert_eq!(&plain.pixels[(2 * plain.w + 28) * 3..][..3], wanted);
    let (a, b, c) = (sheet(Flip::Half, 4, 1), sheet(Flip::Half, 4, 1), sheet(Flip::Half, 4, 2));
    assert!(a.pixels == b.pixels && a.pixels != c.pixels && a.pixels != plain.pixels);
    let file = s.path("sheet.png");
    plain.save(&file).unwrap();
    let head = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&file).unwrap())).read_info().unwrap();
    assert_eq!((head.info().height as usize, head.info().width as usize), (plain.h, plain.w));
}

#[test]
fn real_cifar10_is_the_official_one() {
    let Some(dir) = std::env::var_os("DALCORE_DATA").map(|_| DataDir::resolve(None).unwrap()) else {
        eprintln!("skipped: DALCORE_DATA is not set");
        return;
    };
    if dir.locate("cifar10", &cifar::FILES10[0]).is_none() {
        eprintln!("skipped: CIFAR-10 is not in {}", dir.path.display());
        return;
    }
    let set = cifar::load10(&dir.without_cache(), Verify::Official).unwrap();
    assert_eq!((set.train.histogram(10), set.test.histogram(10)), (vec![5000; 10], vec![1000; 10]));
    assert_eq!(set.train.labels[..4], [6, 9, 9, 4]);
    let mean = |c: usize| set.train.pixels.iter().skip(c).step_by(3).map(|v| f64::from(*v)).sum::<f64>() / 50_000.0;
    for (c, wanted) in [0.4914, 0.4822, 0.4465].iter().enumerate() {
        assert!((mean(c) / 1024.0 / 255.0 - wanted).abs() < 1e-4);
    }
}
