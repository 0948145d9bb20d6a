//! `dalcore device`.

use crate::device::{self, Choice, Cuda};

pub fn device_command(bench: bool) -> anyhow::Result<()> {
    device::cpu::set_threads(0)?;
    println!("CPU: {}, {} threads", device::cpu::name(), rayon::current_num_threads());
    match Cuda::open(0) {
        Ok(c) => {
            let (major, minor) = c.capability();
            let (free, total) = c.memory()?;
            println!(
                "CUDA: {}, compute capability {major}.{minor}, {} multiprocessors, {} of {} MiB free, driver {}",
                c.name(),
                c.multiprocessors(),
                free >> 20,
                total >> 20,
                c.driver_version()
            );
            println!("--device auto uses CUDA");
        }
        Err(why) => {
            println!("CUDA: not used, because {why}");
            println!("--device auto uses the CPU");
        }
    }
    if bench {
        println!("measured, best of eight:");
        let cuda = Choice::Cuda(0).open().ok();
        for device in [Some(device::Device::Cpu), cuda].into_iter().flatten() {
            let r = device::roofline::rates(&device)?;
            let tensor = r.tensor.map_or(String::new(), |t| format!(", bf16 tensor {:.1} TFLOP/s", t * 1e-12));
            let (copy, fma) = (r.copy * 1e-9, r.fma * 1e-9);
            println!("  {}: copy {copy:.1} GB/s, f32 multiply-add {fma:.1} GFLOP/s{tensor}", device.name());
        }
    }
    Ok(())
}
