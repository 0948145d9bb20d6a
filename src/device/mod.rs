//! Where the arithmetic happens: the CPU, or one CUDA device.
//!
//! There is no backend trait: an operation matches on [`Device`], and all a GPU must offer is *launch a kernel*.

pub mod cpu;
pub mod cuda;
pub(crate) mod lane;
pub mod launch;
pub mod microkernel;
pub mod roofline;
pub mod simd;
pub(crate) mod sparse;
pub(crate) mod winograd;

use std::rc::Rc;

pub use cuda::{Cuda, Graph, NoCuda};
pub use launch::Launch;

use crate::{Error, Result};

/// The CPU, or a CUDA device (a real driver, or an emulated one in tests).
#[derive(Clone)]
pub enum Device {
    /// This machine's processor, by way of rayon's threads.
    Cpu,
    /// A CUDA device with one stream.
    Cuda(Rc<Cuda>),
}

/// What the user asked for with `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// CUDA if it can be used, otherwise the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA device number n, or an error.
    Cuda(usize),
}

impl std::str::FromStr for Choice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Choice> {
        match s.split_once(':') {
            None if s == "auto" => Ok(Choice::Auto),
            None if s == "cpu" => Ok(Choice::Cpu),
            None if s == "cuda" => Ok(Choice::Cuda(0)),
            Some(("cuda", n)) if n.parse::<usize>().is_ok() => Ok(Choice::Cuda(n.parse().unwrap_or(0))),
            _ => Err(Error::Config {
                key: "--device".into(),
                why: format!("'{s}' is not a device; use auto, cpu, cuda or cuda:N"),
            }),
        }
    }
}

impl Choice {
    /// Opens the chosen device.
    pub fn open(self) -> Result<Device> {
        match self {
            Choice::Cpu => Ok(Device::Cpu),
            Choice::Auto => Ok(Cuda::open(0).map_or(Device::Cpu, |c| Device::Cuda(Rc::new(c)))),
            Choice::Cuda(n) => match Cuda::open(n) {
                Ok(c) => Ok(Device::Cuda(Rc::new(c))),
                Err(why) => Err(Error::Config {
                    key: "--device cuda".into(),
                    why: format!("CUDA cannot be used: {why}; or run with --device cpu"),
                }),
            },
        }
    }
}

impl Device {
    /// A name for manifests and reports.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu => cpu::name(),
            Device::Cuda(c) => c.name().to_string(),
        }
    }

    /// The driver's version for manifests; empty on the CPU.
    pub fn driver(&self) -> String {
        match self {
            Device::Cpu => String::new(),
            Device::Cuda(c) => c.driver_version(),
        }
    }

    /// Waits until everything submitted has run.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(c) => c.synchronize(),
        }
    }

    /// True for the CPU.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Device::Cpu)
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu, Device::Cpu) => true,
            (Device::Cuda(a), Device::Cuda(b)) => Rc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_cpu() { "cpu" } else { "cuda" })
    }
}
