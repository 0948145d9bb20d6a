//! A small launcher on cudarc, for the tests of both builds.
#![allow(dead_code)] // each test binary uses its own part

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError, sys,
};
use cudarc::nvrtc::Ptx;
use dalcore_emulator::{Guard, Kind, Options, exclusive};
use std::ffi::c_void;
use std::sync::Arc;

/// One argument of a kernel, by value.
pub enum Arg {
    Ptr(u64),
    I32(i32),
    I64(i64),
    F32(f32),
}

impl Arg {
    fn ptr(&self) -> *mut c_void {
        match self {
            Arg::Ptr(x) => (x as *const u64).cast_mut().cast(),
            Arg::I32(x) => (x as *const i32).cast_mut().cast(),
            Arg::I64(x) => (x as *const i64).cast_mut().cast(),
            Arg::F32(x) => (x as *const f32).cast_mut().cast(),
        }
    }
}

impl<T> From<&CudaSlice<T>> for Arg {
    fn from(s: &CudaSlice<T>) -> Arg {
        Arg::Ptr(s.device_ptr(s.stream()).0)
    }
}
impl From<i32> for Arg {
    fn from(x: i32) -> Arg {
        Arg::I32(x)
    }
}
impl From<i64> for Arg {
    fn from(x: i64) -> Arg {
        Arg::I64(x)
    }
}
impl From<f32> for Arg {
    fn from(x: f32) -> Arg {
        Arg::F32(x)
    }
}

#[macro_export]
macro_rules! args {
    ($($a:expr),* $(,)?) => { &[$($crate::device::Arg::from($a)),*] };
}

/// The device and a stream of our own, while no other test has them.
pub struct Device {
    pub ctx: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    _guard: Guard, // last: buffers and streams go first
}

pub fn open(kind: Kind, options: Options) -> Device {
    let guard = exclusive(kind, &options).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    assert_eq!(ctx.name().unwrap(), "emulated CUDA device");
    // SAFETY: one stream at a time, no events needed between buffers.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    let module = ctx.load_module(Ptx::from_binary(vec![0])).unwrap();
    Device { ctx, stream, module, _guard: guard }
}

impl Device {
    pub fn function(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }

    pub fn launch(&self, name: &str, grid: u32, block: u32, args: &[Arg]) -> Result<(), DriverError> {
        self.launch_3d(name, [grid, 1, 1], [block, 1, 1], 0, args)
    }

    pub fn launch_3d(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        args: &[Arg],
    ) -> Result<(), DriverError> {
        let f = self.function(name);
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::ptr).collect();
        self.ctx.bind_to_thread()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the tests pass what the kernel declares, or test that it goes wrong.
        unsafe {
            let f = f.cu_function();
            cudarc::driver::result::launch_kernel(f, grid.into(), block.into(), shared, stream, &mut pointers)
        }
    }

    /// Sizes of the kernel's parameters in bytes.
    pub fn parameters(&self, name: &str) -> Vec<usize> {
        let f = self.function(name);
        let size = |i| {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: plain outputs.
            let r = unsafe { sys::cuFuncGetParamInfo(f.cu_function(), i, &mut offset, &mut size) };
            r.result().is_ok().then_some(size)
        };
        (0..).map_while(size).collect()
    }

    pub fn empty<T: cudarc::driver::DeviceRepr>(&self, n: usize) -> CudaSlice<T> {
        // SAFETY: the emulator reports whoever reads it before it is written.
        unsafe { self.stream.alloc(n) }.unwrap()
    }
}

/// Repeatable values in [-0.5, 0.5).
pub fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2654435761).wrapping_add(12345);
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        (s >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

pub fn to_bf16(x: f32) -> u16 {
    let u = x.to_bits();
    ((u + 0x7fff + (u >> 16 & 1)) >> 16) as u16
}

pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

pub fn matmul(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
    let at = |i: usize, j: usize| {
        (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum::<f64>() as f32
    };
    (0..m * n).map(|ij| at(ij / n, ij % n)).collect()
}

pub fn assert_close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    assert!(want.iter().any(|w| w.abs() > 10.0 * tolerance), "a reference of zeros proves nothing");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "at {i}: {g}, but {w} is right");
    }
}
