//! Running out of device memory, and memory that is used again.

use dalcore::tensor::{Dtype, Tensor};

use crate::common::{cuda_with, is_emulated};

pub fn all() {
    if !is_emulated() {
        return; // filling a real GPU would disturb others
    }
    let Some(s) = cuda_with(0, Some(64 << 20)) else { return };
    let big = |mib: usize| Tensor::zeros(&s.device, [mib << 18], Dtype::F32);
    let kept = big(40).unwrap();
    let e = big(40).unwrap_err().to_string();
    assert!(e.contains("memory") && e.contains("train.batch") && e.contains("--device cpu"), "{e}");
    drop(kept);
    // What was freed serves another size: the cached block is given back first.
    for mib in [41, 50, 30, 50] {
        drop(big(mib).unwrap());
    }
}
