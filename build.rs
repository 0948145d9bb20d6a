//! Compiles `kernels/*.cu` with nvcc where there is one, and writes a typed launcher for every kernel.
//!
//! Without nvcc the same build succeeds, says so in one line, and the program runs on the CPU; the feature
//! `cuda` turns that into an error. A GPU is never needed to build.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Stops the build with one sentence.
fn stop(message: impl std::fmt::Display) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1);
}

fn main() {
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { stop("cargo sets OUT_DIR") };
    for path in ["build.rs", "kernels", ".git/HEAD", ".git/refs/heads"] {
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    for key in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "DALCORE_ARCH"] {
        println!("cargo::rerun-if-env-changed={key}");
    }
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .map(|d| d.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "cu")).collect())
        .unwrap_or_default();
    sources.sort();

    let arch = env::var("DALCORE_ARCH").unwrap_or_else(|_| "90a".into());
    let nvcc = nvcc_candidates()
        .into_iter()
        .find(|p| Command::new(p).arg("--version").output().is_ok_and(|o| o.status.success()));
    let mut modules = String::new();
    match &nvcc {
        Some(nvcc) => modules = compile(nvcc, &arch, &sources, &out),
        None if env::var_os("CARGO_FEATURE_CUDA").is_some() => stop(
            "the feature 'cuda' needs nvcc: set NVCC or CUDA_HOME, or \
             pip install 'cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.2'",
        ),
        None => println!("cargo::warning=nvcc was not found: building for the CPU only (see README, \"CUDA\")"),
    }
    let mut text = format!(
        "/// Compiled kernels: file stem and fat binary.\n\
         pub(crate) static MODULES: &[(&str, &[u8])] = &[{modules}];\n\
         /// CUDA architectures in this binary; empty without nvcc.\n\
         pub const ARCHITECTURES: &str = {:?};\n\
         /// The commit this was built from.\n\
         pub const COMMIT: &str = {:?};\n",
        if nvcc.is_some() {
            format!("sm_{} compute_80", arch.split_whitespace().collect::<Vec<_>>().join(" sm_"))
        } else {
            String::new()
        },
        commit(),
    );
    let mut table = String::new();
    for s in &sources {
        let stem = stem(s);
        let Ok(source) = fs::read_to_string(s) else { stop(format!("{} cannot be read", s.display())) };
        for k in kernels(s, &source) {
            let full = |v: &String| format!("{}_{v}", k.name);
            let names =
                if k.variants.is_empty() { vec![k.name.clone()] } else { k.variants.iter().map(full).collect() };
            table.extend(names.iter().map(|n| format!("    ({n:?}, {stem:?}),\n")));
            text += &launcher(&k);
        }
    }
    text += &format!("/// Every kernel and the file it is in.\npub static KERNELS: &[(&str, &str)] = &[\n{table}];\n");
    if let Err(e) = fs::write(out.join("launch.rs"), text) {
        stop(format!("{}: {e}", out.join("launch.rs").display()));
    }
}

fn stem(p: &Path) -> String {
    p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Where an nvcc may be, in the order they are tried.
fn nvcc_candidates() -> Vec<PathBuf> {
    let mut v: Vec<PathBuf> = env::var_os("NVCC").map(PathBuf::from).into_iter().collect();
    for key in ["CUDA_HOME", "CUDA_PATH"] {
        v.extend(env::var_os(key).map(|p| Path::new(&p).join("bin/nvcc")));
    }
    v.extend(env::var_os("PATH").iter().flat_map(env::split_paths).map(|d| d.join("nvcc")));
    v.push("/usr/local/cuda/bin/nvcc".into());
    // Wheels from PyPI put it into site-packages.
    let list = "import site,sysconfig;print('\\n'.join({sysconfig.get_paths()['purelib'],\
                *site.getsitepackages(),site.getusersitepackages()}))";
    if let Ok(o) = Command::new("python3").args(["-c", list]).output() {
        v.extend(String::from_utf8_lossy(&o.stdout).lines().map(|d| Path::new(d).join("nvidia/cu13/bin/nvcc")));
    }
    v
}

/// One fat binary per file, two compilers at a time; returns the entries of the module table.
fn compile(nvcc: &Path, arch: &str, sources: &[PathBuf], out: &Path) -> String {
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2usize).max(1);
    let mut entries = String::new();
    for group in sources.chunks(jobs) {
        let running: Vec<_> = group
            .iter()
            .map(|s| {
                let bin = out.join(format!("{}.fatbin", stem(s)));
                let mut c = Command::new(nvcc);
                c.args(["-std=c++17", "-O3", "-lineinfo", "-fatbin", "--compress-mode=size"])
                    .arg(s)
                    .arg("-o")
                    .arg(&bin);
                for a in arch.split_whitespace() {
                    c.arg(format!("-gencode=arch=compute_{a},code=sm_{a}"));
                }
                c.arg("-gencode=arch=compute_80,code=compute_80");
                c.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
                match c.spawn() {
                    Ok(child) => (s, bin, child),
                    Err(e) => stop(format!("{} does not start: {e}", nvcc.display())),
                }
            })
            .collect();
        for (s, bin, child) in running {
            let said = match child.wait_with_output() {
                Ok(o) => o,
                Err(e) => stop(format!("{}: {e}", nvcc.display())),
            };
            let text = String::from_utf8_lossy(&said.stderr);
            if !said.status.success() {
                eprintln!("{text}");
                stop(format!("nvcc failed on {} (its output is above)", s.display()));
            }
            for line in text.lines() {
                println!("cargo::warning={line}");
            }
            entries += &format!("({:?}, include_bytes!({bin:?})),", stem(s));
        }
    }
    entries
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let o = Command::new("git").args(args).output().ok()?;
        o.status.success().then(|| String::from_utf8_lossy(&o.stdout).trim().to_string())
    };
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into())
}

/// A kernel's name without the variant, the variants it exists in (none: just the name), and its parameters.
struct Kernel {
    name: String,
    variants: Vec<String>,
    params: Vec<(String, String)>,
}

/// The signatures of a file: `KERNEL name(` and then one parameter per line, up to `)`. `KERNEL VARIANT(name)(` stands
/// for one kernel for each name on the file's first line, `// Variants: ...`.
fn kernels(path: &Path, source: &str) -> Vec<Kernel> {
    let mut found = Vec::new();
    let first = source.lines().next().unwrap_or_default();
    let of_file = first.strip_prefix("// Variants: ").unwrap_or_default();
    let mut lines = source.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(rest) = line.trim_start().strip_prefix("KERNEL ") else { continue };
        let place = format!("{}:{}", path.display(), at + 1);
        let Some(name) = rest.trim().strip_suffix('(') else {
            stop(format!("{place}: write a kernel as 'KERNEL name(' and one parameter per line"));
        };
        let name = name.split_whitespace().last().unwrap_or_default();
        let plain = name.strip_prefix("VARIANT(").and_then(|n| n.strip_suffix(')'));
        let variants = plain.map_or(Vec::new(), |_| of_file.split_whitespace().map(String::from).collect());
        let name = plain.unwrap_or(name).to_string();
        let mut params = Vec::new();
        for (at, line) in lines.by_ref() {
            let line = line.split("//").next().unwrap_or_default().trim();
            if line.starts_with(')') {
                break;
            }
            if line.is_empty() {
                continue;
            }
            let p = line.trim_end_matches(',').replace("__restrict__", " ").replace('*', " * ");
            let mut words: Vec<&str> = p.split_whitespace().collect();
            let Some(pname) = words.pop().filter(|_| !words.is_empty()) else {
                stop(format!("{}:{}: cannot read the parameter '{line}'", path.display(), at + 1));
            };
            let Some(ty) = rust_type(&words.join(" ")) else {
                stop(format!(
                    "{}:{}: '{}' is not among the parameter types launchers know (float, double, bf16, uint8_t, \
                     uint32_t, uint64_t pointers; int, uint32_t, float)",
                    path.display(),
                    at + 1,
                    words.join(" ")
                ));
            };
            params.push((pname.to_string(), ty.to_string()));
        }
        let first_input = params.iter().position(|p| !p.1.starts_with("&mut")).unwrap_or(params.len());
        if params.iter().skip(first_input).any(|p| p.1.starts_with("&mut")) {
            stop(format!("{place}: {name}: outputs come first"));
        }
        found.push(Kernel { name, variants, params });
    }
    found
}

fn rust_type(cuda: &str) -> Option<&'static str> {
    Some(match cuda {
        "float *" => "&mut Buf<f32>",
        "const float *" => "&Buf<f32>",
        "double *" => "&mut Buf<f64>",
        "const double *" => "&Buf<f64>",
        "bf16 *" => "&mut Buf<bf16>",
        "const bf16 *" => "&Buf<bf16>",
        "Stored *" => "&mut Buf<S>",
        "const Stored *" => "&Buf<S>",
        "uint8_t *" => "&mut Buf<u8>",
        "const uint8_t *" => "&Buf<u8>",
        "uint32_t *" => "&mut Buf<u32>",
        "const uint32_t *" => "&Buf<u32>",
        "uint64_t *" => "&mut Buf<u64>",
        "const uint64_t *" => "&Buf<u64>",
        "int" => "i32",
        "uint32_t" => "u32",
        "float" => "f32",
        _ => return None,
    })
}

/// The Rust function that launches `k`: generic over the stored type where the variants are float types, otherwise
/// with the number of the variant as an argument.
fn launcher(k: &Kernel) -> String {
    let name = &k.name;
    let sig: String = k.params.iter().map(|(n, t)| format!(", {n}: {t}")).collect();
    let args: Vec<String> = k
        .params
        .iter()
        .map(|(n, t)| match t.as_str() {
            "i32" => format!("Arg::I32({n})"),
            "u32" => format!("Arg::U32({n})"),
            "f32" => format!("Arg::F32({n})"),
            _ => format!("Arg::Ptr({n}.ptr({name:?})?)"),
        })
        .collect();
    let names: Vec<String> = k.variants.iter().map(|v| format!("{name}_{v}")).collect();
    let (generics, first, pick) = match k.variants.as_slice() {
        [] => ("", "", format!("{name:?}")),
        [f32, bf16] if f32 == "f32" && bf16 == "bf16" => ("<S: Stored>", "", format!("S::pick({names:?})")),
        _ => ("", ", variant: usize", format!("{names:?}[variant]")),
    };
    format!(
        "/// Launches the kernel of this name.\n#[allow(clippy::too_many_arguments)]\n\
         pub fn {name}{generics}(cuda: &Cuda, l: Launch{first}{sig}) -> Result<()> {{\n    \
         cuda.launch({pick}, l, &mut [{}])\n}}\n",
        args.join(", ")
    )
}
