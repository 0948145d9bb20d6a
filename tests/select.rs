//! `dalcore select` as a user meets it: what it picks, what it writes, and the sentence for every bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A fresh folder of one test, in which the binary runs.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("select-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
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

    /// Words between spaces are arguments.
    fn run(&self, args: &str) -> Output {
        let mut c = Command::new(env!("CARGO_BIN_EXE_dalcore"));
        c.current_dir(&self.0).arg("select").args(args.split_whitespace()).args(["--device", "cpu"]).output().unwrap()
    }

    fn ok(&self, args: &str) -> String {
        let o = self.run(args);
        assert!(o.status.success(), "{args}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }

    /// Fails with this exit code and all of these words, and writes nothing new.
    fn refused(&self, args: &str, code: i32, words: &[&str]) {
        let before = names(&self.0);
        let o = self.run(args);
        let err = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(code), "{args}: {err}");
        words.iter().for_each(|w| assert!(err.contains(w), "{args}: no `{w}` in: {err}"));
        assert!(o.stdout.is_empty(), "{args}");
        assert_eq!(names(&self.0), before, "{args}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

/// What numpy.save writes.
fn npy(descr: &str, fortran: &str, shape: &str, content: &[u8]) -> Vec<u8> {
    let head = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), content].concat()
}

fn f32s(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn matrix(rows: &[&[f32]]) -> Vec<u8> {
    npy("'<f4'", "False", &format!("({}, {})", rows.len(), rows[0].len()), &f32s(&rows.concat()))
}

/// METHODS 6.8: labelled row 0; picks 3, 4, 5, 1 at 6, 4, √2, 1.
const POINTS: [&[f32]; 6] = [&[0., 0.], &[1., 0.], &[5., 0.], &[6., 0.], &[0., 4.], &[5., 1.]];
/// METHODS 6.0: E1.
const E1: [&[f32]; 6] = [
    &[0.5, 0.3, 0.2],
    &[0.4, 0.35, 0.25],
    &[0.9, 0.05, 0.05],
    &[0.34, 0.33, 0.33],
    &[0.49, 0.49, 0.02],
    &[0.55, 0.225, 0.225],
];

fn zip(files: &[(&str, &[u8])], method: zip::CompressionMethod) -> Vec<u8> {
    use std::io::Write;
    let mut z = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        z.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        z.write_all(content).unwrap();
    }
    z.finish().unwrap().into_inner()
}

fn column(csv: &str, at: usize) -> Vec<String> {
    csv.lines().skip(1).map(|l| l.split(',').nth(at).unwrap().to_string()).collect()
}

#[test]
fn worked_example_of_coreset_in_every_format() {
    let d = Dir::new("coreset");
    d.write("e.npy", matrix(&POINTS)).write("ids.txt", "0\n").write("names.txt", "a\nb,1\nc\nd\ne\nf\n");
    let base = "-m coreset --embeddings e.npy --labeled ids.txt -k 4";
    let csv = d.ok(base);
    assert_eq!(
        csv,
        "rank,id,name,score,distance,nearest\n1,3,,6,6,0\n2,4,,4,4,0\n3,5,,1.4142135,5.0990195,0\n4,1,,1,1,0\n"
    );
    assert_eq!(d.ok(&format!("{base} -o p.csv --names names.txt")), "p.csv\n");
    assert_eq!(d.read("p.csv").lines().last().unwrap(), "4,1,\"b,1\",1,1,0");
    d.ok(&format!("{base} -o p.jsonl --names names.txt"));
    let first: serde_json::Value = serde_json::from_str(d.read("p.jsonl").lines().next().unwrap()).unwrap();
    assert_eq!(first, serde_json::json!({"rank":1,"id":3,"name":"d","score":6,"distance":6,"nearest":0}));
    d.ok(&format!("{base} -o p.npy --names names.txt"));
    let bytes = std::fs::read(d.path("p.npy")).unwrap();
    let head = String::from_utf8_lossy(&bytes[10..]).into_owned();
    assert!(head.starts_with(
        "{'descr': [('rank', '<u4'), ('id', '<u4'), ('name', '<U3'), ('score', '<f4'), ('distance', '<f4'), ('nearest', '<i8')], 'fortran_order': False, 'shape': (4,), }"
    ));
    assert_eq!(bytes.len() % 64, (4 * (4 + 4 + 12 + 4 + 4 + 8)) % 64);

    // Picks go on from the picks of before.
    let rest = d.ok("-m coreset --embeddings e.npy --labeled p.csv -k 2");
    assert_eq!(column(&rest, 1), ["0", "2"]);
    assert_eq!(d.ok("-m coreset --embeddings e.npy --labeled p.jsonl -k 2"), rest);
}

#[test]
fn every_format_and_type_of_array_is_the_same_pool() {
    let d = Dir::new("formats");
    let flat = POINTS.concat();
    let bytes = |f: &dyn Fn(f32) -> Vec<u8>| flat.iter().flat_map(|v| f(*v)).collect::<Vec<u8>>();
    let shape = "(6, 2)";
    d.write("f4.npy", matrix(&POINTS));
    d.write("f8.npy", npy("'<f8'", "False", shape, &bytes(&|v| f64::from(v).to_le_bytes().into())));
    d.write("f2.npy", npy("'<f2'", "False", shape, &bytes(&|v| half::f16::from_f32(v).to_le_bytes().into())));
    d.write("big.npy", npy("'>f4'", "False", shape, &bytes(&|v| v.to_be_bytes().into())));
    d.write("big8.npy", npy("'>f8'", "False", shape, &bytes(&|v| f64::from(v).to_be_bytes().into())));
    let inner = matrix(&POINTS);
    let two: [(&str, &[u8]); 2] = [("e.npy", &inner), ("other.npy", b"not looked at")];
    d.write("stored.npz", zip(&two, zip::CompressionMethod::Stored));
    d.write("small.npz", zip(&two[..1], zip::CompressionMethod::Deflated));
    let bf = bytes(&|v| half::bf16::from_f32(v).to_le_bytes().into());
    let head = format!(
        r#"{{"__metadata__":{{"a":"b"}},"e":{{"dtype":"BF16","shape":[6,2],"data_offsets":[0,{}]}}}}"#,
        bf.len()
    );
    d.write("x.safetensors", [&(head.len() as u64).to_le_bytes()[..], head.as_bytes(), &bf].concat());
    d.write("ids.txt", "0 # the first\n").write("ids.json", "[0]").write("ids.csv", "id,label\n0,cat\n");
    d.write("ids.npy", npy("'<i8'", "False", "(1,)", &[0; 8])).write("u.npy", npy("'>u2'", "False", "(1,)", &[0; 2]));
    let want = d.ok("-m coreset --embeddings f4.npy --labeled ids.txt -k 5");
    let arrays = [
        "f8.npy",
        "f2.npy",
        "big.npy",
        "big8.npy",
        "stored.npz:e",
        "small.npz",
        "small.npz:e",
        "x.safetensors",
        "x.safetensors:e",
    ];
    for array in arrays {
        assert_eq!(d.ok(&format!("-m coreset --embeddings {array} --labeled ids.txt -k 5")), want, "{array}");
    }
    for ids in ["ids.json", "ids.csv", "ids.npy", "u.npy"] {
        assert_eq!(d.ok(&format!("-m coreset --embeddings f4.npy --labelled {ids} -k 5")), want, "{ids}");
    }
    d.refused("-m coreset --embeddings stored.npz -k 1", 1, &["holds e, other", "stored.npz:e"]);
    d.refused("-m coreset --embeddings stored.npz:f -k 1", 1, &["no array `f`", "e, other"]);
    d.refused("-m coreset --embeddings f4.npy:e -k 1", 1, &["one array without a name"]);
}

#[test]
fn worked_examples_of_uncertainty() {
    let d = Dir::new("uncertainty");
    d.write("p.npy", matrix(&E1));
    let logits: Vec<Vec<f32>> = E1.iter().map(|r| r.iter().map(|p| p.ln() + 3.0).collect()).collect();
    d.write("l.npy", matrix(&logits.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    for (method, order, best) in [
        ("least-confidence", ["3", "1", "4", "0", "5", "2"], 0.66),
        ("margin", ["4", "3", "1", "0", "5", "2"], 0.0),
        ("entropy", ["3", "1", "0", "5", "4", "2"], 1.098513),
    ] {
        for given in ["--probs p.npy", "--logits l.npy"] {
            let csv = d.ok(&format!("-m {method} {given} -k 6"));
            assert_eq!(column(&csv, 1), order, "{method} {given}");
            let score: f32 = column(&csv, 3)[0].parse().unwrap();
            assert!((score - best).abs() < 1e-5, "{csv}");
        }
    }
    d.write("ids.txt", "1, 3");
    let csv = d.ok("-m LeastConfidence --probs p.npy --labeled ids.txt -k 2");
    assert_eq!(column(&csv, 1), ["4", "0"]);
    // Without embeddings nothing is known about distances.
    assert!(csv.lines().skip(1).all(|l| l.ends_with(",,")), "{csv}");
}

#[test]
fn random_is_a_seeded_draw_without_repetition() {
    let d = Dir::new("random");
    d.write("e.npy", matrix(&[&[1.0f32][..]; 50])).write("ids.txt", "3 4");
    let of =
        |seed: u32| column(&d.ok(&format!("-m random --embeddings e.npy --labeled ids.txt -k 48 --seed {seed}")), 1);
    let mut ids: Vec<u32> = of(1).iter().map(|i| i.parse().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..50).filter(|i| ![3, 4].contains(i)).collect::<Vec<u32>>());
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn equal_rows_are_distinct_picks() {
    let d = Dir::new("equal");
    d.write("same.npy", matrix(&[&[2.0f32, 1.0][..]; 9]))
        .write("few.npy", matrix(&[&[0.0], &[1.0], &[0.0], &[1.0], &[2.0]]));
    d.write("p.npy", matrix(&[&[0.5f32, 0.5][..]; 9])).write("ids.txt", "2");
    assert_eq!(
        column(&d.ok("-m coreset --embeddings same.npy --labeled ids.txt -k 8"), 1),
        ["0", "1", "3", "4", "5", "6", "7", "8"]
    );
    assert_eq!(column(&d.ok("-m coreset --embeddings few.npy --labeled ids.txt -k 4"), 1), ["4", "1", "0", "3"]);
    assert_eq!(column(&d.ok("-m entropy --probs p.npy -k 3"), 1), ["0", "1", "2"]);
}

#[test]
fn bad_requests_are_misuse() {
    let d = Dir::new("misuse");
    d.write("e.npy", matrix(&POINTS)).write("p.npy", matrix(&E1)).write("ids.txt", "0 1");
    let coreset = "-m coreset --embeddings e.npy --labeled ids.txt";
    d.refused(&format!("{coreset} -k 0"), 2, &["-k", "at least 1"]);
    d.refused(&format!("{coreset} -k 5"), 2, &["5 are wanted", "of 6 rows 2 are labelled", "leaves 4"]);
    d.refused("-m coreset --probs p.npy -k 1", 2, &["coreset needs --embeddings"]);
    d.refused("-m entropy --embeddings e.npy -k 1", 2, &["entropy needs --probs or --logits"]);
    d.refused("-m random -k 1", 2, &["no array was given", "--embeddings"]);
    d.refused("-m corset --embeddings e.npy -k 1", 2, &["did you mean 'coreset'"]);
    d.refused("-m entropy --probs p.npy --logits p.npy -k 1", 2, &["--probs", "cannot be used with"]);
    d.refused(&format!("{coreset} -k 1 -o picks.txt"), 2, &["picks.txt", ".csv, .jsonl or .npy"]);
    d.refused(&format!("{coreset} -k 1 --mem 4X"), 2, &["`4X`", "4GiB"]);
    d.refused(&format!("{coreset} -k 1 --mem 0"), 2, &["no amount of memory"]);
    d.refused(&format!("{coreset} -k 1 --device tpu"), 2, &["--device"]);

    d.write("picks.csv", "old");
    d.refused(&format!("{coreset} -k 1 -o picks.csv"), 2, &["picks.csv exists", "--force"]);
    assert_eq!(d.read("picks.csv"), "old");
    d.ok(&format!("{coreset} -k 1 -o picks.csv --force"));
    assert!(d.read("picks.csv").starts_with("rank,"));
    d.refused(&format!("{coreset} -k 1 -o nowhere/picks.csv"), 1, &["nowhere/picks.csv"]);
}

#[test]
fn bad_arrays_are_named() {
    let d = Dir::new("arrays");
    let mut nan = POINTS.concat();
    nan[7] = f32::NAN;
    d.write("nan.npy", npy("'<f4'", "False", "(6, 2)", &f32s(&nan)));
    nan[7] = f32::NEG_INFINITY;
    d.write("inf.npy", npy("'<f4'", "False", "(6, 2)", &f32s(&nan)));
    let huge: Vec<u8> = [1.0f64, 1e300].iter().flat_map(|v| v.to_le_bytes()).collect();
    d.write("huge.npy", npy("'<f8'", "False", "(2, 1)", &huge));
    d.write("fortran.npy", npy("'<f4'", "True", "(6, 2)", &f32s(&POINTS.concat())));
    d.write("cube.npy", npy("'<f4'", "False", "(1, 6, 2)", &f32s(&POINTS.concat())));
    d.write("line.npy", npy("'<f4'", "False", "(12,)", &f32s(&POINTS.concat())));
    d.write("empty.npy", npy("'<f4'", "False", "(0, 2)", &[]));
    d.write("thin.npy", npy("'<f4'", "False", "(3, 0)", &[]));
    d.write("object.npy", npy("'|O'", "False", "(6, 2)", b"\x80\x04pickle"));
    d.write("struct.npy", npy("[('a', '<f4')]", "False", "(6,)", &[0; 24]));
    d.write("int.npy", npy("'<i4'", "False", "(6, 2)", &[0; 48]));
    d.write("bf.npy", npy("'|V2'", "False", "(6, 2)", &[0; 24]));
    d.write("short.npy", npy("'<f4'", "False", "(6, 2)", &[0; 47]));
    d.write("vast.npy", npy("'<f4'", "False", "(4611686018427387904, 4)", &[0; 47]));
    d.write("pickle.pkl", b"\x80\x04\x95whatever");
    d.write("text.npy", "1,2\n3,4\n");
    d.write("broken.npz", b"PK\x03\x04 and nothing");
    d.write("cut.safetensors", [&999u64.to_le_bytes()[..], b"{\"e\":"].concat());
    let cases: &[(&str, &[&str])] = &[
        ("nan.npy", &["nan.npy: row 3 holds a NaN", "nothing was selected"]),
        ("inf.npy", &["row 3 holds an infinity"]),
        ("huge.npy", &["row 1 holds 1e300, which f32 cannot hold"]),
        ("fortran.npy", &["column-major", "ascontiguousarray"]),
        ("cube.npy", &["shape (1, 6, 2)", "wanted (N, D)"]),
        ("line.npy", &["shape (12,)", "wanted (N, D)"]),
        ("empty.npy", &["0 rows of 2"]),
        ("thin.npy", &["3 rows of 0"]),
        ("object.npy", &["Python objects", "never loaded"]),
        ("struct.npy", &["[('a', '<f4')]", "only f16, f32, f64"]),
        ("int.npy", &["holds integers", "astype('float32')"]),
        ("bf.npy", &["bf16", "safetensors"]),
        ("short.npy", &["truncated", "47 bytes follow"]),
        ("vast.npy", &["truncated"]),
        ("pickle.pkl", &["pickle", "never loaded"]),
        ("text.npy", &["neither .npy, .npz nor .safetensors"]),
        ("broken.npz", &["truncated or damaged zip"]),
        ("cut.safetensors", &["truncated in its header"]),
        ("none.npy", &["none.npy", "No such file"]),
        (".", &["a folder"]),
    ];
    for (file, words) in cases {
        d.refused(&format!("-m coreset --embeddings {file} -k 1"), 1, words);
    }
}

#[test]
fn bad_probabilities_are_named() {
    let d = Dir::new("probs");
    let rows = |bad: [f32; 3]| matrix(&[E1[0], E1[1], &bad, E1[3], E1[4], E1[5]]);
    d.write("e.npy", matrix(&POINTS[..5]));
    d.write("sum.npy", rows([0.9, 0.05, 0.0]));
    d.write("logits.npy", rows([3.0, -1.0, -1.0]));
    d.write("near.npy", rows([0.9, 0.05, 0.04995]));
    d.write("one.npy", matrix(&[&[1.0f32][..]; 6])).write("good.npy", matrix(&E1));
    let half: Vec<u8> =
        [0.3330f32, 0.3330, 0.3335].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    d.write("half.npy", npy("'<f2'", "False", "(1, 3)", &half));
    d.refused("-m entropy --probs sum.npy -k 1", 1, &["sum.npy: row 2 sums to 0.95", "1 within 0.0001", "--logits"]);
    d.refused("-m entropy --probs logits.npy -k 1", 1, &["row 2 holds -1", "no probability", "--logits"]);
    d.refused("-m entropy --probs one.npy -k 1", 1, &["6 rows of 1 numbers"]);
    d.refused("-m coreset --probs good.npy --embeddings e.npy -k 1", 1, &["good.npy: has 6 rows, but e.npy has 5"]);
    d.ok("-m entropy --probs near.npy -k 1");
    d.ok("-m entropy --probs half.npy -k 1");
    d.ok("-m entropy --logits logits.npy -k 1");
}

#[test]
fn bad_ids_and_names_are_named() {
    let d = Dir::new("ids");
    d.write("e.npy", matrix(&POINTS)).write("two.txt", "a\nb\n");
    let cases: &[(&str, &str, &[&str])] = &[
        ("far.txt", "0\n6\n", &["far.txt", "line 2", "`6`", "0 to 5"]),
        ("minus.txt", "-1", &["`-1`"]),
        ("word.txt", "0 cat", &["line 1", "`cat`"]),
        ("half.txt", "0.5", &["`0.5`"]),
        ("twice.txt", "3 1 3", &["row 3 is listed twice"]),
        ("far.json", "[0, 99]", &["element 1", "`99`"]),
        ("bad.json", "{\"id\": 0}", &["no array of row numbers"]),
        ("far.csv", "id,name\n1,a\n7,b\n", &["line 3", "`7`"]),
        ("none.csv", "number,name\n1,a\n", &["no column `id`", "number, name"]),
        ("open.csv", "id,name\n1,\"a\n", &["line 2", "not closed"]),
        ("far.jsonl", "{\"id\":1}\n{\"id\":8}\n", &["line 2", "`8`"]),
        ("none.jsonl", "{\"name\":1}\n", &["line 1", "`null`"]),
        ("float.npy", "", &["float.npy", "floats"]),
        ("square.npy", "", &["wanted (N)"]),
    ];
    for (file, text, words) in cases {
        d.write(file, text);
        d.write("float.npy", npy("'<f4'", "False", "(1,)", &[0; 4]))
            .write("square.npy", npy("'<i4'", "False", "(1, 1)", &[0; 4]));
        d.refused(&format!("-m coreset --embeddings e.npy --labeled {file} -k 1"), 1, words);
    }
    d.refused("-m coreset --embeddings e.npy --names two.txt -k 1", 1, &["2 names for 6 rows"]);
    d.write("names.csv", "id,name\n0,a\n2,b\n");
    d.refused("-m coreset --embeddings e.npy --names names.csv -k 1", 1, &["line 3: id 2 where row 1 is next"]);
    d.write("empty.txt", "\n# nothing yet\n");
    assert_eq!(column(&d.ok("-m coreset --embeddings e.npy --labeled empty.txt -k 1"), 5), [""]);
}

#[test]
fn memory_is_bounded_or_the_amount_is_said() {
    let d = Dir::new("memory");
    let (n, width) = (50_000, 32);
    let x: Vec<f32> = (0..n * width).map(|i| (i * 7919 % 1009) as f32 * 0.01).collect();
    let inner = npy("'<f4'", "False", &format!("({n}, {width})"), &f32s(&x));
    d.write("e.npy", &inner).write("small.npz", zip(&[("e.npy", &inner)], zip::CompressionMethod::Deflated));
    d.refused(
        "-m coreset --embeddings e.npy -k 10 --mem 8MiB",
        2,
        &["--mem: coreset on these 50000 rows needs", "embeddings 6250.0 KiB", "bound of 8192.0 KiB", "give --mem"],
    );
    d.refused(
        "-m entropy --logits small.npz -k 10 --mem 4MiB",
        2,
        &["--mem", "compressed", "6250.1 KiB", "numpy.savez"],
    );
    // The amount that is named is enough.
    let o = d.run("-m coreset --embeddings e.npy -k 10 --mem 8MiB");
    let err = String::from_utf8_lossy(&o.stderr).into_owned();
    let amount = err.split("give --mem ").nth(1).unwrap().split(' ').next().unwrap();
    d.ok(&format!("-m coreset --embeddings e.npy -k 10 --mem {amount}"));
    // Smaller blocks, same picks.
    let whole = d.ok("-m entropy --logits e.npy --embeddings e.npy -k 10");
    assert_eq!(d.ok("-m entropy --logits e.npy --embeddings e.npy -k 10 --mem 5MiB"), whole);
    assert_eq!(d.ok("-m entropy --logits small.npz --embeddings e.npy -k 10 --mem 16MiB"), whole);
}

/// METHODS 6.5: two passes, four samples.
#[test]
fn worked_example_of_stochastic_passes() {
    let d = Dir::new("passes");
    let passes = [[0.9f32, 0.5, 0.9, 0.8], [0.1, 0.5, 0.9, 0.4]];
    let stack: Vec<f32> = passes.iter().flatten().flat_map(|p| [*p, 1.0 - p]).collect();
    d.write("s.npy", npy("'<f4'", "False", "(2, 4, 2)", &f32s(&stack)));
    let csv = d.ok("-m bald --mc-probs s.npy -k 4");
    assert_eq!(column(&csv, 1)[..2], ["0", "3"]); // of the others only rounding remains
    for (score, want) in column(&csv, 3).iter().zip([0.368064, 0.086305, 0.0, 0.0]) {
        assert!((score.parse::<f32>().unwrap() - want).abs() < 1e-5, "{csv}");
    }
    let csv = d.ok("-m mean-std --mc-probs s.npy -k 2");
    assert_eq!(column(&csv, 1), ["0", "3"]);
    assert!((column(&csv, 3)[0].parse::<f32>().unwrap() - 0.4).abs() < 1e-6, "{csv}");
    assert_eq!(column(&d.ok("-m var-ratio --mc-probs s.npy -k 4"), 1), ["0", "3", "1", "2"]);
    // What carries no information, or what rounding makes of that, is drawn last.
    let mut ids = column(&d.ok("-m power-bald --mc-probs s.npy -k 4 --seed 3"), 1);
    ids[..2].sort();
    ids[2..].sort();
    assert_eq!(ids, ["0", "3", "1", "2"]);
    d.write("one.npy", npy("'<f4'", "False", "(1, 4, 2)", &f32s(&stack[..8])));
    d.refused("-m bald --mc-probs one.npy -k 1", 1, &["one pass"]);
    let mut bad = stack.clone();
    bad[12] = 0.3;
    d.write("bad.npy", npy("'<f4'", "False", "(2, 4, 2)", &f32s(&bad)));
    d.refused("-m bald --mc-probs bad.npy -k 1", 1, &["row 2 of pass 1 sums to 0.4"]);
    bad[12] = f32::NAN;
    d.write("bad.npy", npy("'<f4'", "False", "(2, 4, 2)", &f32s(&bad)));
    d.refused("-m bald --mc-probs bad.npy -k 1", 1, &["row 2 of pass 1 holds a NaN"]);
    d.refused("-m bald --probs s.npy -k 1", 1, &["(2, 4, 2)", "wanted (N, C)"]);
    d.refused(
        "-m learning-loss --mc-probs s.npy -k 1",
        2,
        &["needs a model in training", "random, bald, badge, cluster-margin, coreset, kmeans"],
    );
}

#[test]
fn the_report_is_one_page_with_everything_in_it() {
    let d = Dir::new("report");
    d.write("e.npy", matrix(&POINTS)).write("p.npy", matrix(&E1)).write("ids.txt", "0");
    d.write("names.txt", "a\n<b>\nc\nd\ne\nf\n");
    let picks = d.ok("-m coreset --embeddings e.npy --labeled ids.txt -k 4");
    let args = "-m coreset --embeddings e.npy --labeled ids.txt -k 4 --names names.txt --report page.html";
    assert_eq!(d.ok(args).lines().count(), picks.lines().count());
    let page = d.read("page.html");
    for words in ["4 by coreset", "Coverage radius", "Where they lie", "Scores", "&lt;b&gt;", "e.npy", "1 labelled"] {
        assert!(page.contains(words), "{words}");
    }
    assert!(!page.contains("<b>") && !page.contains("<script") && !page.contains("href=\"http"));
    d.refused(args, 2, &["page.html exists"]);
    assert_eq!(d.ok("-m least-confidence --probs p.npy -k 2 -o p.csv --report q.html"), "p.csv\nq.html\n");
    let page = d.read("q.html");
    assert!(page.contains("Scores") && !page.contains("Where they lie") && !page.contains("Coverage radius"));
    // Pools without any extent can be drawn too.
    d.write("same.npy", matrix(&[&[1.0f32][..]; 5]));
    d.ok("-m random --embeddings same.npy -k 5 --report r.html");
}

/// METHODS 6.6: the first is row 1, then 0 or 2 by the draw; both are drawn by some seed.
#[test]
fn worked_example_of_badge() {
    let d = Dir::new("badge");
    d.write("h.npy", matrix(&[&[1.0, 2.0], &[3.0, 0.0], &[0.0, 1.0], &[9.0, 9.0]]));
    let p: [&[f32]; 4] =
        [&[0.7, 0.2, 0.1], &[0.1, 0.6, 0.3], &[0.333_333_3, 0.333_333_3, 0.333_333_4], &[0.5, 0.5, 0.0]];
    let logits: Vec<Vec<f32>> = p.iter().map(|r| r.iter().map(|p| p.max(1e-30).ln()).collect()).collect();
    d.write("p.npy", matrix(&p)).write("ids.txt", "3");
    d.write("l.npy", matrix(&logits.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    let mut seconds = std::collections::BTreeSet::new();
    for seed in 0..12 {
        let base = format!("-m badge --embeddings h.npy --labeled ids.txt -k 3 --seed {seed}");
        let ids = column(&d.ok(&format!("{base} --probs p.npy")), 1);
        assert_eq!(ids[0], "1");
        seconds.insert(ids[1].clone());
        assert_eq!(column(&d.ok(&format!("{base} --logits l.npy")), 1), ids);
    }
    assert_eq!(seconds.into_iter().collect::<Vec<_>>(), ["0", "2"]);
    d.refused("-m badge --embeddings h.npy -k 1", 2, &["badge needs --probs or --logits"]);
    d.refused(
        "-m badge --embeddings h.npy --probs p.npy -k 1 --mem 100KiB",
        2,
        &["badge on these 4 rows needs", "gradients"],
    );
}

/// A file that another program shortens while it is read is an ordinary error.
#[test]
fn a_file_that_shrinks_is_an_error() {
    let d = Dir::new("shrinks");
    d.write("e.npy", matrix(&POINTS));
    let source = dalcore::arrays::Source::open(d.path("e.npy").to_str().unwrap(), 0).unwrap();
    let mut row = [0.0; 2];
    source.floats(10, &mut row).unwrap();
    assert_eq!(row, [5.0, 1.0]);
    let file = std::fs::OpenOptions::new().write(true).open(d.path("e.npy")).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let e = source.floats(10, &mut row).unwrap_err().to_string();
    assert!(e.contains("e.npy: became shorter while it was read"), "{e}");
    source.floats(8, &mut row).unwrap();
}

/// Two directions, three rows and two; the predictions tell them apart, so every ball is pure below their distance.
#[test]
fn probcover_takes_the_larger_group_first() {
    let d = Dir::new("probcover");
    d.write("e.npy", matrix(&[&[1.0, 0.0], &[0.0, 1.0], &[2.0, 0.0], &[0.0, 3.0], &[4.0, 0.0]]));
    d.write("p.npy", matrix(&[&[0.9, 0.1], &[0.2, 0.8], &[0.9, 0.1], &[0.2, 0.8], &[0.9, 0.1]]));
    let csv = d.ok("-m probcover --embeddings e.npy --probs p.npy -k 2");
    assert_eq!((column(&csv, 1), column(&csv, 3)), (vec!["0".into(), "1".into()], vec!["3".into(), "2".into()]));
    d.write("ids.txt", "4");
    let csv = d.ok("-m probcover --embeddings e.npy --probs p.npy --labeled ids.txt -k 1");
    assert_eq!(column(&csv, 1), ["1"]);
}

/// Three directions with four, three and two rows: the largest group first, of it the middle one, whatever the lengths.
#[test]
fn typiclust_takes_the_middle_of_the_largest_group() {
    let d = Dir::new("typiclust");
    let degrees: [(f32, f32); 9] =
        [(0., 1.), (90., 2.), (2., 3.), (180., 1.), (4., 9.), (92., 1.), (94., 1.), (181., 5.), (20., 1.)];
    let rows = degrees.map(|(a, r)| [r * a.to_radians().cos(), r * a.to_radians().sin()]);
    d.write("e.npy", matrix(&rows.iter().map(|r| &r[..]).collect::<Vec<_>>())).write("ids.txt", "4");
    for seed in 0..5 {
        let csv = d.ok(&format!("-m typiclust --embeddings e.npy -k 3 --seed {seed}"));
        assert_eq!(column(&csv, 1), ["2", "5", "3"], "{csv}");
        // Of its cluster the three others are 2, 2 and 18 degrees away.
        let chord = |degrees: f32| 2.0 * (degrees / 2.0).to_radians().sin();
        let score: f32 = column(&csv, 3)[0].parse().unwrap();
        assert!((score - (2.0 * chord(2.0) + chord(18.0)) / 3.0).abs() < 1e-6, "{csv}");
        // With a label in the first group the others come first.
        let csv = d.ok(&format!("-m typiclust --embeddings e.npy --labeled ids.txt -k 2 --seed {seed}"));
        assert_eq!(column(&csv, 1), ["5", "3"], "{csv}");
    }
    assert_eq!(column(&d.ok("-m typiclust --embeddings e.npy --labeled ids.txt -k 8"), 1).len(), 8);
    d.write("same.npy", matrix(&[&[1.0, 2.0][..]; 6]));
    assert_eq!(column(&d.ok("-m typiclust --embeddings same.npy -k 6"), 1), ["0", "1", "2", "3", "4", "5"]);
    d.refused("-m typiclust --embeddings e.npy -k 3 --mem 1KiB", 2, &["typiclust on these 9 rows needs", "tile"]);
    d.refused("-m typiclust -k 3", 2, &["no array was given"]);
}

/// METHODS 6.9: two pairs and a lone row; ties to the lower row.
#[test]
fn kmeans_takes_the_rows_nearest_to_the_centres() {
    let d = Dir::new("kmeans");
    d.write("e.npy", matrix(&[&[0.0, 0.0], &[0.0, 1.0], &[5.0, 0.0], &[5.0, 1.0], &[9.0, 9.0]]));
    let mut ids = column(&d.ok("-m kmeans --embeddings e.npy -k 3"), 1);
    ids.sort();
    assert_eq!(ids, ["0", "2", "4"]);
    assert_eq!(column(&d.ok("-m kmeans --embeddings e.npy -k 5"), 1).len(), 5);
    // Fewer places than centres.
    d.write("same.npy", matrix(&[&[1.0, 2.0][..]; 6]));
    let mut ids = column(&d.ok("-m kmeans --embeddings same.npy -k 4"), 1);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    d.refused("-m kmeans --embeddings e.npy -k 3 --mem 1KiB", 2, &["kmeans on these 5 rows needs", "centres"]);
}

/// More rows than clusters (20): the pair of equal rows is one. Small margins first, a cluster at a time, small ones first.
#[test]
fn cluster_margin_spreads_small_margins() {
    let d = Dir::new("cluster-margin");
    let far: Vec<[f32; 2]> = (0..21).map(|i| [if i == 20 { 19.0 } else { i as f32 } * 10.0, 1.0]).collect();
    d.write("e.npy", matrix(&far.iter().map(|r| &r[..]).collect::<Vec<_>>()));
    // Rows 19 and 20 have the smallest margins and are one cluster; then 3 and 7.
    let p = |i: usize| match i {
        20 => 0.5,
        19 => 0.51,
        3 => 0.55,
        7 => 0.6,
        _ => 0.9 + 0.001 * i as f32,
    };
    let rows: Vec<[f32; 2]> = (0..21).map(|i| [p(i), 1.0 - p(i)]).collect();
    d.write("p.npy", matrix(&rows.iter().map(|r| &r[..]).collect::<Vec<_>>()));
    let csv = d.ok("-m cluster-margin --embeddings e.npy --probs p.npy -k 3");
    // All candidates: clusters of one by number, in the first turn the pair comes last.
    assert_eq!(column(&csv, 1), ["0", "1", "2"]);
    let csv = d.ok("-m cluster-margin --embeddings e.npy --probs p.npy -k 21");
    assert_eq!(column(&csv, 1)[19..], ["20", "19"]);
    d.refused("-m cluster-margin --embeddings e.npy -k 1", 2, &["cluster-margin needs --probs or --logits"]);
}

/// Beyond the bound the distances are squared, and one line says so before it is done; the amount it names holds them.
#[test]
fn cluster_margin_says_that_distances_do_not_fit() {
    let d = Dir::new("linkage");
    let n = 3000;
    let x: Vec<f32> = (0..2 * n).map(|i| (i * 7919 % 10_007) as f32 * (i * 31 % 101) as f32).collect();
    let p: Vec<f32> = (0..n).map(|i| 0.5 + (i * 37 % 991) as f32 / 2000.0).flat_map(|p| [p, 1.0 - p]).collect();
    let shape = format!("({n}, 2)");
    d.write("e.npy", npy("'<f4'", "False", &shape, &f32s(&x))).write("p.npy", npy("'<f4'", "False", &shape, &f32s(&p)));
    let run = |more: &str| {
        let o = d.run(&format!("-m cluster-margin --embeddings e.npy --probs p.npy -k 60 {more}"));
        assert!(o.status.success());
        (String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap())
    };
    let (exact, silent) = run("");
    assert_eq!(silent, "");
    let (squared, note) = run("--mem 16MiB");
    assert!(
        note.starts_with("note: cluster-margin clusters by squared distances") && note.lines().count() == 1,
        "{note}"
    );
    assert!(note.contains("between 3000 rows (17.2 MiB)") && note.contains("16.0 MiB"), "{note}");
    assert_ne!(squared, exact);
    assert_eq!(run("--mem 16MiB --quiet"), (squared, String::new()));
    let amount = note.split("; --mem ").nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(run(&format!("--mem {amount}")), (exact, String::new()));
    let less = amount.trim_end_matches("MiB").parse::<u32>().unwrap() - 1;
    assert!(!run(&format!("--mem {less}MiB")).1.is_empty());
    d.refused("-m cluster-margin --embeddings e.npy --probs p.npy -k 60 --mem 2MiB", 2, &["clusters", "give --mem"]);
}
