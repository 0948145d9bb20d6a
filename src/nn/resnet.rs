//! ResNet-18 for small images, METHODS 1.2 and 1.3: 3×3 stem without max pooling, four stages of two basic blocks of
//! width w, 2w, 4w, 8w, average pooling, one linear layer. Names are torchvision's.

use super::{Ctx, Dropout, Layout, Mode, Net, Norm, Param};
use crate::ops::{self, Conv, Then};
use crate::tensor::{Dtype, Tensor};
use crate::{Error, Result};

/// Probability of dropout on h in query-time passes with dropout; there is none in training.
const MC_DROPOUT: f32 = 0.2;

/// Side of the last pooling's windows: one window for 32-pixel images, 2×2 for 64, as in the paper's code.
const POOL: usize = 4;

/// The standard network pools over the whole map instead, whatever the size of the images.
const STANDARD: usize = 64;

/// The network; 32-pixel images give D = 8w features. 64-pixel images give 32w, but those of the standard width 8w.
pub struct ResNet18 {
    stem: (Param, Norm),
    blocks: Vec<Block>,
    fc: [Param; 2],
    width: usize,
    pool: usize,
    embedding: usize,
}

/// conv 3×3 (stride) · norm · relu · conv 3×3 · norm · add the shortcut · relu.
struct Block {
    stride: usize,
    conv1: (Param, Norm),
    conv2: (Param, Norm),
    /// 1×1 convolution and norm, where the shape changes.
    down: Option<(Param, Norm)>,
}

impl ResNet18 {
    /// Reserves the parameters in `layout`: first stage of `width` channels, `channels` of the images, whose side is
    /// a multiple of 32.
    pub fn new(layout: &mut Layout, width: usize, [side, channels]: [usize; 2], classes: usize) -> Result<ResNet18> {
        if side % 32 != 0 || side == 0 || width == 0 {
            let why = format!(
                "ResNet-18 wants a width above 0 and images whose side is a multiple of 32, not {side}; resize them"
            );
            return Err(Error::Config { key: "model".into(), why });
        }
        let conv = |layout: &mut Layout, name: &str, norm: &str, [k, r, c]: [usize; 3]| {
            (layout.add(&format!("{name}.weight"), [k, r, r, c], r * r * c), layout.norm(norm, k))
        };
        let stem = conv(layout, "conv1", "bn1", [width, 3, channels]);
        let mut blocks = Vec::new();
        let mut c = width;
        for stage in 0..4 {
            let k = width << stage;
            for i in 0..2 {
                let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                let at = format!("layer{}.{i}", stage + 1);
                let conv1 = conv(layout, &format!("{at}.conv1"), &format!("{at}.bn1"), [k, 3, c]);
                let conv2 = conv(layout, &format!("{at}.conv2"), &format!("{at}.bn2"), [k, 3, k]);
                let (name, norm) = (format!("{at}.downsample.0"), format!("{at}.downsample.1"));
                let down = (stride != 1 || c != k).then(|| conv(layout, &name, &norm, [k, 1, c]));
                blocks.push(Block { stride, conv1, conv2, down });
                c = k;
            }
        }
        let pool = if width == STANDARD { side / 8 } else { POOL };
        let windows = side / 8 / pool;
        let embedding = windows * windows * c;
        let fc =
            [layout.add_flat("fc.weight", classes, [windows, windows, c]), layout.add("fc.bias", [classes], embedding)];
        Ok(ResNet18 { stem, blocks, fc, width, pool, embedding })
    }
}

/// Convolution without bias, then normalisation.
fn conv_norm(x: &Tensor, (w, norm): &(Param, Norm), conv: Conv, then: Then, cx: &Ctx) -> Result<Tensor> {
    let w = cx.weight(*w)?;
    if cx.mode != Mode::Train {
        return norm.apply(&ops::conv2d(x, &w, None, conv)?, None, then, cx);
    }
    let (y, sums) = ops::conv2d_with_sums(x, &w, conv)?;
    norm.apply(&y, sums, then, cx)
}

const RELU: Then = Then { residual: None, relu: true };

impl Block {
    fn forward(&self, x: &Tensor, cx: &Ctx) -> Result<Tensor> {
        let h = conv_norm(x, &self.conv1, Conv { stride: self.stride, pad: 1 }, RELU, cx)?;
        let shortcut = match &self.down {
            Some(down) => conv_norm(x, down, Conv { stride: self.stride, pad: 0 }, Then::default(), cx)?,
            None => x.clone(),
        };
        let then = Then { residual: Some(&shortcut), relu: true };
        conv_norm(&h, &self.conv2, Conv { stride: 1, pad: 1 }, then, cx)
    }
}

impl Net for ResNet18 {
    fn stem(&self, x: &Tensor, cx: &Ctx, taps: &mut Vec<Tensor>) -> Result<Tensor> {
        let n = x.shape().nhwc("resnet18")?[0];
        let mut x = conv_norm(&cx.input(x)?, &self.stem, Conv { stride: 1, pad: 1 }, RELU, cx)?;
        for stage in self.blocks.chunks(2) {
            for block in stage {
                x = block.forward(&x, cx)?;
            }
            cx.tap(taps, &x);
        }
        ops::avg_pool2d(&ops::cast(&x, Dtype::F32)?, self.pool)?.reshape([n, self.embedding])
    }

    /// Nothing: the only dropout is that of the head.
    fn rest(&self, stem: &Tensor, _: &Ctx, _: &mut Vec<Tensor>) -> Result<Tensor> {
        Ok(stem.clone())
    }

    fn head(&self, embedding: &Tensor, cx: &Ctx) -> Result<Tensor> {
        let h = match cx.mode {
            Mode::Train => embedding.clone(),
            _ => cx.dropped(0, MC_DROPOUT, embedding)?,
        };
        ops::linear(&h, &cx.param(self.fc[0])?, Some(&cx.param(self.fc[1])?))
    }

    fn embedding_width(&self) -> usize {
        self.embedding
    }

    fn tap_widths(&self) -> Vec<usize> {
        (0..4).map(|stage| self.width << stage).collect()
    }

    fn dropout(&self) -> Dropout {
        Dropout::AtQueries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_those_of_the_paper() {
        for (width, side, classes, count) in [
            (16, 32, 10, 701_466),
            (16, 32, 43, 705_723),
            (16, 32, 100, 713_076),
            (16, 64, 200, 802_776),
            (64, 32, 10, 11_173_962),
            (64, 32, 43, 11_190_891),
            (64, 32, 100, 11_220_132),
            (64, 64, 200, 11_271_432),
        ] {
            let mut layout = Layout::default();
            let net = ResNet18::new(&mut layout, width, [side, 3], classes).unwrap();
            assert_eq!(layout.slots.iter().map(|s| s.shape.len()).sum::<usize>(), count, "{width} {side} {classes}");
            let windows = if width == 64 { 1 } else { (side / 32) * (side / 32) };
            assert_eq!(net.embedding_width(), 8 * width * windows);
        }
        assert!(ResNet18::new(&mut Layout::default(), 16, [28, 1], 10).is_err());
    }
}
