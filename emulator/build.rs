//! Compiles every kernel twice with the host's C++ compiler, into two libraries that pass for `libcuda.so`.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

/// Flags of every compilation. `-ffp-contract=off`: a sum of products must not depend on whether this compiler
/// fuses it; where a kernel wants a fused multiply-add it says so with `fmaf`. `-fno-math-errno` and
/// `-fno-trapping-math` change no value, they let `sqrtf` and comparisons be single instructions.
/// `-w`: nvcc is the compiler that reports warnings about kernels, once is enough.
const COMMON: &[&str] = &[
    "-std=c++17",
    "-w",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
];

/// The sanitizers' instrumentation without their run-time libraries: `emu/checks.cpp` has the hooks.
const SANITIZE: &str =
    "-fsanitize=thread,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero";

/// Sources of the emulated driver itself.
const RUNTIME: &[&str] = &["engine", "checks", "driver"];

/// One way of building everything.
struct Build {
    suffix: &'static str,
    runtime: &'static [&'static str],
    kernels: &'static [&'static str],
}

const BUILDS: &[Build] = &[
    Build { suffix: "fast", runtime: &["-O2"], kernels: &["-O2"] },
    Build {
        suffix: "checked",
        runtime: &["-O2", "-DEMU_CHECK"],
        // Without the vectoriser, so that one access in the source is one access at run time.
        kernels: &["-O1", "-g", "-fno-tree-vectorize", "-DEMU_CHECK", SANITIZE],
    },
];

/// A kernel's entry point as found in the source text.
struct Entry {
    name: String,
    /// The first argument of `__launch_bounds__`, or 1024.
    max_threads: String,
}

struct Job {
    source: PathBuf,
    object: PathBuf,
    flags: Vec<String>,
    /// Everything the object depends on, hashed. An object with the same key is kept.
    key: u64,
}

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let product = root.join("../kernels");
    for path in [&product, &root.join("kernels"), &root.join("emu"), &root.join("build.rs")] {
        println!("cargo:rerun-if-changed={}", path.display());
    }

    println!("cargo:rerun-if-env-changed=CXX");

    let target = |key: &str| env::var(key).unwrap_or_default();
    if target("CARGO_CFG_TARGET_OS") != "linux" || target("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        let library = "Option<&str> = None;";
        let none =
            format!("const FAST: {library}\nconst CHECKED: {library}\nconst KERNELS: &[&str] = &[];\n");
        write(&out.join("built.rs"), &none);
        return;
    }

    let compiler = compiler();
    let mut names = Vec::new();
    let mut table = String::new();
    let mut wrappers = Vec::new();
    for (folder, is_product) in [(&product, true), (&root.join("kernels"), false)] {
        for source in kernel_files(folder) {
            let (text, entries) = wrapper(&source, is_product);
            let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let path = out.join(format!("{}_{stem}.cpp", if is_product { "product" } else { "own" }));
            write(&path, &text);
            wrappers.push((path, source));
            if is_product {
                names.extend(entries);
            }
        }
    }

    let headers =
        hash_files([&product, &root.join("emu")].into_iter().flat_map(|d| files(d, &["h", "cuh"])).collect());
    let include = [format!("-I{}", root.join("emu").display()), format!("-I{}", product.display())];
    let mut jobs = Vec::new();
    for build in BUILDS {
        let runtime = RUNTIME.iter().map(|n| (root.join(format!("emu/{n}.cpp")), None, build.runtime));
        let kernels = wrappers.iter().map(|(w, s)| (w.clone(), Some(s.clone()), build.kernels));
        for (source, kernel, extra) in runtime.chain(kernels) {
            let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let mut flags: Vec<String> = COMMON.iter().chain(extra).map(|s| s.to_string()).collect();
            flags.extend(include.clone());
            flags.extend(machine_flags());
            let mut hasher = DefaultHasher::new();
            let sources = [Some(source.clone()), kernel].into_iter().flatten().collect();
            (headers, hash_files(sources), &flags, format!("{compiler:?}")).hash(&mut hasher);
            let object = out.join(format!("{stem}_{}.o", build.suffix));
            jobs.push(Job { source, object, flags, key: hasher.finish() });
        }
    }
    compile_all(&compiler, &jobs);

    for build in BUILDS {
        let library = out.join(format!("libdalcore_emulator_{}.so", build.suffix));
        let ending = format!("_{}.o", build.suffix);
        let objects = jobs.iter().map(|j| &j.object).filter(|o| o.to_string_lossy().ends_with(&ending));
        let mut link = command(&compiler);
        link.args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,-z,defs", "-o"]).arg(&library);
        link.args(objects).args(["-lpthread", "-ldl", "-lm"]);
        run(link, "linking the emulated driver");
        let name = build.suffix.to_uppercase();
        _ = writeln!(table, "const {name}: Option<&str> = Some({library:?});");
    }
    _ = writeln!(table, "const KERNELS: &[&str] = &{names:?};");
    write(&out.join("built.rs"), &table);
}

/// The program and the arguments that always go with it (`CXX="ccache g++"` has one).
fn compiler() -> Vec<String> {
    let mut build = cc::Build::new();
    build.cpp(true).no_default_flags(true).warnings(false).extra_warnings(false).cargo_output(false);
    let tool = build.try_get_compiler();
    let found = tool.map(|tool| {
        let command = tool.to_command();
        let words = [command.get_program()].into_iter().chain(command.get_args().filter(|a| *a != "-w"));
        words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    let found = found.unwrap_or_else(|_| vec!["c++".into()]);
    if !command(&found).arg("--version").output().is_ok_and(|o| o.status.success()) {
        let tried = found.join(" ");
        stop(&format!("tests need a C++17 compiler and `{tried}` does not run: install g++, or set CXX"));
    }
    found
}

fn command(compiler: &[String]) -> Command {
    let mut c = Command::new(&compiler[0]);
    c.args(&compiler[1..]);
    c
}

/// The library is used on the machine that builds it and never shipped, so it may use that machine's fused
/// multiply-add. Without the flag every `fmaf` is a call into the C library, which emulates it in software.
fn machine_flags() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("fma") {
        return vec!["-mfma".into()];
    }
    Vec::new()
}

fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|e| Some(e.ok()?.path()));
    let mut found: Vec<_> =
        paths.filter(|p| p.extension().is_some_and(|e| endings.iter().any(|x| e == *x))).collect();
    found.sort();
    found
}

fn kernel_files(folder: &Path) -> Vec<PathBuf> {
    files(folder, &["cu"])
}

fn hash_files(paths: Vec<PathBuf>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        (&path, fs::read(&path).unwrap_or_default()).hash(&mut hasher);
    }
    hasher.finish()
}

/// The translation unit that holds one kernel file and registers its entry points. The file goes into an
/// unnamed namespace: two kernel files may both define `load_tile`, and outside of one the linker would silently
/// keep only one of two templates or inline functions with the same name.
fn wrapper(source: &Path, is_product: bool) -> (String, Vec<String>) {
    let text = fs::read_to_string(source).unwrap_or_else(|e| stop(&format!("{}: {e}", source.display())));
    let entries = entry_points(&text);
    let mut unit = format!("#include \"common.cuh\"\nnamespace {{\n#include {source:?}\n}}  // namespace\n");
    for Entry { name, max_threads } in &entries {
        _ = writeln!(unit, "EMU_REGISTER({name}, {is_product}, {max_threads})");
    }
    (unit, entries.into_iter().map(|e| e.name).collect())
}

/// Finds the lines that start with `KERNEL name(` or `KERNEL __launch_bounds__(n) name(`; `VARIANT(name)` in the place of
/// a name stands for one kernel for each word of the file's first line, `// Variants: ...`. What stands between
/// `#ifdef __CUDACC__` and its `#else` or `#endif` is for nvcc alone and left out.
fn entry_points(text: &str) -> Vec<Entry> {
    let mut found = Vec::new();
    let variants = text.lines().next().and_then(|l| l.strip_prefix("// Variants: ")).unwrap_or_default();
    let mut hidden: Vec<bool> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let here = at;
        at += line.len();
        let line = line.trim_start();
        let here = here + (text[here..at].len() - line.len());
        if line.starts_with("#if") {
            let nvcc = line.contains("__CUDACC__") && !line.starts_with("#ifndef") && !line.contains('!');
            hidden.push(nvcc);
        } else if line.starts_with("#else") {
            // Whatever was visible stays so: both halves of an ordinary #if may hold kernels.
            if let Some(h) = hidden.last_mut() {
                *h = false;
            }
        } else if line.starts_with("#endif") {
            hidden.pop();
        }
        if !line.starts_with("KERNEL ") || hidden.contains(&true) {
            continue;
        }
        let mut rest = text[here + "KERNEL ".len()..].trim_start();
        let mut max_threads = "1024".to_string();
        if let Some(bounds) = rest.strip_prefix("__launch_bounds__(") {
            let end = closing(bounds);
            max_threads = bounds[..end].split(',').next().unwrap_or("1024").trim().to_string();
            rest = bounds[end + 1..].trim_start();
        }
        let rest_plain = rest.strip_prefix("VARIANT(");
        let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(inner) = rest_plain {
            let name = word(inner);
            found.extend(
                variants
                    .split_whitespace()
                    .map(|v| Entry { name: format!("{name}_{v}"), max_threads: max_threads.clone() }),
            );
            continue;
        }
        let name = word(rest);
        if !name.is_empty() && rest[name.len()..].trim_start().starts_with('(') {
            found.push(Entry { name, max_threads });
        }
    }
    found
}

/// Where the parenthesis that is open at the start of `text` closes.
fn closing(text: &str) -> usize {
    let mut depth = 1;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    stop("a __launch_bounds__( is never closed")
}

/// Compiles what has changed, one process per core.
fn compile_all(compiler: &[String], jobs: &[Job]) {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let workers = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = compile(compiler, job) {
                        next.store(jobs.len(), Ordering::Relaxed);
                        failed.lock().expect("no thread panics").get_or_insert(message);
                    }
                }
            });
        }
    });
    if let Some(message) = failed.into_inner().expect("no thread panics") {
        stop(&message);
    }
}

fn compile(compiler: &[String], job: &Job) -> Result<(), String> {
    let mark = job.object.with_extension("key");
    let key = format!("{:016x}", job.key);
    if job.object.exists() && fs::read_to_string(&mark).is_ok_and(|k| k == key) {
        return Ok(());
    }
    let mut c = command(compiler);
    c.args(&job.flags).arg("-c").arg(&job.source).arg("-o").arg(&job.object);
    let output = c.output().map_err(|e| format!("{c:?}: {e}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("the host compiler refuses {}:\n{errors}", job.source.display()));
    }
    write(&mark, &key);
    Ok(())
}

fn run(mut c: Command, what: &str) {
    match c.output() {
        Ok(o) if o.status.success() => {}
        Ok(o) => stop(&format!("{what} failed:\n{}", String::from_utf8_lossy(&o.stderr))),
        Err(e) => stop(&format!("{what} failed: {e}")),
    }
}

/// Writes a file, but leaves one with the same content alone.
fn write(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    if let Err(e) = fs::write(path, text) {
        stop(&format!("{}: {e}", path.display()));
    }
}

/// Ends the build with a sentence instead of a panic's backtrace.
fn stop(message: &str) -> ! {
    eprintln!("dalcore-emulator: {message}");
    exit(1)
}
