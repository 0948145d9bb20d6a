//! The LeNet variant of the study: two convolutions, two linear layers, dropout, no normalisation.

use super::{Ctx, Layout, Mode, Net, Param};
use crate::Result;
use crate::ops::{self, Conv, Pool};
use crate::tensor::Tensor;

/// D of this network.
const WIDTH: usize = 50;

/// conv 5×5 1→10 · max-pool · relu · conv 5×5 10→20 · channel dropout ½ · max-pool · relu · linear 320→50 · relu =
/// h · dropout ½ · linear 50→C. 21,840 parameters for ten classes and 28×28×1 images.
pub struct LeNet {
    conv1: [Param; 2],
    conv2: [Param; 2],
    fc1: [Param; 2],
    fc2: [Param; 2],
}

impl LeNet {
    /// Reserves the parameters in `layout`.
    pub fn new(layout: &mut Layout, classes: usize) -> LeNet {
        let mut pair = |name: &str, w: &[usize], fan_in: usize| {
            [layout.add(&format!("{name}.weight"), w, fan_in), layout.add(&format!("{name}.bias"), [w[0]], fan_in)]
        };
        LeNet {
            conv1: pair("conv1", &[10, 5, 5, 1], 25),
            conv2: pair("conv2", &[20, 5, 5, 10], 250),
            fc1: pair("fc1", &[WIDTH, 320], 320),
            fc2: pair("fc2", &[classes, WIDTH], WIDTH),
        }
    }
}

impl Net for LeNet {
    fn trunk(&self, x: &Tensor, cx: &Ctx) -> Result<Tensor> {
        let n = x.shape().nhwc("lenet")?[0];
        let x = ops::conv2d(x, &cx.param(self.conv1[0])?, Some(&cx.param(self.conv1[1])?), Conv::default())?;
        let x = ops::relu(&ops::max_pool2d(&x, Pool::square(2))?)?;
        let x = ops::conv2d(&x, &cx.param(self.conv2[0])?, Some(&cx.param(self.conv2[1])?), Conv::default())?;
        let x = match cx.mode {
            Mode::Train => ops::dropout_channels(&x, 0.5, cx.rng.lane(0), cx.clock)?,
            Mode::Eval => x,
        };
        let x = ops::relu(&ops::max_pool2d(&x, Pool::square(2))?)?;
        let flat = x.len() / n.max(1);
        let x = ops::linear(&x.reshape([n, flat])?, &cx.param(self.fc1[0])?, Some(&cx.param(self.fc1[1])?))?;
        ops::relu(&x)
    }

    fn head(&self, embedding: &Tensor, cx: &Ctx) -> Result<Tensor> {
        let h = match cx.mode {
            Mode::Train => ops::dropout(embedding, 0.5, cx.rng.lane(1), cx.clock)?,
            Mode::Eval => embedding.clone(),
        };
        ops::linear(&h, &cx.param(self.fc2[0])?, Some(&cx.param(self.fc2[1])?))
    }

    fn embedding_width(&self) -> usize {
        WIDTH
    }
}
