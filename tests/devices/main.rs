//! The CUDA path against the CPU: every case forward and backward under several schedules, whole training runs,
//! selection, graph replay, memory. On the checked emulated driver unless DALCORE_TEST_DEVICE says otherwise.
//! One binary, one test, so that it can end by asking whether every kernel was launched.

mod common;

mod cases;
mod functions;
mod memory;
mod selection;
mod training;

/// The parts in order; each prints its name, so a failure is easy to place.
#[test]
fn cuda_agrees_with_the_cpu() {
    if common::cuda(0).is_none() {
        return;
    }
    let parts: [(&str, fn()); 8] = [
        ("small cases", cases::small),
        ("large cases", cases::large),
        ("rows do not depend on the batch", cases::batch_independence),
        ("functions without a gradient", functions::all),
        ("selection", selection::all),
        ("training, eager and replayed", training::lenet),
        ("graphs", training::graphs),
        ("memory", memory::all),
    ];
    for (name, part) in parts {
        println!("{name}");
        part();
    }
    every_kernel_was_launched();
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn every_kernel_was_launched() {
    if !common::is_emulated() {
        return;
    }
    let launched = dalcore_emulator::launched();
    let missing: Vec<&str> =
        dalcore::device::launch::KERNELS.iter().map(|(k, _)| *k).filter(|k| !launched.iter().any(|l| l == k)).collect();
    assert!(missing.is_empty(), "no test launches {missing:?}");
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn every_kernel_was_launched() {}
