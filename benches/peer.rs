//! One timing per line for `benches/peer.py`, which interleaves them with PyTorch.
//! `peer CASE` runs one case and prints its name and the median of its repetitions in seconds.
//! `peer step NET` times training steps of a network alone, `peer once LAYER` runs one layer forward and backward a
//! single time and `peer layers` lists them with how often a step has them: for profilers. `DALCORE_BENCH_BATCH`,
//! `DALCORE_BENCH_PRECISION=bf16`, `DALCORE_BENCH_STEPS` (default 6).
//! `peer gradient CHECKPOINT RECORDS OUT` writes the gradient of ResNet-18's loss on CIFAR-10 records: `benches/precision.py`.
//! `peer gemm` compares the dense product with the crate `gemm` on the shapes LeNet uses, interleaved here.

use std::rc::Rc;
use std::time::Instant;

#[path = "shapes/mod.rs"]
mod shapes;

use dalcore::clock::Clock;
use dalcore::data::{Dataset, Flip, Images, PoolIdx, cifar, synthetic};
use dalcore::device::cuda::Replay;
use dalcore::device::microkernel::{Panels, product, product_tn};
use dalcore::device::{Choice, Device};
use dalcore::nn::lenet::LeNet;
use dalcore::nn::resnet::ResNet18;
use dalcore::nn::{Ctx, Layout, Mode, Net, checkpoint};
use dalcore::optim::Sgd;
use dalcore::rng::{Purpose, Rng};
use dalcore::tensor::{Buf, Dtype, Tensor};
use dalcore::train::{DeviceData, Forget, MixMatch, Model, Pass, Ssl, Trainer, evaluate};
use dalcore::{Error, Result, bench, ops};

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    dalcore::device::cpu::set_threads(0)?;
    let device = std::env::var("DALCORE_BENCH_DEVICE").unwrap_or_else(|_| "cpu".into()).parse::<Choice>()?.open()?;
    match args.next().as_deref() {
        Some("lenet-train") => println!("lenet-train {}", lenet(&device, true)?),
        Some("lenet-eval") => println!("lenet-eval {}", lenet(&device, false)?),
        Some("lenet-mixmatch") => println!("lenet-mixmatch {}", lenet_mixmatch(&device)?),
        Some("resnet-train") => println!("resnet-train {}", resnet(&device, 3, false)?),
        Some("resnet-mixmatch") => println!("resnet-mixmatch {}", resnet(&device, 3, true)?),
        Some("step") => println!("step {}", step(&args.next().unwrap_or_default(), &device)?),
        Some("gradient") => {
            let files: Vec<String> = args.collect();
            let [checkpoint, records, out] = files.as_slice() else {
                return Err(Error::Config { key: "gradient".into(), why: "CHECKPOINT RECORDS OUT are wanted".into() });
            };
            let file = |path: &String| std::fs::read(path).map_err(|e| Error::io(path, &e));
            let bytes = gradient(&file(checkpoint)?, &file(records)?, &device)?;
            std::fs::write(out, bytes).map_err(|e| Error::io(out, &e))?;
        }
        Some("once") => once(&args.next().unwrap_or_default(), &device)?,
        Some("layers") => {
            let flops = |l: &shapes::Layer| l.case.flops;
            shapes::layers(shapes::number("DALCORE_BENCH_BATCH", 256)?)
                .iter()
                .for_each(|l| println!("{} {} {}", l.case.name, l.times, flops(l)));
        }
        Some("gemm") | None => gemm(),
        Some(other) => {
            let why = format!(
                "there is no case '{other}'; known: lenet-train, lenet-eval, lenet-mixmatch, resnet-train, \
                 resnet-mixmatch, step NET, once LAYER, gradient, layers, gemm"
            );
            return Err(Error::Config { key: "peer".into(), why });
        }
    }
    Ok(())
}

/// Seconds per training step of 128 images, or per evaluation batch of 1,024.
fn lenet(device: &Device, train: bool) -> Result<f64> {
    let images = synthetic::generate(1, synthetic::Split::Train, 128 * 40);
    let labels: Vec<(PoolIdx, u32)> = (0..).map(PoolIdx).zip(images.labels.iter().copied()).collect();
    let test = synthetic::generate(1, synthetic::Split::Test, if train { 128 } else { 10240 });
    let data = DeviceData::new(device, &Dataset::new(&synthetic::SPEC, images, test))?;
    let plain = ops::View::plain(device, &data.spec.mean, &data.spec.std)?;
    if !train {
        let model = Model::fresh(&data, 1, 0)?;
        let mut times = Vec::new();
        for _ in 0..9 {
            let start = Instant::now();
            evaluate(&model, &data, Pass { view: &plain, batch: 1024, graphs: true })?;
            times.push(start.elapsed().as_secs_f64() / 10.0);
        }
        return Ok(median(times));
    }
    training_step(&data, &labels, 24, None)
}

/// Seconds per step of MixMatch with 128 labelled images and two views of 128 others.
fn lenet_mixmatch(device: &Device) -> Result<f64> {
    let images = synthetic::generate(1, synthetic::Split::Train, 128 * 20);
    let labels: Vec<(PoolIdx, u32)> = (0..640).map(PoolIdx).zip(images.labels.iter().copied()).collect();
    let test = synthetic::generate(1, synthetic::Split::Test, 128);
    let data = DeviceData::new(device, &Dataset::new(&synthetic::SPEC, images, test))?;
    training_step(&data, &labels, 12, Some(MixMatch { ssl: &Ssl::default(), keep: &Forget }))
}

/// Seconds per training step of 256 images of ResNet-18, width 16, crops and flips included; or of three times as many.
fn resnet(device: &Device, epochs: u32, mixmatch: bool) -> Result<f64> {
    let r = Rng::new(2);
    let images = |n: usize| Images {
        n,
        h: 32,
        w: 32,
        c: 3,
        pixels: (0..(n * 3072) as u64).map(|e| r.u32(e) as u8).collect(),
        labels: (0..n as u32).map(|i| i % 10).collect(),
    };
    let set = Dataset::new(&cifar::CIFAR10, images(256 * 3), images(10));
    let labels: Vec<(PoolIdx, u32)> = (0..).map(PoolIdx).zip(set.train.labels.iter().copied()).collect();
    let how = MixMatch { ssl: &Ssl::default(), keep: &Forget };
    let labels = if mixmatch { &labels[..256] } else { &labels };
    training_step(&DeviceData::new(device, &set)?, labels, epochs, mixmatch.then_some(how))
}

/// One layer forward and backward, once.
fn once(name: &str, device: &Device) -> Result<()> {
    let layer = shapes::find(name, shapes::number("DALCORE_BENCH_BATCH", 256)?)?;
    let dtype = if layer.in_bf16 { shapes::precision()?.dtype() } else { Dtype::F32 };
    let inputs = layer.case.make(device, dtype)?;
    let y = (layer.case.run)(&inputs)?;
    // The images have no gradient.
    let skip = usize::from(name.ends_with("stem") || name.ends_with("conv1"));
    let wrt: Vec<&Tensor> = inputs.iter().skip(skip).collect();
    y.grad_from(&layer.case.cotangent(&y)?, &wrt)?;
    device.synchronize()
}

/// The gradient of ResNet-18 of width 16 on one batch of CIFAR-10 records (a label, then 32 x 32 pixels of each colour), as
/// the checkpoint of a network that has it for weights.
fn gradient(checkpoint: &[u8], records: &[u8], device: &Device) -> Result<Vec<u8>> {
    let mut layout = Layout::default();
    let net = ResNet18::new(&mut layout, 16, [32, 3], 10)?;
    let mut params = layout.init(device, Rng::new(0))?;
    checkpoint::from_bytes(&mut params, checkpoint)?;
    params.set_precision(shapes::precision()?)?;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for r in records.chunks_exact(3073) {
        labels.push(u32::from(r[0]));
        pixels.extend((0..1024).flat_map(|p| [0, 1024, 2048].map(|colour| r[1 + colour + p])));
    }
    let n = labels.len();
    let pixels = Tensor::new(device, [n, 32, 32, 3], &pixels)?;
    let order = Tensor::new(device, [n], &(0..n as u32).collect::<Vec<_>>())?;
    let labels = Tensor::new(device, [n], &labels)?;
    let view =
        ops::View::plain(device, &cifar::CIFAR10.mean, &cifar::CIFAR10.std)?.stored_as(params.precision().dtype());
    let clock = Rc::new(Clock::new(device)?);
    let x = ops::gather_images(&pixels, &order, &clock, n, &view)?;
    let cx = Ctx::new(Mode::Train, Rng::new(0), &clock, &params);
    let grads = ops::cross_entropy(&net.forward(&x, &cx)?.logits, &labels)?.backward(&params)?;
    let mut of: std::collections::HashMap<_, _> = grads.params().collect();
    let names: Vec<String> = params.slots().iter().map(|s| s.name.clone()).collect();
    params.load(|slot| {
        let i = names.iter().position(|n| *n == slot.name);
        i.and_then(|i| of.remove(&i)).map_or(Ok(vec![0.0; slot.shape.len()]), |g| g.to_vec())
    })?;
    checkpoint::to_bytes(&params)
}

/// Median seconds of a training step on one batch, the gather of its images included.
fn step(net: &str, device: &Device) -> Result<f64> {
    let (mut layout, batch) = (Layout::default(), shapes::number("DALCORE_BENCH_BATCH", 256)?);
    let (net, image): (Box<dyn Net>, _) = match net {
        "lenet" => (Box::new(LeNet::new(&mut layout, 10)), [28, 28, 1]),
        "resnet18-w16" => (Box::new(ResNet18::new(&mut layout, 16, [32, 3], 10)?), [32, 32, 3]),
        "resnet18-w64" => (Box::new(ResNet18::new(&mut layout, 64, [32, 3], 10)?), [32, 32, 3]),
        _ => {
            let why = format!("there is no network '{net}'; known: lenet resnet18-w16 resnet18-w64");
            return Err(Error::Config { key: "step".into(), why });
        }
    };
    let (root, [h, w, c]) = (Rng::new(4), image);
    let mut params = layout.init(device, root.at(Purpose::Init, 0, 0))?;
    params.set_precision(shapes::precision()?)?;
    let mut sgd = Sgd::new(&params, 0.9, 5e-4, Some(0.1))?;
    let pixels: Vec<u8> = (0..(batch * h * w * c) as u64).map(|e| root.u32(e) as u8).collect();
    let pixels = Tensor::new(device, [batch, h, w, c], &pixels)?;
    let order = Tensor::new(device, [batch], &(0..batch as u32).collect::<Vec<_>>())?;
    let labels = Buf::from_host(device, &(0..batch as u32).map(|i| i % 10).collect::<Vec<_>>())?;
    let view = ops::View::train(device, &vec![0.5; c], &vec![0.25; c], 4, Flip::Half, root, 0)?;
    let view = view.stored_as(params.precision().dtype());
    let clock = Rc::new(Clock::new(device)?);
    let (mut replay, mut times) = (Replay::new(true), Vec::new());
    for _ in 0..shapes::number("DALCORE_BENCH_STEPS", 6)? {
        clock.start(0, 0, 0.01)?;
        device.synchronize()?;
        let start = Instant::now();
        replay.run(device, || {
            let x = ops::gather_images(&pixels, &order, &clock, batch, &view)?;
            let y = ops::gather_labels(&labels, &order, &clock, batch)?;
            let cx = Ctx::new(Mode::Train, root.at(Purpose::Dropout, 0, 0), &clock, &params);
            let loss = ops::cross_entropy(&net.forward(&x, &cx)?.logits, &y)?;
            let grads = loss.backward(&params)?;
            let seen = cx.into_seen();
            drop(loss);
            sgd.step(&mut params, &grads, &clock)?;
            params.absorb(&seen)?;
            clock.advance(batch)
        })?;
        device.synchronize()?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

/// Median over the epochs of the seconds of a training step.
fn training_step(data: &DeviceData, labels: &[(PoolIdx, u32)], epochs: u32, mixmatch: Option<MixMatch>) -> Result<f64> {
    let parts = if mixmatch.is_some() { 3.0 } else { 1.0 };
    let preset = bench::config::Preset::find("paper")?.1;
    let mut recipe = bench::config::Config::base(&data.spec, &preset, bench::config::Profile::Clean).train;
    recipe.epochs = epochs;
    let rates = std::cell::RefCell::new(Vec::new());
    let trainer = Trainer {
        data,
        recipe: &recipe,
        eval_batch: 1024,
        graphs: true,
        seed: 1,
        check: &|| Ok(()),
        mixmatch,
        on_epoch: &|e| {
            rates.borrow_mut().push(parts * recipe.batch as f64 / e.images_per_second);
            Ok(())
        },
    };
    trainer.fit(0, labels)?;
    Ok(median(rates.into_inner()))
}

fn gemm() {
    println!("{:<28} {:>10} {:>10} {:>7}", "product (m n k)", "ours us", "gemm us", "ratio");
    for (name, m, n, k, layout) in [
        ("fc1 forward", 128, 50, 320, 'f'),
        ("fc1 dx", 128, 320, 50, 'n'),
        ("fc1 dw", 50, 320, 128, 't'),
        ("fc1 forward, evaluation", 1024, 50, 320, 'f'),
        ("fc2 forward", 128, 10, 50, 'f'),
        ("conv2 as a product", 8192, 20, 250, 'n'),
    ] {
        let r = Rng::new(1);
        let fill = |n: usize, lane| (0..n as u64).map(|e| r.lane(lane).uniform(e) - 0.5).collect::<Vec<f32>>();
        let (a, b) = (fill(m * k, 1), fill(k * n, 2));
        let (mut y, mut z) = (vec![0.0f32; m * n], vec![0.0f32; m * n]);
        // Strides (column, row) of A and B as the crate wants them.
        let (acs, ars) = if layout == 't' { (m as isize, 1) } else { (1, k as isize) };
        let (bcs, brs) = if layout == 'f' { (k as isize, 1) } else { (n as isize, 1) };
        let (bcs, brs) = if layout == 'f' { (bcs, brs) } else { (1, bcs) };
        let mut ours = || match layout {
            'f' => product(&mut y, &a, &Panels::from_cols(&b, k, n), None),
            'n' => product(&mut y, &a, &Panels::in_place(&b, k, n), None),
            _ => product_tn(&mut y, &a, &b, m, n, k),
        };
        let parallel = if m * n * k < 1 << 18 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
        let mut theirs = || {
            // SAFETY: z is (m, n), a and b hold m·k and k·n elements; the strides stay inside them.
            unsafe {
                let (z, a, b) = (z.as_mut_ptr(), a.as_ptr(), b.as_ptr());
                gemm::gemm(
                    m, n, k, z, 1, n as isize, false, a, acs, ars, b, bcs, brs, 0.0, 1.0, false, false, false, parallel,
                );
            }
        };
        let (mut t_ours, mut t_theirs) = (Vec::new(), Vec::new());
        for _ in 0..101 {
            for (f, t) in [(&mut ours as &mut dyn FnMut(), &mut t_ours), (&mut theirs, &mut t_theirs)] {
                let start = Instant::now();
                for _ in 0..20 {
                    f();
                }
                t.push(start.elapsed().as_secs_f64() / 20.0);
            }
        }
        let worst = y.iter().zip(&z).fold(0.0f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst < 1e-3, "{name}: the two products differ by {worst}");
        let (o, t) = (median(t_ours), median(t_theirs));
        println!("{:<28} {:>10.1} {:>10.1} {:>7.2}", format!("{name} ({m} {n} {k})"), o * 1e6, t * 1e6, t / o);
    }
}
