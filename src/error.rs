//! Everything that can go wrong, each with what a user can do about it.

use crate::tensor::Dtype;

/// The library's only error type. `main` prints it once.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Tensors of the wrong shape were handed to an operation.
    #[error("{op}: wrong shape: wanted {want}, got {got}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// What it wanted.
        want: String,
        /// What it got.
        got: String,
    },
    /// A tensor of the wrong element type.
    #[error("{op}: wrong element type: wanted {want:?}, got {got:?}")]
    Dtype {
        /// The operation that refused.
        op: &'static str,
        /// What it wanted.
        want: Dtype,
        /// What it got.
        got: Dtype,
    },
    /// Tensors on the wrong device, or a device that cannot be used.
    #[error("{op}: {why}")]
    Device {
        /// The operation that refused.
        op: &'static str,
        /// The reason.
        why: String,
    },
    /// A graph was used after the optimizer moved the parameters it was built from.
    #[error("{what}: the parameters have been updated since this graph was built; run the forward pass again")]
    Stale {
        /// What was attempted.
        what: &'static str,
    },
    /// A NaN or an infinity where none may be.
    #[error("{what}")]
    NonFinite {
        /// Where it appeared and what to do.
        what: String,
    },
    /// The CUDA driver refused a call.
    #[error("CUDA: {call}: {why}")]
    Cuda {
        /// The call or kernel.
        call: String,
        /// The driver's reason.
        why: String,
    },
    /// The device has no memory left.
    #[error("{}", memory(.wanted, .held, .free, .what, .remedy))]
    Memory {
        /// Bytes of the allocation that failed.
        wanted: usize,
        /// Bytes that this program holds on the device, idle ones not counted.
        held: usize,
        /// Free and total bytes of the device, where it says so.
        free: Option<(usize, usize)>,
        /// What needed them; filled in by [`Error::needed_for`].
        what: String,
        /// The option that lowers it.
        remedy: String,
    },
    /// A data file is missing, truncated, corrupt or of the wrong kind.
    #[error("{path}: {why}")]
    Data {
        /// The file or folder.
        path: String,
        /// What is wrong and how to mend it.
        why: String,
    },
    /// A configuration value that cannot be used.
    #[error("{key}: {why}")]
    Config {
        /// The key, option or argument.
        key: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {why}")]
    Io {
        /// The file or folder.
        path: String,
        /// The system's reason and the remedy.
        why: String,
    },
    /// The user asked to stop; everything finished so far is on disk.
    #[error("interrupted: {resume}")]
    Interrupted {
        /// How to go on.
        resume: String,
    },
}

/// The library's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes as people say them.
pub(crate) fn human_bytes(n: usize) -> String {
    match n {
        n if n < 10 << 10 => format!("{n} bytes"),
        n if n < 10 << 20 => format!("{:.1} KiB", n as f64 / 1024.0),
        n if n < 10 << 30 => format!("{:.1} MiB", n as f64 / 1048576.0),
        n => format!("{:.1} GiB", n as f64 / 1073741824.0),
    }
}

fn memory(wanted: &usize, held: &usize, free: &Option<(usize, usize)>, what: &str, remedy: &str) -> String {
    let what = if what.is_empty() { "an operation" } else { what };
    let remedy = match remedy {
        "" => "use a smaller batch (--set train.batch=N, --set eval.batch=N)",
        other => other,
    };
    let free = free.map_or(String::new(), |(free, total)| {
        format!("; {} of the device's {} are free", human_bytes(free), human_bytes(total))
    });
    format!(
        "out of memory on the GPU: {what} needs {} more than the {} in use{free}; {remedy}, close other programs on \
         this GPU, or use --device cpu; what was finished is kept",
        human_bytes(*wanted),
        human_bytes(*held)
    )
}

impl Error {
    /// Says what the memory was for and which option lowers it, where that is not known yet.
    pub fn needed_for(mut self, for_what: impl FnOnce() -> (String, String)) -> Error {
        if let Error::Memory { what, remedy, .. } = &mut self
            && what.is_empty()
        {
            (*what, *remedy) = for_what();
        }
        self
    }

    /// A file-system error about `path`, with a remedy for the causes users meet.
    pub fn io(path: impl AsRef<std::path::Path>, e: &std::io::Error) -> Error {
        use std::io::ErrorKind as K;
        let hint = match e.kind() {
            K::StorageFull | K::QuotaExceeded => "; free some space and start again, finished rounds are kept",
            K::ReadOnlyFilesystem | K::PermissionDenied => "; choose a folder you may write to",
            _ => "",
        };
        Error::Io { path: path.as_ref().display().to_string(), why: format!("{e}{hint}") }
    }

    /// True when the request itself was wrong (exit code 2), not its execution (exit code 1).
    pub fn is_misuse(&self) -> bool {
        matches!(self, Error::Config { .. })
    }
}
