//! The files of a run, from outside: refusals, damage, a lock, a real SIGKILL.

use dalcore::Error;
use dalcore::bench::store::{Manifest, PickRecord, RoundRecord, RunDir, TimingRecord, read_run, run_dir, shared_start};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

fn manifest() -> Manifest {
    Manifest {
        config: json!({"train": {"epochs": 2, "lr": 0.1}, "budget": {"start": 2}}),
        seed: 10,
        profile: "clean".into(),
        preset: "smoke".into(),
        dataset: "synthetic".into(),
        method: "coreset".into(),
        model: "lenet".into(),
        precision: "f32".into(),
        device_kind: "cpu".into(),
        device: "test".into(),
        driver: String::new(),
        commit: "abc".into(),
        data_fingerprint: "1".into(),
        pool: 10_000,
        targets: vec![2, 4, 6, 8],
        threads: 1,
        version: "0".into(),
        continued: vec![],
    }
}

type Round = (RoundRecord, PickRecord, TimingRecord, Value, Vec<u8>);

fn round(r: u32) -> Round {
    (
        RoundRecord {
            round: r,
            labelled: 2 * r + 2,
            picked: 2,
            test_size: 1000,
            correct: vec![500 + r, 600],
            loss: vec![2.5, 1.0 / 3.0],
        },
        PickRecord { round: r, ids: vec![5000 - r, r], scores: None },
        TimingRecord { round: r, selection_s: 0.5, training_s: 1.0, evaluation_s: 0.25 },
        json!({ "round": r, "w": 0.1 + 0.2 }),
        vec![r as u8; 3000],
    )
}

fn commit(dir: &mut RunDir, (a, b, c, d, e): Round) -> dalcore::Result<()> {
    dir.commit_round(a, b, c, d, &e)
}

/// Rounds up to `n` are there afterwards.
fn work(path: &Path, n: u32) -> dalcore::Result<()> {
    let mut dir = RunDir::open(path, &manifest())?;
    while dir.finished_rounds() < n {
        let next = round(dir.finished_rounds());
        commit(&mut dir, next)?;
    }
    Ok(())
}

/// A folder that goes away with the test.
struct Scratch(PathBuf);

impl std::ops::Deref for Scratch {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0).or_else(|_| fs::remove_file(&self.0));
    }
}

fn scratch(name: &str) -> Scratch {
    let path = std::env::temp_dir().join(format!("dalcore-store-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    Scratch(path)
}

fn same_but_timing(a: &Path, b: &Path) {
    for name in ["manifest.json", "rounds.jsonl", "picks.jsonl", "state.json", "model.safetensors"] {
        assert_eq!(fs::read(a.join(name)).unwrap(), fs::read(b.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn what_was_stored_is_read_back() {
    let path = scratch("read");
    work(&path, 3).unwrap();
    let run = read_run(&path).unwrap();
    let dir = RunDir::open(&path, &manifest()).unwrap();
    for r in 0..3 {
        let (a, b, c, _, _) = round(r);
        let r = r as usize;
        assert_eq!((&run.rounds[r], &run.picks[r], &run.timing[r]), (&a, &b, &c));
        assert_eq!((&dir.rounds()[r], &dir.picks()[r], &dir.timing()[r]), (&a, &b, &c));
    }
    assert_eq!(dir.method_state(), &round(2).3, "floats survive to the last bit");
    assert_eq!(dir.model().unwrap(), Some(round(2).4));
    assert_eq!(run.manifest, manifest());
}

#[test]
fn one_process_at_a_time() {
    let path = scratch("lock");
    let held = RunDir::open(&path, &manifest()).unwrap();
    let err = RunDir::open(&path, &manifest()).unwrap_err().to_string();
    assert!(err.contains("another dalcore process") && err.contains(path.to_str().unwrap()), "{err}");
    let mut asked = 0;
    let err = RunDir::open_waiting(&path, &manifest(), &mut || {
        asked += 1;
        if asked < 3 { Ok(()) } else { Err(Error::Interrupted { resume: "run it again".into() }) }
    });
    assert!(matches!(err, Err(Error::Interrupted { .. })) && asked == 3);
    drop(held);
    RunDir::open(&path, &manifest()).unwrap();
}

#[test]
fn another_configuration_is_refused_by_name() {
    let path = scratch("config");
    work(&path, 2).unwrap();
    let before = fs::read(path.join("manifest.json")).unwrap();
    let refuse = |change: &dyn Fn(&mut Manifest), key: &str, words: &[&str]| {
        let mut m = manifest();
        change(&mut m);
        let err = RunDir::open(&path, &m).unwrap_err();
        assert!(err.is_misuse(), "{err:?}");
        assert!(err.to_string().starts_with(&format!("{key}: ")), "{err}");
        for word in words.iter().chain(&["--out", path.to_str().unwrap()]) {
            assert!(err.to_string().contains(word), "{word} is missing in: {err}");
        }
    };
    refuse(&|m| m.config["train"]["lr"] = json!(0.2), "train.lr", &["0.1", "0.2"]);
    refuse(&|m| m.config["train"]["new"] = json!(true), "train.new", &["nothing", "true"]);
    refuse(
        &|m| {
            m.config["budget"]["start"] = json!(3);
            m.config["train"]["epochs"] = json!(9);
            m.targets = vec![3, 5];
        },
        "budget.start",
        &["2", "3", "2 more: train.epochs, targets"],
    );
    refuse(&|m| m.precision = "bf16".into(), "precision", &["\"f32\"", "\"bf16\""]);
    refuse(&|m| m.device_kind = "cuda".into(), "device", &["\"cpu\"", "\"cuda\""]);
    refuse(&|m| m.data_fingerprint = "2".into(), "data_fingerprint", &["\"1\"", "\"2\""]);
    assert_eq!(fs::read(path.join("manifest.json")).unwrap(), before);

    // The order of the keys is no difference, and an empty folder is nobody's.
    let mut m = manifest();
    m.config = json!({"budget": {"start": 2}, "train": {"lr": 0.1, "epochs": 2}});
    RunDir::open(&path, &m).unwrap();
    let empty = scratch("config-empty");
    RunDir::open(&empty, &manifest()).unwrap();
    m.config["train"]["lr"] = json!(0.5);
    RunDir::open(&empty, &m).unwrap();
    assert_eq!(read_run(&empty).unwrap().manifest, m);
}

#[test]
fn another_machine_continues_and_is_recorded() {
    let path = scratch("machine");
    let mut other = manifest();
    (other.device, other.commit, other.threads) = ("faster".into(), "def".into(), 8);
    work(&path, 1).unwrap();
    drop(RunDir::open(&path, &other).unwrap()); // computed nothing: leaves no trace
    work(&path, 2).unwrap();
    assert!(read_run(&path).unwrap().manifest.continued.is_empty());
    let mut dir = RunDir::open(&path, &other).unwrap();
    commit(&mut dir, round(2)).unwrap();
    drop(dir);
    drop(RunDir::open(&path, &other).unwrap());
    work(&path, 4).unwrap();
    let manifest = read_run(&path).unwrap().manifest;
    let seen: Vec<(u32, &str)> = manifest.continued.iter().map(|c| (c.from_round, c.device.as_str())).collect();
    assert_eq!((manifest.device.as_str(), seen), ("test", vec![(2, "faster"), (3, "test")]));
}

#[test]
fn nothing_that_json_would_lose_or_records_that_disagree() {
    let path = scratch("nan");
    work(&path, 1).unwrap();
    let before = fs::read(path.join("state.json")).unwrap();
    let mut dir = RunDir::open(&path, &manifest()).unwrap();
    let refuse = |dir: &mut RunDir, change: &dyn Fn(&mut Round), words: &[&str]| {
        let mut r = round(1);
        change(&mut r);
        let err = commit(dir, r).unwrap_err().to_string();
        for word in words {
            assert!(err.contains(word), "{word} is missing in: {err}");
        }
    };
    refuse(&mut dir, &|r| r.0.loss[1] = f64::NAN, &["round 1", "epoch 1", "NaN", "kept"]);
    refuse(&mut dir, &|r| r.1.scores = Some(vec![0.0, f32::INFINITY]), &["score of pool id 1", "inf"]);
    refuse(&mut dir, &|r| r.1.scores = Some(vec![0.0]), &["1 scores for 2 ids"]);
    refuse(&mut dir, &|r| r.2.training_s = f64::NAN, &["duration"]);
    refuse(&mut dir, &|r| r.1.ids[0] = 5000, &["pool id 5000 was picked twice"]);
    refuse(&mut dir, &|r| r.0.labelled = 5, &["labelled 5"]);
    refuse(&mut dir, &|r| r.0.correct[0] = 1001, &["1001 of 1000"]);
    refuse(&mut dir, &|r| r.2.round = 2, &["round 1 is next"]);
    assert_eq!(fs::read(path.join("state.json")).unwrap(), before);
    commit(&mut dir, round(1)).unwrap();
}

#[test]
fn damage_is_named_and_left_as_it_is() {
    let good = scratch("damage-good");
    work(&good, 3).unwrap();
    let path = scratch("damage");
    let refuse = |damage: &dyn Fn(), file: &str, words: &str| {
        let _ = fs::remove_dir_all(&*path);
        fs::create_dir_all(&*path).unwrap();
        for entry in fs::read_dir(&*good).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
        }
        damage();
        let rounds = fs::read(path.join("rounds.jsonl")).unwrap_or_default();
        let err = RunDir::open(&path, &manifest()).unwrap_err().to_string();
        assert!(err.contains(file) && err.contains(words) && err.contains("move its folder away"), "{err}");
        assert_eq!(fs::read(path.join("rounds.jsonl")).unwrap_or_default(), rounds);
    };
    let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
    let edit = |name: &str, from: &str, to: &str| {
        let text = fs::read_to_string(path.join(name)).unwrap();
        assert!(text.contains(from));
        fs::write(path.join(name), text.replacen(from, to, 1)).unwrap();
    };
    refuse(&|| write("state.json", "{\"finished_rou"), "state.json", "cannot be read");
    refuse(&|| write("state.json", ""), "state.json", "cannot be read");
    refuse(&|| edit("state.json", "finished", "unfinished"), "state.json", "unknown field");
    refuse(&|| fs::remove_file(path.join("state.json")).unwrap(), "state.json", "is missing although rounds.jsonl");
    refuse(&|| fs::remove_file(path.join("manifest.json")).unwrap(), "manifest.json", "is missing");
    refuse(&|| edit("manifest.json", "\"seed\": 10", "\"seed\": \"10\""), "manifest.json", "cannot be read");
    refuse(&|| write("rounds.jsonl", "{}"), "rounds.jsonl", "state.json counts on");
    refuse(&|| edit("picks.jsonl", "\"ids\"", "\"idz\""), "picks.jsonl", "line 1");
    refuse(&|| edit("rounds.jsonl", "\"round\":1", "\"round\":2"), "rounds.jsonl", "rounds 0 to 2");
    refuse(&|| write("model.safetensors", "other"), "model.safetensors", "is not the model");

    // Lost timings are lost, nothing else: the run goes on.
    fs::write(good.join("timing.jsonl"), "{\"round\":0,\"selection_s\":0.0,\"training_s\":1.0,\"evalu").unwrap();
    work(&good, 4).unwrap();
    let run = read_run(&good).unwrap();
    assert_eq!((run.rounds.len(), run.timing.len(), run.timing[0].round), (4, 1, 3));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_keeps_what_is_finished() {
    let (path, want) = (scratch("full"), scratch("full-want"));
    work(&want, 2).unwrap();
    work(&path, 1).unwrap();
    let mut dir = RunDir::open(&path, &manifest()).unwrap();
    for name in ["model.safetensors.next", "state.json.tmp"] {
        std::os::unix::fs::symlink("/dev/full", path.join(name)).unwrap();
        let err = commit(&mut dir, round(1)).unwrap_err().to_string();
        assert!(err.contains(name) && err.contains("free some space"), "{err}");
        fs::remove_file(path.join(name)).unwrap();
        assert_eq!(read_run(&path).unwrap().rounds.len(), 1);
    }
    commit(&mut dir, round(1)).unwrap();
    same_but_timing(&path, &want);
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt;
    let own = scratch("readonly");
    let mut path = own.to_path_buf();
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(path.join("try"), "").is_ok() {
        path = "/sys/kernel".into(); // permissions do not bind root, a file system of the kernel does
    }
    let err = RunDir::open(&path.join("run"), &manifest()).unwrap_err().to_string();
    assert!(err.contains(path.to_str().unwrap()) && err.contains("a folder you may write to"), "{err}");
    let file = scratch("file");
    fs::write(&*file, "a file where a folder should be").unwrap();
    let err = RunDir::open(&file.join("run"), &manifest()).unwrap_err().to_string();
    assert!(err.contains(file.to_str().unwrap()), "{err}");
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_that_is_killed() {
    if let Some(path) = std::env::var_os("DALCORE_STORE_CHILD") {
        work(Path::new(&path), 400).unwrap();
    }
}

#[test]
fn sigkill_and_start_again() {
    let (want, path) = (scratch("sigkill-want"), scratch("sigkill"));
    let child = || {
        let mut c = Command::new(std::env::current_exe().unwrap());
        c.args(["--exact", "child_that_is_killed"]).env("DALCORE_STORE_CHILD", &*path);
        c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut kills = 0;
    for wait in [0, 3, 11, 17, 23, 31, 40, 61, 83, 110] {
        let mut child = child();
        std::thread::sleep(Duration::from_millis(5 + wait));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += u32::from(RunDir::open(&path, &manifest()).unwrap().finished_rounds() < 400);
    }
    assert!(kills > 0, "the child was never killed in the middle");
    let reached = RunDir::open(&path, &manifest()).unwrap().finished_rounds();
    assert!(reached > 0, "the child never got anywhere");
    work(&path, reached + 1).unwrap();
    work(&want, reached + 1).unwrap();
    same_but_timing(&path, &want);
}

#[test]
fn round_zero_is_made_once() {
    let base = scratch("start");
    let path = run_dir(&base, dalcore::bench::store::START, 10);
    let made = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let mut wait = || {
                    std::thread::sleep(Duration::from_millis(2));
                    Ok(())
                };
                let start = shared_start(&path, &manifest(), &mut wait, || {
                    made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                    let (a, b, c, _, e) = round(0);
                    Ok((a, b, c, e))
                })
                .unwrap();
                assert_eq!((start.finished_rounds(), start.model().unwrap()), (1, Some(round(0).4)));
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
    let mut failed = manifest();
    failed.seed = 20;
    let other = run_dir(&base, dalcore::bench::store::START, 20);
    let stop = || Err(Error::NonFinite { what: "loss".into() });
    assert!(shared_start(&other, &failed, &mut || Ok(()), stop).is_err());
    assert!(read_run(&other).unwrap().rounds.is_empty(), "a start that failed leaves nothing behind");
}
