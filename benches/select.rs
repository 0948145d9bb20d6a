//! Selection at pool size. `cargo bench --bench select` times with criterion; `benches/kcenter.py` runs the built
//! program with `--once CASE` for one timed run next to its peers, on data written once with `--write CASE FILE`.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use dalcore::device::Device;
use dalcore::ops::{nearest_update, top_k};
use dalcore::rng::{Purpose, Rng};
use dalcore::select::kcenter;
use dalcore::tensor::Tensor;

/// A pool of embeddings: rows, width, labelled rows, picks, clusters.
struct Case {
    name: &'static str,
    n: usize,
    d: usize,
    labelled: usize,
    k: usize,
    clusters: u32,
}

const CASES: &[Case] = &[
    Case { name: "mnist", n: 60_000, d: 50, labelled: 1_200, k: 1_200, clusters: 10 },
    Case { name: "cifar", n: 50_000, d: 128, labelled: 5_000, k: 2_500, clusters: 50 },
    Case { name: "wide", n: 50_000, d: 512, labelled: 5_000, k: 2_500, clusters: 50 },
];

impl Case {
    /// A Gaussian mixture behind a ReLU, as embeddings are: half of the values are zero.
    fn points(&self) -> Tensor {
        let r = Rng::new(1).at(Purpose::Select, 0, 0);
        let normal = |r: Rng, e: u64| {
            let u = |e| f64::from(r.u32(e)).mul_add(1.0, 0.5) / 4294967296.0;
            ((-2.0 * u(2 * e).ln()).sqrt() * (std::f64::consts::TAU * u(2 * e + 1)).cos()) as f32
        };
        let means: Vec<f32> = (0..u64::from(self.clusters) * self.d as u64).map(|e| normal(r.lane(1), e)).collect();
        let mut x = Vec::with_capacity(self.n * self.d);
        for i in 0..self.n {
            let c = (r.lane(2).u32(i as u64) % self.clusters) as usize;
            // Classes differ in how wide they are.
            let spread = 0.3 + 0.5 * c as f32 / self.clusters as f32;
            for j in 0..self.d {
                x.push((means[c * self.d + j] + spread * normal(r.lane(3), (i * self.d + j) as u64)).max(0.0));
            }
        }
        Tensor::new(&Device::Cpu, [self.n, self.d], &x).unwrap()
    }

    fn labelled(&self) -> Vec<u32> {
        (0..self.labelled as u32).collect()
    }

    fn candidates(&self) -> Vec<u32> {
        (self.labelled as u32..self.n as u32).collect()
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

/// Prints seconds and a fingerprint of the picks (their sum, and the last radius) of three runs.
fn once(case: &Case) {
    let (x, labelled, rest) = (case.points(), case.labelled(), case.candidates());
    for _ in 0..3 {
        let start = Instant::now();
        let p = kcenter(&x, &labelled, &rest, case.k).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let sum: u64 = p.ids.iter().map(|i| u64::from(*i)).sum();
        println!("{seconds:.4} {sum} {:.6}", p.radius.last().unwrap());
    }
}

fn criterion(c: &mut Criterion) {
    for case in &CASES[..2] {
        let (x, labelled, rest) = (case.points(), case.labelled(), case.candidates());
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
        ["--once", name] => once(case(name)),
        ["--write", name, path] => write_npy(path, &case(name).points()),
        _ => {
            let mut c = Criterion::default().configure_from_args();
            criterion(&mut c);
            c.final_summary();
        }
    }
}
