//! A head that predicts the loss of an image from the intermediate maps of a network (Yoo & Kweon 2019).

use super::{Ctx, Layout, Param};
use crate::Result;
use crate::ops;
use crate::tensor::{Dtype, Tensor};

/// Features of a map.
const WIDTH: usize = 128;

/// Of every map: mean over all places · linear c→128 · relu; side by side, then linear → 1. 4,353 parameters for LeNet,
/// 31,745 and 123,905 for ResNet-18 of width 16 and 64.
pub struct LossHead {
    taps: Vec<[Param; 2]>,
    out: [Param; 2],
}

impl LossHead {
    /// Reserves the parameters: those of the maps of `widths` channels in `taps`, those of the last layer in `out`. They
    /// are two layouts where the former are no part of training, and one otherwise.
    pub fn new(widths: &[usize], mut taps: Option<&mut Layout>, out: &mut Layout) -> LossHead {
        let each = |(i, c): (usize, &usize)| {
            let layout = taps.as_deref_mut().unwrap_or(out);
            [
                layout.add(&format!("loss.tap{}.weight", i + 1), [WIDTH, *c], *c),
                layout.add(&format!("loss.tap{}.bias", i + 1), [WIDTH], *c),
            ]
        };
        let taps = widths.iter().enumerate().map(each).collect::<Vec<_>>();
        let n = WIDTH * taps.len();
        LossHead { taps, out: [out.add("loss.out.weight", [1, n], n), out.add("loss.out.bias", [1], n)] }
    }

    /// Predicted losses (N) from maps (N, H, W, C), square and as many as there are widths. `cx` gives the last layer,
    /// `taps` the others.
    pub fn forward(&self, maps: &[Tensor], taps: &Ctx, cx: &Ctx) -> Result<Tensor> {
        let each = |(map, [w, b]): (&Tensor, &[Param; 2])| {
            let [n, side, _, c] = map.shape().nhwc("loss head")?;
            let mean = ops::avg_pool2d(&ops::cast(map, Dtype::F32)?, side)?.reshape([n, c])?;
            ops::relu(&ops::linear(&mean, &taps.param(*w)?, Some(&taps.param(*b)?))?)
        };
        let features = maps.iter().zip(&self.taps).map(each).collect::<Result<Vec<_>>>()?;
        let features = ops::concat_cols(&features.iter().collect::<Vec<_>>())?;
        let y = ops::linear(&features, &cx.param(self.out[0])?, Some(&cx.param(self.out[1])?))?;
        y.reshape([y.len()])
    }
}
