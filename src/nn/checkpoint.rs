//! Weights as safetensors, in PyTorch's shapes and with torchvision's names: filters (K, C, R, S), linear weights that
//! read an image with their columns in the order C, H, W. They are turned on the way in and out.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::{Params, Slot};
use crate::data::Model;
use crate::optim::Momentum;
use crate::{Error, Result};

/// Stated in the file, so that one with another order is refused and not misread.
const LAYOUT: (&str, &str) = ("layout", "pytorch");

fn bad(why: impl std::fmt::Display) -> Error {
    Error::Data { path: "checkpoint".into(), why: why.to_string() }
}

/// A slot in PyTorch's shape, and its values seen as (A, B, C): PyTorch has them as (A, C, B).
fn turned(slot: &Slot) -> (Vec<usize>, [usize; 3]) {
    match (slot.flat, slot.shape.dims()) {
        (Some([h, w, c]), d) => (d.to_vec(), [d[0], h * w, c]),
        (None, &[k, r, s, c]) => (vec![k, c, r, s], [k, r * s, c]),
        (None, d) => (d.to_vec(), [1, slot.shape.len(), 1]),
    }
}

/// (A, B, C) → (A, C, B)
fn swap(x: &[f32], [_, b, c]: [usize; 3]) -> Vec<f32> {
    x.chunks_exact((b * c).max(1)).flat_map(|x| (0..c).flat_map(move |j| (0..b).map(move |i| x[i * c + j]))).collect()
}

/// All parameters and running statistics by name.
pub fn to_bytes(params: &Params) -> Result<Vec<u8>> {
    write(params.to_host()?)
}

/// The velocity of every parameter, under the parameter's name.
pub fn momentum_to_bytes(params: &Params, sgd: &dyn Momentum) -> Result<Vec<u8>> {
    write(sgd.velocity(params)?)
}

fn write(values: Vec<(Slot, Vec<f32>)>) -> Result<Vec<u8>> {
    let values: Vec<(String, Vec<usize>, Vec<f32>)> = values
        .into_iter()
        .map(|(slot, v)| {
            let (shape, dims) = turned(&slot);
            (slot.name, shape, swap(&v, dims))
        })
        .collect();
    let views = values
        .iter()
        .map(|(name, shape, v)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(v)).map_err(bad)?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    serialize(views, Some(HashMap::from([(LAYOUT.0.to_string(), LAYOUT.1.to_string())]))).map_err(bad)
}

/// Overwrites all parameters and statistics; the names and shapes must be those of the network. More tensors, such as
/// PyTorch's num_batches_tracked, are no error.
pub fn from_bytes(params: &mut Params, bytes: &[u8]) -> Result<()> {
    params.load(read(bytes)?)
}

/// Overwrites the velocities of the optimizer.
pub fn momentum_from_bytes(params: &Params, sgd: &mut dyn Momentum, bytes: &[u8]) -> Result<()> {
    sgd.load(params, &mut read(bytes)?)
}

/// The network that a file's tensors belong to, and its number of classes.
pub fn outline(bytes: &[u8]) -> Result<(Model, usize)> {
    let file = SafeTensors::deserialize(bytes).map_err(bad)?;
    let first = |name: &str| file.tensor(name).ok().and_then(|t| t.shape().first().copied());
    match (first("fc2.weight"), first("fc.weight"), first("conv1.weight")) {
        (Some(classes), None, _) => Ok((Model::LeNet, classes)),
        (None, Some(classes), Some(width)) => Ok((Model::ResNet18 { width }, classes)),
        _ => {
            let mut names = file.names();
            names.sort_unstable();
            let shown = names.iter().take(3).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
            Err(bad(format!(
                "neither LeNet (fc2.weight) nor ResNet-18 (conv1.weight, fc.weight): it holds {} tensors, {shown}, …; \
                 save the state dict of one of these networks with safetensors.torch.save_file",
                names.len()
            )))
        }
    }
}

/// The numbers of a slot, from a file.
fn read(bytes: &[u8]) -> Result<impl FnMut(&Slot) -> Result<Vec<f32>>> {
    let file = SafeTensors::deserialize(bytes).map_err(bad)?;
    let (_, meta) = SafeTensors::read_metadata(bytes).map_err(bad)?;
    // A file written by PyTorch states nothing.
    if let Some(other) = meta.metadata().as_ref().and_then(|m| m.get(LAYOUT.0)).filter(|l| *l != LAYOUT.1) {
        return Err(bad(format!(
            "its arrays are in the order '{other}', not PyTorch's; it was written by another version"
        )));
    }
    Ok(move |slot: &Slot| {
        let (shape, [a, b, c]) = turned(slot);
        let name = &slot.name;
        let another = |what: String| bad(format!("{what}: this is a checkpoint of another network"));
        let view = file.tensor(name).map_err(|_| another(format!("it has no tensor {name}")))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            return Err(another(format!("{name} is {:?} {:?}, not F32 {shape:?}", view.dtype(), view.shape())));
        }
        let v: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok(swap(&v, [a, c, b]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::{Layout, lenet::LeNet, resnet::ResNet18};
    use crate::rng::Rng;

    fn resnet(width: usize, seed: u64) -> Params {
        let mut layout = Layout::default();
        ResNet18::new(&mut layout, width, [64, 3], 5).unwrap();
        layout.init(&Device::Cpu, Rng::new(seed)).unwrap()
    }

    #[test]
    fn there_and_back() {
        let (mut one, two) = (resnet(2, 1), resnet(2, 2));
        from_bytes(&mut one, &to_bytes(&two).unwrap()).unwrap();
        let values = |p: &Params| p.to_host().unwrap().into_iter().map(|(_, v)| v).collect::<Vec<_>>();
        assert_eq!(values(&one), values(&two));
    }

    #[test]
    fn arrays_are_in_pytorchs_order() {
        let bytes = to_bytes(&resnet(2, 1)).unwrap();
        let (file, params) = (SafeTensors::deserialize(&bytes).unwrap(), resnet(2, 1).to_host().unwrap());
        let stored = |name: &str, at: usize| {
            let b: [u8; 4] = file.tensor(name).unwrap().data()[4 * at..4 * at + 4].try_into().unwrap();
            f32::from_le_bytes(b)
        };
        let value = |name: &str, at: usize| params.iter().find(|(s, _)| s.name == name).unwrap().1[at];
        // conv1.weight is (2, 3, 3, 3): element k, c, r, s of PyTorch is k, r, s, c here.
        assert_eq!(file.tensor("conv1.weight").unwrap().shape(), [2, 3, 3, 3]);
        assert_eq!(stored("conv1.weight", 27 + 2 * 9 + 3 + 2), value("conv1.weight", 27 + 9 + 2 * 3 + 2));
        // fc.weight reads 2 x 2 x 16: column c, h, w of PyTorch is h, w, c here.
        assert_eq!(stored("fc.weight", 64 + 5 * 4 + 2 + 1), value("fc.weight", 64 + 2 * 32 - 16 + 5));
        assert_eq!(stored("bn1.running_var", 1), 1.0);
    }

    #[test]
    fn another_network_is_named() {
        let e = from_bytes(&mut resnet(4, 1), &to_bytes(&resnet(2, 1)).unwrap()).unwrap_err().to_string();
        assert!(e.contains("conv1.weight") && e.contains("another network"), "{e}");
        let mut layout = Layout::default();
        LeNet::new(&mut layout, 10);
        let lenet = layout.init(&Device::Cpu, Rng::new(1)).unwrap();
        assert!(from_bytes(&mut resnet(2, 1), &to_bytes(&lenet).unwrap()).is_err());
        assert!(from_bytes(&mut resnet(2, 1), b"no checkpoint").is_err());
    }
}
