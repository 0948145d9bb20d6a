//! A critic: how far the features of an image look unlabelled (Shui et al. 2020).

use super::{Ctx, Layout, Net, Param};
use crate::Result;
use crate::ops;
use crate::tensor::{Dtype, Tensor};

/// Hidden units.
const HIDDEN: usize = 50;

/// linear D→50 · relu · dropout ½ · linear 50→1 · sigmoid, on the last map of the network, flattened, where hidden layers
/// follow it, else on the embedding. 16,101 parameters for LeNet, 6,501 and 25,701 for ResNet-18 of width 16 and 64.
pub struct Critic {
    flat: bool,
    fc1: [Param; 2],
    fc2: [Param; 2],
}

impl Critic {
    /// Reserves the parameters of a critic of `net`.
    pub fn new(layout: &mut Layout, net: &dyn Net) -> Critic {
        let (first, d) = match net.hidden_map() {
            Some(map) => (layout.add_flat("critic.fc1.weight", HIDDEN, map), map.iter().product()),
            None => {
                let d = net.embedding_width();
                (layout.add("critic.fc1.weight", [HIDDEN, d], d), d)
            }
        };
        Critic {
            flat: net.hidden_map().is_some(),
            fc1: [first, layout.add("critic.fc1.bias", [HIDDEN], d)],
            fc2: [layout.add("critic.fc2.weight", [1, HIDDEN], HIDDEN), layout.add("critic.fc2.bias", [1], HIDDEN)],
        }
    }

    /// Of images (N, H, W, C): the embedding, and what the critic looks at, (N, D).
    pub fn features(&self, net: &dyn Net, x: &Tensor, cx: &mut Ctx) -> Result<[Tensor; 2]> {
        cx.taps = self.flat;
        let mut taps = Vec::new();
        let embedding = net.rest(&net.stem(x, cx, &mut taps)?, cx, &mut taps)?;
        let seen = match taps.last() {
            Some(map) if self.flat => {
                let n = map.shape().nhwc("critic")?[0];
                ops::cast(&map.reshape([n, map.len() / n.max(1)])?, Dtype::F32)?
            }
            _ => embedding.clone(),
        };
        Ok([embedding, seen])
    }

    /// g (N, 1), in (0, 1), of features z (N, D). Dropout has the masks of `lane`.
    pub fn score(&self, z: &Tensor, lane: u32, cx: &Ctx) -> Result<Tensor> {
        let [w1, b1, w2, b2] = self.weights(cx)?;
        let h = cx.dropped(lane, 0.5, &ops::relu(&ops::linear(z, &w1, Some(&b1))?)?)?;
        ops::sigmoid(&ops::linear(&h, &w2, Some(&b2))?)
    }

    /// The same, and ‖∇_z g‖ (N): see [`ops::score_and_slope`].
    pub fn score_and_slope(&self, z: &Tensor, lane: u32, cx: &Ctx) -> Result<[Tensor; 2]> {
        ops::score_and_slope(z, self.weights(cx)?.each_ref(), |h| cx.dropped(lane, 0.5, h))
    }

    fn weights(&self, cx: &Ctx) -> Result<[Tensor; 4]> {
        let [[w1, b1], [w2, b2]] = [self.fc1, self.fc2];
        Ok([cx.param(w1)?, cx.param(b1)?, cx.param(w2)?, cx.param(b2)?])
    }
}
