//! The variational auto-encoders of VAAL and the discriminator of their codes, METHODS 6.14. All of it runs in f32.
//!
//! Convolutions, for square images: four of 4×4 stride 2 to w, 2w, 4w, 8w channels, each normalised, relu · linear → μ,
//! ln σ² · linear z → an eighth of the side · three transposed ones back to w channels, likewise · 1×1 to the image.
//! w = 128 gives 22,835,139 parameters for 32 pixels and z = 32, 28,389,379 for 64 pixels and z = 64.
//!
//! Linear layers, for small images: pixels–512–256 → μ, ln σ² of 2–256–512–pixels, relu between them; 1,068,820
//! parameters for 28×28×1.

use super::{Ctx, Layout, Norm, Param, Start};
use crate::ops::{self, Conv, Then};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// The sizes of an auto-encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Convolutions.
    Conv {
        /// Side of the images, a multiple of 16.
        side: usize,
        /// Channels of the images.
        channels: usize,
        /// Channels after the first convolution; 128 in the source.
        width: usize,
        /// z, the length of a code.
        code: usize,
    },
    /// Linear layers; codes of length 2.
    Linear {
        /// H, W, C
        image: [usize; 3],
    },
}

impl Sizes {
    /// Those of the study for images (H, W, C): linear layers for 28×28×1, otherwise convolutions with codes of length 32,
    /// beyond 32 pixels 64.
    pub fn of([h, w, c]: [usize; 3]) -> Result<Sizes> {
        match (h, w, c) {
            (28, 28, 1) => Ok(Sizes::Linear { image: [h, w, c] }),
            _ if h == w && h > 0 && h % 16 == 0 => {
                Ok(Sizes::Conv { side: h, channels: c, width: 128, code: if h > 32 { 64 } else { 32 } })
            }
            _ => {
                let why = format!(
                    "its auto-encoder wants images of 28x28x1, or square ones whose side is a multiple of 16, not \
                     {h}x{w}x{c}; resize them, or choose another method"
                );
                Err(Error::Config { key: "vaal".into(), why })
            }
        }
    }

    /// z, the length of a code.
    pub fn code(self) -> usize {
        match self {
            Sizes::Conv { code, .. } => code,
            Sizes::Linear { .. } => 2,
        }
    }

    /// H, W, C
    pub fn image(self) -> [usize; 3] {
        match self {
            Sizes::Conv { side, channels, .. } => [side, side, channels],
            Sizes::Linear { image } => image,
        }
    }
}

/// Weight and bias.
type Linear = [Param; 2];

/// A stack of linear layers over all widths, relu between them, drawn as linear layers are by default.
fn stack(layout: &mut Layout, name: &str, widths: &[usize]) -> Vec<Linear> {
    let layer = |(i, w): (usize, &[usize])| {
        let name = format!("{name}.{}", 2 * i);
        [layout.add(&format!("{name}.weight"), [w[1], w[0]], w[0]), layout.add(&format!("{name}.bias"), [w[1]], w[0])]
    };
    widths.windows(2).enumerate().map(layer).collect()
}

/// A linear layer with Kaiming's numbers and no bias at first.
fn kaiming(layout: &mut Layout, name: &str, [out, n]: [usize; 2]) -> Linear {
    let w = layout.add_started(&format!("{name}.weight"), [out, n], Start::kaiming(n));
    [w, layout.add_started(&format!("{name}.bias"), [out], Start::Constant(0.0))]
}

fn linear(x: &Tensor, [w, b]: Linear, cx: &Ctx) -> Result<Tensor> {
    ops::linear(x, &cx.param(w)?, Some(&cx.param(b)?))
}

/// The layers in a row, relu between them.
fn through(x: &Tensor, layers: &[Linear], cx: &Ctx) -> Result<Tensor> {
    let mut x = x.clone();
    for (i, layer) in layers.iter().enumerate() {
        x = linear(&if i > 0 { ops::relu(&x)? } else { x }, *layer, cx)?;
    }
    Ok(x)
}

/// An auto-encoder.
pub struct Vae {
    sizes: Sizes,
    layers: Layers,
    mu: Linear,
    logvar: Linear,
    sigmoid: bool,
}

enum Layers {
    Conv {
        down: Vec<(Param, Norm)>,
        /// From a code to the smallest map.
        grow: Linear,
        up: Vec<(Param, Norm)>,
        /// 1×1 to the channels of the image.
        out: [Param; 2],
    },
    Linear {
        encoder: Vec<Linear>,
        decoder: Vec<Linear>,
    },
}

/// Halves, and transposed doubles, the side of an image.
const HALVE: Conv = Conv { stride: 2, pad: 1 };
const RELU: Then = Then { residual: None, relu: true };

/// ln σ² is kept within ± this: e^20 is still far from the largest f32.
const LOGVAR: f32 = 20.0;

impl Vae {
    /// Reserves the parameters. With `sigmoid`, pictures end in one: right for pixels in [0, 1] only.
    pub fn new(layout: &mut Layout, sizes: Sizes, sigmoid: bool) -> Result<Vae> {
        let (vae, flat) = ("encoder", sizes.image().iter().product::<usize>());
        let heads = |layout: &mut Layout, image: [usize; 3]| {
            let n = image.iter().product();
            ["fc_mu", "fc_logvar"].map(|name| {
                let w = layout.add_flat(&format!("{name}.weight"), sizes.code(), image);
                [w, layout.add(&format!("{name}.bias"), [sizes.code()], n)]
            })
        };
        let ([mu, logvar], layers) = match sizes {
            Sizes::Linear { .. } => {
                let encoder = stack(layout, vae, &[flat, 512, 256]);
                let heads = heads(layout, [1, 1, 256]);
                (heads, Layers::Linear { encoder, decoder: stack(layout, "decoder", &[2, 256, 512, flat]) })
            }
            Sizes::Conv { side, channels, width, code } => {
                if side == 0 || side % 16 != 0 || channels * width * code == 0 {
                    let why = format!("wants a side that is a multiple of 16, and sizes above 0, not {sizes:?}");
                    return Err(Error::Config { key: "vaal".into(), why });
                }
                let mut c = channels;
                let mut down = Vec::new();
                for i in 0..4 {
                    let k = width << i;
                    let start = Start::kaiming(16 * c);
                    let w = layout.add_started(&format!("encoder.{}.weight", 3 * i), [k, 4, 4, c], start);
                    down.push((w, layout.norm(&format!("encoder.{}", 3 * i + 1), k)));
                    c = k;
                }
                let heads = heads(layout, [side / 16, side / 16, c]);
                let grow = kaiming(layout, "decoder.0", [side / 8 * (side / 8) * c, code]);
                let mut up = Vec::new();
                for i in 0..3 {
                    let k = c / 2;
                    // PyTorch counts the outputs of a transposed convolution as the inputs of one output.
                    let w = layout.add(&format!("decoder.{}.weight", 3 * i + 2), [c, 4, 4, k], 16 * k);
                    up.push((w, layout.norm(&format!("decoder.{}", 3 * i + 3), k)));
                    c = k;
                }
                let w = layout.add("decoder.11.weight", [c, 1, 1, channels], channels);
                let out = [w, layout.add("decoder.11.bias", [channels], channels)];
                (heads, Layers::Conv { down, grow, up, out })
            }
        };
        Ok(Vae { sizes, layers, mu, logvar, sigmoid })
    }

    /// μ and ln σ² (N, z) of images (N, H, W, C).
    pub fn encode(&self, x: &Tensor, cx: &Ctx) -> Result<[Tensor; 2]> {
        let mut x = cx.input(x)?;
        let n = x.shape().nhwc("vae")?[0];
        match &self.layers {
            Layers::Linear { encoder, .. } => {
                x = ops::relu(&through(&x.reshape([n, x.len() / n.max(1)])?, encoder, cx)?)?;
            }
            Layers::Conv { down, .. } => {
                for (w, norm) in down {
                    x = norm.apply(&ops::conv2d(&x, &cx.param(*w)?, None, HALVE)?, None, RELU, cx)?;
                }
                x = x.reshape([n, x.len() / n.max(1)])?;
            }
        }
        let logvar = ops::clamp(&linear(&x, self.logvar, cx)?, -LOGVAR, LOGVAR)?;
        Ok([linear(&x, self.mu, cx)?, logvar])
    }

    /// Images (N, H, W, C) of codes (N, z).
    pub fn decode(&self, z: &Tensor, cx: &Ctx) -> Result<Tensor> {
        let [n, _] = z.shape().matrix("vae")?;
        let [h, w, c] = self.sizes.image();
        let y = match &self.layers {
            Layers::Linear { decoder, .. } => through(z, decoder, cx)?.reshape([n, h, w, c])?,
            Layers::Conv { grow, up, out, .. } => {
                let grown = linear(z, *grow, cx)?;
                let mut y = grown.reshape([n, h / 8, w / 8, grown.len() / (n * (h / 8) * (w / 8)).max(1)])?;
                for (w, norm) in up {
                    y = norm.apply(&ops::conv_transpose2d(&y, &cx.param(*w)?, None, HALVE)?, None, RELU, cx)?;
                }
                ops::conv_transpose2d(&y, &cx.param(out[0])?, Some(&cx.param(out[1])?), Conv::default())?
            }
        };
        if self.sigmoid { ops::sigmoid(&y) } else { Ok(y) }
    }
}

/// Says how far a code looks labelled.
pub struct Discriminator(Vec<Linear>);

impl Discriminator {
    /// Reserves the parameters: z–4w–4w–1 (512 for w = 128), for the linear auto-encoder 2–5–1; if `deep`, as in the
    /// source's code, four layers of 512, or of 4w, instead.
    pub fn new(layout: &mut Layout, sizes: Sizes, deep: bool) -> Discriminator {
        let hidden = match (sizes, deep) {
            (Sizes::Conv { width, .. }, false) => vec![4 * width; 2],
            (Sizes::Conv { width, .. }, true) => vec![4 * width; 4],
            (Sizes::Linear { .. }, true) => vec![512; 4],
            (Sizes::Linear { .. }, false) => return Discriminator(stack(layout, "net", &[sizes.code(), 5, 1])),
        };
        let widths = [vec![sizes.code()], hidden, vec![1]].concat();
        let layer = |(i, w): (usize, &[usize])| kaiming(layout, &format!("net.{}", 2 * i), [w[1], w[0]]);
        Discriminator(widths.windows(2).enumerate().map(layer).collect())
    }

    /// Logits (N, 1) of codes (N, z): large for what it takes for labelled.
    pub fn forward(&self, code: &Tensor, cx: &Ctx) -> Result<Tensor> {
        through(code, &self.0, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::rng::Rng;

    /// METHODS 6.14.
    #[test]
    fn parameter_counts_are_those_of_the_study() {
        for (image, vae, [three, five]) in [
            ([28, 28, 1], 1_068_820, [21, 790_017]),
            ([32, 32, 3], 22_835_139, [280_065, 805_377]),
            ([64, 64, 3], 28_389_379, [296_449, 821_761]),
            ([32, 32, 1], 22_835_139 - 2 * 16 * 128 - 2 * 129, [280_065, 805_377]),
        ] {
            let sizes = Sizes::of(image).unwrap();
            let count = |layout: Layout| layout.slots.iter().map(|s| s.shape.len()).sum::<usize>();
            let mut layout = Layout::default();
            Vae::new(&mut layout, sizes, false).unwrap();
            assert_eq!(count(layout), vae, "{image:?}");
            for (deep, wanted) in [(false, three), (true, five)] {
                let mut layout = Layout::default();
                Discriminator::new(&mut layout, sizes, deep);
                assert_eq!(count(layout), wanted, "{image:?} {deep}");
            }
        }
        for image in [[28, 28, 3], [32, 48, 3], [40, 40, 1], [0, 0, 1]] {
            let e = Sizes::of(image).unwrap_err().to_string();
            assert!(e.contains("resize"), "{e}");
        }
    }

    /// Normal numbers in the stacks, with biases of zero; what is transposed, and the heads, uniform.
    #[test]
    fn weights_start_as_in_the_source() {
        let mut layout = Layout::default();
        Vae::new(&mut layout, Sizes::Conv { side: 32, channels: 3, width: 16, code: 8 }, false).unwrap();
        let values = layout.init(&Device::Cpu, Rng::new(7)).unwrap().to_host().unwrap();
        let of = |name: &str| values.iter().find(|(s, _)| s.name == name).unwrap().1.as_slice();
        let largest = |v: &[f32]| v.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let rms = |v: &[f32]| (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt();
        for (name, n) in [("encoder.0", 48), ("encoder.9", 1024), ("decoder.0", 8)] {
            let (w, std) = (of(&format!("{name}.weight")), (2.0 / n as f32).sqrt());
            assert!((rms(w) / std - 1.0).abs() < 0.1 && largest(w) > 2.5 * std, "{name}");
        }
        for (name, n) in [("decoder.2", 16 * 64), ("decoder.8", 16 * 16), ("fc_mu", 512), ("fc_logvar", 512)] {
            let (w, bound) = (of(&format!("{name}.weight")), 1.0 / (n as f32).sqrt());
            assert!(largest(w) <= bound && largest(w) > 0.99 * bound, "{name}");
        }
        assert_eq!(largest(of("decoder.0.bias")), 0.0);
        assert!(largest(of("fc_mu.bias")) > 0.0 && largest(of("decoder.11.bias")) > 0.0);
    }
}
