//! The CUDA path against the CPU: every case forward and backward under several schedules, whole training runs,
//! selection, graph replay, memory. On the checked emulated driver unless DALCORE_TEST_DEVICE says otherwise.
//! One binary, one test, so that it can end by asking whether every kernel was launched.

mod common;

mod cases;
mod functions;
mod memory;
mod queries;
mod selection;
mod training;

/// The parts in order; each prints its name, so a failure is easy to place. DALCORE_TEST_PARTS runs only those it
/// names, separated by commas.
#[test]
fn cuda_agrees_with_the_cpu() {
    if common::cuda(0).is_none() {
        return;
    }
    let parts: [(&str, fn()); 21] = [
        ("small cases", cases::small),
        ("large cases", cases::large),
        ("small cases in bf16", cases::small_rounded),
        ("large cases in bf16", cases::large_rounded),
        ("rows do not depend on the batch", cases::batch_independence),
        ("functions without a gradient", functions::all),
        ("selection", selection::all),
        ("training", training::lenet),
        ("learning loss", training::learning_loss),
        ("a critic", training::critic),
        ("a graph network", training::graph_network),
        ("mixmatch", training::mixmatch),
        ("mixmatch with batch normalisation", training::mixmatch_normalised),
        ("batch normalisation in a step", training::resnet),
        ("a variational step", training::variational),
        ("an auto-encoder against a discriminator", training::adversarial),
        ("evaluation", training::evaluation),
        ("queries", queries::all),
        ("graphs", training::graphs),
        ("memory", memory::all),
        ("memory by purpose", memory::what_for),
    ];
    let wanted = std::env::var("DALCORE_TEST_PARTS").ok();
    let wanted: Option<Vec<&str>> = wanted.as_ref().map(|w| w.split(',').collect());
    if let Some(unknown) = wanted.iter().flatten().find(|w| !parts.iter().any(|(name, _)| name == *w)) {
        panic!("DALCORE_TEST_PARTS: there is no part '{unknown}'");
    }
    for (name, part) in parts {
        if wanted.as_ref().is_none_or(|w| w.contains(&name)) {
            let start = std::time::Instant::now();
            println!("{name}");
            part();
            println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
        }
    }
    if wanted.is_none() {
        every_kernel_was_launched();
    }
}

fn every_kernel_was_launched() {
    let launched = common::launched();
    let kernels = dalcore::device::launch::KERNELS.iter().map(|(name, _)| *name);
    let missing: Vec<&str> = kernels.filter(|k| !launched.contains(k)).collect();
    assert!(missing.is_empty(), "no test launches {missing:?}");
}
