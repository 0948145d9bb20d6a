//! `dalcore label` as the people who label meet it: batches out, labels in, and nothing lost in between.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

struct Dir(PathBuf);

impl Dir {
    /// A fresh folder with `e.npy` (points 0 to n − 1 on a line) and `names.txt`.
    fn new(name: &str, n: usize) -> Dir {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("label-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let d = Dir(dir);
        let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, 1), }}\n");
        let points: Vec<u8> = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let npy = [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), &points].concat();
        d.write("e.npy", npy);
        d.write("names.txt", (0..n).map(|i| format!("item {i}, of \"all\"\n")).collect::<String>());
        d
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Dir {
        std::fs::write(self.path(name), bytes).unwrap();
        self
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, args: &str) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_dalcore"));
        c.current_dir(&self.0).arg("label").args(args.split_whitespace());
        c
    }

    fn run(&self, args: &str) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &str) -> String {
        let o = self.run(args);
        assert!(o.status.success(), "{args}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }

    /// Fails so, and changes no label and no state.
    fn refused(&self, args: &str, code: i32, words: &[&str]) {
        let before = [self.read("pool/labels.csv"), self.read("pool/state.json")];
        let o = self.run(args);
        let err = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(code), "{args}: {err}");
        words.iter().for_each(|w| assert!(err.contains(w), "{args}: no `{w}` in: {err}"));
        assert_eq!([self.read("pool/labels.csv"), self.read("pool/state.json")], before, "{args}");
    }

    /// The batch filled with labels: even rows are cats.
    fn fill(&self, batch: &str, to: &str) {
        let text = self.read(batch);
        let lines = text.lines().enumerate().map(|(i, l)| match i {
            0 => format!("{l}\n"),
            _ if l.split(',').next().unwrap().parse::<u32>().unwrap() % 2 == 0 => format!("{l}cat\n"),
            _ => format!("{l}\"dog, big\"\n"),
        });
        self.write(to, lines.collect::<String>());
    }
}

#[test]
fn a_pool_is_labelled_batch_by_batch() {
    let d = Dir::new("loop", 9);
    assert_eq!(d.ok("init pool --embeddings e.npy --names names.txt"), "pool: 9 rows, 0 labelled\n");
    assert_eq!(d.read("pool/pool.csv").lines().nth(2).unwrap(), "1,\"item 1, of \"\"all\"\"\"");
    // Farthest from the mean, then farthest from that.
    assert_eq!(d.ok("next pool -m coreset -k 2"), "pool/batch-001.csv\n");
    let batch = d.read("pool/batch-001.csv");
    assert_eq!(batch, "id,name,label\n0,\"item 0, of \"\"all\"\"\",\n8,\"item 8, of \"\"all\"\"\",\n");
    // What is handed out covers, and is not handed out again.
    let o = d.run("next pool -m coreset -k 1");
    assert!(String::from_utf8_lossy(&o.stderr).contains("2 rows of earlier batches have no label yet"));
    assert!(d.read("pool/batch-002.csv").lines().nth(1).unwrap().starts_with("4,"));

    d.fill("pool/batch-001.csv", "one.csv");
    assert_eq!(d.ok("ingest pool one.csv"), "2 new labels, 0 known already, 0 lines empty; 2 of 9 rows are labelled\n");
    let labels = d.read("pool/labels.csv");
    assert_eq!(labels, "id,name,label\n0,\"item 0, of \"\"all\"\"\",cat\n8,\"item 8, of \"\"all\"\"\",cat\n");
    // Again, and in another order, with a byte-order mark and CR LF.
    assert_eq!(
        d.ok("ingest pool one.csv one.csv"),
        "0 new labels, 2 known already, 0 lines empty; 2 of 9 rows are labelled\n"
    );
    d.write("excel.csv", "\u{feff}LABEL,Id\r\ncat,8\r\n\"dog, big\",5\r\n");
    d.fill("pool/batch-002.csv", "two.csv");
    d.ok("ingest pool excel.csv two.csv");
    assert_eq!(d.read("pool/labels.csv").lines().count(), 5);

    // Row 5 was not asked for: it is shown as given. Distances: 0 to 8 on a line.
    let status = d.ok("status pool");
    let rows: Vec<Vec<&str>> = status.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[2], ["given", "1", "1", "1", "5.0000"], "{status}");
    assert_eq!(rows[3], ["1", "coreset", "2", "2", "3", "2", "2.0000"], "{status}");
    assert_eq!(rows[4], ["2", "coreset", "1", "1", "4", "2", "2.0000"], "{status}");
    assert!(status.contains("4 of 9 rows labelled, 0 handed out; 2 classes: cat 3, dog, big 1"), "{status}");

    // Another folder, the embeddings by their full path; then they are gone.
    let elsewhere = Command::new(env!("CARGO_BIN_EXE_dalcore"))
        .args(["label", "next", d.path("pool").to_str().unwrap(), "-m", "random", "-k", "5"])
        .current_dir("/")
        .output()
        .unwrap();
    assert!(elsewhere.status.success(), "{}", String::from_utf8_lossy(&elsewhere.stderr));
    d.refused("next pool -m coreset -k 1", 2, &["1 are wanted", "9 are labelled or handed out, which leaves 0"]);
    std::fs::remove_file(d.path("e.npy")).unwrap();
    let o = d.run("status pool");
    assert!(o.status.success() && String::from_utf8_lossy(&o.stderr).contains("no coverage radius"));
}

#[test]
fn predictions_steer_the_next_batch() {
    let d = Dir::new("probs", 4);
    d.write("given.csv", "id,label\n2,x\n");
    assert_eq!(d.ok("init pool --names names.txt --labels given.csv"), "pool: 4 rows, 1 labelled\n");
    let head = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2), }\n";
    let p: Vec<u8> = [0.9f32, 0.1, 0.6, 0.4, 0.5, 0.5, 0.7, 0.3].iter().flat_map(|v| v.to_le_bytes()).collect();
    d.write("p.npy", [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), &p].concat());
    d.ok("next pool -m least-confidence --probs p.npy -k 2");
    let ids: Vec<String> = d.read("pool/batch-001.csv").lines().skip(1).map(|l| l[..1].to_string()).collect();
    assert_eq!(ids, ["1", "3"]);
    d.refused("next pool -m coreset -k 1", 2, &["no array was given"]);
    d.refused("next pool -m least-confidence --probs p.npy -k 0", 2, &["at least 1"]);
    let other = Dir::new("probs-other", 5);
    std::fs::copy(other.path("e.npy"), d.path("five.npy")).unwrap();
    d.refused("next pool -m coreset --embeddings five.npy -k 1", 1, &["5 rows, this pool has 4"]);
}

#[test]
fn all_that_is_wrong_is_listed_and_nothing_is_taken() {
    let d = Dir::new("wrong", 6);
    d.ok("init pool --names names.txt");
    d.write("good.csv", "id,label\n0,cat\n1,dog\n");
    d.ok("ingest pool good.csv");
    d.write("bad.csv", "id,name,label\n2,,cat\n6,,cat\nx,,cat\n2,,cat\n3,item 4,cat\n4,,\n0,,dog\n");
    d.write("a.csv", "id,label\n5,cat\n").write("b.csv", "id,label\n5,dog\n");
    d.write("none.csv", "number,label\n5,dog\n").write("open.csv", "id,label\n\"5,dog\n").write("empty.csv", "");
    d.refused(
        "ingest pool bad.csv a.csv b.csv none.csv open.csv empty.csv missing.csv",
        1,
        &[
            "nothing was ingested",
            "bad.csv: line 3: unknown id `6`; ids are 0 to 5",
            "bad.csv: line 4: unknown id `x`",
            "bad.csv: line 5: id 2 is on line 2 too",
            "bad.csv: line 6: id 3 is named `item 4`, in the pool `item 3, of \"all\"`",
            "bad.csv: line 7: id 4 has no label",
            "bad.csv: line 8: id 0 is labelled `dog`, but `cat` in labels.csv",
            "b.csv: line 2: id 5 is labelled `dog`, but `cat` in a.csv: line 2",
            "none.csv: line 1: columns id and label are wanted, it has: number, label",
            "open.csv: line 2: a quote is not closed",
            "empty.csv: line 1: columns id and label are wanted",
            "missing.csv: No such file",
        ],
    );
    // Two people who agree, and what is not filled yet.
    d.write("b.csv", "id,label,note\n5, cat ,sure\n4,,later\n");
    d.refused("ingest pool a.csv b.csv", 1, &["id 4 has no label"]);
    let done = d.ok("ingest pool a.csv b.csv --skip-empty");
    assert_eq!(done, "1 new labels, 0 known already, 1 lines empty; 3 of 6 rows are labelled\n");

    d.write("many.csv", (0..99).map(|_| "7,x\n").fold("id,label\n".to_string(), |t, l| t + l));
    d.refused("ingest pool many.csv", 1, &["and 49 more"]);
    d.refused("init pool --names names.txt", 2, &["pool already"]);
    let o = d.run("init other --names names.txt --labels bad.csv");
    assert!(o.status.code() == Some(1) && !d.path("other").exists(), "{}", String::from_utf8_lossy(&o.stderr));
    let o = d.run("init other");
    assert!(o.status.code() == Some(2) && !d.path("other").exists());
    let o = d.run("status nowhere");
    assert!(o.status.code() == Some(1) && String::from_utf8_lossy(&o.stderr).contains("label init"));

    // Files changed from outside are not believed.
    let labels = d.read("pool/labels.csv");
    d.write("pool/labels.csv", labels.clone() + "77,,cat\n");
    d.refused("status pool", 1, &["labels.csv", "unknown id `77`", "changed from outside"]);
    d.write("pool/labels.csv", labels).write("pool/pool.csv", "id,name\n0,a\n");
    d.refused("next pool -m random -k 1", 1, &["pool.csv", "has 1 rows, state.json counts 6"]);
}

#[test]
fn two_processes_at_once_are_kept_apart() {
    let d = Dir::new("lock", 40);
    d.ok("init pool --names names.txt");
    d.write("a.csv", (0..20).map(|i| format!("{i},x\n")).fold("id,label\n".to_string(), |t, l| t + &l));
    d.write("b.csv", (20..40).map(|i| format!("{i},y\n")).fold("id,label\n".to_string(), |t, l| t + &l));
    let held = std::fs::File::open(d.path("pool/.lock")).unwrap();
    held.lock().unwrap();
    d.refused("ingest pool a.csv", 1, &["another dalcore process", "wait until it is done"]);
    d.refused("next pool -m random -k 1", 1, &["another dalcore process"]);
    d.ok("status pool"); // looking is always allowed
    drop(held);
    // Whoever is refused starts again; in the end all is there.
    let start = |f: &str| -> Child {
        d.command(&format!("ingest pool {f}")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for _ in 0..50 {
        let (mut a, mut b) = (start("a.csv"), start("b.csv"));
        if a.wait().unwrap().success() & b.wait().unwrap().success() {
            break;
        }
    }
    assert_eq!(d.read("pool/labels.csv").lines().count(), 41);
}

#[test]
fn a_kill_leaves_a_step_done_or_not_begun() {
    let d = Dir::new("kill", 3000);
    d.ok("init pool --embeddings e.npy --names names.txt");
    let mut kills = 0;
    for attempt in 0..60u64 {
        let before = d.read("pool/state.json");
        let mut child =
            d.command("next pool -m random -k 20").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(500 * (attempt % 30)));
        child.kill().unwrap(); // SIGKILL
        kills += u32::from(!child.wait().unwrap().success());
        let changed = d.read("pool/state.json") != before;
        assert!(changed || d.ok("status pool").contains("rows labelled"));
    }
    assert!(kills > 0, "every step was too quick to be killed");
    d.ok("next pool -m random -k 1");
    let state: serde_json::Value = serde_json::from_str(&d.read("pool/state.json")).unwrap();
    let batches = state["batches"].as_array().unwrap();
    let mut all: Vec<u64> = Vec::new();
    for (i, b) in batches.iter().enumerate() {
        let ids: Vec<u64> = b["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect();
        let file = d.read(&format!("pool/batch-{:03}.csv", i + 1));
        let listed: Vec<u64> = file.lines().skip(1).map(|l| l.split(',').next().unwrap().parse().unwrap()).collect();
        assert_eq!(listed, ids, "batch {}", i + 1);
        all.extend(ids);
    }
    let n = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), n, "nothing is handed out twice");

    // What a kill between the commit and the rename leaves, and what one before the commit leaves.
    let last = batches.len();
    let (name, waiting) = (format!("pool/batch-{last:03}.csv"), format!("pool/batch-{last:03}.csv.next"));
    std::fs::rename(d.path(&name), d.path(&waiting)).unwrap();
    d.write(&format!("pool/batch-{:03}.csv.next", last + 1), "id,na");
    d.write("given.csv", "id,label\n0,x\n");
    d.ok("ingest pool given.csv");
    assert!(d.path(&name).exists() && !d.path(&waiting).exists());
    assert!(!d.path(&format!("pool/batch-{:03}.csv.next", last + 1)).exists());
    // A file of one's own under the name of the next batch is not replaced.
    d.write(&format!("pool/batch-{:03}.csv", last + 1), "mine");
    d.refused("next pool -m random -k 1", 1, &["in the way"]);
    assert_eq!(d.read(&format!("pool/batch-{:03}.csv", last + 1)), "mine");
}
