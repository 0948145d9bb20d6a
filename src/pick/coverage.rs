//! How well a pool is covered.

use super::Inputs;
use crate::Result;
use crate::device::Device;
use crate::ops::nearest_update;
use crate::tensor::{Dtype, Tensor};

/// The coverage radius after each group: the largest distance of any row to the nearest row of this group and those
/// before it. None where no group has had a row yet. Embeddings are read by blocks; nothing of size N is held.
pub fn coverage(inputs: &Inputs, groups: &[Vec<u32>], device: &Device) -> Result<Vec<Option<f32>>> {
    let Some(source) = inputs.embeddings() else { return Ok(vec![None; groups.len()]) };
    let [n, d] = source.sizes("N, D")?;
    let block = inputs.block(d);
    inputs.fits("the coverage radius", &[("centres", 4 * (block * d) as u64)])?;
    let matrix = |rows: usize, fill: &dyn Fn(&mut [f32]) -> Result<()>| {
        let mut x = Tensor::stale(&Device::Cpu, [rows, d], Dtype::F32)?;
        fill(x.host_mut("coverage")?)?;
        if device.is_cpu() { Ok(x) } else { x.to_device(device) }
    };
    let mut radius: Vec<Option<f32>> = vec![None; groups.len()];
    for first in (0..n).step_by(block) {
        let rows = block.min(n - first);
        let x = matrix(rows, &|out| source.floats(first * d, out))?;
        let mut best = Tensor::new(device, [rows], &vec![f32::INFINITY; rows])?;
        let mut any = false;
        for (group, radius) in groups.iter().zip(&mut radius) {
            for ids in group.chunks(block) {
                nearest_update(&mut best, &x, &matrix(ids.len(), &|out| source.rows(ids, d, out))?)?;
                any = true;
            }
            if any {
                let worst = best.to_vec::<f32>()?.into_iter().fold(0.0, f32::max).sqrt();
                *radius = Some(radius.map_or(worst, |r| r.max(worst)));
            }
        }
    }
    Ok(radius)
}
