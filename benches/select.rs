//! Selection at pool size. `cargo bench --bench select` times with criterion; `benches/selection.py` runs the built
//! program with `--once CASE` for one timed run, or `--again CASE` for the second of two, next to its peers, on data written
//! once with `--write CASE FOLDER`.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use dalcore::device::Device;
use dalcore::ops::{gather_rows, nearest_update, top_k};
use dalcore::rng::{Purpose, Rng};
use dalcore::select::{Points, average_linkage, kcenter, kmeans_pp, label_gradients, lloyd};
use dalcore::tensor::Tensor;

/// What is timed.
#[derive(Clone, Copy)]
enum Rule {
    /// With this many labelled rows.
    KCenter { labelled: usize },
    /// With this many classes.
    Badge { classes: usize },
    /// Iterations of Lloyd from the first rows.
    KMeans { iterations: u32 },
    /// All merges; compared where this many clusters are left.
    Linkage { clusters: usize },
}

/// A pool of embeddings: rows, width, picks or centres, clusters, and the dimension that the rows have behind their
/// width; 0: all of it.
struct Case {
    name: &'static str,
    rule: Rule,
    n: usize,
    d: usize,
    k: usize,
    clusters: u32,
    latent: usize,
}

const fn case(name: &'static str, rule: Rule, n: usize, d: usize, k: usize, clusters: u32) -> Case {
    Case { name, rule, n, d, k, clusters, latent: 0 }
}

const fn latent(latent: usize, case: Case) -> Case {
    Case { latent, ..case }
}

const CASES: &[Case] = &[
    case("kcenter-mnist", Rule::KCenter { labelled: 1_200 }, 60_000, 50, 1_200, 10),
    case("kcenter-128", Rule::KCenter { labelled: 5_000 }, 50_000, 128, 2_500, 50),
    latent(12, case("kcenter-latent", Rule::KCenter { labelled: 5_000 }, 50_000, 128, 2_500, 50)),
    case("kcenter-one", Rule::KCenter { labelled: 5_000 }, 50_000, 128, 2_500, 1),
    case("kcenter-512", Rule::KCenter { labelled: 5_000 }, 50_000, 512, 2_500, 50),
    case("kcenter-million", Rule::KCenter { labelled: 5_000 }, 1_000_000, 128, 1_000, 50),
    case("badge", Rule::Badge { classes: 10 }, 45_000, 128, 2_500, 50),
    case("badge-tiny", Rule::Badge { classes: 200 }, 90_000, 512, 5_000, 200),
    case("kmeans", Rule::KMeans { iterations: 10 }, 45_000, 128, 2_500, 50),
    latent(12, case("kmeans-latent", Rule::KMeans { iterations: 10 }, 45_000, 128, 2_500, 50)),
    case("kmeans-one", Rule::KMeans { iterations: 10 }, 45_000, 128, 2_500, 1),
    case("linkage", Rule::Linkage { clusters: 20 }, 20_000, 128, 0, 50),
    case("linkage-mnist", Rule::Linkage { clusters: 20 }, 60_000, 50, 0, 10),
];

/// A standard normal number.
fn normal(r: Rng, e: u64) -> f32 {
    let u = |e| f64::from(r.u32(e)).mul_add(1.0, 0.5) / 4294967296.0;
    ((-2.0 * u(2 * e).ln()).sqrt() * (std::f64::consts::TAU * u(2 * e + 1)).cos()) as f32
}

impl Case {
    /// A Gaussian mixture behind a ReLU, as embeddings are: half of the values are zero. With a latent dimension the
    /// mixture has that one and goes through a random matrix first, as features of a network do.
    fn points(&self) -> Tensor {
        let r = Rng::new(1).at(Purpose::Select, 0, 0);
        let width = if self.latent > 0 { self.latent } else { self.d };
        let means: Vec<f32> = (0..u64::from(self.clusters) * width as u64).map(|e| normal(r.lane(1), e)).collect();
        let scale = 1.0 / (width as f32).sqrt();
        let map: Vec<f32> = (0..(self.d * self.latent) as u64).map(|e| scale * normal(r.lane(6), e)).collect();
        let mut x = Vec::with_capacity(self.n * self.d);
        for i in 0..self.n {
            let c = (r.lane(2).u32(i as u64) % self.clusters) as usize;
            // Classes differ in how wide they are.
            let spread = 0.3 + 0.5 * c as f32 / self.clusters as f32;
            let z = |j: usize| means[c * width + j] + spread * normal(r.lane(3), (i * width + j) as u64);
            if self.latent == 0 {
                x.extend((0..width).map(|j| z(j).max(0.0)));
            } else {
                let z: Vec<f32> = (0..width).map(z).collect();
                let rows = map.chunks_exact(width);
                x.extend(rows.map(|m| m.iter().zip(&z).map(|(m, z)| m * z).sum::<f32>().max(0.0)));
            }
        }
        Tensor::new(&Device::Cpu, [self.n, self.d], &x).unwrap()
    }

    /// δ of logits that prefer the class of a row's cluster, some much and some hardly.
    fn gradients(&self, classes: usize) -> Tensor {
        let r = Rng::new(1).at(Purpose::Select, 0, 0);
        let mut logits = Vec::with_capacity(self.n * classes);
        for i in 0..self.n {
            let class = (r.lane(2).u32(i as u64) % self.clusters) as usize % classes;
            let sure = 8.0 * r.lane(4).uniform(i as u64);
            for c in 0..classes {
                let noise = normal(r.lane(5), (i * classes + c) as u64);
                logits.push(noise + if c == class { sure } else { 0.0 });
            }
        }
        label_gradients(&Tensor::new(&Device::Cpu, [self.n, classes], &logits).unwrap()).unwrap()
    }
}

/// Version 1.0 of the npy format, f32, row-major.
fn write_npy(path: &str, x: &Tensor) {
    let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {:?}, }}", x.shape());
    let head = format!("{head:<width$}\n", width = (head.len() + 11).next_multiple_of(64) - 11);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((head.len() as u16).to_le_bytes());
    bytes.extend(head.bytes());
    x.to_vec::<f32>().unwrap().iter().for_each(|v| bytes.extend(v.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

/// The largest resident size of this process so far, in KiB; 0 where the system does not say.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Prints seconds of the last run, a fingerprint of the result and the peak of memory in KiB.
fn timed(case: &Case, runs: usize) {
    let x = case.points();
    let (mut seconds, mut print) = run(case, &x);
    for _ in 1..runs {
        (seconds, print) = run(case, &x);
    }
    println!("{:.4} {print:.0} {}", seconds.as_secs_f64(), peak());
}

fn run(case: &Case, x: &Tensor) -> (Duration, f64) {
    let sum = |ids: Vec<u32>| ids.into_iter().map(f64::from).sum::<f64>();
    match case.rule {
        Rule::KCenter { labelled } => {
            let (labelled, rest) = split(case, labelled);
            let start = Instant::now();
            let p = kcenter(x, &labelled, &rest, case.k).unwrap();
            (start.elapsed(), sum(p.ids))
        }
        Rule::Badge { classes } => {
            let delta = case.gradients(classes);
            let start = Instant::now();
            let ids = kmeans_pp(Points::Gradients { delta: &delta, h: x }, case.k, Rng::new(3)).unwrap();
            (start.elapsed(), sum(ids))
        }
        Rule::KMeans { iterations } => {
            let first: Vec<u32> = (0..case.k as u32).collect();
            let centres = gather_rows(x, &Tensor::new(&Device::Cpu, [case.k], &first).unwrap()).unwrap();
            let start = Instant::now();
            let c = lloyd(x, &centres, iterations, 0.0).unwrap();
            (start.elapsed(), c.distances.to_f64().unwrap().iter().sum())
        }
        Rule::Linkage { clusters } => {
            let start = Instant::now();
            let tree = average_linkage(x, 8 << 30, &|| Ok(())).unwrap();
            (start.elapsed(), pairs(&tree.cut(clusters)))
        }
    }
}

/// Pairs of rows in one cluster.
fn pairs(of: &[u32]) -> f64 {
    let mut sizes = vec![0.0; of.len()];
    of.iter().for_each(|c| sizes[*c as usize] += 1.0);
    sizes.iter().map(|n| n * (n - 1.0) / 2.0).sum()
}

/// The labelled rows come first.
fn split(case: &Case, labelled: usize) -> (Vec<u32>, Vec<u32>) {
    ((0..labelled as u32).collect(), (labelled as u32..case.n as u32).collect())
}

fn write(case: &Case, folder: &str) {
    write_npy(&format!("{folder}/x.npy"), &case.points());
    if let Rule::Badge { classes } = case.rule {
        write_npy(&format!("{folder}/delta.npy"), &case.gradients(classes));
    }
}

fn criterion(c: &mut Criterion) {
    for (case, labelled) in [(&CASES[0], 1_200), (&CASES[1], 5_000)] {
        let (x, (labelled, rest)) = (case.points(), split(case, labelled));
        let mut g = c.benchmark_group("kcenter");
        g.sample_size(10).measurement_time(Duration::from_secs(5));
        g.bench_function(BenchmarkId::from_parameter(format!("{}x{}/f32/cpu", case.n, case.d)), |b| {
            b.iter(|| kcenter(&x, &labelled, &rest, case.k).unwrap());
        });
        g.finish();
        let centres = Tensor::new(&Device::Cpu, [1000, case.d], &x.to_vec::<f32>().unwrap()[..1000 * case.d]).unwrap();
        let mut best = Tensor::new(&Device::Cpu, [case.n], &vec![f32::INFINITY; case.n]).unwrap();
        let mut g = c.benchmark_group("nearest_update");
        // A subtraction and a fused multiply-add per pair and feature: three operations.
        g.throughput(criterion::Throughput::Elements(3 * 1000 * case.n as u64 * case.d as u64)).sample_size(10);
        g.bench_function(BenchmarkId::from_parameter(format!("{}x1000x{}/f32/cpu", case.n, case.d)), |b| {
            b.iter(|| nearest_update(&mut best, &x, &centres).unwrap());
        });
        g.finish();
    }
    let r = Rng::new(1).at(Purpose::Select, 1, 0);
    let v: Vec<f32> = (0..1_000_000).map(|e| r.uniform(e)).collect();
    let scores = Tensor::new(&Device::Cpu, [v.len()], &v).unwrap();
    c.bench_function("top_k/1000000x10000/f32/cpu", |b| b.iter(|| top_k(&scores, 10_000).unwrap()));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let case = |name: &str| CASES.iter().find(|c| c.name == name).expect("a case of this name");
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--once", name] => timed(case(name), 1),
        ["--again", name] => timed(case(name), 2),
        ["--write", name, folder] => write(case(name), folder),
        _ => {
            let mut c = Criterion::default().configure_from_args();
            criterion(&mut c);
            c.final_summary();
        }
    }
}
