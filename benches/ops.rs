//! Every operation on its cases, forward and forward + backward, one criterion group each; and at the end a table with
//! the share of this machine's measured rates: percent of the copy rate by compulsory bytes, percent of the multiply-add
//! rate by flops. Ids are `<shape>/<precision>/<device>`. The cases of the tests come first, then every layer of LeNet,
//! ResNet-18 w16 and w64 at batch 256 (`DALCORE_BENCH_BATCH`). `DALCORE_BENCH_DEVICE=cuda` runs on the GPU,
//! `DALCORE_BENCH_PRECISION=bf16` what exists in bf16.
//!
//! Correct first: a case whose f32 result is far from its f64 result is not timed; a layer is checked on one image.

use std::time::{Duration, Instant};

mod shapes;

use criterion::{Criterion, Throughput};
use dalcore::Result;
use dalcore::device::{Choice, Device, roofline};
use dalcore::ops::{Case, cases, large_cases};
use dalcore::tensor::{Dtype, Tensor};

fn main() -> Result<()> {
    let device = std::env::var("DALCORE_BENCH_DEVICE").unwrap_or_else(|_| "cpu".into()).parse::<Choice>()?.open()?;
    let name = if device.is_cpu() { "cpu" } else { "cuda" };
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(10)
        .configure_from_args();
    let dtype = shapes::precision()?.dtype();
    let rates = roofline::rates(&device)?;
    let (copy, fma) = (rates.copy, if dtype == Dtype::Bf16 { rates.tensor.unwrap_or(rates.fma) } else { rates.fma });
    let layers = shapes::layers(shapes::number("DALCORE_BENCH_BATCH", 256)?);
    let small = shapes::layers(1);
    // What runs in the precision asked for, and what to check it by.
    let from_tests = cases().into_iter().chain(large_cases()).filter(|c| dtype == Dtype::F32 || c.in_bf16());
    let of_networks = layers.iter().zip(&small).filter(|(l, _)| dtype == Dtype::F32 || l.in_bf16);
    let all = from_tests.map(|c| (c, c)).chain(of_networks.map(|(l, one)| (&l.case, &one.case)));
    let mut rows = Vec::new();
    for (case, checked) in all.filter(|(c, _)| c.bytes >= 4096) {
        check(checked)?;
        let inputs = case.make(&device, dtype)?;
        let (family, shape) = case.name.split_once('/').unwrap_or((case.name, ""));
        let wrt: Vec<&Tensor> = inputs.iter().filter(|t| t.is_tracked()).collect();
        let dy = case.cotangent(&(case.run)(&inputs)?)?;
        let mut group = criterion.benchmark_group(family);
        group.throughput(Throughput::Bytes(case.bytes));
        let mut best = f64::MAX;
        for backward in [false, true] {
            let id = format!("{shape}/{dtype:?}/{name}{}", if backward { "/backward" } else { "" });
            group.bench_function(id, |b| {
                b.iter_custom(|n| {
                    let start = Instant::now();
                    for _ in 0..n {
                        let done = (case.run)(&inputs).and_then(|y| match backward {
                            true => y.grad_from(&dy, &wrt).map(drop),
                            false => Ok(()),
                        });
                        assert!(done.is_ok(), "{}: {:?}", case.name, done.err());
                    }
                    let synced = device.synchronize();
                    assert!(synced.is_ok(), "{}: {:?}", case.name, synced.err());
                    let t = start.elapsed();
                    if !backward {
                        best = best.min(t.as_secs_f64() / n as f64);
                    }
                    t
                });
            });
        }
        group.finish();
        if best < f64::MAX {
            rows.push((case, best));
        }
    }
    println!(
        "\n{}: copy {:.1} GB/s, multiply-add {:.1} GFLOP/s, both measured",
        device.name(),
        copy * 1e-9,
        fma * 1e-9
    );
    println!("{:<44} {:>10} {:>8} {:>8}", "forward", "us", "% copy", "% fma");
    for (case, t) in rows {
        let share = |work: u64, rate: f64| 100.0 * work as f64 / t / rate;
        println!(
            "{:<44} {:>10.2} {:>8.1} {:>8.1}",
            case.name,
            t * 1e6,
            share(case.bytes, copy),
            share(case.flops, fma)
        );
    }
    Ok(())
}

/// The f32 result is that of f64 within 1 % of its size; anything else is not worth timing.
fn check(case: &Case) -> Result<()> {
    let at = |dtype| (case.run)(&case.make(&Device::Cpu, dtype)?)?.to_f64();
    let (got, want) = (at(Dtype::F32)?, at(Dtype::F64)?);
    let scale = want.iter().fold(1e-3f64, |m, w| m.max(w.abs()));
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 0.01 * scale), "{} is wrong", case.name);
    Ok(())
}
