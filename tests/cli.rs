//! The binary as a user meets it: exit codes, messages, resuming after a kill, byte-identical results.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn dalcore(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_dalcore"));
    c.args(args).env_remove("DALCORE_DATA").env("XDG_CACHE_HOME", scratch("cache"));
    c
}

fn run(args: &[&str]) -> Output {
    dalcore(args).output().unwrap()
}

/// A fresh folder of this test.
fn scratch(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn text(o: &Output) -> (String, String) {
    (String::from_utf8_lossy(&o.stdout).into_owned(), String::from_utf8_lossy(&o.stderr).into_owned())
}

/// Files that must be the same bytes in every run: all but timings, and what is derived from them.
fn lasting_files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut stack = vec![dir.to_path_buf()];
    while let Some(d) = stack.pop() {
        for e in std::fs::read_dir(d).unwrap() {
            let p = e.unwrap().path();
            let name = p.file_name().unwrap().to_string_lossy().into_owned();
            if p.is_dir() {
                stack.push(p);
            } else if ["rounds.jsonl", "picks.jsonl", "state.json", "model.safetensors", "manifest.json"]
                .contains(&name.as_str())
            {
                files.push((p.strip_prefix(dir).unwrap().to_path_buf(), std::fs::read(&p).unwrap()));
            }
        }
    }
    files.sort();
    files
}

const TINY: &[&str] =
    &["--set", "train.epochs=2", "--set", "budget.start=1", "--set", "budget.query=1", "--set", "budget.end=4"];

fn bench(out: &Path) -> Vec<String> {
    let mut v: Vec<String> =
        ["bench", "-m", "coreset,least-confidence", "--device", "cpu", "--out"].map(String::from).into();
    v.push(out.display().to_string());
    v.extend(TINY.iter().map(|s| s.to_string()));
    v
}

fn strs(v: &[String]) -> Vec<&str> {
    v.iter().map(String::as_str).collect()
}

#[test]
fn killed_at_any_moment_and_resumed_gives_the_same_bytes() {
    let (whole, broken) = (scratch("whole"), scratch("broken"));
    let o = run(&strs(&bench(&whole)));
    assert!(o.status.success(), "{}", text(&o).1);
    let wanted = lasting_files(&whole);
    assert!(wanted.len() >= 15, "{} files", wanted.len());
    let mut kills = 0;
    for attempt in 0.. {
        let mut child = dalcore(&strs(&bench(&broken))).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(350 + 130 * attempt));
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => {
                child.kill().unwrap(); // SIGKILL
                child.wait().unwrap();
                kills += 1;
            }
        }
    }
    assert!(kills >= 1, "the run was too quick to be killed");
    let got = lasting_files(&broken);
    assert_eq!(got.iter().map(|f| &f.0).collect::<Vec<_>>(), wanted.iter().map(|f| &f.0).collect::<Vec<_>>());
    for ((name, a), (_, b)) in got.iter().zip(&wanted) {
        assert!(a == b, "{} differs after {kills} kills", name.display());
    }
}

#[test]
fn reports_are_written_and_running_again_changes_nothing() {
    let out = scratch("report");
    let first = run(&strs(&bench(&out)));
    let (table, err) = text(&first);
    assert!(first.status.success() && err.is_empty(), "quiet when not a terminal: {err}");
    for name in ["CoreSet", "LeastConfidence", "RandomSampling"] {
        assert!(table.contains(name), "{table}");
    }
    let folder = out.join("quick-clean/synthetic");
    for file in ["results.csv", "accuracy.svg", "report.html"] {
        assert!(folder.join(file).metadata().unwrap().len() > 200, "{file}");
    }
    let before = lasting_files(&out);
    let again = run(&strs(&bench(&out)));
    assert_eq!(text(&again).0, table);
    assert_eq!(lasting_files(&out), before);
}

#[cfg(unix)]
#[test]
fn ctrl_c_says_how_to_go_on() {
    let out = scratch("ctrl-c");
    let child = dalcore(&["bench", "--device", "cpu", "--out", out.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let o = child.wait_with_output().unwrap();
    assert_eq!(o.status.code(), Some(130), "{}", text(&o).1);
    assert!(text(&o).1.contains("the same command goes on"), "{}", text(&o).1);
}

/// Runs side by side leave the files of runs one after the other.
#[test]
fn jobs_change_no_result() {
    let (one, three) = (scratch("one-job"), scratch("three-jobs"));
    let with = |out: &Path, jobs: &'static str| {
        let mut args = bench(out);
        args.extend(["--jobs", jobs, "--seed", "10,20"].map(String::from));
        let o = run(&strs(&args));
        assert!(o.status.success(), "{}", text(&o).1);
        text(&o).0.lines().filter(|l| l.contains("CoreSet")).map(|l| l[..30].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(with(&one, "1"), with(&three, "3"));
    assert!(lasting_files(&one) == lasting_files(&three));
}

/// What a method carries is saved with a round that MixMatch trains: stopped within it, a bandit goes on as if it had not
/// been, its last draw included. The reference keeps its own trainer.
#[test]
fn albl_stopped_while_mixmatch_trains_remembers_its_draw() {
    let (whole, broken, images) =
        (scratch("albl-whole"), scratch("albl-broken"), scratch("albl-images").join("shapes"));
    folder_of_images(&images, 300);
    let (set, data) = (format!("folder:{}", images.display()), scratch("albl-data").display().to_string());
    let args = |out: &Path| {
        let base = "bench -m albl --trainer mixmatch --preset smoke --device cpu --set train.batch=40 --set train.epochs=20 --set \
            budget.start=10 --set budget.query=5 --set budget.end=25";
        let mut v: Vec<String> = base.split_whitespace().map(String::from).collect();
        v.extend(["-d", &set, "--data-dir", &data, "--out", &out.display().to_string()].map(String::from));
        v
    };
    let o = run(&strs(&args(&whole)));
    assert!(o.status.success(), "{}", text(&o).1);
    let runs = |out: &Path| out.join("smoke-clean/folder-shapes");
    assert!(runs(&whole).join("albl+mixmatch").is_dir() && runs(&whole).join("random").is_dir());
    let wanted = lasting_files(&whole);
    let finished = || {
        let rounds = std::fs::read_to_string(runs(&broken).join("albl+mixmatch/seed-10/rounds.jsonl"));
        rounds.map_or(0, |r| r.lines().count())
    };
    // Once in every round after the start: saved, and killed.
    for round in 1..4 {
        let mut child = dalcore(&strs(&args(&broken)))
            .arg("--save-every=0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let partial = runs(&broken).join("albl+mixmatch/seed-10/partial.bin");
        while !(finished() == round && partial.exists()) {
            assert!(child.try_wait().unwrap().is_none(), "round {round} was too quick");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let o = run(&strs(&args(&broken)));
    assert!(o.status.success(), "{}", text(&o).1);
    assert!(lasting_files(&broken) == wanted);
}

/// Classes that nobody has labelled are named before hours of training on guesses that never are of them.
#[test]
fn a_class_without_labels_is_named() {
    let (out, data, images) = (scratch("classes"), scratch("classes-data"), scratch("classes-images").join("shapes"));
    folder_of_images(&images, 60);
    let (set, data, out) =
        (format!("folder:{}", images.display()), data.display().to_string(), out.display().to_string());
    let said = |start: &str| {
        let base = "bench -m ssl-random -v --preset smoke --device cpu --set train.batch=16 --set budget.query=5";
        let mut args: Vec<&str> = base.split_whitespace().collect();
        let (start, end) =
            (format!("budget.start={start}"), format!("budget.end={}", start.parse::<f64>().unwrap() + 5.0));
        let out = format!("{out}-{start}");
        args.extend(["-d", &set, "--data-dir", &data, "--out", &out, "--set", &start, "--set"]);
        let end = format!("budget.{}", &end[7..]);
        args.push(&end);
        let o = run(&args);
        assert!(o.status.success(), "{}", text(&o).1);
        text(&o).1
    };
    let err = said("2.1");
    assert!(err.contains("2 classes have no labelled example, such as ["), "{err}");
    let err = said("90");
    assert!(!err.contains("no labelled example"), "{err}");
}

/// SIGUSR1 saves a round that MixMatch trains, SIGTERM saves and stops, SIGKILL takes what is not saved: in the end the same
/// bytes, and nothing is left of what was saved on the way.
#[test]
fn mixmatch_stopped_within_a_round_gives_the_same_bytes() {
    let (whole, broken) = (scratch("mixmatch-whole"), scratch("mixmatch-broken"));
    let args = |out: &Path| {
        let mut v: Vec<String> =
            ["bench", "-m", "ssl-diff2aug-direct", "--device", "cpu", "--out"].map(String::from).into();
        v.push(out.display().to_string());
        v.extend(TINY.iter().map(|s| s.to_string()));
        v.extend(["--set", "budget.end=2", "--set", "train.batch=200", "--set", "train.epochs=1"].map(String::from));
        v
    };
    let o = run(&strs(&args(&whole)));
    assert!(o.status.success(), "{}", text(&o).1);
    let wanted = lasting_files(&whole);
    let (mut saves, mut stops) = (0, 0);
    for attempt in 0.. {
        let mut child = dalcore(&strs(&args(&broken))).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let id = child.id().to_string();
        let signal = |name: &str| Command::new("kill").args([name, id.as_str()]).status().unwrap();
        std::thread::sleep(Duration::from_millis(400 + 100 * attempt));
        if attempt % 2 == 1 {
            signal("-USR1");
            std::thread::sleep(Duration::from_millis(100));
        }
        let partial = |name: &str| broken.join(format!("quick-clean/synthetic/{name}/seed-10/partial.bin")).exists();
        saves += u32::from(partial("start+mixmatch") || partial("ssl-diff2aug-direct"));
        if child.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        signal(if attempt % 2 == 0 { "-TERM" } else { "-KILL" });
        let status = child.wait().unwrap();
        stops += u32::from(status.code() == Some(130));
        assert!(attempt < 100, "it never ends");
    }
    assert!(saves >= 1 && stops >= 1, "{saves} saves seen, {stops} stops");
    let got = lasting_files(&broken);
    assert_eq!(got.iter().map(|f| &f.0).collect::<Vec<_>>(), wanted.iter().map(|f| &f.0).collect::<Vec<_>>());
    for ((name, a), (_, b)) in got.iter().zip(&wanted) {
        assert!(a == b, "{} differs", name.display());
    }
    assert!(!broken.join("quick-clean/synthetic/ssl-diff2aug-direct/seed-10/partial.bin").exists());
}

/// A small training: four epochs of half a second or so, every one saved.
fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base =
        "train --preset smoke --device cpu --set train.epochs=4 --set train.milestones=[2,3] --save-every 0 --out";
    let mut args: Vec<&str> = base.split_whitespace().collect();
    args.push(out);
    args.extend(more);
    args
}

/// All files of a folder of a training but its timings.
fn trained_files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let dir = dir.join("train-smoke-clean/synthetic/lenet/seed-10");
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap()))
        .filter(|(name, _)| name != "timing.jsonl")
        .collect();
    files.sort();
    files
}

#[test]
fn a_training_killed_and_resumed_gives_the_same_bytes() {
    let (whole, broken) = (scratch("train-whole"), scratch("train-broken"));
    let (w, b) = (whole.display().to_string(), broken.display().to_string());
    let o = run(&train(&w, &["--log-steps"]));
    let (said, err) = text(&o);
    assert!(o.status.success() && err.is_empty(), "{err}");
    assert!(said.contains("synthetic lenet seed 10: test accuracy") && said.contains("model.safetensors"), "{said}");
    let wanted = trained_files(&whole);
    let names: Vec<&str> = wanted.iter().map(|f| f.0.as_str()).collect();
    let all = [".lock", "curve.jsonl", "curve.svg", "manifest.json", "model.safetensors", "momentum.safetensors"];
    assert_eq!(names, [&all[..], &["state.json", "steps.jsonl", "summary.txt"]].concat());
    let curve = String::from_utf8(wanted[1].1.clone()).unwrap();
    assert_eq!(curve.lines().count(), 4, "{curve}");
    let steps = String::from_utf8(wanted[7].1.clone()).unwrap();
    assert_eq!(steps.lines().count(), 4 * 94, "12,000 images in batches of 128");

    let (mut kills, mut in_the_middle) = (0, 0);
    for attempt in 0.. {
        let args = train(&b, &["--log-steps"]);
        let mut child = dalcore(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(600 + 400 * attempt));
        match child.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => {
                child.kill().unwrap(); // SIGKILL
                child.wait().unwrap();
                kills += 1;
                let curve = broken.join("train-smoke-clean/synthetic/lenet/seed-10/curve.jsonl");
                in_the_middle += u32::from(curve.metadata().is_ok_and(|m| m.len() > 0));
            }
        }
    }
    assert!(kills >= 1 && in_the_middle >= 1, "killed {kills} times, {in_the_middle} after an epoch");
    for ((name, a), (_, b)) in trained_files(&broken).iter().zip(&wanted) {
        assert!(a == b, "{name} differs after {kills} kills");
    }
    // Once more: nothing to do, nothing changes; another configuration is refused.
    assert_eq!(text(&run(&train(&b, &["--log-steps"]))).0.replace(&b, &w), said);
    assert_eq!(trained_files(&broken), wanted);
    let o = run(&train(&b, &["--set", "train.lr=0.05"]));
    assert_eq!(o.status.code(), Some(2));
    assert!(text(&o).1.contains("train.lr") && text(&o).1.contains("--out"), "{}", text(&o).1);
}

#[cfg(unix)]
#[test]
fn a_training_stopped_by_ctrl_c_loses_nothing() {
    let out = scratch("train-ctrl-c");
    let folder = out.display().to_string();
    // Nothing would be saved before the end, but for the signal.
    let base = "train --preset smoke --device cpu --set train.epochs=60 --save-every 1e6 --out";
    let args: Vec<&str> = base.split_whitespace().chain([folder.as_str()]).collect();
    let child = dalcore(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let o = child.wait_with_output().unwrap();
    let err = text(&o).1;
    assert_eq!(o.status.code(), Some(130), "{err}");
    assert!(err.contains("the same command goes on"), "{err}");
    let curve = std::fs::read_to_string(out.join("train-smoke-clean/synthetic/lenet/seed-10/curve.jsonl")).unwrap();
    let done = curve.lines().count();
    assert!(done >= 1 && err.contains(&format!("after {done} epochs")), "{done}: {err}");
}

#[test]
fn a_fresh_network_can_be_written() {
    let out = scratch("train-fresh");
    let folder = out.display().to_string();
    let args = ["train", "--preset", "smoke", "--device", "cpu", "--set", "train.epochs=0", "--out", &folder];
    let o = run(&args);
    assert!(o.status.success(), "{}", text(&o).1);
    assert!(text(&o).0.contains("not trained (0 epochs)"), "{}", text(&o).0);
    let bytes = std::fs::read(out.join("train-smoke-clean/synthetic/lenet/seed-10/model.safetensors")).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("fc2.weight").unwrap().shape(), [10, 50]);
    assert!(run(&args).status.success());
}

/// The arrays of a safetensors file by name, as bytes.
fn tensors(file: &Path) -> std::collections::BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    all.tensors().into_iter().map(|(n, t)| (n, (t.shape().to_vec(), t.data().to_vec()))).collect()
}

#[test]
fn embeddings_are_those_of_the_model_in_memory() {
    use dalcore::bench::config::Profile;
    use dalcore::data::{self, DataDir, Verify};
    use dalcore::device::Device;
    use dalcore::ops::{self, View};
    use dalcore::train::{Pass, Resident, extract};

    let out = scratch("embed");
    let folder = out.display().to_string();
    let o = run(&["train", "--preset", "smoke", "--device", "cpu", "--set", "train.epochs=1", "--out", &folder]);
    assert!(o.status.success(), "{}", text(&o).1);
    let model = out.join("train-smoke-clean/synthetic/lenet/seed-10/model.safetensors");
    let checkpoint = model.display().to_string();
    let (file, arrays) = (out.join("all.safetensors"), out.join("arrays"));
    for (to, batch) in [(&file, "300"), (&arrays, "77")] {
        let to = to.display().to_string();
        let names = "logits,embeddings,probabilities";
        let base = ["embed", "-c", &checkpoint, "-d", "synthetic", "--split", "test", "--device", "cpu", "--out", &to];
        let o = run(&[&base[..], &["--arrays", names, "--batch", batch]].concat());
        assert!(o.status.success() && text(&o).1.is_empty(), "{}", text(&o).1);
        assert!(text(&o).0.contains(&to), "{}", text(&o).0);
    }
    let source = data::Source::open("synthetic", Profile::Clean, &DataDir::resolve(Some(&out)).unwrap()).unwrap();
    let host = source.load(&DataDir::resolve(Some(&out)).unwrap(), Verify::Official).unwrap();
    let spec = source.spec();
    let model = dalcore::embed::model_of(&model, spec, &Device::Cpu).unwrap();
    let view = View::plain(&Device::Cpu, &spec.mean, &spec.std).unwrap();
    let ids: Vec<u32> = (0..2000).collect();
    let images = Resident::new(&Device::Cpu, &host.test).unwrap();
    let f = extract(&model, &images, &ids, Pass { view: &view, batch: 512, graphs: true }).unwrap();
    let bytes = |t: &dalcore::tensor::Tensor| -> Vec<u8> {
        t.to_vec::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    let words = |v: &[u32]| -> Vec<u8> { v.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let wanted = [
        ("embeddings", vec![2000, 50], bytes(&f.embeddings)),
        ("ids", vec![2000], words(&ids)),
        ("labels", vec![2000], words(&host.test.labels)),
        ("logits", vec![2000, 10], bytes(&f.logits)),
        ("probabilities", vec![2000, 10], bytes(&ops::softmax(&f.logits).unwrap())),
    ];
    let got = tensors(&file);
    assert_eq!(got.keys().collect::<Vec<_>>(), wanted.iter().map(|w| w.0).collect::<Vec<_>>());
    for (name, shape, data) in &wanted {
        assert!(got[*name] == (shape.clone(), data.clone()), "{name} in the safetensors file");
        let npy = std::fs::read(arrays.join(format!("{name}.npy"))).unwrap();
        assert!(npy[128..] == data[..], "{name}.npy");
    }
    assert!(f.logits.to_vec::<f32>().unwrap()[0] != 0.0);

    // Images of another size, a file of something else, a network nobody knows: named, and nothing is written.
    let images = scratch("embed-images").join("tiny");
    for class in ["a", "b"] {
        std::fs::create_dir_all(images.join(class)).unwrap();
        for i in 0..10u8 {
            let file = std::fs::File::create(images.join(class).join(format!("{i}.png"))).unwrap();
            let mut encoder = png::Encoder::new(file, 32, 32);
            encoder.set_color(png::ColorType::Grayscale);
            encoder.write_header().unwrap().write_image_data(&[i; 1024]).unwrap();
        }
    }
    let set = format!("folder:{}", images.display());
    let (bad, to) = (out.join("bad.safetensors"), out.join("never"));
    let go = |checkpoint: &Path, set: &str, more: &[&str]| {
        let (c, to) = (checkpoint.display().to_string(), to.display().to_string());
        let data = out.display().to_string();
        let base = ["embed", "-c", &c, "-d", set, "--out", &to, "--device", "cpu", "--data-dir", &data];
        let o = run(&[&base[..], more].concat());
        assert!(!Path::new(&to).exists(), "{}", text(&o).0);
        (o.status.code(), text(&o).1)
    };
    let (code, err) = go(Path::new(&checkpoint), &set, &[]);
    assert!(code == Some(2) && err.contains("28x28x1") && err.contains("32x32x1"), "{err}");
    let (code, err) = go(&images.join("a/0.png"), "synthetic", &[]);
    assert!(code == Some(1) && err.contains("0.png"), "{err}");
    std::fs::copy(&file, &bad).unwrap();
    let (code, err) = go(&bad, "synthetic", &[]);
    assert!(code == Some(1) && err.contains("bad.safetensors") && err.contains("neither LeNet"), "{err}");
    let (code, err) = go(&out.join("none.safetensors"), "synthetic", &[]);
    assert!(code == Some(1) && err.contains("none.safetensors"), "{err}");
    for (more, wanted) in [
        (["--arrays", "logitz"], "did you mean 'logits'"),
        (["--split", "tst"], "did you mean 'test'"),
        (["--batch", "0"], "at least one image"),
        (["--mean", "0.5"], "--std"),
        (["--mean=0.5,0.5", "--std=0.1,0.1"], "one per channel"),
    ] {
        let (code, err) = go(Path::new(&checkpoint), "synthetic", &more);
        assert!(code == Some(2) && err.contains(wanted), "{err}");
    }
}

/// A ResNet-18 of any width and number of classes is recognised; a wrong image size names the tensor that tells.
#[test]
fn a_checkpoint_says_what_it_is() {
    use dalcore::data::{self, Spec, cifar};
    use dalcore::device::Device;
    use dalcore::nn::checkpoint;
    use dalcore::rng::Rng;
    use dalcore::train::Model;

    let spec = Spec { model: data::Model::ResNet18 { width: 3 }, classes: 7, ..cifar::CIFAR10.clone() };
    let file = scratch("outline").join("resnet.safetensors");
    let model = Model::build(&spec, &Device::Cpu, Rng::new(1)).unwrap();
    std::fs::write(&file, checkpoint::to_bytes(&model.params).unwrap()).unwrap();
    let read = dalcore::embed::model_of(&file, &cifar::CIFAR10, &Device::Cpu).unwrap();
    assert_eq!((read.classes, read.net.embedding_width()), (7, 24));
    let values = |m: &Model| m.params.to_host().unwrap().into_iter().map(|(_, v)| v).collect::<Vec<_>>();
    assert_eq!(values(&read), values(&model));
    let other = |h: usize, c: usize| Spec { h, w: h, c, ..cifar::CIFAR10.clone() };
    for (spec, wanted) in [(other(64, 3), "fc.weight"), (other(32, 1), "conv1.weight")] {
        let e = dalcore::embed::model_of(&file, &spec, &Device::Cpu).err().unwrap().to_string();
        assert!(e.contains("resnet.safetensors: ") && e.contains(wanted) && e.contains("folder@HxW"), "{e}");
    }
}

#[test]
fn misuse_exits_with_2_and_one_clear_sentence() {
    let out = scratch("misuse");
    let out = out.to_str().unwrap();
    for (args, wanted) in [
        (vec!["bench", "--method", "coresett"], "did you mean 'coreset'"),
        (vec!["bench", "--dataset", "mnits"], "mnist"),
        (vec!["bench", "--preset", "papper"], "did you mean 'paper'"),
        (vec!["bench", "--seeds", "0"], "at least one seed"),
        (vec!["bench", "--threads", "0"], "at least one thread"),
        (vec!["bench", "--set", "train.lrr=1"], "did you mean 'train.lr'"),
        (vec!["bench", "--set", "budget.end=200"], "budget.end"),
        (vec!["bench", "--device", "gpu"], "auto, cpu, cuda or cuda:N"),
        (vec!["bench", "--config", "no-such-file.toml"], "no-such-file.toml"),
        (vec!["bench", "--frobnicate"], "--frobnicate"),
        (vec!["bench", "--set", "train.epochs=0"], "train.epochs"),
        (vec!["bench", "--trainer", "mixmach"], "did you mean 'mixmatch'"),
        (vec!["bench", "--trainer", "mixmatch", "-m", "waal"], "a training of its own"),
        (vec!["bench", "-m", "ssl-random", "--set", "ssl.alpha=0"], "ssl.alpha"),
        (vec!["study", "selektion"], "did you mean 'selection'"),
        (vec!["train", "--set", "budget.end=10"], "dalcore bench"),
        (vec!["train", "--set", "ssl.lr=1"], "dalcore bench"),
        (vec!["train", "--set", "model.width=64"], "LeNet"),
        (vec!["train", "-d", "cifar10", "--set", "model.width=0"], "between 1 and 1024"),
        (vec!["train", "--save-every", "never"], "--save-every"),
        (vec!["train", "--save-every=-1"], "--save-every"),
    ] {
        let mut args = args;
        args.extend(["--out", out].iter().filter(|_| !args.contains(&"--frobnicate")).copied().collect::<Vec<_>>());
        let o = run(&args);
        let (stdout, stderr) = text(&o);
        assert_eq!(o.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(wanted), "{args:?}: {stderr}");
        assert!(stdout.is_empty(), "{args:?}: {stdout}");
    }
}

#[test]
fn missing_data_names_file_and_remedy() {
    let (out, data) = (scratch("nodata"), scratch("nodata-data"));
    let o = run(&["bench", "-d", "mnist", "--out", out.to_str().unwrap(), "--data-dir", data.to_str().unwrap()]);
    let (_, err) = text(&o);
    assert_eq!(o.status.code(), Some(1), "{err}");
    assert!(err.contains("train-images-idx3-ubyte") && err.contains("dalcore data fetch mnist"), "{err}");
}

/// Images of 28×28 grey in three classes: the size the first network takes.
fn folder_of_images(dir: &Path, n: usize) {
    for i in 0..n {
        let class = dir.join(["circle", "line", "square"][i % 3]);
        std::fs::create_dir_all(&class).unwrap();
        let pixels: Vec<u8> = (0..784).map(|p| ((p % 28) * (i % 3) * 4 + i) as u8).collect();
        let file = std::fs::File::create(class.join(format!("{i}.png"))).unwrap();
        let mut encoder = png::Encoder::new(file, 28, 28);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    }
}

#[test]
fn the_users_own_folder_is_a_data_set() {
    let (out, data, images) = (scratch("own"), scratch("own-data"), scratch("own-images").join("shapes"));
    folder_of_images(&images, 60);
    let set = format!("folder:{}", images.display());
    let with = |extra: &[&str]| {
        let mut args: Vec<&str> = extra.to_vec();
        args.extend(["--data-dir", data.to_str().unwrap()]);
        let o = run(&args);
        (o.status.code(), text(&o))
    };
    let folder = out.display().to_string();
    let (code, (table, err)) =
        with(&["bench", "-m", "coreset", "-d", &set, "--preset", "smoke", "--device", "cpu", "--out", &folder]);
    assert_eq!(code, Some(0), "{err}");
    assert!(table.contains("CoreSet") && out.join("smoke-clean/folder-shapes/report.html").is_file(), "{table}");
    assert!(data.join("decoded/folder-shapes.bin").is_file(), "the second start decodes nothing");

    let sheet = out.join("sheet.png");
    let (code, (said, err)) = with(&["data", "preview", &set, "--profile", "repro", "--out", sheet.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{err}");
    assert!(said.contains("3 classes of folder-shapes") && sheet.metadata().unwrap().len() > 500, "{said}");
    let (code, (_, err)) = with(&["data", "preview", "folder:no-such-folder"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("no-such-folder"), "{err}");
    assert_eq!(with(&["data", "preview", &set, "--profile", "cleen"]).0, Some(2));
}

#[test]
fn another_configuration_in_the_same_folder_is_refused() {
    let out = scratch("config");
    let go = |lr: &str| {
        let o = out.display().to_string();
        run(&["bench", "-m", "random", "--preset", "smoke", "--device", "cpu", "--out", &o, "--set", lr])
    };
    assert!(go("train.lr=0.1").status.success());
    let o = go("train.lr=0.05");
    let (_, err) = text(&o);
    assert_eq!(o.status.code(), Some(2), "{err}");
    assert!(err.contains("train.lr") && err.contains("0.1") && err.contains("0.05") && err.contains("--out"), "{err}");
}

#[test]
fn what_people_ask_first_is_answered() {
    let v = text(&run(&["--version"])).0;
    assert!(v.contains("commit") && v.contains("CUDA architectures"), "{v}");
    let m = text(&run(&["methods"])).0;
    assert!(dalcore::methods::METHODS.iter().all(|e| m.contains(e.id)), "{m}");
    let d = text(&run(&["device"])).0;
    assert!(d.contains("CPU:") && d.contains("CUDA:"), "{d}");
    let p = text(&run(&["bench", "--dry-run", "--device", "cpu"])).0;
    assert!(p.contains("[480, 960, 1440, 1920, 2400]") && p.contains("estimate") && p.contains("grad_clamp"), "{p}");
    assert!(text(&run(&["completions", "bash"])).0.contains("_dalcore"));
    assert!(text(&run(&["data", "list"])).0.contains("dalcore data fetch mnist"));
    // Two data sets of the same files: checked under either name, and once where all are.
    let empty = scratch("no-data");
    let verify = |more: &[&str]| {
        let o = run(&[&["data", "verify", "--data-dir", empty.to_str().unwrap()], more].concat());
        text(&o).0.matches("GTSRB_Final_Test_GT.zip ").count()
    };
    assert_eq!((verify(&[]), verify(&["gtsrb"]), verify(&["gtsrb-roi"])), (1, 1, 1));
    assert_eq!(run(&[]).status.code(), Some(2));
}

#[test]
fn cuda_requested_and_absent_says_exactly_why() {
    if dalcore::device::Cuda::open(0).is_ok() {
        println!("skipped: this machine has a CUDA device");
        return;
    }
    let o = run(&["bench", "--device", "cuda", "--out", scratch("cuda").to_str().unwrap()]);
    let (_, err) = text(&o);
    assert_eq!(o.status.code(), Some(2), "{err}");
    assert!(err.contains("--device cpu") && (err.contains("driver") || err.contains("nvcc")), "{err}");
}

/// The built-in data set is there to show that choosing helps; training is cut to what a test may take.
#[test]
fn a_good_rule_beats_random_on_the_built_in_set() {
    let out = scratch("rule");
    let mut args: Vec<&str> = "bench -m least-confidence --seeds 5 --device cpu -q --set train.epochs=30 \
        --set train.milestones=[12,24] --set budget.start=4 --set budget.query=8 --set budget.end=12 --out"
        .split_whitespace()
        .collect();
    let folder = out.display().to_string();
    args.push(&folder);
    let o = run(&args);
    assert!(o.status.success(), "{:?}", text(&o));
    let csv = std::fs::read_to_string(out.join("quick-clean/synthetic/summary.csv")).unwrap();
    let (head, rows) = csv.split_once('\n').unwrap();
    let column = |row: &str, name: &str| -> f64 {
        let at = head.split(',').position(|h| h == name).unwrap();
        row.split(',').nth(at).unwrap().parse().unwrap()
    };
    let row = rows.lines().find(|r| r.starts_with("least-confidence")).unwrap();
    // The first of the two budgets is shared with random, so the second differs by twice this.
    assert!(column(row, "api_pp") > 0.2, "{csv}");
}

/// The study's numbers, taken again by plain loops from what it left on disk: the picks of the round after the start, the
/// model that they were picked with, and the accuracy of the training with them.
#[test]
fn the_study_of_selections_is_what_its_runs_say() {
    use dalcore::bench::config::Profile;
    use dalcore::data::{self, DataDir, Flip, Verify};
    use dalcore::device::Device;
    use dalcore::ops::{self, View};
    use dalcore::rng::Rng;
    use dalcore::train::{Pass, Resident, extract};

    let (out, data, images) = (scratch("study"), scratch("study-data"), scratch("study-images").join("shapes"));
    folder_of_images(&images, 300);
    let set = format!("folder:{}", images.display());
    let (folder, decoded) = (out.display().to_string(), data.display().to_string());
    let base = "study selection --preset smoke --device cpu --set train.batch=40 --set train.flip=true --set \
        train.crop_pad=2 --set train.epochs=2 --set ssl.lr=0.1 --set ssl.ema=0.5 --set budget.start=10 --set budget.query=5 --set budget.end=15";
    let mut args: Vec<&str> = base.split_whitespace().collect();
    args.extend(["-d", &set, "--out", &folder, "--data-dir", &decoded]);
    let o = run(&args);
    assert!(o.status.success(), "{}", text(&o).1);
    let runs = out.join("study-selection/smoke-clean/folder-shapes");
    let csv = std::fs::read_to_string(runs.join("selection.csv")).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("seed,method,diversity,uncertainty,inconsistency,accuracy"));

    let dir = DataDir::resolve(Some(&data)).unwrap();
    let source = data::Source::open(&set, Profile::Clean, &dir).unwrap();
    let host = source.load(&dir, Verify::Official).unwrap();
    let (spec, d) = (source.spec(), &Device::Cpu);
    let pool = Resident::new(d, &host.train).unwrap();
    let model = runs.join("start+mixmatch/seed-10/model.safetensors");
    let model = dalcore::embed::model_of(&model, spec, d).unwrap();
    let plain = View::plain(d, &spec.mean, &spec.std).unwrap();
    let record = |method: &str, file: &str| -> serde_json::Value {
        let text = std::fs::read_to_string(runs.join(method).join("seed-10").join(file)).unwrap();
        serde_json::from_str(text.lines().nth(1).unwrap()).unwrap()
    };
    let mut seen = Vec::new();
    for method in ["ssl-random", "ssl-consistency", "ssl-diff2aug-direct", "ssl-diff2aug-kmeans"] {
        let line: Vec<&str> = lines.next().unwrap().split(',').collect();
        assert_eq!(line[..2], ["10", method]);
        let ids: Vec<u32> = serde_json::from_value(record(method, "picks.jsonl")["ids"].clone()).unwrap();
        assert_eq!(ids.len(), 12);
        let look = |view: &View| {
            let f = extract(&model, &pool, &ids, Pass { view, batch: 7, graphs: false }).unwrap();
            let p = ops::softmax(&f.logits).unwrap().to_f64().unwrap();
            (f.embeddings.to_f64().unwrap(), p)
        };
        let (h, clean) = look(&plain);
        let (c, w) = (clean.len() / 12, h.len() / 12);
        let mut passes = vec![clean.clone()];
        for v in 0..50 {
            let view = View::train(d, &spec.mean, &spec.std, 2, Flip::Half, Rng::new(10), 1).unwrap();
            passes.push(look(&view.lane(0x1000 + v)).1);
        }
        let distance =
            |a: usize, b: usize| -> f64 { (0..w).map(|k| (h[a * w + k] - h[b * w + k]).powi(2)).sum::<f64>().sqrt() };
        let pairs: f64 = (0..12).flat_map(|a| (0..a).map(move |b| (a, b))).map(|(a, b)| distance(a, b)).sum();
        let top = |row: &[f64]| 1.0 - row.iter().copied().fold(0.0, f64::max);
        let spread = |e: usize| {
            let mean = passes.iter().map(|p| p[e]).sum::<f64>() / 51.0;
            passes.iter().map(|p| (p[e] - mean).powi(2)).sum::<f64>() / 51.0
        };
        let round = record(method, "rounds.jsonl");
        let last = round["correct"].as_array().unwrap().last().unwrap().as_f64().unwrap();
        let want = [
            pairs / 66.0,
            clean.chunks(c).map(top).sum::<f64>() / 12.0,
            (0..12 * c).map(spread).sum::<f64>() / 12.0,
            last / round["test_size"].as_f64().unwrap(),
        ];
        for ((name, got), want) in
            ["diversity", "uncertainty", "inconsistency", "accuracy"].iter().zip(&line[2..]).zip(want)
        {
            let got: f64 = got.parse().unwrap();
            assert!((got - want).abs() < 1e-5 * want && want > 0.0, "{name} of {method}: {got}, not {want}");
        }
        seen.push(line[2..].join(","));
    }
    assert_eq!(lines.next(), None);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4, "methods pick alike: {csv}");
    // Four panels of the pool's 240 images and the 12 picks each.
    let svg = std::fs::read_to_string(runs.join("figure3.svg")).unwrap();
    assert_eq!(svg.matches("<circle").count(), 4 * (240 + 12));
    assert_eq!(std::fs::read_to_string(runs.join("figure2.svg")).unwrap().matches("<circle").count(), 4 * 4 + 4);
    let table = text(&o).0;
    let all = ["SSLRandom", "SSLConsistency", "SSLDiff2AugDirect", "SSLDiff2AugKmeans", "figure2.svg"];
    assert!(all.iter().all(|name| table.contains(name)), "{table}");
}
