//! Running out of device memory, and memory that is used again.

use dalcore::Error;
use dalcore::tensor::{Dtype, Tensor};

use crate::common::{cuda_with, is_emulated};

pub fn all() {
    {
        // More than any device has: the same refusal everywhere.
        let Some(s) = cuda_with(0, None) else { return };
        let e = Tensor::stale(&s.device, [1 << 44], Dtype::F32).unwrap_err();
        assert!(matches!(e, Error::Cuda { .. }), "{e}");
        assert!(e.to_string().contains("train.batch"), "{e}");
        assert_eq!(Tensor::new(&s.device, [1], &[7.0f32]).unwrap().to_vec::<f32>().unwrap(), [7.0]);
    }
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
