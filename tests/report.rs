//! Runs on disk in, numbers worked out by hand out.

use dalcore::bench::store::{Manifest, PickRecord, RoundRecord, RunDir, TimingRecord, run_dir};
use dalcore::report::{self, published};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

struct Spec<'a> {
    method: &'a str,
    seed: u64,
    /// Correct answers of 1000 by epoch, for each finished round.
    correct: &'a [&'a [u32]],
    /// Selection, training, evaluation seconds of every round from 1 on.
    seconds: [f64; 3],
}

struct Scene {
    dir: PathBuf,
    preset: &'static str,
    profile: &'static str,
    dataset: &'static str,
}

impl Scene {
    fn new(name: &str, preset: &'static str, profile: &'static str, dataset: &'static str) -> Scene {
        let top = std::env::temp_dir().join(format!("dalcore-report-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        Scene { dir: top.join(dataset), preset, profile, dataset }
    }

    /// Write a run with 2000 in the pool and budgets 2 %, 4 %, 6 %.
    fn run(&self, spec: &Spec) {
        let manifest = Manifest {
            config: json!({"train": {"epochs": 2}, "note": "<b>&"}),
            seed: spec.seed,
            profile: self.profile.into(),
            preset: self.preset.into(),
            dataset: self.dataset.into(),
            method: spec.method.into(),
            model: "lenet".into(),
            precision: "f32".into(),
            device_kind: "cpu".into(),
            device: "a CPU with 2 cores".into(),
            driver: String::new(),
            commit: "0123abc".into(),
            data_fingerprint: "d4ta".into(),
            pool: 2000,
            targets: vec![40, 80, 120],
            threads: 2,
            version: "0.1.0".into(),
            continued: vec![],
        };
        let mut dir = RunDir::open(&run_dir(&self.dir, spec.method, spec.seed), &manifest).unwrap();
        for (r, correct) in spec.correct.iter().enumerate() {
            let r = r as u32;
            let [selection_s, training_s, evaluation_s] = if r == 0 { [0.0, 999.0, 999.0] } else { spec.seconds };
            dir.commit_round(
                RoundRecord {
                    round: r,
                    labelled: 40 * (r + 1),
                    picked: 40,
                    test_size: 1000,
                    correct: correct.to_vec(),
                    loss: vec![1.0; correct.len()],
                },
                PickRecord { round: r, ids: (40 * r..40 * r + 40).collect(), scores: None },
                TimingRecord { round: r, selection_s, training_s, evaluation_s },
                json!(null),
                &[r as u8],
            )
            .unwrap();
        }
    }

    fn write(&self) -> report::Summary {
        report::write_all(&self.dir, &published::paper_name).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(top) = self.dir.parent() {
            let _ = fs::remove_dir_all(top);
        }
    }
}

/// Two seeds; the last epoch is worse than the best one where it matters.
fn two_seeds(scene: &Scene) {
    let spec = |method, seed, correct, seconds| Spec { method, seed, correct, seconds };
    scene.run(&spec("random", 10, &[&[790, 800], &[850, 830], &[890, 890]], [0.0, 2.0, 1.0]));
    scene.run(&spec("random", 20, &[&[700, 800], &[820, 820], &[880, 880]], [0.0, 4.0, 1.0]));
    scene.run(&spec("coreset", 10, &[&[790, 800], &[850, 850], &[920, 900]], [1.0, 2.0, 1.0]));
    scene.run(&spec("coreset", 20, &[&[700, 800], &[830, 830], &[910, 910]], [2.0, 4.0, 1.0]));
}

fn line<'a>(csv: &'a str, start: &str) -> Vec<&'a str> {
    csv.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("no {start} in\n{csv}")).split(',').collect()
}

#[test]
fn the_numbers_are_those_worked_out_by_hand() {
    let scene = Scene::new("clean", "quick", "clean", "synthetic");
    two_seeds(&scene);
    let summary = scene.write();
    // Last epochs. Seed 10: (0 + 2 + 1) / 3 = 1 pp, the example of the specification. Seed 20: (0 + 1 + 3) / 3.
    // Mean 7/6; the standard error of two values is half their distance, 1/6.
    // Cost = selection + training: (3 + 6) / 2 against (2 + 4) / 2.
    let csv = scene.read("summary.csv");
    let want = "coreset,CoreSet,2,1.166667,0.166667,,0.905000,1.500000,3.000000,1.000000,4.500000,1.500000";
    assert_eq!(line(&csv, "coreset").join(","), want);
    assert_eq!(line(&csv, "random")[3..5], ["0.000000", "0.000000"]);
    let rounds = scene.read("results.csv");
    assert_eq!(rounds.lines().count(), 1 + 4 * 3);
    let want = "coreset,CoreSet,10,2,120,6.0000,0.900000,0.900000,0.920000,1000,1.000000,2.000000,1.000000";
    assert_eq!(line(&rounds, "coreset,CoreSet,10,2").join(","), want);
    assert!(summary.text.contains("last epoch") && summary.notes.is_empty(), "{}", summary.text);
    let cells: Vec<&str> = summary.text.lines().find(|l| l.starts_with("CoreSet")).unwrap().split("  ").collect();
    let cells: Vec<&str> = cells.into_iter().map(str::trim).filter(|c| !c.is_empty()).collect();
    assert_eq!(cells, ["CoreSet", "80.00", "84.00", "90.50", "+1.17 ± 0.17", "1.50", "3.00", "1.50×"]);
    let head = summary.text.lines().find(|l| l.starts_with("method")).unwrap();
    assert!(head.contains("2 %") && head.contains("6 %") && !head.contains("published"), "{head}");
}

#[test]
fn repro_takes_the_best_epoch_and_bills_evaluation() {
    let scene = Scene::new("repro", "paper", "repro", "mnist");
    two_seeds(&scene);
    let summary = scene.write();
    // Best epochs from round 1 on. Seed 10: (0 + 0 + 3) / 3. Seed 20: 4/3. Cost: (4 + 7) / 2 against (3 + 5) / 2.
    let csv = scene.read("summary.csv");
    let want = "coreset,CoreSet,2,1.166667,0.166667,-1.15,0.915000,1.500000,3.000000,1.000000,5.500000,1.375000";
    assert_eq!(line(&csv, "coreset").join(","), want);
    assert_eq!(
        line(&scene.read("results.csv"), "random,RandomSampling,10,1")[6..9],
        ["0.850000", "0.830000", "0.850000"]
    );
    for text in [&summary.text, &scene.read("report.html"), &scene.read("summary.md")] {
        assert!(text.contains("−1.15") && text.contains("best test accuracy") | text.contains("Best test accuracy"));
    }
}

#[test]
fn a_missing_round_is_undefined_and_never_zero() {
    let scene = Scene::new("missing", "quick", "clean", "synthetic");
    two_seeds(&scene);
    scene.run(&Spec { method: "badge", seed: 10, correct: &[&[800], &[860]], seconds: [1.0, 2.0, 1.0] });
    scene.run(&Spec { method: "bald", seed: 30, correct: &[&[800], &[860], &[900]], seconds: [1.0, 2.0, 1.0] });
    let lost = run_dir(&scene.dir, "coreset", 20).join("timing.jsonl");
    fs::write(lost, "").unwrap();
    let summary = scene.write();
    let csv = scene.read("summary.csv");
    assert_eq!(line(&csv, "badge")[2..], ["1", "", "", "", "", "", "", "", "", ""]);
    assert_eq!(line(&csv, "bald")[3..7], ["", "", "", "0.900000"]);
    assert_eq!(line(&csv, "coreset")[3..], ["1.166667", "0.166667", "", "0.905000", "", "", "", "", ""]);
    assert_eq!(line(&scene.read("results.csv"), "badge,BadgeSampling,10,2")[6..], [""; 7]);
    let row = summary.text.lines().find(|l| l.starts_with("BadgeSampling")).unwrap();
    assert_eq!(row.split_whitespace().skip(1).collect::<Vec<_>>(), ["80.00", "86.00", "–", "–", "–", "–", "–"]);
    let html = scene.read("report.html");
    let headline = html.split("Improvement over random").nth(1).unwrap();
    let badge = headline.split("BadgeSampling</th>").nth(1).unwrap();
    assert!(badge.starts_with("<td>–</td><td>–</td><td>–</td><td>1</td>"), "{}", &badge[..80]);
    for note in [
        "BadgeSampling, seed 10: 2 of 3 rounds are finished",
        "BALDDropout, seed 30: random has no run with this seed",
        "CoreSet, seed 20: the seconds of 3 rounds are lost",
    ] {
        assert!(summary.text.contains(note) && html.contains(note), "{note} is missing in\n{}", summary.text);
    }
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let scene = Scene::new("page", "quick", "clean", "synthetic");
    two_seeds(&scene);
    let summary = scene.write();
    let html = scene.read("report.html");
    for outside in ["http:", "https:", "src=", "@import", "url(", "<script", "<link"] {
        assert!(!html.contains(outside), "{outside} in the page");
    }
    assert!(html.contains("prefers-color-scheme: dark") && html.contains("width=device-width"));
    assert!(html.contains("&lt;b&gt;&amp;") && !html.contains("<b>"), "the configuration is text, not markup");
    for fact in ["a CPU with 2 cores", "0123abc", "d4ta", "Test accuracy after the last epoch", "+1.17 ± 0.17"] {
        assert!(html.contains(fact), "{fact}");
    }
    let svg = scene.read("accuracy.svg");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains("CoreSet") && svg.contains("labelled, % of the pool") && svg.contains("polygon"));
    // A pure function of the files, and nothing but the report is left behind.
    let before: Vec<Vec<u8>> = summary.files.iter().map(|f| fs::read(f).unwrap()).collect();
    let again = scene.write();
    assert_eq!(before, again.files.iter().map(|f| fs::read(f).unwrap()).collect::<Vec<_>>());
    let mut names: Vec<_> = fs::read_dir(&scene.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let want = ["accuracy.svg", "coreset", "random", "report.html", "results.csv", "summary.csv", "summary.md"];
    assert_eq!(names, want);
    let index = report::write_index(scene.dir.parent().unwrap(), &published::paper_name).unwrap();
    let index = fs::read_to_string(index).unwrap();
    assert!(index.contains("synthetic/report.html") && index.contains("+1.17 ± 0.17"), "{index}");
}

#[test]
fn what_cannot_be_reported_is_said() {
    let scene = Scene::new("odd", "quick", "clean", "mnist");
    two_seeds(&scene);
    // Stuck at chance, unreadable, no random.
    scene.run(&Spec { method: "waal", seed: 10, correct: &[&[800], &[98], &[98]], seconds: [1.0, 2.0, 1.0] });
    fs::write(run_dir(&scene.dir, "coreset", 20).join("state.json"), "{").unwrap();
    let text = scene.write().text;
    assert!(text.contains("WAAL, seed 10 diverged: in round 1 it is at chance (9.80 %)"), "{text}");
    let waal = scene.write().results.rows.into_iter().find(|r| r.id == "waal").unwrap();
    assert!(waal.api.is_none() && waal.curve == [None; 3], "there is no mean of nothing: {waal:?}");
    // Beside a sound seed it is no part of the mean.
    scene.run(&Spec { method: "waal", seed: 20, correct: &[&[800], &[900], &[950]], seconds: [1.0, 2.0, 1.0] });
    let waal = scene.write().results.rows.into_iter().find(|r| r.id == "waal").unwrap();
    assert_eq!(waal.curve.iter().map(|p| p.unwrap().mean).collect::<Vec<_>>(), [0.8, 0.9, 0.95]);
    assert_eq!((waal.seeds, waal.api.unwrap().n), (vec![10, 20], 1));
    assert!(text.contains("left out because it cannot be read") && text.contains("seed-20"), "{text}");
    assert!(!text.contains("published"), "published numbers stand only beside the paper's preset");
    fs::remove_dir_all(scene.dir.join("random")).unwrap();
    let text = scene.write().text;
    assert!(text.contains("no run of random"), "{text}");
    let err = report::write_all(Path::new("/nowhere/at/all"), &published::paper_name).unwrap_err().to_string();
    assert!(err.contains("/nowhere/at/all"), "{err}");
    fs::create_dir_all(scene.dir.join("empty")).unwrap();
    let err = report::write_all(&scene.dir.join("empty"), &published::paper_name).unwrap_err().to_string();
    assert!(err.contains("no run to report on"), "{err}");
}

/// Up to half a point above the share of the largest class (11.35 % of MNIST) a model guesses, also if it is the reference's:
/// then its seed has nothing to be compared with.
#[test]
fn a_reference_at_chance_is_no_reference() {
    let scene = Scene::new("chance", "quick", "clean", "mnist");
    let run = |method, seed, correct| scene.run(&Spec { method, seed, correct, seconds: [1.0, 2.0, 1.0] });
    run("random", 10, &[&[119], &[850], &[900]]);
    run("random", 20, &[&[118], &[850], &[900]]);
    run("coreset", 10, &[&[119], &[860], &[920]]);
    run("coreset", 20, &[&[600], &[860], &[940]]);
    let summary = scene.write();
    assert!(summary.text.contains("RandomSampling, seed 20 diverged: in round 0 it is at chance (11.80 %)"));
    assert!(!summary.text.contains("seed 10 diverged") && !summary.text.contains("CoreSet, seed 20 diverged"));
    assert!(summary.text.contains("CoreSet, seed 20: random has no run with this seed"), "{}", summary.text);
    let row = |id: &str| summary.results.rows.iter().find(|r| r.id == id).unwrap().clone();
    assert_eq!(row("random").curve.iter().map(|p| p.unwrap().n).collect::<Vec<_>>(), [1, 1, 1]);
    assert!(row("coreset").api.is_none(), "{:?}", row("coreset").api);
    assert_eq!(row("coreset").curve[2].unwrap().n, 2);
}

/// What is in the repository, manifests, rounds and seconds alone, gives the tables beside it again: the folder of one data
/// set, and the one above it.
#[test]
fn published_results_give_their_tables_again() {
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/mnist");
    let copy = std::env::temp_dir().join(format!("dalcore-report-published-{}", std::process::id()));
    let _ = fs::remove_dir_all(&copy);
    let names = |dir: &Path| fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let files = ["results.csv", "summary.csv", "summary.md", "accuracy.svg", "report.html"];
    let mut runs = 0;
    for set in names(&published) {
        for seed in names(&set).iter().filter(|p| p.is_dir()).flat_map(|method| names(method)) {
            let to = copy.join(seed.strip_prefix(&published).unwrap());
            fs::create_dir_all(&to).unwrap();
            for file in names(&seed) {
                fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
            }
            assert!(!to.join("state.json").exists() && !to.join("picks.jsonl").exists());
            runs += 1;
        }
    }
    assert!(runs > 10);
    let report = |folder: &Path| {
        let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_dalcore"));
        let o = c.arg("report").arg(folder).output().unwrap();
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    };
    let same = |set: &Path| {
        let new = copy.join(set.strip_prefix(&published).unwrap());
        for file in files {
            assert!(fs::read(new.join(file)).unwrap() == fs::read(set.join(file)).unwrap(), "{}/{file}", set.display());
            fs::remove_file(new.join(file)).unwrap();
        }
    };
    let text = report(&copy);
    assert!(text.contains("profile clean") && text.contains("profile repro"), "{text}");
    names(&published).iter().for_each(|set| same(set));
    assert!(report(&copy.join("paper-repro")).contains("CoreSet"));
    same(&published.join("paper-repro"));
    // A round that was lost is no published run, nor is one that only lost its state.
    let one = copy.join("paper-clean/coreset/seed-10");
    fs::write(one.join("picks.jsonl"), "").unwrap();
    let rounds = fs::read_to_string(copy.join("paper-clean/random/seed-10/rounds.jsonl")).unwrap();
    let cut: String = rounds.split_inclusive('\n').skip(1).collect();
    fs::write(copy.join("paper-clean/random/seed-10/rounds.jsonl"), cut).unwrap();
    let text = report(&copy.join("paper-clean"));
    assert!(text.contains("coreset/seed-10/state.json: is missing"), "{text}");
    assert!(text.contains("random/seed-10/rounds.jsonl: does not hold the rounds 0 to 8"), "{text}");
    fs::remove_dir_all(&copy).unwrap();
}
