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

impl Error {
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
