//! The fast build: the same numbers, and what it still notices.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod device;

use cudarc::driver::sys::CUresult;
use dalcore_emulator::{Kind, Options, kernels, take_error};
use device::{Device, assert_close, matmul, noise};
use std::time::{Duration, Instant};

fn open() -> Device {
    device::open(Kind::Fast, Options::default())
}

/// A write next to an allocation changes a guard byte: the launch that did it is named.
#[test]
fn stray_writes_name_their_kernel() {
    let d = open();
    for at in [-1, 100, 115] {
        let y = d.stream.alloc_zeros::<f32>(100).unwrap();
        d.launch("bug_stray_write", 1, 32, args![&y, 99]).unwrap();
        let error = d.launch("bug_stray_write", 1, 32, args![&y, at]).unwrap_err();
        assert_eq!(error.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        let said = take_error();
        assert!(said.starts_with("bug_stray_write: out of bounds: a guard byte at offset"), "{said}");
        assert!(said.contains("global allocation of 400 bytes"), "{said}");
        d.launch("bug_stray_write", 1, 32, args![&y, 0]).unwrap();
    }
}

/// A fault inside a kernel ends the launch and not the process.
#[test]
fn faults_end_the_launch() {
    let d = open();
    let y = d.stream.alloc_zeros::<i32>(64).unwrap();
    let error = d.launch("bug_wild_pointer", 1, 32, args![&y, 1i64 << 44]).unwrap_err();
    assert_eq!(error.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let said = take_error();
    assert!(said.starts_with("bug_wild_pointer: block (0,0,0) thread (3,0,0): illegal address"), "{said}");
    d.launch("bug_divide", 1, 32, args![&y, 5]).unwrap_err();
    assert!(take_error().contains("thread (5,0,0): integer division by zero"));
    d.launch("bug_barrier", 1, 32, args![&y]).unwrap_err();
    assert!(take_error().contains("divergent"));
    d.launch("bug_divide", 1, 32, args![&y, 50]).unwrap();
    assert_eq!(d.stream.clone_dtoh(&y).unwrap()[0], 2);
}

#[test]
fn a_product() {
    let d = open();
    let (m, n, k) = (100, 70, 50);
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    let (da, db) = (d.stream.clone_htod(&a).unwrap(), d.stream.clone_htod(&b).unwrap());
    let dc = d.empty::<f32>(m * n);
    let (mi, ni, ki) = (m as i32, n as i32, k as i32);
    d.launch_3d("own_gemm_tiled", [3, 4, 1], [32, 32, 1], 0, args![&dc, &da, &db, mi, ni, ki]).unwrap();
    assert_close(&d.stream.clone_dtoh(&dc).unwrap(), &matmul(&a, &b, m, n, k), 1e-5);
}

/// A software fmaf takes about 20 ns, the instruction 2: 10 M dependent ones are 200 ms or 20.
#[test]
fn fmaf_is_an_instruction() {
    let d = open();
    let y = d.empty::<f32>(32);
    let run = || {
        let start = Instant::now();
        d.launch("own_fma_chain", 1, 32, args![&y, 0.5f32, 1.0f32, 300_000]).unwrap();
        start.elapsed()
    };
    let best = (0..5).map(|_| run()).min().unwrap();
    println!("{:.2} ns per fmaf", best.as_secs_f64() * 1e9 / (32.0 * 300_000.0));
    assert_eq!(d.stream.clone_dtoh(&y).unwrap(), [2.0; 32]);
    if std::is_x86_feature_detected!("fma") {
        assert!(best < Duration::from_millis(150), "{best:?}");
    }
}

#[test]
fn own_kernels_are_no_product() {
    assert!(kernels().iter().all(|k| !k.starts_with("own_") && !k.starts_with("bug_")));
}
