//! The CUDA side: probing the driver, one stream, memory that is recycled, kernel launches, graph capture.
//!
//! The driver is loaded at run time, so one binary starts anywhere. All its calls are in this file.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use super::launch::{Arg, KERNELS, Launch, MODULES};
use crate::{Error, Result};

/// Why CUDA is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoCuda {
    /// No kernels in this binary.
    NotCompiledIn,
    /// `libcuda` is not installed.
    NoDriver,
    /// The driver is older than the toolkit the kernels were built with.
    DriverTooOld(i32),
    /// The driver sees no device, or not that many.
    NoDevice {
        /// The device asked for.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// The driver refused to start.
    Driver(String),
}

impl fmt::Display for NoCuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoCuda::NotCompiledIn => {
                f.write_str("this binary was built without nvcc and holds no kernels; install nvcc and build again")
            }
            NoCuda::NoDriver => f.write_str("no NVIDIA driver is installed (libcuda was not found)"),
            NoCuda::DriverTooOld(v) => write!(
                f,
                "the NVIDIA driver supports CUDA {}.{} and 13.0 is needed; install driver 580 or newer",
                v / 1000,
                v % 1000 / 10
            ),
            NoCuda::NoDevice { found: 0, .. } => f.write_str("the NVIDIA driver sees no device"),
            NoCuda::NoDevice { wanted, found } => {
                write!(f, "there is no device {wanted}; the driver sees {found}, numbered from 0")
            }
            NoCuda::Driver(e) => write!(f, "the NVIDIA driver reports {e}"),
        }
    }
}

/// The driver's code for an error. Only `e.0`: formatting the error itself calls into the library.
fn code(e: DriverError) -> String {
    format!("{:?}", e.0).trim_start_matches("CUDA_ERROR_").to_lowercase().replace('_', " ")
}

fn failed(call: &str) -> impl FnOnce(DriverError) -> Error + '_ {
    move |e| Error::Cuda { call: call.into(), why: code(e) }
}

/// A CUDA device with one stream of its own. Tensors on it stay on the thread that opened it.
pub struct Cuda {
    ctx: Arc<CudaContext>,
    stream: Stream,
    name: String,
    version: i32,
    modules: RefCell<HashMap<&'static str, Arc<CudaModule>>>,
    functions: RefCell<HashMap<&'static str, CudaFunction>>,
    arena: RefCell<Rc<Arena>>,
    sync: bool,
    profile: Option<RefCell<BTreeMap<&'static str, (u64, f64)>>>,
}

/// The stream; destroyed after the last memory and graph that use it.
#[derive(Clone)]
struct Stream(Rc<RawStream>);

struct RawStream {
    raw: sys::CUstream,
    ctx: Arc<CudaContext>,
    capturing: Cell<bool>,
    pools: bool,
    /// Bytes that buffers hold.
    held: Cell<usize>,
}

impl Drop for RawStream {
    fn drop(&mut self) {
        // SAFETY: created by `Cuda::open`, dropped once; everything that used it held this `Rc`.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}

/// Device memory that belongs together: idle blocks are reused by size. Everything runs on one stream, so a
/// block may be handed out again as soon as its last owner has been submitted.
struct Arena {
    stream: Stream,
    idle: RefCell<HashMap<usize, Vec<u64>>>,
}

/// A block of device memory; returns to its arena when dropped.
pub struct DeviceMem {
    ptr: u64,
    bytes: usize,
    arena: Rc<Arena>,
}

impl DeviceMem {
    pub(crate) fn ptr(&self) -> u64 {
        self.ptr
    }

    /// Copies to the host and waits.
    pub(crate) fn download(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let s = &self.arena.stream.0;
        s.ctx.bind_to_thread().map_err(failed("binding the context"))?;
        // SAFETY: the range lies inside this block (`Buf` keeps offset + length within it); `out` outlives the
        // wait below.
        unsafe { result::memcpy_dtoh_async(out, self.ptr + offset as u64, s.raw) }.map_err(failed("download"))?;
        // SAFETY: the stream is alive, see `RawStream`.
        unsafe { result::stream::synchronize(s.raw) }.map_err(failed("download"))
    }
}

impl Drop for DeviceMem {
    fn drop(&mut self) {
        let held = &self.arena.stream.0.held;
        held.set(held.get() - self.bytes);
        self.arena.idle.borrow_mut().entry(self.bytes).or_default().push(self.ptr);
    }
}

impl Arena {
    fn new(stream: &Stream) -> Rc<Arena> {
        Rc::new(Arena { stream: stream.clone(), idle: RefCell::default() })
    }

    /// Gives all idle blocks back to the driver.
    fn trim(&self) {
        let s = &self.stream.0;
        for ptr in self.idle.borrow_mut().drain().flat_map(|(_, v)| v) {
            // SAFETY: allocated by `alloc` on this stream; idle, so no `DeviceMem` holds it any more.
            let _ = unsafe { if s.pools { result::free_async(ptr, s.raw) } else { result::free_sync(ptr) } };
        }
    }

    fn alloc(self: &Rc<Arena>, bytes: usize) -> Result<DeviceMem> {
        let bytes = size_class(bytes);
        let held = &self.stream.0.held;
        if let Some(ptr) = self.idle.borrow_mut().get_mut(&bytes).and_then(Vec::pop) {
            held.set(held.get() + bytes);
            return Ok(DeviceMem { ptr, bytes, arena: self.clone() });
        }
        let s = &self.stream.0;
        if s.capturing.get() {
            return Err(Error::Cuda {
                call: "graph capture".into(),
                why: format!("the step allocates {bytes} bytes that its first, eager run did not"),
            });
        }
        s.ctx.bind_to_thread().map_err(failed("binding the context"))?;
        // SAFETY: a plain allocation; the result is owned by the `DeviceMem` below.
        let get = || unsafe { if s.pools { result::malloc_async(s.raw, bytes) } else { result::malloc_sync(bytes) } };
        let ptr = match get() {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                self.trim();
                // SAFETY: the stream is alive.
                let _ = unsafe { result::stream::synchronize(s.raw) };
                get().map_err(|e| out_of_memory(bytes, held.get(), e))?
            }
            other => other.map_err(failed("allocation"))?,
        };
        held.set(held.get() + bytes);
        Ok(DeviceMem { ptr, bytes, arena: self.clone() })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.trim();
    }
}

fn out_of_memory(wanted: usize, held: usize, e: DriverError) -> Error {
    match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            let (what, remedy) = Default::default();
            Error::Memory { wanted, held, free: result::mem_get_info().ok(), what, remedy }
        }
        _ => failed("allocation")(e),
    }
}

/// Rounds up to one of four sizes per power of two, so that blocks fit again.
fn size_class(bytes: usize) -> usize {
    let b = bytes.max(256);
    let step = (b.next_power_of_two() / 8).max(256);
    b.div_ceil(step) * step
}

impl Cuda {
    /// Opens device `ordinal`, or says why not. Never panics, whatever is or is not installed.
    pub fn open(ordinal: usize) -> Result<Cuda, NoCuda> {
        // Nothing else of cudarc may be called before this: it panics when the library is missing.
        // SAFETY: looks for a shared library.
        if !unsafe { sys::is_culib_present() } {
            return Err(NoCuda::NoDriver);
        }
        let err = |e: DriverError| NoCuda::Driver(code(e));
        let mut version = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(err)?;
        if version < 13000 {
            return Err(NoCuda::DriverTooOld(version));
        }
        let none = sys::CUresult::CUDA_ERROR_NO_DEVICE;
        let found = match CudaContext::device_count() {
            Ok(n) => usize::try_from(n).unwrap_or(0),
            Err(e) if e.0 == none => 0,
            Err(e) => return Err(err(e)),
        };
        if ordinal >= found {
            return Err(NoCuda::NoDevice { wanted: ordinal, found });
        }
        let ctx = CudaContext::new(ordinal).map_err(err)?;
        let name = ctx.name().map_err(err)?;
        if MODULES.is_empty() && !emulates_sources(&name) {
            return Err(NoCuda::NotCompiledIn);
        }
        // SAFETY: one stream per `Cuda`, so nothing has to be ordered by events.
        unsafe { ctx.disable_event_tracking() };
        let pools = ctx
            .attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)
            .is_ok_and(|v| v > 0);
        // Not the null stream: that one cannot be captured.
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(err)?;
        let stream = Stream(Rc::new(RawStream {
            raw,
            ctx: ctx.clone(),
            capturing: Cell::new(false),
            pools,
            held: Cell::new(0),
        }));
        if pools {
            keep_freed_memory(ordinal).map_err(err)?;
        }
        let on = |k: &str| std::env::var_os(k).is_some_and(|v| v != "0");
        let arena = RefCell::new(Arena::new(&stream));
        let profile = on("DALCORE_PROFILE").then(RefCell::default);
        let sync = on("DALCORE_SYNC") || profile.is_some();
        let (modules, functions) = Default::default();
        Ok(Cuda { ctx, stream, name, version, modules, functions, arena, sync, profile })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The CUDA version of the driver.
    pub fn driver_version(&self) -> String {
        format!("CUDA {}.{}", self.version / 1000, self.version % 1000 / 10)
    }

    /// The kernels that have been launched so far, sorted.
    pub fn launched(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = self.functions.borrow().keys().copied().collect();
        names.sort_unstable();
        names
    }

    /// Memory of the device in bytes: free, total.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        result::mem_get_info().map_err(failed("memory information"))
    }

    /// Number of multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (u32, u32) {
        use sys::CUdevice_attribute_enum as A;
        let major = self.attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        (major, self.attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR))
    }

    fn attribute(&self, a: sys::CUdevice_attribute_enum) -> u32 {
        self.ctx.attribute(a).ok().and_then(|v| u32::try_from(v).ok()).unwrap_or(0)
    }

    fn bind(&self) -> Result<()> {
        self.ctx.bind_to_thread().map_err(failed("binding the context"))
    }

    /// Waits until everything submitted has run.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.stream.0.raw) }.map_err(failed("synchronize"))
    }

    pub(crate) fn alloc(&self, bytes: usize) -> Result<DeviceMem> {
        let arena = self.arena.borrow().clone();
        arena.alloc(bytes)
    }

    pub(crate) fn zero(&self, ptr: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller passes a buffer of its own of at least that size.
        unsafe { result::memset_d8_async(ptr, 0, bytes, self.stream.0.raw) }.map_err(failed("memset"))
    }

    pub(crate) fn upload(&self, ptr: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller passes a buffer of its own of at least that size; pageable host memory is staged
        // by the driver before the call returns.
        unsafe { result::memcpy_htod_async(ptr, bytes, self.stream.0.raw) }.map_err(failed("upload"))
    }

    pub(crate) fn copy(&self, dst: u64, src: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller passes buffers of its own of at least that size.
        unsafe { result::memcpy_dtod_async(dst, src, bytes, self.stream.0.raw) }.map_err(failed("copy"))
    }

    /// The kernel, loaded and checked against the driver's idea of its parameters at first use.
    fn function(&self, name: &'static str, args: &[Arg]) -> Result<CudaFunction> {
        if let Some(f) = self.functions.borrow().get(name) {
            return Ok(f.clone());
        }
        let missing = || Error::Cuda { call: name.into(), why: "no such kernel in this binary".into() };
        let (_, stem) = KERNELS.iter().find(|(k, _)| *k == name).ok_or_else(missing)?;
        let loaded = self.modules.borrow().get(stem).cloned();
        let module = match loaded {
            Some(m) => m,
            None => {
                let image = MODULES.iter().find(|(s, _)| s == stem).map_or(&b"sources"[..], |(_, b)| *b);
                let m = self.ctx.load_module(Ptx::from_binary(image.to_vec())).map_err(failed("loading kernels"))?;
                self.modules.borrow_mut().insert(stem, m.clone());
                m
            }
        };
        let f = module.load_function(name).map_err(failed(name))?;
        for i in 0..=args.len() {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: a live function; writes two integers.
            let r = unsafe { sys::cuFuncGetParamInfo(f.cu_function(), i, &mut offset, &mut size) }.result();
            let want = r.is_ok().then_some(size);
            let got = args.get(i).map(Arg::size);
            if want != got {
                let why = format!("parameter {i}: the kernel has {want:?} bytes, the launcher {got:?}");
                return Err(Error::Cuda { call: name.into(), why });
            }
        }
        self.functions.borrow_mut().insert(name, f.clone());
        Ok(f)
    }

    /// Launches a kernel. Called by the generated launchers only, which fix count, types and order of `args`.
    pub(crate) fn launch(&self, name: &'static str, l: Launch, args: &mut [Arg]) -> Result<()> {
        if l.grid.contains(&0) {
            return Ok(()); // nothing to do: an empty batch
        }
        let f = self.function(name, args)?;
        self.bind()?;
        if l.shared > 48 << 10 {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX;
            f.set_attribute(MAX, l.shared as i32).map_err(failed(name))?;
        }
        let mut ptrs: Vec<*mut c_void> = args.iter_mut().map(Arg::address).collect();
        let start = Instant::now();
        let (grid, block) = ((l.grid[0], l.grid[1], l.grid[2]), (l.block, 1, 1));
        // SAFETY: count and sizes of the arguments were compared with the kernel's own (`function`); the
        // pointers are those of live buffers of the types the kernel declares, by the generated signature.
        unsafe { result::launch_kernel(f.cu_function(), grid, block, l.shared, self.stream.0.raw, &mut ptrs) }
            .map_err(failed(name))?;
        if self.sync && !self.stream.0.capturing.get() {
            // SAFETY: the stream is alive.
            unsafe { result::stream::synchronize(self.stream.0.raw) }.map_err(failed(name))?;
        }
        if let Some(p) = &self.profile {
            let mut p = p.borrow_mut();
            let e = p.entry(name).or_default();
            *e = (e.0 + 1, e.1 + start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Captures what `f` launches into a graph. Its buffers come from `arena`, which an eager run of the same
    /// step has filled, so nothing is allocated or freed through the driver meanwhile.
    fn capture(self: &Rc<Cuda>, arena: &Rc<Arena>, f: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.bind()?;
        let s = &self.stream.0;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and not the null stream.
        unsafe { result::stream::begin_capture(s.raw, mode) }.map_err(failed("begin capture"))?;
        s.capturing.set(true);
        let done = self.inside(arena, f);
        s.capturing.set(false);
        // SAFETY: ends the capture begun above, also after an error, so that the stream is usable again.
        let graph = unsafe { result::stream::end_capture(s.raw) };
        done?;
        let graph = graph.map_err(failed("end capture"))?;
        // SAFETY: a graph just captured; destroyed once its executable form exists.
        let exec = unsafe {
            let mut exec = std::ptr::null_mut();
            let r = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result();
            let _ = result::graph::destroy(graph);
            r.map_err(failed("instantiating the graph"))?;
            exec
        };
        Ok(Graph { exec, cuda: self.clone(), _arena: arena.clone() })
    }

    /// Runs `f` with `arena` as the source of memory.
    fn inside<R>(&self, arena: &Rc<Arena>, f: impl FnOnce() -> R) -> R {
        let outer = self.arena.replace(arena.clone());
        let r = f();
        self.arena.replace(outer);
        r
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let Some(p) = &self.profile else { return };
        let p = p.borrow();
        let mut rows: Vec<_> = p.iter().collect();
        rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        eprintln!("{:<28} {:>9} {:>11} {:>10}", "kernel", "launches", "total ms", "each us");
        for (name, (n, s)) in rows {
            eprintln!("{name:<28} {n:>9} {:>11.3} {:>10.2}", s * 1e3, s * 1e6 / *n as f64);
        }
    }
}

/// Emulated drivers that run the kernel *sources* take any module image.
fn emulates_sources(name: &str) -> bool {
    name == "emulated CUDA device"
}

/// Lets the driver's pool keep what is freed; by default it returns memory at each synchronisation.
fn keep_freed_memory(ordinal: usize) -> Result<(), DriverError> {
    let device = result::device::get(ordinal as i32)?;
    let mut all = u64::MAX;
    let attr = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the default pool of a device that supports pools; the value is a u64 as the attribute wants.
    unsafe {
        let pool = result::device::get_default_mem_pool(device)?;
        result::mem_pool::set_attribute(pool, attr, (&raw mut all).cast())
    }
}

/// A captured step that can be replayed, with the memory it works in.
pub struct Graph {
    exec: sys::CUgraphExec,
    cuda: Rc<Cuda>,
    _arena: Rc<Arena>,
}

impl Graph {
    /// Submits the whole step.
    pub fn replay(&self) -> Result<()> {
        self.cuda.bind()?;
        // SAFETY: instantiated by `capture`; its memory is kept by `_arena` and by the owner of the step.
        unsafe { result::graph::launch(self.exec, self.cuda.stream.0.raw) }.map_err(failed("graph replay"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.cuda.synchronize();
        // SAFETY: instantiated by `capture`, dropped once, not running any more.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

/// Runs a step of fixed shapes and addresses: eagerly the first time, captured the second, replayed from then
/// on. On the CPU, or with `graphs` off, always eagerly. The results are the same bytes either way.
pub struct Replay {
    arena: Option<Rc<Arena>>,
    graph: Option<Graph>,
    graphs: bool,
}

impl Replay {
    /// Nothing run yet.
    pub fn new(graphs: bool) -> Replay {
        Replay { arena: None, graph: None, graphs }
    }

    /// Runs `step` once. It must launch the same kernels on the same buffers every time.
    pub fn run(&mut self, device: &super::Device, step: impl FnOnce() -> Result<()>) -> Result<()> {
        let super::Device::Cuda(cuda) = device else { return step() };
        if !self.graphs {
            return step();
        }
        if let Some(g) = &self.graph {
            return g.replay();
        }
        match &self.arena {
            None => {
                let arena = Arena::new(&cuda.stream);
                let done = cuda.inside(&arena, step);
                self.arena = Some(arena);
                done
            }
            Some(arena) => {
                let graph = cuda.capture(arena, step)?;
                graph.replay()?;
                self.graph = Some(graph);
                Ok(())
            }
        }
    }
}
