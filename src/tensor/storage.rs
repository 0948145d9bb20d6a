//! Buffers: a run of numbers on the host or on the device. All `unsafe` about memory is here and in
//! `device/cuda.rs`.
//!
//! A buffer is a window (offset, length) on memory that may be shared: the parameters of a network are windows
//! on one arena. Host memory is recycled per thread, because a training step allocates the same sizes again and
//! again and the system allocator would hand megabytes back and forth each time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;

use half::bf16;

use crate::device::{Device, cuda};
use crate::{Error, Result};

/// Element types. F64 exists on the CPU only, for gradient checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit float with the exponent of a 32-bit one: activations and their gradients of a `bf16` run.
    Bf16,
    /// 8-bit unsigned integer: pixels.
    U8,
    /// 32-bit unsigned integer: ids, labels, counters.
    U32,
    /// 64-bit unsigned integer: sort keys.
    U64,
    /// 64-bit float, on the CPU only.
    F64,
}

/// A number a buffer can hold.
pub trait Elem: bytemuck::Pod + Default + PartialEq + std::fmt::Debug + Send + Sync {
    /// Its tag.
    const DTYPE: Dtype;
    /// Runs `f` on this thread's store of idle host vectors of this type.
    #[doc(hidden)]
    fn idle<R>(f: impl FnOnce(&RefCell<Idle<Self>>) -> R) -> Option<R>;
    #[doc(hidden)]
    fn from_storage(storage: &Storage) -> Option<&Buf<Self>>;
    #[doc(hidden)]
    fn from_storage_mut(storage: &mut Storage) -> Option<&mut Buf<Self>>;
    #[doc(hidden)]
    fn wrap(buf: Buf<Self>) -> Storage;
}

/// A float type that a tensor on a GPU can store: kernels exist for each of them.
pub trait Stored: Elem {
    /// The kernel for this type, of those for f32 and bf16.
    #[doc(hidden)]
    fn pick(of_f32_and_bf16: [&'static str; 2]) -> &'static str;
}
impl Stored for f32 {
    fn pick([f32, _]: [&'static str; 2]) -> &'static str {
        f32
    }
}
impl Stored for bf16 {
    fn pick([_, bf16]: [&'static str; 2]) -> &'static str {
        bf16
    }
}

/// Idle host vectors by length, up to a total size.
#[doc(hidden)]
pub struct Idle<T> {
    by_len: HashMap<usize, Vec<Vec<T>>>,
    bytes: usize,
}

impl<T> Idle<T> {
    fn new() -> Idle<T> {
        Idle { by_len: HashMap::new(), bytes: 0 }
    }
}

/// Idle host memory kept per thread and element type: about what a training step of ResNet-18 w16 on 256 images, or of
/// w64 on 64, lets go at its end. Beyond it memory goes back to the system.
const IDLE_LIMIT: usize = 768 << 20;

macro_rules! elem {
    ($t:ty, $tag:ident) => {
        impl Elem for $t {
            const DTYPE: Dtype = Dtype::$tag;
            fn idle<R>(f: impl FnOnce(&RefCell<Idle<$t>>) -> R) -> Option<R> {
                thread_local!(static IDLE: RefCell<Idle<$t>> = RefCell::new(Idle::new()));
                IDLE.try_with(|i| f(i)).ok()
            }
            fn from_storage(storage: &Storage) -> Option<&Buf<$t>> {
                if let Storage::$tag(b) = storage { Some(b) } else { None }
            }
            fn from_storage_mut(storage: &mut Storage) -> Option<&mut Buf<$t>> {
                if let Storage::$tag(b) = storage { Some(b) } else { None }
            }
            fn wrap(buf: Buf<$t>) -> Storage {
                Storage::$tag(buf)
            }
        }
    };
}
elem!(f32, F32);
elem!(bf16, Bf16);
elem!(f64, F64);
elem!(u8, U8);
elem!(u32, U32);
elem!(u64, U64);

/// Host memory that returns to the thread's store when dropped.
struct HostMem<T: Elem>(Vec<T>);

impl<T: Elem> HostMem<T> {
    /// `len` elements whose values are whatever an earlier user left.
    fn stale(len: usize) -> HostMem<T> {
        let reused = T::idle(|i| {
            let mut i = i.borrow_mut();
            let v = i.by_len.get_mut(&len)?.pop()?;
            i.bytes -= len * size_of::<T>();
            Some(v)
        });
        HostMem(reused.flatten().unwrap_or_else(|| fresh(len)))
    }
}

/// Zeros. A large buffer is asked for in huge pages before its first use: passes over whole activations otherwise miss
/// the processor's table of pages at every fourth kilobyte.
fn fresh<T: Elem>(len: usize) -> Vec<T> {
    let mut v: Vec<T> = Vec::with_capacity(len);
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let (start, end) = (v.as_ptr().addr().next_multiple_of(HUGE), v.as_ptr().addr() + len * size_of::<T>());
        if start + HUGE <= end {
            // SAFETY: whole pages inside of an allocation; a hint that changes no contents. It may be refused.
            unsafe { libc::madvise(start as *mut libc::c_void, (end - start) / HUGE * HUGE, libc::MADV_HUGEPAGE) };
        }
    }
    v.resize(len, T::default());
    v
}

impl<T: Elem> Drop for HostMem<T> {
    fn drop(&mut self) {
        let v = std::mem::take(&mut self.0);
        let bytes = v.len() * size_of::<T>();
        if bytes == 0 {
            return;
        }
        T::idle(move |i| {
            let mut i = i.borrow_mut();
            if i.bytes + bytes <= IDLE_LIMIT {
                i.bytes += bytes;
                i.by_len.entry(v.len()).or_default().push(v);
            }
        });
    }
}

enum RawBuf<T: Elem> {
    Host(HostMem<T>),
    Cuda(cuda::DeviceMem),
}

/// `len` elements on one device, shared by cloning.
#[derive(Clone)]
pub struct Buf<T: Elem> {
    raw: Rc<RawBuf<T>>,
    offset: usize,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Elem> Buf<T> {
    /// A buffer with unspecified contents.
    pub fn stale(device: &Device, len: usize) -> Result<Buf<T>> {
        let raw = match device {
            Device::Cpu => RawBuf::Host(HostMem::stale(len)),
            Device::Cuda(c) => RawBuf::Cuda(c.alloc(len * size_of::<T>())?),
        };
        Ok(Buf { raw: Rc::new(raw), offset: 0, len, of: PhantomData })
    }

    /// A buffer of zeros.
    pub fn zeros(device: &Device, len: usize) -> Result<Buf<T>> {
        let mut b = Buf::stale(device, len)?;
        match device {
            Device::Cpu => b.host_mut("zeros")?.fill(T::default()),
            Device::Cuda(c) => c.zero(b.ptr("zeros")?, len * size_of::<T>())?,
        }
        Ok(b)
    }

    /// A copy of host data on `device`.
    pub fn from_host(device: &Device, data: &[T]) -> Result<Buf<T>> {
        let mut b = Buf::stale(device, data.len())?;
        b.write(device, data)?;
        Ok(b)
    }

    /// Overwrites the buffer with host data of the same length.
    pub fn write(&mut self, device: &Device, data: &[T]) -> Result<()> {
        if data.len() != self.len {
            let want = format!("{} elements", self.len);
            return Err(Error::Shape { op: "write", want, got: format!("{}", data.len()) });
        }
        match device {
            Device::Cpu => self.host_mut("write")?.copy_from_slice(data),
            Device::Cuda(c) => c.upload(self.ptr("write")?, bytemuck::cast_slice(data))?,
        }
        Ok(())
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A window on the same memory.
    pub fn window(&self, offset: usize, len: usize) -> Result<Buf<T>> {
        if offset + len > self.len {
            let want = format!("at most {} elements", self.len);
            return Err(Error::Shape { op: "window", want, got: format!("{offset} + {len}") });
        }
        Ok(Buf { raw: self.raw.clone(), offset: self.offset + offset, len, of: PhantomData })
    }

    /// A copy on the host. Waits for the device.
    pub fn to_host(&self) -> Result<Vec<T>> {
        match &*self.raw {
            RawBuf::Host(m) => Ok(m.0[self.offset..self.offset + self.len].to_vec()),
            RawBuf::Cuda(m) => {
                let mut out = vec![T::default(); self.len];
                m.download(self.offset * size_of::<T>(), bytemuck::cast_slice_mut(&mut out))?;
                Ok(out)
            }
        }
    }

    /// The elements, on the host.
    pub fn host(&self, op: &'static str) -> Result<&[T]> {
        match &*self.raw {
            RawBuf::Host(m) => Ok(&m.0[self.offset..self.offset + self.len]),
            RawBuf::Cuda(_) => Err(on_device(op)),
        }
    }

    /// The elements, on the host, to write. Memory shared with another buffer is copied first, so that buffer
    /// keeps its values.
    pub fn host_mut(&mut self, op: &'static str) -> Result<&mut [T]> {
        if Rc::get_mut(&mut self.raw).is_none() {
            let RawBuf::Host(old) = &*self.raw else { return Err(on_device(op)) };
            let mut own = HostMem::stale(self.len);
            own.0.copy_from_slice(&old.0[self.offset..self.offset + self.len]);
            self.raw = Rc::new(RawBuf::Host(own));
            self.offset = 0;
        }
        match Rc::get_mut(&mut self.raw) {
            Some(RawBuf::Host(m)) => Ok(&mut m.0[self.offset..self.offset + self.len]),
            _ => Err(on_device(op)),
        }
    }

    /// The address on the device.
    pub fn ptr(&self, op: &'static str) -> Result<u64> {
        match &*self.raw {
            RawBuf::Cuda(m) => Ok(m.ptr() + (self.offset * size_of::<T>()) as u64),
            RawBuf::Host(_) => {
                Err(Error::Device { op, why: "needs a buffer on the device, got one on the host".into() })
            }
        }
    }
}

fn on_device(op: &'static str) -> Error {
    Error::Device { op, why: "needs a buffer on the host, got one on the device".into() }
}

/// A buffer of any element type.
#[derive(Clone)]
#[allow(missing_docs)]
pub enum Storage {
    F32(Buf<f32>),
    Bf16(Buf<bf16>),
    F64(Buf<f64>),
    U8(Buf<u8>),
    U32(Buf<u32>),
    U64(Buf<u64>),
}

impl Storage {
    /// The element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16(_) => Dtype::Bf16,
            Storage::F64(_) => Dtype::F64,
            Storage::U8(_) => Dtype::U8,
            Storage::U32(_) => Dtype::U32,
            Storage::U64(_) => Dtype::U64,
        }
    }
}
