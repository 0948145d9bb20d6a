//! The LeNet variant of the study: two convolutions, two linear layers, dropout, no normalisation.

use super::{Ctx, Dropout, Layout, Net, Param};
use crate::Result;
use crate::ops::{self, Conv, Pool};
use crate::tensor::{Dtype, Tensor};

/// D of this network.
const WIDTH: usize = 50;
/// H, W, C of the last map.
const MAP: [usize; 3] = [4, 4, 20];

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
        LeNet {
            conv1: [layout.add("conv1.weight", [10, 5, 5, 1], 25), layout.add("conv1.bias", [10], 25)],
            conv2: [layout.add("conv2.weight", [20, 5, 5, 10], 250), layout.add("conv2.bias", [20], 250)],
            fc1: [layout.add_flat("fc1.weight", WIDTH, MAP), layout.add("fc1.bias", [WIDTH], 320)],
            fc2: [layout.add("fc2.weight", [classes, WIDTH], WIDTH), layout.add("fc2.bias", [classes], WIDTH)],
        }
    }
}

impl Net for LeNet {
    fn stem(&self, x: &Tensor, cx: &Ctx, taps: &mut Vec<Tensor>) -> Result<Tensor> {
        let x =
            ops::conv2d(&cx.input(x)?, &cx.weight(self.conv1[0])?, Some(&cx.param(self.conv1[1])?), Conv::default())?;
        let x = ops::relu(&ops::max_pool2d(&x, Pool::square(2))?)?;
        cx.tap(taps, &x);
        ops::conv2d(&x, &cx.weight(self.conv2[0])?, Some(&cx.param(self.conv2[1])?), Conv::default())
    }

    fn rest(&self, stem: &Tensor, cx: &Ctx, taps: &mut Vec<Tensor>) -> Result<Tensor> {
        let n = stem.shape().nhwc("lenet")?[0];
        let x = ops::relu(&ops::max_pool2d(&cx.dropped(0, 0.5, stem)?, Pool::square(2))?)?;
        cx.tap(taps, &x);
        let flat = x.len() / n.max(1);
        let x = ops::cast(&x.reshape([n, flat])?, Dtype::F32)?;
        let x = ops::linear(&x, &cx.param(self.fc1[0])?, Some(&cx.param(self.fc1[1])?))?;
        ops::relu(&x)
    }

    fn head(&self, embedding: &Tensor, cx: &Ctx) -> Result<Tensor> {
        ops::linear(&cx.dropped(1, 0.5, embedding)?, &cx.param(self.fc2[0])?, Some(&cx.param(self.fc2[1])?))
    }

    fn embedding_width(&self) -> usize {
        WIDTH
    }

    fn tap_widths(&self) -> Vec<usize> {
        vec![10, 20]
    }

    fn hidden_map(&self) -> Option<[usize; 3]> {
        Some(MAP)
    }

    fn dropout(&self) -> Dropout {
        Dropout::InTraining
    }
}
