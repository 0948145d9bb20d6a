//! Data sets on the host, the one table of them, and the pool of labelled and unlabelled examples.
//!
//! To add a data set: one new file with its [`Spec`] and a loader, and one row in [`DATASETS`].

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::bench::config::Profile;
use crate::error::{Error, Result};
use crate::rng::{Purpose, Rng};

mod archive;
mod cache;
pub mod cifar;
pub mod fetch;
pub mod folder;
pub mod gtsrb;
pub mod mnist;
pub mod npy;
mod pickle;
mod picture;
pub mod preview;
pub mod synthetic;
pub mod tiny;

pub use fetch::{FetchOptions, fetch};

/// Images of one split with their labels, on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Number of images.
    pub n: usize,
    /// Height in pixels.
    pub h: usize,
    /// Width in pixels.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Pixels, (N, H, W, C), 0 to 255.
    pub pixels: Vec<u8>,
    /// Labels, (N), below the number of classes.
    pub labels: Vec<u32>,
}

impl Images {
    /// How many examples each of `classes` classes has. Labels beyond are not counted.
    pub fn histogram(&self, classes: usize) -> Vec<usize> {
        let mut count = vec![0; classes];
        for &label in &self.labels {
            if let Some(c) = count.get_mut(label as usize) {
                *c += 1;
            }
        }
        count
    }

    /// Mean and standard deviation of a channel, in units of white; the latter at least one grey level, so that a
    /// constant channel can be normalised.
    fn moments(&self, channel: usize) -> (f32, f32) {
        let mut count = [0u64; 256];
        self.pixels.iter().skip(channel).step_by(self.c).for_each(|v| count[usize::from(*v)] += 1);
        let mean_of = |f: &dyn Fn(f64) -> f64| {
            let sum: f64 = (0u8..).zip(&count).map(|(v, n)| f(f64::from(v) / 255.0) * *n as f64).sum();
            sum / count.iter().sum::<u64>().max(1) as f64
        };
        let mean = mean_of(&|v| v);
        (mean as f32, mean_of(&|v| (v - mean) * (v - mean)).sqrt().max(1.0 / 255.0) as f32)
    }

    /// These examples, in this order.
    fn pick(&self, ids: &[usize]) -> Images {
        let size = self.h * self.w * self.c;
        let pixels = ids.iter().flat_map(|i| &self.pixels[i * size..][..size]).copied().collect();
        Images { n: ids.len(), pixels, labels: ids.iter().map(|i| self.labels[*i]).collect(), ..*self }
    }
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Its constants.
    pub spec: Spec,
    /// The pool.
    pub train: Images,
    /// The test set.
    pub test: Images,
    /// Sha-256 of the decoded content, in hexadecimal; goes into manifests.
    pub fingerprint: String,
}

impl Dataset {
    /// Put two splits together and take their fingerprint.
    pub fn new(spec: &Spec, train: Images, test: Images) -> Dataset {
        let fingerprint = fingerprint(&train, &test);
        Dataset { spec: spec.clone(), train, test, fingerprint }
    }
}

/// Sha-256 of the sizes, pixels and labels of both splits.
fn fingerprint(train: &Images, test: &Images) -> String {
    let mut sha = Sha256::new();
    for images in [train, test] {
        for size in [images.n, images.h, images.w, images.c] {
            sha.update((size as u64).to_le_bytes());
        }
        sha.update(&images.pixels);
        for label in &images.labels {
            sha.update(label.to_le_bytes());
        }
    }
    hex(&sha.finalize())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Which network the paper trains on a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The LeNet variant of METHODS 1.1.
    LeNet,
    /// ResNet-18 for small images, METHODS 1.2 and 1.3.
    ResNet18 {
        /// Channels of its first stage: 16 in the paper's code, 64 in the standard network.
        width: usize,
    },
}

impl Model {
    /// The narrow ResNet-18 of the paper's code.
    pub const RESNET18: Model = Model::ResNet18 { width: 16 };

    /// What manifests and folders call it.
    pub fn name(self) -> String {
        match self {
            Model::LeNet => "lenet".into(),
            Model::ResNet18 { width } => format!("resnet18-w{width}"),
        }
    }
}

/// Whether training images are mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// Never: a mirrored digit or sign is a different one.
    Never,
    /// Left to right with probability one half.
    Half,
}

/// What happens to a training image before it is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augment {
    /// Pad with this many black pixels on every side, then crop at random to the old size. 0: no crop.
    pub crop_pad: usize,
    /// Mirroring.
    pub flip: Flip,
}

/// Labelling budgets in percent of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// The random start set.
    pub start: u32,
    /// Added per round.
    pub query: u32,
    /// Where to stop.
    pub end: u32,
}

impl Budgets {
    /// Size of the labelled set at the end of each round, for a pool of `n`: floor(percent·n / 100). A zero
    /// `query` gives the start set only.
    pub fn targets(&self, n: usize) -> Vec<usize> {
        let step = if self.query == 0 { usize::MAX } else { self.query as usize };
        (self.start..=self.end).step_by(step).map(|percent| percent as usize * n / 100).collect()
    }
}

/// The constants of a data set: what it is and how the paper trains on it. Borrowed in the table, owned where they
/// are read from the user's own files.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name on the command line and in results.
    pub id: Cow<'static, str>,
    /// Name in the paper.
    pub paper_name: Cow<'static, str>,
    /// One line for help and README.
    pub about: &'static str,
    /// Number of classes.
    pub classes: usize,
    /// Height in pixels.
    pub h: usize,
    /// Width in pixels.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Size of the pool.
    pub train_len: usize,
    /// Size of the test set.
    pub test_len: usize,
    /// Mean per channel, in units of white.
    pub mean: Cow<'static, [f32]>,
    /// Standard deviation per channel, in units of white.
    pub std: Cow<'static, [f32]>,
    /// Training transform of the profile `clean`.
    pub clean: Augment,
    /// Training transform of the profile `repro`.
    pub repro: Augment,
    /// Batch size of training.
    pub batch_train: usize,
    /// Batch size of evaluation.
    pub batch_test: usize,
    /// The network.
    pub model: Model,
    /// Labelling budgets.
    pub budgets: Budgets,
    /// Epochs per round.
    pub epochs: u32,
    /// Epochs at which the learning rate falls to a tenth.
    pub milestones: &'static [u32],
}

impl Spec {
    /// The constants of the user's own images. The paper is silent about those: budgets and epochs are those of its
    /// colour images, the network is the one that fits the size, crops shift by an eighth, and nothing is mirrored, for
    /// only the user knows whether a mirrored image means the same (`--set train.flip=true`).
    pub fn of_own(id: String, about: &'static str, classes: usize, train: &Images, test: &Images) -> Spec {
        let augment = Augment { crop_pad: train.h.min(train.w) / 8, flip: Flip::Never };
        let (mean, std) = (0..train.c).map(|c| train.moments(c)).unzip();
        let grey28 = [train.h, train.w, train.c] == [28, 28, 1];
        Spec {
            paper_name: id.clone().into(),
            id: id.into(),
            about,
            classes,
            h: train.h,
            w: train.w,
            c: train.c,
            train_len: train.n,
            test_len: test.n,
            mean: Cow::Owned(mean),
            std: Cow::Owned(std),
            clean: augment,
            repro: augment,
            batch_train: 128,
            batch_test: 512,
            model: if grey28 { Model::LeNet } else { Model::RESNET18 },
            budgets: Budgets { start: 10, query: 5, end: 70 },
            epochs: 150,
            milestones: &[80, 120],
        }
    }
}

/// A fixed order for files that come sorted by class: some rules look at the first part of a pool only, and would see
/// few classes. It belongs to the data set, not to a run.
fn pool_order(n: usize) -> Vec<u32> {
    Rng::new(0).at(Purpose::PoolOrder, 0, 0).permutation(n)
}

/// Split examples without a test set: a fifth of every class, the first of it in [`pool_order`]. Gives the ids of the
/// pool and of the test set, both in that order.
fn hold_out(labels: &[u32]) -> (Vec<usize>, Vec<usize>) {
    let mut room = vec![0; labels.iter().max().map_or(0, |m| *m as usize + 1)];
    labels.iter().for_each(|l| room[*l as usize] += 1);
    room.iter_mut().for_each(|r| *r /= 5);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for id in pool_order(labels.len()) {
        let id = id as usize;
        let left = &mut room[labels[id] as usize];
        if *left > 0 {
            *left -= 1;
            test.push(id);
        } else {
            train.push(id);
        }
    }
    (train, test)
}

/// How closely the files of a data set are checked before they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// The content must have the published checksum and the published size.
    Official,
    /// The format and the agreement between images and labels only; any number of images of any size.
    ShapeOnly,
}

/// A published checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// In hexadecimal.
    Sha256(&'static str),
    /// In hexadecimal; tells an accident from the original, not an attack.
    Md5(&'static str),
}

impl Sum {
    /// What is wrong with this content, in words; nothing if it is the published one.
    pub fn check(self, mut content: impl std::io::Read) -> std::io::Result<Result<(), String>> {
        let (name, found, wanted) = match self {
            Sum::Sha256(wanted) => {
                let mut sum = Sha256::new();
                std::io::copy(&mut content, &mut sum)?;
                ("sha-256", hex(&sum.finalize()), wanted)
            }
            Sum::Md5(wanted) => {
                let mut sum = Md5::new();
                std::io::copy(&mut content, &mut sum)?;
                ("md5", hex(&sum.finalize()), wanted)
            }
        };
        Ok(if found == wanted { Ok(()) } else { Err(format!("{name} {found}, wanted {wanted}")) })
    }
}

/// A file that can be downloaded.
#[derive(Debug)]
pub struct RemoteFile {
    /// Name at the mirrors.
    pub name: &'static str,
    /// Bytes of the download; 0 where no source for it was found: then the server's word is taken for it.
    pub len: u64,
    /// Checksum of the download.
    pub sum: Sum,
    /// Sha-256 after decompression, of a file that is merely gzipped. This is what loading checks, so another
    /// compressor's file is as good.
    pub raw_sha256: Option<&'static str>,
    /// Other names under which the same content is accepted, best first: decompressed, unpacked, another format.
    pub also: &'static [&'static str],
}

impl RemoteFile {
    /// Check what lies at `path` against the published checksum. `id` is for the remedy.
    pub fn check(&self, id: &str, path: &Path) -> Result<()> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, &e))?;
        let verdict = self.sum.check(file).map_err(|e| Error::io(path, &e))?;
        verdict.map_err(|sums| Error::Data {
            path: path.display().to_string(),
            why: format!("not the official file: {sums}; {}", remedy(id)),
        })
    }
}

/// What to do about a damaged file of data set `id`.
fn remedy(id: &str) -> String {
    format!("remove it and run `dalcore data fetch {id}`")
}

/// A row of the table of data sets.
#[derive(Debug)]
pub struct Entry {
    /// Its constants.
    pub spec: &'static Spec,
    /// Read or generate it.
    pub load: fn(&DataDir, Verify) -> Result<Dataset>,
    /// The data set whose files these are: this one, or another that it cuts differently.
    pub home: &'static str,
    /// What `dalcore data fetch` downloads; empty for a built-in set.
    pub files: &'static [RemoteFile],
    /// Folders on the web that hold these files, tried in this order.
    pub mirrors: &'static [&'static str],
    /// What the profile `repro` takes instead, where the published numbers come from another split.
    pub in_repro: Option<&'static str>,
}

/// Every data set. Command line, help and documentation read this table.
pub static DATASETS: &[Entry] = &[
    Entry {
        spec: &synthetic::SPEC,
        load: synthetic::load,
        home: "synthetic",
        files: &[],
        mirrors: &[],
        in_repro: None,
    },
    Entry {
        spec: &mnist::SPEC,
        load: mnist::load,
        home: "mnist",
        files: &mnist::FILES,
        mirrors: &mnist::MIRRORS,
        in_repro: None,
    },
    Entry {
        spec: &cifar::CIFAR10,
        load: cifar::load10,
        home: "cifar10",
        files: &cifar::FILES10,
        mirrors: &cifar::MIRRORS,
        in_repro: None,
    },
    Entry {
        spec: &cifar::CIFAR100,
        load: cifar::load100,
        home: "cifar100",
        files: &cifar::FILES100,
        mirrors: &cifar::MIRRORS,
        in_repro: None,
    },
    Entry {
        spec: &gtsrb::FINAL,
        load: |dir, verify| gtsrb::load_final(dir, verify, gtsrb::Cut::Whole),
        home: "gtsrb",
        files: &gtsrb::FINAL_FILES,
        mirrors: &gtsrb::MIRRORS,
        in_repro: Some("gtsrb-online"),
    },
    Entry {
        spec: &gtsrb::ONLINE,
        load: |dir, verify| gtsrb::load_online(dir, verify, gtsrb::Cut::Whole),
        home: "gtsrb-online",
        files: &gtsrb::ONLINE_FILES,
        mirrors: &gtsrb::MIRRORS,
        in_repro: None,
    },
    Entry {
        spec: &gtsrb::FINAL_ROI,
        load: |dir, verify| gtsrb::load_final(dir, verify, gtsrb::Cut::Sign),
        home: "gtsrb",
        files: &gtsrb::FINAL_FILES,
        mirrors: &gtsrb::MIRRORS,
        in_repro: Some("gtsrb-online-roi"),
    },
    Entry {
        spec: &gtsrb::ONLINE_ROI,
        load: |dir, verify| gtsrb::load_online(dir, verify, gtsrb::Cut::Sign),
        home: "gtsrb-online",
        files: &gtsrb::ONLINE_FILES,
        mirrors: &gtsrb::MIRRORS,
        in_repro: None,
    },
    Entry {
        spec: &tiny::SPEC,
        load: tiny::load,
        home: "tiny-imagenet",
        files: &tiny::FILES,
        mirrors: &tiny::MIRRORS,
        in_repro: None,
    },
];

/// A data set that a command named: a row of the table, or the user's own files.
#[derive(Debug)]
pub enum Source {
    /// Read or generated by [`Source::load`].
    Table(&'static Entry),
    /// Read already: only its files know its constants.
    Own(Box<Dataset>),
}

impl Source {
    /// `mnist`, `folder:PATH`, `folder@32x32:PATH` (resized) or `npy:PATH`.
    pub fn open(name: &str, profile: Profile, dir: &DataDir) -> Result<Source> {
        let Some((kind, path)) = name.split_once(':') else {
            let entry = find(name)?;
            return Ok(Source::Table(match entry.in_repro {
                Some(other) if profile == Profile::Repro => find(other)?,
                _ => entry,
            }));
        };
        let (kind, size) = kind.split_once('@').map_or((kind, None), |(kind, size)| (kind, Some(size)));
        let dataset = match (kind, size) {
            ("folder", size) => folder::load(dir, Path::new(path), size.map(folder::parse_size).transpose()?)?,
            ("npy", None) => npy::load(Path::new(path))?,
            _ => {
                return Err(Error::Config {
                    key: "dataset".into(),
                    why: format!("`{name}` is neither folder:PATH, folder@HxW:PATH nor npy:PATH"),
                });
            }
        };
        Ok(Source::Own(Box::new(dataset)))
    }

    /// Its constants.
    pub fn spec(&self) -> &Spec {
        match self {
            Source::Table(entry) => entry.spec,
            Source::Own(dataset) => &dataset.spec,
        }
    }

    /// The images.
    pub fn load(&self, dir: &DataDir, verify: Verify) -> Result<Cow<'_, Dataset>> {
        match self {
            Source::Table(entry) => (entry.load)(dir, verify).map(Cow::Owned),
            Source::Own(dataset) => Ok(Cow::Borrowed(dataset)),
        }
    }
}

/// Look a data set up by name, ignoring case, `-` and `_`. An unknown name is answered with the nearest one.
pub fn find(name: &str) -> Result<&'static Entry> {
    let plain = |s: &str| s.chars().filter(|c| !matches!(c, '-' | '_')).collect::<String>().to_lowercase();
    let wanted = plain(name);
    if let Some(entry) = DATASETS.iter().find(|e| [&e.spec.id, &e.spec.paper_name].iter().any(|s| plain(s) == wanted)) {
        return Ok(entry);
    }
    let nearest = DATASETS
        .iter()
        .map(|e| (strsim::damerau_levenshtein(&wanted, &plain(&e.spec.id)), &e.spec.id))
        .min()
        .filter(|(distance, id)| *distance <= id.len() / 2)
        .map_or(String::new(), |(_, id)| format!("did you mean `{id}`? "));
    let known: Vec<_> = DATASETS.iter().map(|e| &*e.spec.id).collect();
    Err(Error::Config {
        key: "dataset".into(),
        why: format!(
            "there is no data set `{name}`; {nearest}Known: {}, and your own as folder:PATH or npy:PATH",
            known.join(", ")
        ),
    })
}

/// The folder that holds downloaded data sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    /// The folder. It need not exist yet.
    pub path: PathBuf,
    /// What chose it, for messages: `--data-dir`, `DALCORE_DATA` or `the cache folder`.
    pub chosen_by: &'static str,
    /// Whether decoded images are kept in its folder `decoded`, and taken from there.
    pub cached: bool,
}

impl DataDir {
    /// `--data-dir` if given, else `DALCORE_DATA`, else the user's cache folder.
    pub fn resolve(argument: Option<&Path>) -> Result<DataDir> {
        DataDir::resolve_with(argument, |name| std::env::var_os(name))
    }

    /// [`DataDir::resolve`] with another environment.
    pub fn resolve_with(argument: Option<&Path>, env: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<DataDir> {
        let env = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        // The XDG rules say to ignore a relative path.
        let absolute = |name: &str| env(name).filter(|p| p.is_absolute());
        if let Some(path) = argument {
            return Ok(DataDir::at(path));
        }
        if let Some(path) = env("DALCORE_DATA") {
            return Ok(DataDir { path, chosen_by: "DALCORE_DATA", cached: true });
        }
        let cache = absolute("XDG_CACHE_HOME").or_else(|| {
            if cfg!(windows) {
                return absolute("LOCALAPPDATA");
            }
            let below_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
            absolute("HOME").map(|home| home.join(below_home))
        });
        let cache = cache.ok_or_else(|| Error::Config {
            key: "--data-dir".into(),
            why: "no folder for data: neither DALCORE_DATA nor XDG_CACHE_HOME nor a home folder is set; \
                  name one with --data-dir"
                .into(),
        })?;
        Ok(DataDir { path: cache.join("dalcore"), chosen_by: "the cache folder", cached: true })
    }

    /// A folder named by the caller.
    pub fn at(path: impl Into<PathBuf>) -> DataDir {
        DataDir { path: path.into(), chosen_by: "--data-dir", cached: true }
    }

    /// The same folder, but everything is decoded anew.
    pub fn without_cache(&self) -> DataDir {
        DataDir { cached: false, ..self.clone() }
    }

    /// Where a file of data set `id` may lie, in the order in which they are looked at.
    pub fn candidates(&self, id: &str, file: &RemoteFile) -> Vec<PathBuf> {
        let names = || std::iter::once(&file.name).chain(file.also);
        let own = self.path.join(id);
        names().map(|n| own.join(n)).chain(names().map(|n| self.path.join(n))).collect()
    }

    /// The first candidate that exists, a file or a folder.
    pub fn locate(&self, id: &str, file: &RemoteFile) -> Option<PathBuf> {
        self.candidates(id, file).into_iter().find(|p| p.exists())
    }

    /// [`DataDir::locate`], or the error that says where it was looked for and what to do.
    pub fn require(&self, id: &str, file: &RemoteFile) -> Result<PathBuf> {
        self.locate(id, file).ok_or_else(|| Error::Data {
            path: file.name.into(),
            why: format!(
                "this file of data set {id} is missing: neither in {} nor in {} (named by {}) is there any of {}, {}; \
                 download it with `dalcore data fetch {id}`, or name the folder that has it with --data-dir",
                self.path.join(id).display(),
                self.path.display(),
                self.chosen_by,
                file.name,
                file.also.join(", "),
            ),
        })
    }
}

/// What `dalcore data verify` found out about one file.
#[derive(Debug)]
pub struct FileStatus {
    /// Name at the mirrors.
    pub name: &'static str,
    /// Where it lies, if it was found.
    pub path: Option<PathBuf>,
    /// Nothing, or what is wrong with it and how to mend it.
    pub verdict: Result<()>,
}

/// Check every file of a data set against its published checksum. Empty for a built-in set.
pub fn verify(entry: &Entry, dir: &DataDir) -> Vec<FileStatus> {
    entry.files.iter().map(|file| verify_file(entry, dir, file)).collect()
}

/// What is not the download itself but packed anew, unpacked or in another format has no checksum as a whole: then the
/// data set is read from it, which checks every part that has one, and the numbers of images.
fn verify_file(entry: &Entry, dir: &DataDir, file: &'static RemoteFile) -> FileStatus {
    let id = entry.home;
    let path = dir.locate(id, file);
    let verdict = match &path {
        _ if file.raw_sha256.is_some() => mnist::read(dir, id, file, Verify::Official).map(|_| ()),
        None => dir.require(id, file).map(|_| ()),
        Some(path) => {
            let read = || (entry.load)(&dir.without_cache(), Verify::Official).map(|_| ());
            match path.ends_with(file.name) {
                true => file.check(id, path).or_else(|e| read().map_err(|_| e)),
                false => read(),
            }
        }
    };
    FileStatus { name: file.name, path, verdict }
}

/// Whether a data set can be used right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Generated, nothing to download.
    BuiltIn,
    /// All files exist (their content is not checked), with the folder of the first.
    Present(PathBuf),
    /// These files are missing.
    Missing(Vec<&'static str>),
}

/// A row of `dalcore data list`.
#[derive(Debug)]
pub struct Listing {
    /// The data set.
    pub entry: &'static Entry,
    /// Where it is.
    pub presence: Presence,
    /// Bytes on disk, of the files that were found.
    pub bytes: u64,
}

/// Every data set, whether it is present, where, and its size on disk.
pub fn list(dir: &DataDir) -> Vec<Listing> {
    let row = |entry: &'static Entry| {
        let found: Vec<_> = entry.files.iter().map(|f| (f, dir.locate(entry.home, f))).collect();
        let missing: Vec<_> = found.iter().filter(|(_, p)| p.is_none()).map(|(f, _)| f.name).collect();
        let paths: Vec<&PathBuf> = found.iter().filter_map(|(_, p)| p.as_ref()).collect();
        let bytes = paths.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum();
        let presence = match paths.first().and_then(|p| p.parent()) {
            _ if entry.files.is_empty() => Presence::BuiltIn,
            Some(folder) if missing.is_empty() => Presence::Present(folder.to_path_buf()),
            _ => Presence::Missing(missing),
        };
        Listing { entry, presence, bytes }
    };
    DATASETS.iter().map(row).collect()
}

/// The number of an example in the training pool. A row number of some matrix is not one: the two must not mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolIdx(pub u32);

impl PoolIdx {
    /// As an index into per-example arrays.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which examples are labelled. The label of any other one cannot be reached.
#[derive(Clone, Debug)]
pub struct Pool {
    labels: Arc<[u32]>,
    known: Vec<bool>,
    labelled: Vec<PoolIdx>,
    unlabelled: Vec<PoolIdx>,
}

impl Pool {
    /// A pool in which nothing is labelled yet. Ids are 32 bits wide, so more examples are refused.
    pub fn new(labels: Arc<[u32]>) -> Result<Pool> {
        let n = u32::try_from(labels.len()).map_err(|_| refused(format!("{} examples are too many", labels.len())))?;
        Ok(Pool {
            known: vec![false; labels.len()],
            labels,
            labelled: Vec::new(),
            unlabelled: (0..n).map(PoolIdx).collect(),
        })
    }

    /// The random start set: the first `size` of a permutation that depends on the run's seed alone, ascending.
    pub fn start_set(&self, rng: Rng, size: usize) -> Result<Vec<PoolIdx>> {
        if size > self.len() {
            return Err(refused(format!("a start set of {size} is larger than the pool of {}", self.len())));
        }
        let order = rng.at(Purpose::StartSet, 0, 0).permutation(self.len());
        let mut start: Vec<_> = order.into_iter().take(size).map(PoolIdx).collect();
        start.sort_unstable();
        Ok(start)
    }

    /// Reveal the labels of these examples: all of them, or none if any is refused.
    pub fn reveal(&mut self, ids: &[PoolIdx]) -> Result<()> {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        for (i, id) in sorted.iter().enumerate() {
            if i > 0 && sorted.get(i - 1) == Some(id) {
                return Err(refused(format!("example {} was chosen twice in one query", id.0)));
            }
            match self.known.get(id.index()) {
                None => {
                    let n = self.len();
                    return Err(refused(format!("there is no example {}: the pool has {n}, numbered from 0", id.0)));
                }
                Some(true) => return Err(refused(format!("example {} is already labelled", id.0))),
                Some(false) => {}
            }
        }
        for id in &sorted {
            if let Some(known) = self.known.get_mut(id.index()) {
                *known = true;
            }
        }
        self.labelled.extend(sorted);
        self.labelled.sort_unstable();
        let known = &self.known;
        self.unlabelled.retain(|id| known.get(id.index()) == Some(&false));
        Ok(())
    }

    /// The label, once revealed.
    pub fn label(&self, id: PoolIdx) -> Option<u32> {
        self.known.get(id.index()).filter(|known| **known).and_then(|_| self.labels.get(id.index())).copied()
    }

    /// Labelled ids, ascending.
    pub fn labelled(&self) -> &[PoolIdx] {
        &self.labelled
    }

    /// Unlabelled ids, ascending.
    pub fn unlabelled(&self) -> &[PoolIdx] {
        &self.unlabelled
    }

    /// Number of examples, labelled or not.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True for a pool without examples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

fn refused(why: String) -> Error {
    Error::Data { path: "pool".into(), why }
}
