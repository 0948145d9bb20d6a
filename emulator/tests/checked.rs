//! The checked build: planted mistakes are found, correct kernels give the right numbers in every order.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod device;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use dalcore_emulator::{Kind, Options, install, launched, profile, set_options, stats, take_error};
use device::{Arg, Device, assert_close, from_bf16, matmul, noise, to_bf16};

fn open(options: Options) -> Device {
    device::open(Kind::Checked, options)
}

fn shuffled(seed: u64) -> Options {
    Options { shuffle: seed > 0, seed, ..Options::default() }
}

#[test]
fn mistakes_are_found() {
    let d = open(Options::default());
    let x = d.stream.clone_htod(&noise(4096, 5)).unwrap();
    let y = d.stream.alloc_zeros::<f32>(1024).unwrap();
    let y64 = d.stream.alloc_zeros::<f32>(64).unwrap();
    let ints = d.stream.alloc_zeros::<i32>(64).unwrap();
    let cases: &[(&str, u32, u32, &[Arg], &str)] = &[
        ("bug_oob_global", 1, 96, args![&y64, 64], "out of bounds|illegal address"),
        ("bug_oob_shared", 1, 64, args![&y], "out of bounds"),
        ("bug_row_overflow", 1, 32, args![&y], "array index out of bounds"),
        ("bug_race_shared", 1, 64, args![&y], "data race|uninitialised"),
        ("bug_race_warp", 1, 32, args![&y], "data race"),
        ("bug_race_blocks", 2, 32, args![&y], "data race"),
        ("bug_race_atomic", 2, 32, args![&ints], "data race"),
        ("bug_barrier", 1, 32, args![&y], "divergent"),
        ("bug_barrier2", 1, 32, args![&y], "divergent"),
        ("bug_shuffle", 1, 32, args![&y], "divergent"),
        ("bug_shuffle_absent", 1, 48, args![&y], "which is not there"),
        ("bug_uninit", 1, 64, args![&y], "uninitialised"),
        ("bug_cp_nowait", 1, 32, args![&x, &y], "uninitialised"),
        ("bug_misaligned", 1, 32, args![&x, &y], "misaligned"),
        ("bug_misaligned_load16", 1, 32, args![&x, &y], "misaligned"),
        ("bug_index_overflow", 1, 1, args![&y, 1 << 30], "signed overflow"),
        ("bug_static_state", 1, 1, args![&y], "static variable"),
        ("bug_too_much_shared", 1, 32, args![&y], "DYN_SHARED"),
        ("bug_divide", 1, 32, args![&ints, 5], "division by zero"),
        ("bug_wild_pointer", 1, 32, args![&y, 1i64 << 40], "illegal address"),
    ];
    for (name, grid, block, args, want) in cases {
        let result = d.launch(name, *grid, *block, args);
        let error = take_error();
        assert!(
            result.is_err() && want.split('|').any(|w| error.contains(w)),
            "{name}: {result:?} {error:?}"
        );
        let names_its_line = error.contains("bugs.cu:") || name.contains("too_much");
        assert!(error.starts_with(name) && names_its_line, "{name}: {error:?}");
    }
    d.launch("ok_race_warp", 1, 32, args![&y]).unwrap();
    assert_eq!(take_error(), "");
    assert!(launched().contains(&"ok_race_warp".to_string()));
}

#[test]
fn a_fault_stays_until_it_is_taken() {
    let d = open(Options::default());
    let y = d.stream.alloc_zeros::<f32>(64).unwrap();
    d.launch("bug_oob_global", 1, 96, args![&y, 64]).unwrap_err();
    assert_eq!(d.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(take_error().starts_with("bug_oob_global: block (0,0,0) thread (64,0,0): bugs.cu:"));
    d.stream.synchronize().unwrap();
}

#[test]
fn wrong_launches_are_found() {
    let d = open(Options::default());
    let y = d.stream.alloc_zeros::<f32>(64).unwrap();
    let launch = |grid, block, shared| d.launch_3d("bug_oob_global", grid, block, shared, args![&y, 4]);
    assert!(launch([1, 1, 1], [32, 1, 1], 0).is_ok());
    assert!(launch([0, 1, 1], [32, 1, 1], 0).is_err());
    assert!(launch([1, 65536, 1], [32, 1, 1], 0).is_err());
    assert!(launch([1, 1, 1], [2048, 1, 1], 0).is_err());
    assert!(launch([1, 1, 1], [32, 1, 1], 50_000).is_err(), "more than 48 KB must be asked for");
    assert!(d.launch("own_softmax", 1, 512, args![&y, &y, 1]).is_err(), "its __launch_bounds__ say 256");
    assert_eq!(d.parameters("own_scale_add"), [8, 8, 4, 4]);
    assert!(install(Kind::Fast).is_err(), "one driver per process");
}

#[test]
fn products() {
    let d = open(Options::default());
    for (m, n, k) in [(64, 64, 64), (100, 70, 50), (1, 1, 1), (33, 65, 7)] {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let want = matmul(&a, &b, m, n, k);
        let (da, db) = (d.stream.clone_htod(&a).unwrap(), d.stream.clone_htod(&b).unwrap());
        let sizes = (m as i32, n as i32, k as i32);
        let dynamic = (16 * 68 + 16 * 64) * 4;
        for (name, tile, block, shared) in
            [("own_gemm_tiled", 32, [32, 32, 1], 0), ("own_gemm_dynamic", 64, [256, 1, 1], dynamic)]
        {
            let dc = d.empty::<f32>(m * n);
            let grid = [n.div_ceil(tile) as u32, m.div_ceil(tile) as u32, 1];
            d.launch_3d(name, grid, block, shared, args![&dc, &da, &db, sizes.0, sizes.1, sizes.2]).unwrap();
            // Sums of at most 64 products of values below 1/2, rounded 64 times: 64 * 2^-24 with room to spare.
            assert_close(&d.stream.clone_dtoh(&dc).unwrap(), &want, 1e-5);
        }
    }
}

#[test]
fn tensor_cores() {
    let d = open(Options::default());
    let (m, n, k) = (128, 64, 96);
    let dc = d.empty::<f32>(m * n);
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    let halves = |v: &[f32]| v.iter().map(|&x| to_bf16(x)).collect::<Vec<u16>>();
    let floats = |v: &[u16]| v.iter().map(|&x| from_bf16(x)).collect::<Vec<f32>>();
    let (ha, hb) = (halves(&a), halves(&b));
    let (da, db) = (d.stream.clone_htod(&ha).unwrap(), d.stream.clone_htod(&hb).unwrap());
    let grid = [n as u32 / 64, m as u32 / 64, 1];
    d.launch_3d("own_gemm_bf16", grid, [128, 1, 1], 0, args![&dc, &da, &db, n as i32, k as i32]).unwrap();
    let want = matmul(&floats(&ha), &floats(&hb), m, n, k);
    assert_close(&d.stream.clone_dtoh(&dc).unwrap(), &want, 1e-5);

    let (da, db) = (d.stream.clone_htod(&a).unwrap(), d.stream.clone_htod(&b).unwrap());
    let grid = [n as u32 / 8, m as u32 / 16, 1];
    d.launch_3d("own_gemm_tf32", grid, [32, 1, 1], 0, args![&dc, &da, &db, n as i32, k as i32]).unwrap();
    let cut = |v: &[f32]| v.iter().map(|x| f32::from_bits(x.to_bits() & 0xffffe000)).collect::<Vec<f32>>();
    let want = matmul(&cut(&a), &cut(&b), m, n, k);
    assert_close(&d.stream.clone_dtoh(&dc).unwrap(), &want, 1e-5);
}

#[test]
fn reductions_in_any_order() {
    let d = open(Options::default());
    let (rows, cols) = (5, 300);
    let x = noise(rows * cols, 3);
    let dx = d.stream.clone_htod(&x).unwrap();
    let mut ties = vec![0.25f32; 1000];
    (ties[77], ties[401], ties[402], ties[3]) = (0.5, 0.5, 0.5, f32::NAN);
    let dties = d.stream.clone_htod(&ties).unwrap();
    let mut first = None;
    for seed in 0..20 {
        set_options(&shuffled(seed));
        let dy = d.empty::<f32>(rows * cols);
        d.launch("own_softmax", rows as u32, 128, args![&dy, &dx, cols as i32]).unwrap();
        let y = d.stream.clone_dtoh(&dy).unwrap();
        for r in 0..rows {
            let row = &x[r * cols..][..cols];
            let sum: f32 = row.iter().map(|v| v.exp()).sum();
            let want: Vec<f32> = row.iter().map(|v| v.exp() / sum).collect();
            assert_close(&y[r * cols..][..cols], &want, 1e-6);
        }
        assert_eq!(first.get_or_insert(y.clone()), &y, "the order of threads must not change a bit");
        let best = d.empty::<i32>(1);
        d.launch("own_argmax", 1, 96, args![&best, &dties, 1000]).unwrap();
        assert_eq!(d.stream.clone_dtoh(&best).unwrap(), [77]);
        let steps: Vec<f32> = (0..96).map(|i| (i * 37 % 96) as f32).collect();
        let (highest, lowest) = (83, 0); // 83 * 37 = 95 modulo 96
        let dsteps = d.stream.clone_htod(&steps).unwrap();
        let twice = d.empty::<f32>(4);
        d.launch("own_reductions_twice", 1, 96, args![&twice, &dsteps]).unwrap();
        let want = [3.0 * 4560.0, 95.0, highest as f32, lowest as f32];
        assert_eq!(d.stream.clone_dtoh(&twice).unwrap(), want);
    }
}

#[test]
fn atomics() {
    let d = open(Options::default());
    let x = noise(10_000, 4);
    let dx = d.stream.clone_htod(&x).unwrap();
    let out = d.stream.alloc_zeros::<f32>(1).unwrap();
    d.launch("own_sum_atomic", 8, 256, args![&out, &dx, 10_000]).unwrap();
    let want = x.iter().map(|&v| f64::from(v)).sum::<f64>() as f32;
    assert_close(&d.stream.clone_dtoh(&out).unwrap(), &[want], 1e-4);
    let values: Vec<i32> = (0..1000).map(|i| i * 7 % 10).collect();
    let values = d.stream.clone_htod(&values).unwrap();
    let bins = d.stream.alloc_zeros::<i32>(10).unwrap();
    let before = stats().atomics;
    d.launch("own_histogram", 4, 256, args![&bins, &values, 1000]).unwrap();
    assert_eq!(d.stream.clone_dtoh(&bins).unwrap(), [100; 10]);
    assert_eq!(stats().atomics - before, 1000);
}

#[test]
fn philox_known_answers() {
    let d = open(Options::default());
    let block = d.empty::<u32>(4);
    let words = d.empty::<u32>(16);
    let answers = [
        ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
        ([!0; 4], [!0; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ];
    for (counter, key, want) in answers {
        let (dc, dk) =
            (d.stream.clone_htod::<u32, _>(&counter).unwrap(), d.stream.clone_htod::<u32, _>(&key).unwrap());
        d.launch("own_philox", 1, 32, args![&block, &words, &dc, &dk, 16]).unwrap();
        assert_eq!(d.stream.clone_dtoh(&block).unwrap(), want);
    }
    // Word e of a stream is word e % 4 of the block with the counter [e / 4, purpose << 24 | lane, a, b].
    let key = d.stream.clone_htod::<u32, _>(&[7, 9]).unwrap();
    let scratch = d.empty::<u32>(16);
    for e in 0..4u32 {
        let counter = d.stream.clone_htod(&[e, 2, 3, 5]).unwrap();
        d.launch("own_philox", 1, 32, args![&block, &words, &counter, &key, 16]).unwrap();
        let all = d.stream.clone_dtoh(&words).unwrap();
        assert_eq!(d.stream.clone_dtoh(&block).unwrap(), all[4 * e as usize..][..4]);
    }
    drop(scratch);
}

#[test]
fn intrinsics() {
    let d = open(shuffled(3));
    let out = d.stream.alloc_zeros::<u32>(165).unwrap();
    let real = d.stream.alloc_zeros::<f32>(6).unwrap();
    d.launch("own_intrinsics", 1, 32, args![&out, &real]).unwrap();
    let out = d.stream.clone_dtoh(&out).unwrap();
    let every_third = (0..32).step_by(3).fold(0, |m, i| m | 1u32 << i);
    assert_eq!(out[..32], [every_third; 32]);
    assert_eq!(out[32..64], [496; 32]);
    assert!((1..32).all(|t| out[64 + t] == t as u32 - 1) && out[64] == 0);
    assert_eq!(out[96..128], [5; 32]);
    assert_eq!(out[128..133], [0x8000_0000, 0x7755_3311, 3, 31 + 800 + 40_000, 1]);
    assert_eq!(out[133..], [9; 32]);
    // Not contracted: the product is rounded before the subtraction. fmaf is fused.
    let (fused, rounded) = (1.0 / 2048.0 + 1.0 / 16_777_216.0, 1.0 / 2048.0);
    assert_eq!(d.stream.clone_dtoh(&real).unwrap(), [1.0, fused, rounded, 1.5, 1.0, 1.0]);
}

#[test]
fn bf16_vectors() {
    let d = open(Options::default());
    let x: Vec<u16> = noise(800, 6).iter().map(|&v| to_bf16(v)).collect();
    let dx = d.stream.clone_htod(&x).unwrap();
    let dy = d.empty::<u16>(800);
    d.launch("own_double_bf16", 4, 32, args![&dy, &dx, 800]).unwrap();
    let want: Vec<u16> = x.iter().map(|&v| to_bf16(2.0 * from_bf16(v))).collect();
    assert_eq!(d.stream.clone_dtoh(&dy).unwrap(), want);
}

/// With lazy streams nothing runs before something waits: a missing synchronisation shows.
#[test]
fn streams_events_graphs() {
    let d = open(Options { lazy: true, ..Options::default() });
    let x = d.stream.clone_htod(&vec![1f32; 1000]).unwrap();
    let y = d.stream.alloc_zeros::<f32>(1000).unwrap();
    // SAFETY: filled on the next line.
    let mut host = unsafe { d.ctx.alloc_pinned::<f32>(1000) }.unwrap();
    host.as_mut_slice().unwrap().fill(-1.0);
    let before = stats().launches;
    let add = || d.launch("own_scale_add", 4, 256, args![&y, &x, 1000, 3.0f32]).unwrap();
    add();
    d.stream.memcpy_dtoh(&y, &mut host).unwrap();
    assert_eq!(stats().launches, before, "nothing has run yet");
    d.stream.synchronize().unwrap();
    assert_eq!(host.as_slice().unwrap()[999], 3.0);

    let other = d.ctx.new_stream().unwrap();
    add();
    let event = d.stream.record_event(None).unwrap();
    other.wait(&event).unwrap();
    assert_eq!(other.clone_dtoh(&y).unwrap()[0], 6.0);
    add();
    assert_eq!(other.clone_dtoh(&y).unwrap()[0], 6.0, "no event: the second stream must not see it");

    d.stream.synchronize().unwrap();
    d.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    add();
    add();
    let graph = d.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.upload().unwrap();
    let mut nodes = 0;
    // SAFETY: a null list asks for the number only.
    let r =
        unsafe { cudarc::driver::sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes) };
    assert!(r.result().is_ok() && nodes == 2);
    assert_eq!(d.stream.clone_dtoh(&y).unwrap()[5], 9.0, "captured, not run");
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(d.stream.clone_dtoh(&y).unwrap()[5], 21.0);
}

/// What a real driver refuses inside of a capture is refused here, with the same number, and ends the capture.
#[test]
fn a_capture_refuses() {
    let d = open(Options::default());
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    let begin = || {
        d.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    };
    let end = || d.stream.end_capture(CUgraphInstantiate_flags(0)).err().map(|e| e.0);
    let invalidated = Some(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    let y = d.stream.alloc_zeros::<f32>(64).unwrap();

    begin();
    assert_eq!(d.stream.alloc_zeros::<f32>(64).unwrap_err().0, unsupported);
    assert_eq!(end(), invalidated);
    begin();
    // SAFETY: the address is not used.
    assert_eq!(unsafe { cudarc::driver::result::malloc_sync(64) }.unwrap_err().0, unsupported);
    assert_eq!(end(), invalidated);
    begin();
    let Arg::Ptr(address) = Arg::from(&y) else { unreachable!() };
    // SAFETY: it is refused, so `y` stays valid.
    assert_eq!(unsafe { cudarc::driver::result::free_sync(address) }.unwrap_err().0, unsupported);
    assert_eq!(end(), invalidated);
    begin();
    assert_eq!(d.stream.clone_dtoh(&y).unwrap_err().0, unsupported, "pageable memory");
    assert_eq!(end(), invalidated);
    begin();
    assert_eq!(d.stream.synchronize().unwrap_err().0, unsupported);
    assert_eq!(end(), invalidated);
    begin();
    d.launch("bug_oob_global", 1, 32, args![&y, 4]).unwrap();
    assert_eq!(end(), None, "a clean capture works afterwards");
    assert_eq!(d.stream.clone_dtoh(&y).unwrap()[0], 0.0);
}

#[test]
fn memory_runs_out() {
    let d = open(Options { memory: 1 << 20, ..Options::default() });
    assert_eq!(d.ctx.mem_get_info().unwrap(), (1 << 20, 1 << 20));
    let half = d.stream.alloc_zeros::<u8>(1 << 19).unwrap();
    let more = d.stream.alloc_zeros::<u8>((1 << 19) + 1);
    assert_eq!(more.unwrap_err().0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(d.ctx.mem_get_info().unwrap(), (1 << 19, 1 << 20));
    drop(half);
    drop(d.stream.alloc_zeros::<u8>(1 << 20).unwrap());
    assert_eq!(d.ctx.mem_get_info().unwrap().0, 1 << 20);
}

/// Transactions and bank conflicts, counted: a performance test without a GPU.
#[test]
fn profiles() {
    let d = open(Options { profile: true, ..Options::default() });
    let x = d.stream.clone_htod(&noise(4096, 5)).unwrap();
    let y = d.stream.alloc_zeros::<f32>(1024).unwrap();
    let worst = |name: &str, args: &[Arg], file: &str| {
        profile();
        d.launch(name, 1, 32, args).unwrap();
        let lines = profile();
        assert!(!lines.is_empty() && lines.iter().all(|l| l.place.starts_with(file)), "{lines:?}");
        lines.iter().map(|l| l.cost as f64 / l.ideal as f64).fold(0.0, f64::max)
    };
    assert_eq!(worst("bug_bank", args![&x, &y], "bugs.cu:"), 32.0);
    assert_eq!(worst("bug_stride", args![&x, &y, 32], "bugs.cu:"), 8.0);
    assert_eq!(worst("own_scale_add", args![&y, &x, 32, 1.0f32], "own.cu:"), 1.0);
    let halves = d.stream.alloc_zeros::<u16>(256).unwrap();
    assert_eq!(worst("own_double_bf16", args![&halves, &halves, 256], "own.cu:"), 1.0);
}

/// Every call takes its turn: several host threads, each with its own context handle and stream.
#[test]
fn host_threads_take_turns() {
    let d = open(Options::default());
    std::thread::scope(|scope| {
        for t in 0..4 {
            let d = &d;
            scope.spawn(move || {
                let stream = d.ctx.new_stream().unwrap();
                for i in 0..20 {
                    let value = (t * 100 + i) as f32;
                    let x = stream.clone_htod(&[value; 64]).unwrap();
                    let y = stream.alloc_zeros::<f32>(64).unwrap();
                    d.launch("own_scale_add", 1, 64, args![&y, &x, 64, 2.0f32]).unwrap();
                    assert_eq!(stream.clone_dtoh(&y).unwrap(), [2.0 * value; 64]);
                }
            });
        }
    });
}
