//! A graph network on the similarities of examples, which learns to tell labelled from unlabelled ones (Caramalau et al.
//! 2021).
//!
//! With rows f_i = h_i / ‖h_i‖ of F (N, D): S = FFᵀ − I, q_j = Σ_i S_ij, Â = S·diag(1/q) + I. Nothing of size N×N is made:
//! q = F(Fᵀ1) − 1 and ÂX = F(Fᵀ(X/q)) − X/q + X.

use super::{Ctx, Layout, Mode, Param};
use crate::Result;
use crate::ops;
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Hidden features of a node.
pub const HIDDEN: usize = 128;

/// The nodes of a graph.
pub struct Graph {
    /// F (N, D)
    f: Tensor,
    /// 1/q (N, 1)
    inverse: Tensor,
    /// ÂF (N, D)
    mixed: Tensor,
}

impl Graph {
    /// Of features h (N, D). A row of zeros is alone: it keeps only itself, as does one whose q is no more than 1e-6.
    pub fn new(h: &Tensor) -> Result<Graph> {
        let [n, d] = h.shape().matrix("graph")?;
        let device = h.device();
        let f = ops::normalize_rows(&h.detach())?;
        let q = ops::matmul_nn(&f, &ops::sum_rows(&f)?.reshape([d, 1])?)?.to_vec::<f32>()?;
        let inverse: Vec<f32> = q.iter().map(|q| if *q - 1.0 <= 1e-6 { 0.0 } else { 1.0 / (q - 1.0) }).collect();
        let inverse = Tensor::new(device, [n, 1], &inverse)?;
        let wide = ops::matmul_nn(&inverse, &Tensor::new(device, [1, d], &vec![1.0f32; d])?)?;
        let mixed = mix(&f, &f, &wide)?;
        Ok(Graph { f, inverse, mixed })
    }
}

/// ÂX of x (N, M), `inverse` being 1/q in every column.
fn mix(f: &Tensor, x: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    let scaled = ops::mul(x, inverse)?;
    let seen = ops::matmul_nn(f, &ops::matmul_tn(f, &scaled)?)?;
    ops::add(&seen, &ops::add(x, &ops::scale(&scaled, -1.0)?)?)
}

/// H = relu(Â(F W₁) + b₁) · dropout · logits Â(H W₃) + b₃. 128·D + 257 parameters.
pub struct Gcn {
    first: [Param; 2],
    last: [Param; 2],
}

impl Gcn {
    /// Reserves the parameters for features of width `d`; uniform ±1/√outputs.
    pub fn new(layout: &mut Layout, d: usize) -> Gcn {
        let mut layer = |name: &str, out, n| {
            [layout.add(&format!("{name}.weight"), [out, n], out), layout.add(&format!("{name}.bias"), [out], out)]
        };
        Gcn { first: layer("gc1", HIDDEN, d), last: layer("gc3", 1, HIDDEN) }
    }

    /// Hidden features (N, 128) and logits (N, 1) of being labelled. `dropout`: the rate and its stream, drawn from in
    /// training.
    pub fn forward(&self, graph: &Graph, (rate, rng): (f32, Rng), cx: &Ctx) -> Result<[Tensor; 2]> {
        // Â(F W) is (ÂF) W, and ÂF is there already.
        let h = ops::relu(&ops::linear(&graph.mixed, &cx.param(self.first[0])?, Some(&cx.param(self.first[1])?))?)?;
        let dropped = match cx.mode {
            Mode::Train => ops::dropout(&h, rate, rng, cx.clock)?,
            _ => h.clone(),
        };
        let x = ops::linear(&dropped, &cx.param(self.last[0])?, None)?;
        let logits = ops::add_bias(&mix(&graph.f, &x, &graph.inverse)?, &cx.param(self.last[1])?)?;
        Ok([h, logits])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    /// METHODS 6.12: f = (1,0), (.6,.8), (0,1).
    #[test]
    fn the_worked_example() {
        let h = Tensor::new(&Device::Cpu, [3, 2], &[2.0f32, 0.0, 0.6, 0.8, 0.0, 0.5]).unwrap();
        let graph = Graph::new(&h).unwrap();
        let close = |got: &Tensor, want: &[f32]| {
            let got = got.to_vec::<f32>().unwrap();
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5), "{got:?}, not {want:?}");
        };
        close(&graph.inverse, &[1.0 / 0.6, 1.0 / 1.4, 1.0 / 0.8]);
        let unit = Tensor::new(&Device::Cpu, [3, 3], &[1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]).unwrap();
        let wide = [1.0 / 0.6, 1.0 / 1.4, 1.0 / 0.8].repeat(3);
        let wide: Vec<f32> = (0..9).map(|e| wide[e / 3]).collect();
        let a = mix(&graph.f, &unit, &Tensor::new(&Device::Cpu, [3, 3], &wide).unwrap()).unwrap();
        close(&a, &[1.0, 0.428_571, 0.0, 1.0, 1.0, 1.0, 0.0, 0.571_429, 1.0]);
    }

    #[test]
    fn alone_a_node_keeps_itself() {
        let h = Tensor::new(&Device::Cpu, [3, 2], &[0.0f32, 0.0, 3.0, 0.0, 1.0, 0.0]).unwrap();
        let graph = Graph::new(&h).unwrap();
        assert_eq!(graph.inverse.to_vec::<f32>().unwrap(), [0.0, 1.0, 1.0]);
        assert_eq!(graph.mixed.to_vec::<f32>().unwrap(), [0.0, 0.0, 2.0, 0.0, 2.0, 0.0]);
        let opposite = Tensor::new(&Device::Cpu, [2, 1], &[1.0f32, -1.0]).unwrap();
        assert_eq!(Graph::new(&opposite).unwrap().mixed.to_vec::<f32>().unwrap(), [1.0, -1.0]);
    }
}
