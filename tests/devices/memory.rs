//! Running out of device memory, and memory that is used again.

use dalcore::Error;
use dalcore::bench::config::{Config, Preset, Profile};
use dalcore::data::{Dataset, PoolIdx, synthetic};
use dalcore::tensor::{Dtype, Tensor};
use dalcore::train::{DeviceData, Trainer};

use crate::common::{cuda_with, is_emulated};

pub fn all() {
    {
        // More than any device has: the same refusal everywhere.
        let Some(s) = cuda_with(0, None) else { return };
        let e = Tensor::stale(&s.device, [1 << 44], Dtype::F32).unwrap_err();
        assert!(matches!(e, Error::Memory { .. }), "{e}");
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
    assert!(e.contains("40.0 MiB more than the 40.0 MiB in use; 24.0 MiB of the device's 64.0 MiB are free"), "{e}");
    // What was freed serves another size: the cached block is given back first.
    for mib in [41, 50, 30, 50] {
        drop(big(mib).unwrap());
    }
}

/// What is too large is named with the option that lowers it: the data set, a training step, a forward pass.
pub fn what_for() {
    if !is_emulated() {
        return;
    }
    let images = |n: usize| synthetic::generate(3, synthetic::Split::Train, n);
    let train = |memory: u64, batch: usize, eval_batch: usize| {
        let s = cuda_with(0, Some(memory))?;
        let labels: Vec<(PoolIdx, u32)> = (0..).map(PoolIdx).zip(images(40).labels).collect();
        let set = Dataset::new(&synthetic::SPEC, images(40), images(40));
        let run = || {
            let data = DeviceData::new(&s.device, &set)?;
            let mut recipe = Config::base(&data.spec, &Preset::find("smoke").unwrap().1, Profile::Clean).train;
            (recipe.epochs, recipe.batch) = (1, batch);
            let trainer = Trainer {
                data: &data,
                recipe: &recipe,
                eval_batch,
                graphs: true,
                seed: 1,
                on_epoch: &|_| Ok(()),
                check: &|| Ok(()),
                mixmatch: None,
            };
            trainer.fit(0, &labels).map(drop)
        };
        Some(run().err().map(|e| e.to_string()))
    };
    // 80 images are 62.7 KB; LeNet's first maps of 40 images are 0.9 MiB.
    for (memory, batch, eval_batch, wanted) in [
        (40 << 10, 8, 8, Some(["keeping the 80 images of synthetic (61.2 KiB)", "smaller images"])),
        (1 << 20, 40, 2, Some(["a training step of 40 images", "--set train.batch=20"])),
        (2 << 20, 2, 40, Some(["a forward pass over 40 images", "--set eval.batch=20"])),
        (16 << 20, 40, 40, None),
    ] {
        let Some(got) = train(memory, batch, eval_batch) else { return };
        match (got, wanted) {
            (Some(e), Some(wanted)) => {
                assert!(wanted.iter().chain(&["--device cpu", "are free"]).all(|w| e.contains(w)), "{e}");
            }
            (got, wanted) => assert!(got.is_none() && wanted.is_none(), "{memory} bytes: {got:?}"),
        }
    }
}
