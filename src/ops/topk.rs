//! The k largest scores and the largest one, exactly: ordered by score descending, then by id ascending.
//!
//! Every score becomes a 64-bit key whose ascending order is the wanted one: the high half is the score's bits,
//! made monotone and turned round, the low half is the id. All keys are distinct, so a selection has one answer.
//! A NaN gets high half 0 and so comes before everything, the lowest id first: wherever at least one id is
//! selected, the first key tells whether there was a NaN and where.

use crate::device::{Cuda, Device, Launch, launch};
use crate::tensor::{Buf, Tensor};
use crate::{Error, Result};

/// The ids of the k largest scores, best first, the lowest id of equals first.   scores (N) → ids (k), u32.
///
/// −0 equals 0. A NaN is an error that names its id; with k = 0 nothing is ranked and nothing is looked at.
pub fn top_k(scores: &Tensor, k: usize) -> Result<Tensor> {
    const OP: &str = "top_k";
    if scores.dims().len() != 1 || k > scores.len() {
        return Err(scores.shape().refuse(OP, format!("(N) with N of at least {k}")));
    }
    let device = scores.device();
    if k == 0 {
        return Tensor::new::<u32>(device, [0], &[]);
    }
    let (ids, first) = match device {
        Device::Cpu => {
            let keys = cpu::smallest(scores.host(OP)?, k);
            let ids: Vec<u32> = keys.iter().map(|key| *key as u32).collect();
            (Buf::from_host(device, &ids)?, keys.first().copied().unwrap_or(u64::MAX))
        }
        Device::Cuda(cuda) => on_cuda(cuda, device, scores.buf(OP)?, k)?,
    };
    if is_nan_key(first) {
        return Err(Error::NonFinite {
            what: format!("{OP}: the score of id {} is NaN; nothing was ranked", first as u32),
        });
    }
    Tensor::from_buf(device, [k], ids)
}

/// The index of the largest value, the lowest one of equals.   values (N), N ≥ 1.
///
/// A NaN is an error that names its index. Waits for the device.
pub fn argmax(values: &Tensor) -> Result<u32> {
    const OP: &str = "argmax";
    let n = values.len();
    if n == 0 || values.dims().len() != 1 {
        return Err(values.shape().refuse(OP, "(N) with at least one value"));
    }
    let key = match values.device() {
        Device::Cpu => {
            let v = values.host::<f32>(OP)?.iter().zip(0u32..);
            v.map(|(v, i)| descending_key(*v, i)).min().unwrap_or(u64::MAX)
        }
        Device::Cuda(cuda) => {
            let blocks = n.div_ceil(ARGMAX_BLOCK);
            let mut part = Buf::<u64>::stale(values.device(), blocks)?;
            let mut key = Buf::<u64>::stale(values.device(), 1)?;
            let l = Launch::grid(blocks, 1, 1, 256);
            launch::argmax_block_f32(cuda, l, &mut part, values.buf(OP)?, n as i32)?;
            launch::argmax_last_u64(cuda, Launch::grid(1, 1, 1, 256), &mut key, &part, blocks as i32)?;
            key.to_host()?.first().copied().unwrap_or(u64::MAX)
        }
    };
    let id = key as u32;
    if is_nan_key(key) {
        return Err(Error::NonFinite { what: format!("{OP}: value {id} is NaN") });
    }
    Ok(id)
}

/// Values one block of the argmax kernels reduces.
const ARGMAX_BLOCK: usize = 2048;

/// The key of a score: ascending keys are descending scores, then ascending ids.
pub(crate) fn descending_key(score: f32, id: u32) -> u64 {
    let bits = (score + 0.0).to_bits(); // + 0: −0 becomes 0
    // Flipping all bits of negative numbers and the sign of the others orders bits like numbers.
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    let high = if score.is_nan() { 0 } else { !ascending };
    u64::from(high) << 32 | u64::from(id)
}

/// True for the key of a NaN. (That of +∞ has high half 007fffff.)
pub(crate) fn is_nan_key(key: u64) -> bool {
    key >> 32 == 0
}

/// Keys one block sorts in its shared memory.
const SORTED: usize = 1024;

/// Radix select, eight bits a pass, then a sort of the k keys; the host waits once, for the first key.
fn on_cuda(cuda: &Cuda, device: &Device, scores: &Buf<f32>, k: usize) -> Result<(Buf<u32>, u64)> {
    let n = scores.len();
    let padded = sorted_room(k);
    let mut keys = Buf::<u64>::stale(device, n)?;
    let mut chosen = Buf::<u64>::stale(device, padded)?;
    let mut threshold = Buf::<u64>::stale(device, 1)?;
    let mut counts = Buf::<u32>::stale(device, 258)?; // 256 digits, keys still wanted, keys written
    let mut ids = Buf::<u32>::stale(device, k)?;
    let one = Launch::grid(1, 1, 1, 256);
    let all = Launch::grid(n.div_ceil(2048), 1, 1, 256);
    launch::topk_keys_f32(cuda, Launch::elements(n), &mut keys, scores, n as i32)?;
    launch::topk_start(cuda, one, &mut threshold, &mut counts, k as i32)?;
    for shift in (0..64).step_by(8).rev() {
        launch::topk_count(cuda, all, &mut counts, &keys, &threshold, n as i32, shift)?;
        launch::topk_digit(cuda, one, &mut threshold, &mut counts, shift)?;
    }
    launch::topk_fill(cuda, Launch::elements(padded), &mut chosen, k as i32, padded as i32)?;
    launch::topk_compact(cuda, all, &mut chosen, &mut counts, &keys, &threshold, n as i32)?;
    sort_keys(cuda, &mut chosen)?;
    launch::topk_ids(cuda, Launch::elements(k), &mut ids, &chosen, k as i32)?;
    let first = chosen.window(0, 1)?.to_host()?;
    Ok((ids, first.first().copied().unwrap_or(u64::MAX)))
}

/// How many keys `n` become for [`sort_keys`].
pub(crate) fn sorted_room(n: usize) -> usize {
    n.next_power_of_two().max(SORTED)
}

/// Sorts keys, as many as [`sorted_room`] says, ascending.
pub(crate) fn sort_keys(cuda: &Cuda, keys: &mut Buf<u64>) -> Result<()> {
    let padded = keys.len();
    let blocks = Launch::grid(padded / SORTED, 1, 1, 512);
    launch::sort_block_u64(cuda, blocks, keys, 2, SORTED as i32)?;
    let mut size = 2 * SORTED;
    while size <= padded {
        let mut stride = size / 2;
        while stride >= SORTED {
            launch::sort_step_u64(cuda, Launch::elements(padded / 2), keys, padded as i32, size as i32, stride as i32)?;
            stride /= 2;
        }
        launch::sort_block_u64(cuda, blocks, keys, size as i32, size as i32)?;
        size *= 2;
    }
    Ok(())
}

mod cpu {
    /// The k smallest keys, ascending.
    pub fn smallest(scores: &[f32], k: usize) -> Vec<u64> {
        let mut keys: Vec<u64> = scores.iter().zip(0u32..).map(|(s, i)| super::descending_key(*s, i)).collect();
        if k < keys.len() {
            keys.select_nth_unstable(k);
            keys.truncate(k);
        }
        keys.sort_unstable();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};

    fn top(v: &[f32], k: usize) -> Result<Vec<u32>> {
        top_k(&Tensor::new(&Device::Cpu, [v.len()], v)?, k)?.to_vec()
    }

    #[test]
    fn ties_zeros_infinities_and_nan() {
        let inf = f32::INFINITY;
        assert_eq!(top(&[1.0, 2.0, 2.0, 0.5], 3).unwrap(), [1, 2, 0]);
        assert_eq!(top(&[-1.0, 0.0, -0.0, 0.0], 4).unwrap(), [1, 2, 3, 0]);
        assert_eq!(top(&[-inf, inf, 3.0e38, inf, -3.0e38], 5).unwrap(), [1, 3, 2, 4, 0]);
        assert_eq!(top(&[f32::NAN], 0).unwrap(), [0u32; 0]);
        assert_eq!(top(&[1e-45, 0.0, -1e-45], 3).unwrap(), [0, 1, 2]);
        let e = top(&[1.0, 2.0, f32::NAN, -f32::NAN], 1).unwrap_err().to_string();
        assert!(e.contains("id 2 is NaN"), "{e}");
        assert!(top(&[1.0], 2).is_err());
    }

    #[test]
    fn equals_a_stable_sort() {
        for (n, levels) in [(1, 1), (255, 3), (256, 1000), (257, 2), (5000, 17), (5000, 1 << 20)] {
            let r = Rng::new(3).at(Purpose::Select, n as u32, levels);
            let v: Vec<f32> = (0..n as u64).map(|e| (r.u32(e) % levels) as f32 - levels as f32 / 2.0).collect();
            let mut want: Vec<u32> = (0..n as u32).collect();
            want.sort_by(|a, b| v[*b as usize].total_cmp(&v[*a as usize]));
            for k in [0, 1, n / 2, n] {
                assert_eq!(top(&v, k).unwrap(), want[..k], "n {n}, k {k}");
            }
        }
    }

    #[test]
    fn argmax_takes_the_lowest_of_equals_and_names_a_nan() {
        let of = |v: &[f32]| argmax(&Tensor::new(&Device::Cpu, [v.len()], v).unwrap());
        assert_eq!(of(&[1.0, 3.0, 3.0, 2.0]).unwrap(), 1);
        assert_eq!(of(&[-0.0, 0.0]).unwrap(), 0);
        assert_eq!(of(&[f32::NEG_INFINITY]).unwrap(), 0);
        assert_eq!(of(&[1.0, f32::INFINITY, f32::INFINITY]).unwrap(), 1);
        let e = of(&[1.0, 2.0, f32::NAN, -f32::NAN]).unwrap_err().to_string();
        assert!(e.contains("value 2 is NaN"), "{e}");
        assert!(of(&[]).is_err());
    }
}
