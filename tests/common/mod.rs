//! What the suites share: comparing numbers, and reading the golden values.
#![allow(dead_code)] // each test binary uses its own part

use std::collections::BTreeMap;
use std::path::Path;

use dalcore::Result;
use dalcore::device::Device;
use dalcore::ops::Case;
use dalcore::tensor::{Dtype, Tensor};
use safetensors::SafeTensors;

/// One rounding to f32, relative.
pub const UNIT: f64 = 1.0 / 16_777_216.0;

/// The output of a case, then the gradient of every differentiable input, each with its name.
pub fn run(case: &Case, device: &Device, dtype: Dtype) -> Vec<(String, Tensor)> {
    try_run(case, device, dtype).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

/// As [`run`], with the error.
pub fn try_run(case: &Case, device: &Device, dtype: Dtype) -> Result<Vec<(String, Tensor)>> {
    let x = case.make(device, dtype)?;
    let y = (case.run)(&x)?;
    let wanted: Vec<&Tensor> = x.iter().filter(|t| t.is_tracked()).collect();
    let grads = y.grad_from(&case.cotangent(&y)?, &wanted)?;
    let mut found = vec![("out".to_string(), y)];
    for (i, t) in x.iter().enumerate().filter(|(_, t)| t.is_tracked()) {
        let g = grads.of(t).unwrap_or_else(|| panic!("{}: no gradient for input {i}", case.name));
        found.push((format!("grad{i}"), g.clone()));
    }
    Ok(found)
}

/// How far two numbers may be apart: `abs + rel·|want|`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub abs: f64,
    pub rel: f64,
}

impl Tolerance {
    /// For f32 against an exact reference. Each of the `sum` terms behind an element is rounded once as a product
    /// and once in the running sum, both relative to the largest term; 8 more roundings are allowed for exp, log and
    /// division. The terms are bounded by the largest element of the tensor, or 1, the bound of most inputs; 2 covers
    /// the cases where terms are larger than that. Sums accumulated in f64 or in several partial sums stay far below.
    pub fn f32(sum: usize, want: &[f64]) -> Tolerance {
        let scale = want.iter().filter(|w| w.is_finite()).fold(1.0f64, |m, w| m.max(w.abs()));
        Tolerance { abs: 2.0 * (sum as f64 + 8.0) * UNIT * scale, rel: 0.0 }
    }

    /// For f64 against golden values, which were rounded to f32 once; the absolute part is far above what f64 loses
    /// and far below every input.
    pub fn golden() -> Tolerance {
        Tolerance { abs: 1e-9, rel: 1e-6 }
    }

    fn accepts(self, got: f64, want: f64) -> bool {
        // Before any difference is taken: a NaN must meet a NaN, an infinity the same infinity.
        if !got.is_finite() || !want.is_finite() {
            return (got.is_nan() && want.is_nan()) || got == want;
        }
        (got - want).abs() <= self.abs + self.rel * want.abs()
    }
}

/// Refuses numbers that differ, with the first ten of them, or a reference against which anything would pass.
pub fn compare(what: &str, shape: &[usize], got: &[f64], want: &[f64], t: Tolerance) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what} {shape:?}: {} elements, the reference has {}", got.len(), want.len()));
    }
    let wrong: Vec<usize> = (0..got.len()).filter(|i| !t.accepts(got[*i], want[*i])).collect();
    if !wrong.is_empty() {
        let mut text = format!("{what} {shape:?}: {} of {} elements differ by more than {t:?}", wrong.len(), got.len());
        for i in wrong.iter().take(10) {
            let at = place(*i, shape);
            text += &format!("\n    {at:?}: {:e}, the reference {:e}", got[*i], want[*i]);
        }
        return Err(text);
    }
    Ok(())
}

/// A reference that is all zeros, or smaller than its tolerance, would let anything pass. Empty tensors, and those
/// that are zero by construction (everything dropped), are named by the caller.
pub fn worth(what: &str, want: &[f64], t: Tolerance) -> Result<(), String> {
    let largest = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    if want.is_empty() || largest > 20.0 * (t.abs + t.rel * largest) {
        return Ok(());
    }
    Err(format!("{what}: the largest element of the reference is {largest:e}, its tolerance {t:?}: it proves nothing"))
}

/// The index of element `i`, dimension by dimension.
fn place(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut at: Vec<usize> = shape.iter().rev().map(|d| (i % (*d).max(1), i /= (*d).max(1)).0).collect();
    at.reverse();
    at
}

/// Panics with all findings of a suite at once: a broken operation shows in several cases.
pub fn report(suite: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{suite}: {} findings\n{}", findings.len(), findings.join("\n"));
}

/// Every golden tensor by its key.
pub fn golden() -> BTreeMap<String, Vec<f64>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (key, t) in file.iter() {
            let v = t.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect();
            assert!(found.insert(key.to_string(), v).is_none(), "{key} is in two files");
        }
    }
    found
}

/// Results that are zero everywhere by construction.
pub fn is_zero(key: &str) -> bool {
    matches!(key, "dropout/5x7/all/out" | "dropout/5x7/all/grad0" | "softmax/1x1/grad0")
}
