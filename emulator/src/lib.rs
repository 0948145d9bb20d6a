//! An emulated CUDA driver for tests: every kernel of dalcore, compiled by the host's C++ compiler, behind
//! the driver calls that cudarc makes. Load it with [`install`] (or [`exclusive`]) before anything in the
//! process uses CUDA; the production code then runs unchanged and finds "emulated CUDA device".
//!
//! The checked build finds accesses out of bounds, misaligned or uninitialised, data races, divergent
//! barriers and index overflow, with file and line. What it can not show is in the README.
#![deny(missing_docs)]

use libloading::{Library, Symbol};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};

include!(concat!(env!("OUT_DIR"), "/built.rs"));

/// Which of the two builds of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Instrumented: every access is checked. About ten times slower.
    Checked,
    /// Optimised: only barriers, launches and the guard bytes around allocations are checked.
    Fast,
}

/// How kernels run and what is checked. `Default` reads the environment variables of the README.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Blocks and threads run in a random order, drawn from `seed`.
    pub shuffle: bool,
    /// Streams run only when something waits for them: a missing synchronisation shows.
    pub lazy: bool,
    /// Report data races (checked build).
    pub race: bool,
    /// Report uninitialised reads (checked build).
    pub init: bool,
    /// Count memory transactions and bank conflicts for [`profile`] (checked build).
    pub profile: bool,
    /// Of the random order.
    pub seed: u64,
    /// Bytes of device memory. An allocation beyond them fails as it does on a GPU.
    pub memory: u64,
}

impl Default for Options {
    fn default() -> Self {
        let number =
            |key: &str, default| std::env::var(key).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
        let checks = std::env::var("EMU_CHECKS").unwrap_or_else(|_| "race,init".into());
        Options {
            shuffle: number("EMU_SHUFFLE", 0) != 0,
            lazy: number("EMU_LAZY", 0) != 0,
            race: checks.contains("race"),
            init: checks.contains("init"),
            profile: number("EMU_PROFILE", 0) != 0,
            seed: number("EMU_SEED", 1),
            memory: number("EMU_MEMORY", 4 << 30),
        }
    }
}

/// What has happened since the driver was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Kernels run.
    pub launches: u64,
    /// CUDA threads run.
    pub threads: u64,
    /// Block-wide barriers that all threads of a block have passed.
    pub barriers: u64,
    /// Warp-wide instructions.
    pub warp_syncs: u64,
    /// Accesses to global and shared memory (checked build).
    pub accesses: u64,
    /// Atomic operations.
    pub atomics: u64,
}

/// What one access in the source has cost, over all launches since the last [`profile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `file:line`, or the offset in the library where no debug information could be read.
    pub place: String,
    /// Shared memory, otherwise global.
    pub shared: bool,
    /// A write, otherwise a read.
    pub write: bool,
    /// How often a warp has come here.
    pub requests: u64,
    /// Sectors of 32 bytes (global), or passes over the banks (shared).
    pub cost: u64,
    /// The least that the same bytes could have cost.
    pub ideal: u64,
}

struct Installed {
    kind: Kind,
    library: Library,
}
static INSTALLED: OnceLock<Result<Installed, String>> = OnceLock::new();
static EXCLUSIVE: Mutex<()> = Mutex::new(());

/// Loads the emulated driver in the real one's place, with the default [`Options`]. It must come before the
/// first use of CUDA in the process. A second call with the same kind does nothing; there is one driver per
/// process, so another kind is an error. The error says why tests on the emulated driver are skipped.
pub fn install(kind: Kind) -> Result<(), String> {
    let installed = INSTALLED.get_or_init(|| {
        let loaded = load(kind)?;
        apply(&loaded.library, &Options::default());
        Ok(loaded)
    });
    match installed {
        Ok(i) if i.kind == kind => Ok(()),
        Ok(i) => Err(format!("this process already runs on the {:?} emulated driver, not {kind:?}", i.kind)),
        Err(why) => Err(why.clone()),
    }
}

fn load(kind: Kind) -> Result<Installed, String> {
    let path = match kind {
        Kind::Checked => CHECKED,
        Kind::Fast => FAST,
    };
    let path: &str = path.ok_or("the emulated driver exists for x86-64 Linux only: its tests are skipped")?;
    // SAFETY: our own library; its initialisers only fill the table of kernels.
    let library =
        unsafe { Library::new(path) }.map_err(|e| format!("the emulated driver does not load: {e}"))?;
    // Its SONAME is libcuda.so, so this finds the library that is already there, unless another driver came
    // first. SAFETY: as above; the check is that it is indeed ours.
    let found = unsafe { Library::new("libcuda.so") }.map_err(|e| format!("libcuda.so is not found: {e}"))?;
    // SAFETY: the symbol is only looked up.
    if unsafe { found.get::<*const c_void>(b"emu_options") }.is_err() {
        return Err("another CUDA driver was loaded before the emulated one".into());
    }
    Ok(Installed { kind, library })
}

fn library() -> Option<&'static Library> {
    INSTALLED.get()?.as_ref().ok().map(|i| &i.library)
}

/// A function of the library, which driver.cpp defines with the same signature.
fn symbol<'a, F>(library: &'a Library, name: &str) -> Symbol<'a, F> {
    // SAFETY: each caller states the signature that driver.cpp has; the library is never unloaded.
    unsafe { library.get(name.as_bytes()) }
        .unwrap_or_else(|e| panic!("the emulated driver lacks {name}: {e}"))
}

fn apply(library: &Library, o: &Options) {
    type Set = unsafe extern "C" fn(c_int, c_int, c_int, c_int, c_int, u64, u64);
    let set: Symbol<Set> = symbol(library, "emu_options");
    let flag = |b: bool| c_int::from(b);
    // SAFETY: plain values.
    unsafe {
        set(flag(o.shuffle), flag(o.lazy), flag(o.race), flag(o.init), flag(o.profile), o.seed, o.memory)
    }
}

/// Changes how the following launches run. Without an installed driver nothing happens.
pub fn set_options(options: &Options) {
    if let Some(library) = library() {
        apply(library, options);
    }
}

/// What the last fault was, with kernel, block, thread, file and line; empty when there was none. Clears the
/// fault: until then every driver call fails, as on a GPU.
pub fn take_error() -> String {
    let Some(library) = library() else { return String::new() };
    let take: Symbol<unsafe extern "C" fn() -> *const c_char> = symbol(library, "emu_take_error");
    // SAFETY: a string that belongs to this thread and lives until its next call.
    unsafe { CStr::from_ptr(take()) }.to_string_lossy().into_owned()
}

/// The counters.
pub fn stats() -> Stats {
    let Some(library) = library() else { return Stats::default() };
    let get: Symbol<unsafe extern "C" fn(*mut u64)> = symbol(library, "emu_stats");
    let mut n = [0u64; 6];
    // SAFETY: driver.cpp writes six numbers.
    unsafe { get(n.as_mut_ptr()) };
    let [launches, threads, barriers, warp_syncs, accesses, atomics] = n;
    Stats { launches, threads, barriers, warp_syncs, accesses, atomics }
}

struct RawLine {
    named: Option<String>,
    pc: u64,
    line: Line,
}

#[allow(clippy::too_many_arguments)] // one line of the profile, field by field
extern "C" fn collect_line(
    to: *mut c_void,
    file: *const c_char,
    line: c_int,
    pc: u64,
    shared: c_int,
    write: c_int,
    requests: u64,
    cost: u64,
    ideal: u64,
) {
    let named = (!file.is_null()).then(|| {
        // SAFETY: __builtin_FILE, a constant of the library.
        let file = unsafe { CStr::from_ptr(file) }.to_string_lossy().into_owned();
        format!("{}:{line}", file.rsplit('/').next().unwrap_or_default())
    });
    let line = Line { place: String::new(), shared: shared != 0, write: write != 0, requests, cost, ideal };
    // SAFETY: `to` is the vector that profile() passes through the library to here.
    unsafe { &mut *to.cast::<Vec<RawLine>>() }.push(RawLine { named, pc, line });
}

/// Memory transactions and bank conflicts of every access, in the order of the source, since the last call.
/// Needs [`Options::profile`] and the checked build.
pub fn profile() -> Vec<Line> {
    let Some(library) = library() else { return Vec::new() };
    type Each = extern "C" fn(*mut c_void, *const c_char, c_int, u64, c_int, c_int, u64, u64, u64);
    let get: Symbol<unsafe extern "C" fn(Each, *mut c_void)> = symbol(library, "emu_profile");
    let mut raw: Vec<RawLine> = Vec::new();
    // SAFETY: the callback gets this vector back, during the call only.
    unsafe { get(collect_line, (&raw mut raw).cast()) };
    raw.sort_by_key(|r| r.pc);
    let pcs: Vec<u64> = raw.iter().filter(|r| r.named.is_none()).map(|r| r.pc).collect();
    let names = source_lines(&pcs);
    let name = |r: RawLine| {
        let place = r.named.or_else(|| names.get(&r.pc).cloned()).unwrap_or_else(|| format!("+{:#x}", r.pc));
        Line { place, ..r.line }
    };
    raw.into_iter().map(name).collect()
}

/// `file:line` of offsets in the checked library, as far as addr2line (of binutils) can tell.
fn source_lines(pcs: &[u64]) -> HashMap<u64, String> {
    let (Some(path), false) = (CHECKED, pcs.is_empty()) else { return HashMap::new() };
    // A return address lies behind its call.
    let addresses = pcs.iter().map(|pc| format!("{:#x}", pc.saturating_sub(1)));
    let Ok(output) = Command::new("addr2line").args(["-s", "-e", path]).args(addresses).output() else {
        return HashMap::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().map(|l| l.split(' ').next().unwrap_or_default().to_string());
    pcs.iter().copied().zip(names).filter(|(_, name)| !name.starts_with('?')).collect()
}

/// The names of all product kernels that were compiled in.
pub fn kernels() -> Vec<String> {
    KERNELS.iter().map(|k| k.to_string()).collect()
}

extern "C" fn collect_name(to: *mut c_void, name: *const c_char) {
    // SAFETY: `to` is the vector that launched() passes through the library; the name is a constant of the
    // library.
    unsafe { (*to.cast::<Vec<String>>()).push(CStr::from_ptr(name).to_string_lossy().into_owned()) }
}

/// The names of the kernels that have run so far in this process, sorted.
pub fn launched() -> Vec<String> {
    let Some(library) = library() else { return Vec::new() };
    type Each = extern "C" fn(*mut c_void, *const c_char);
    let get: Symbol<unsafe extern "C" fn(Each, *mut c_void)> = symbol(library, "emu_launched");
    let mut names: Vec<String> = Vec::new();
    // SAFETY: the callback gets this vector back, during the call only.
    unsafe { get(collect_name, (&raw mut names).cast()) };
    names.sort();
    names
}

/// The device belongs to one test while this lives. Default options come back when it is dropped.
pub struct Guard(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Drop for Guard {
    fn drop(&mut self) {
        take_error();
        set_options(&Options::default());
    }
}

/// Waits until no other test has the device, installs the driver and sets the options. Options, faults and
/// counters are the process's, so tests in one binary that look at them must take turns.
pub fn exclusive(kind: Kind, options: &Options) -> Result<Guard, String> {
    // A test that failed while it had the device does not spoil it for the next one.
    let turn = EXCLUSIVE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    install(kind)?;
    set_options(options);
    take_error();
    Ok(Guard(turn))
}
