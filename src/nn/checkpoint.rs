//! Weights as safetensors. Arrays keep the engine's layout (filters K, R, S, C), which the metadata states.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::Params;
use crate::{Error, Result};

fn bad(why: impl std::fmt::Display) -> Error {
    Error::Data { path: "model.safetensors".into(), why: format!("{why}; remove the run's folder to train it again") }
}

/// All parameters by name.
pub fn to_bytes(params: &Params) -> Result<Vec<u8>> {
    let values = params.to_host()?;
    let views = values
        .iter()
        .map(|(name, shape, v)| {
            let view = TensorView::new(Dtype::F32, shape.dims().to_vec(), bytemuck::cast_slice(v)).map_err(bad)?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    let meta = HashMap::from([("layout".to_string(), "filters KRSC, activations NHWC".to_string())]);
    serialize(views, Some(meta)).map_err(bad)
}

/// Overwrites all parameters; the names and shapes must be those of the network.
pub fn from_bytes(params: &mut Params, bytes: &[u8]) -> Result<()> {
    let file = SafeTensors::deserialize(bytes).map_err(bad)?;
    let values = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(bad(format!("{name} holds {:?}, not F32", view.dtype())));
            }
            let v: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok((name, v))
        })
        .collect::<Result<Vec<_>>>()?;
    params.load(&values)
}
