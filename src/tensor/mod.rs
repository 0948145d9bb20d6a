//! Tensors: contiguous, row-major, NHWC for images; cheap to clone, never changed after an operation wrote them.

mod shape;
mod storage;

use std::cell::Cell;
use std::rc::Rc;

pub use shape::Shape;
pub use storage::{Buf, Dtype, Elem, Storage, Stored};

use crate::autograd::{Leaf, Node};
use crate::device::Device;
use crate::{Error, Result};

/// An n-dimensional array on one device, possibly part of a graph of operations.
#[derive(Clone)]
pub struct Tensor(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) id: u64,
    pub(crate) shape: Shape,
    pub(crate) data: Storage,
    pub(crate) device: Device,
    pub(crate) tracked: bool,
    pub(crate) node: Option<Node>,
    pub(crate) leaf: Option<Leaf>,
}

/// A float type of the CPU path: f32 for runs, f64 for gradient checks.
pub trait Real: Elem + PartialOrd + num::Float {}
impl Real for f32 {}
impl Real for f64 {}

mod num {
    /// What the plain loops need from a float: everything is computed in f64 and rounded once at the end.
    pub trait Float: Copy {
        /// Widens.
        fn f64(self) -> f64;
        /// Rounds.
        fn of(x: f64) -> Self;
    }
    impl Float for f32 {
        fn f64(self) -> f64 {
            f64::from(self)
        }
        fn of(x: f64) -> f32 {
            x as f32
        }
    }
    impl Float for f64 {
        fn f64(self) -> f64 {
            self
        }
        fn of(x: f64) -> f64 {
            x
        }
    }
}

/// Runs `$body` with `$T` bound to the float type of `$x` (a tensor on the CPU).
#[macro_export]
#[doc(hidden)]
macro_rules! on_real {
    ($op:expr, $x:expr, $T:ident => $body:expr) => {
        match $x.dtype() {
            $crate::tensor::Dtype::F32 => {
                type $T = f32;
                $body
            }
            $crate::tensor::Dtype::F64 => {
                type $T = f64;
                $body
            }
            got => Err($crate::Error::Dtype { op: $op, want: $crate::tensor::Dtype::F32, got }),
        }
    };
}

/// Runs `$body` with `$S` bound to the stored float type of `$x` (a tensor on a GPU).
#[macro_export]
#[doc(hidden)]
macro_rules! on_stored {
    ($op:expr, $x:expr, $S:ident => $body:expr) => {
        match $x.dtype() {
            $crate::tensor::Dtype::F32 => {
                type $S = f32;
                $body
            }
            $crate::tensor::Dtype::Bf16 => {
                type $S = half::bf16;
                $body
            }
            got => Err($crate::Error::Dtype { op: $op, want: $crate::tensor::Dtype::F32, got }),
        }
    };
}

/// The next tensor id. Ids grow with creation, so "largest first" is reverse topological order.
fn next_id() -> u64 {
    thread_local!(static NEXT: Cell<u64> = const { Cell::new(1) });
    NEXT.with(|n| n.replace(n.get() + 1))
}

impl Tensor {
    pub(crate) fn build(
        shape: Shape,
        data: Storage,
        device: Device,
        tracked: bool,
        node: Option<Node>,
        leaf: Option<Leaf>,
    ) -> Tensor {
        Tensor(Rc::new(Inner { id: next_id(), shape, data, device, tracked, node, leaf }))
    }

    /// A tensor over an existing buffer.
    pub fn from_buf<T: Elem>(device: &Device, shape: impl Into<Shape>, buf: Buf<T>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.len() != buf.len() {
            return Err(shape.refuse("from_buf", format!("{} elements", buf.len())));
        }
        Ok(Tensor::build(shape, T::wrap(buf), device.clone(), false, None, None))
    }

    /// A copy of host data.
    pub fn new<T: Elem>(device: &Device, shape: impl Into<Shape>, data: &[T]) -> Result<Tensor> {
        let shape = shape.into();
        if shape.len() != data.len() {
            return Err(shape.refuse("Tensor::new", format!("{} elements", data.len())));
        }
        Tensor::from_buf(device, shape, Buf::from_host(device, data)?)
    }

    /// A tensor with unspecified contents, for an operation to fill.
    pub fn stale(device: &Device, shape: impl Into<Shape>, dtype: Dtype) -> Result<Tensor> {
        let shape = shape.into();
        let n = shape.len();
        let data = match dtype {
            Dtype::F32 => Storage::F32(Buf::stale(device, n)?),
            Dtype::Bf16 => Storage::Bf16(Buf::stale(device, n)?),
            Dtype::F64 => Storage::F64(Buf::stale(device, n)?),
            Dtype::U8 => Storage::U8(Buf::stale(device, n)?),
            Dtype::U32 => Storage::U32(Buf::stale(device, n)?),
            Dtype::U64 => Storage::U64(Buf::stale(device, n)?),
        };
        Ok(Tensor::build(shape, data, device.clone(), false, None, None))
    }

    /// A tensor of zeros.
    pub fn zeros(device: &Device, shape: impl Into<Shape>, dtype: Dtype) -> Result<Tensor> {
        let shape = shape.into();
        let n = shape.len();
        let data = match dtype {
            Dtype::F32 => Storage::F32(Buf::zeros(device, n)?),
            Dtype::Bf16 => Storage::Bf16(Buf::zeros(device, n)?),
            Dtype::F64 => Storage::F64(Buf::zeros(device, n)?),
            Dtype::U8 => Storage::U8(Buf::zeros(device, n)?),
            Dtype::U32 => Storage::U32(Buf::zeros(device, n)?),
            Dtype::U64 => Storage::U64(Buf::zeros(device, n)?),
        };
        Ok(Tensor::build(shape, data, device.clone(), false, None, None))
    }

    /// A tensor of this device and element type with unspecified contents.
    pub fn stale_like(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        Tensor::stale(self.device(), shape, self.dtype())
    }

    /// A tensor of the same shape, device and element type with unspecified contents.
    pub fn like(&self) -> Result<Tensor> {
        self.stale_like(self.shape().clone())
    }

    /// The same data outside the graph.
    pub fn detach(&self) -> Tensor {
        let i = &self.0;
        Tensor::build(i.shape.clone(), i.data.clone(), i.device.clone(), false, None, None)
    }

    /// The same data as the start of a new graph: gradients with respect to it can be asked for.
    pub fn tracked(&self) -> Tensor {
        let i = &self.0;
        Tensor::build(i.shape.clone(), i.data.clone(), i.device.clone(), true, None, None)
    }

    /// The sizes.
    pub fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// The sizes as a slice.
    pub fn dims(&self) -> &[usize] {
        self.0.shape.dims()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.shape.len()
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the data is.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.0.data.dtype()
    }

    /// True when gradients flow through this tensor.
    pub fn is_tracked(&self) -> bool {
        self.0.tracked
    }

    /// The buffer, as elements of type T.
    pub fn buf<T: Elem>(&self, op: &'static str) -> Result<&Buf<T>> {
        T::from_storage(&self.0.data).ok_or(Error::Dtype { op, want: T::DTYPE, got: self.dtype() })
    }

    /// The buffer, to write. Only a tensor that nobody else holds can be written.
    pub fn buf_mut<T: Elem>(&mut self, op: &'static str) -> Result<&mut Buf<T>> {
        let got = self.dtype();
        let inner = Rc::get_mut(&mut self.0)
            .ok_or(Error::Device { op, why: "wants to write a tensor that is also used elsewhere".into() })?;
        T::from_storage_mut(&mut inner.data).ok_or(Error::Dtype { op, want: T::DTYPE, got })
    }

    /// What sums and statistics of this tensor are: f32 for bf16, else its own type.
    pub(crate) fn sum_dtype(&self) -> Dtype {
        if self.dtype() == Dtype::Bf16 { Dtype::F32 } else { self.dtype() }
    }

    /// True for bf16 on the CPU, which has no arithmetic of its own: there an operation is the f32 operation on the
    /// same values, its result rounded.
    pub(crate) fn is_rounded(&self) -> bool {
        self.dtype() == Dtype::Bf16 && matches!(self.device(), Device::Cpu)
    }

    /// The elements on the host.
    pub fn host<T: Elem>(&self, op: &'static str) -> Result<&[T]> {
        self.buf::<T>(op)?.host(op)
    }

    /// The elements on the host, to write.
    pub fn host_mut<T: Elem>(&mut self, op: &'static str) -> Result<&mut [T]> {
        self.buf_mut::<T>(op)?.host_mut(op)
    }

    /// A copy of the elements on the host. Waits for the device.
    pub fn to_vec<T: Elem>(&self) -> Result<Vec<T>> {
        self.buf::<T>("to_vec")?.to_host()
    }

    /// The elements as f64, whatever the float type; for tests and reports.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        match self.dtype() {
            Dtype::F64 => self.to_vec::<f64>(),
            Dtype::Bf16 => Ok(self.to_vec::<half::bf16>()?.into_iter().map(f64::from).collect()),
            _ => Ok(self.to_vec::<f32>()?.into_iter().map(f64::from).collect()),
        }
    }

    /// A copy on another device.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        let shape = self.shape().clone();
        match &self.0.data {
            Storage::F32(b) => Tensor::new(device, shape, &b.to_host()?),
            Storage::Bf16(b) => Tensor::new(device, shape, &b.to_host()?),
            Storage::F64(b) => Tensor::new(device, shape, &b.to_host()?),
            Storage::U8(b) => Tensor::new(device, shape, &b.to_host()?),
            Storage::U32(b) => Tensor::new(device, shape, &b.to_host()?),
            Storage::U64(b) => Tensor::new(device, shape, &b.to_host()?),
        }
    }

    /// The same data under other sizes. Free of copies.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.len() != self.len() {
            return Err(self.shape().refuse("reshape", format!("as many elements as {shape:?}")));
        }
        let i = &self.0;
        let y = Tensor::build(shape, i.data.clone(), i.device.clone(), false, None, None);
        let from = i.shape.clone();
        Ok(y.with_grad("reshape", &[self], move |dy, need| Ok(vec![need.then(0, || dy.reshape(from.clone()))?])))
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({:?}, {:?}, {:?})", self.shape(), self.dtype(), self.device())
    }
}
