"""ResNet-18 (width 16) on CIFAR-10 in dalcore and in PyTorch: same initial weights, same batches, no augmentation.

    pip install torch safetensors numpy      (into a virtual environment)
    python benches/cifar_parity.py --dalcore target/release/dalcore --data-dir DIR [--steps 100] [--epochs 2]
                                   [--precision bf16]

dalcore writes the fresh network, the loss of every step and the images in it; PyTorch trains on the same. The order of
the first epoch is computed here a second time from the documented generator (src/rng.rs).

Tolerance. Training amplifies rounding: two correct programs that sum in another order drift apart, by a factor that
nobody can write down beforehand, but that can be measured. The truth is PyTorch in float64. PyTorch in float32 is run on
the given weights and on weights moved by half a unit in the last place (seeded, twice); its distance to the truth
is what float32 costs here. PyTorch's float64 convolutions take an hour for a hundred steps: with --truth float32 the
unmoved float32 run takes their place. dalcore must at no step be further from the truth than FACTOR times the largest
distance that those runs have shown up to that step, and FLOOR (the rounding of one loss) is always allowed. FACTOR is 4,
for an extreme of so few runs, times 3: what Winograd's convolution adds to the rounding of a plain sum (GROWTH, derived in
src/device/winograd.rs). At the recipe's rate of 0.1 the runs are apart after a few steps, and the allowance is as wide as
the loss itself; --lr 0.01 keeps them together for longer, so that the comparison says more.

With --precision bf16 dalcore runs in bf16, and so do PyTorch's measuring runs: convolutions, normalisations and what is
between them under autocast, the head in float32, as in dalcore. The allowance is then what bf16 costs PyTorch, times 4
(there is no Winograd in it), and an epoch has three columns: dalcore, PyTorch in bf16, PyTorch in float32."""
import argparse, json, pathlib, subprocess, sys, tarfile, time

import numpy as np
import torch
from safetensors.torch import load_file

from torch_resnet import MEAN, STD, network


p = argparse.ArgumentParser()
p.add_argument("--dalcore", default="target/release/dalcore")
p.add_argument("--data-dir", required=True, help="folder that holds cifar-10-binary.tar.gz, or a folder cifar10 with it")
p.add_argument("--work", default="runs/cifar_parity", help="folder for dalcore's runs (default: runs/cifar_parity)")
p.add_argument("--out", help="JSON file for the numbers")
p.add_argument("--steps", type=int, default=100)
p.add_argument("--epochs", type=int, default=2)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--truth", choices=["float64", "float32"], default="float64")
p.add_argument("--lr", type=float, default=0.1)
p.add_argument("--precision", choices=["f32", "bf16"], default="f32")
args = p.parse_args()
torch.set_num_threads(args.threads)
ROUNDED = args.precision == "bf16"
FACTOR, FLOOR = 4.0 if ROUNDED else 4.0 * 3.0, 2e-6
BATCH, LR, MOMENTUM, DECAY, CLAMP, SEED = 256, args.lr, 0.9, 5e-4, 0.1, 10


def dalcore(name, epochs, *more):
    out = pathlib.Path(args.work) / name
    settings = [f"train.epochs={epochs}", "train.crop_pad=0", "train.flip=false", "train.milestones=[]", f"train.lr={LR}",
                f"train.precision={args.precision}"]
    command = [args.dalcore, "train", "-v", "-d", "cifar10", "--preset", "paper", "--seed", str(SEED), "--device", "cpu"]
    command += ["--data-dir", args.data_dir, "--out", str(out), "--threads", str(args.threads), *more]
    command += [part for s in settings for part in ("--set", s)]
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)
    return out / f"train-paper-clean/cifar10/resnet18-w16/seed-{SEED}"


def cifar10():
    found = [f for f in pathlib.Path(args.data_dir).rglob("cifar-10-binary.tar.gz")]
    if not found:
        sys.exit(f"no cifar-10-binary.tar.gz below {args.data_dir}")
    raw = {}
    with tarfile.open(found[0]) as tar:
        for m in tar.getmembers():
            if m.name.endswith(".bin"):
                raw[m.name.split("/")[-1]] = np.frombuffer(tar.extractfile(m).read(), np.uint8).reshape(-1, 3073)
    train = np.concatenate([raw[f"data_batch_{i}.bin"] for i in range(1, 6)])
    split = lambda r: (torch.from_numpy(r[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(r[:, 0].astype(np.int64)))
    return split(train), split(raw["test_batch.bin"])


def shuffle(seed, epoch, n):
    """Philox4x32-10 at [i, 3 << 24, round 0, epoch] for i = n - 1 ... 1, then Fisher-Yates with 64 bits a draw."""
    i = np.arange(n, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    c = [i, np.full(n, 3 << 24, np.uint64), np.zeros(n, np.uint64), np.full(n, epoch, np.uint64)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for r in range(10):
        if r:
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), p1 & low, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), p0 & low]
    draw = [int(a) | int(b) << 32 for a, b in zip(c[0], c[1])]
    order = list(range(n))
    for j in range(n - 1, 0, -1):
        other = draw[j] * (j + 1) >> 64
        order[j], order[other] = order[other], order[j]
    return order


def nudged(net, seed):
    """The network with every weight moved by half a unit in the last place, up or down."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in net.parameters():
            w.mul_(1 + (torch.randint(0, 2, w.shape, generator=g) * 2 - 1) * 2.0**-24)
    return net


def view(pixels, ids, dtype):
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(v, dtype=dtype).reshape(shape) for v in (MEAN, STD))
    return ((pixels[ids].to(dtype) / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def train(net, dtype, batches, each=lambda i: None):
    """Losses of all steps."""
    (pixels, labels), losses = train_set, []
    opt = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    for i, ids in enumerate(batches):
        net.train()
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(view(pixels, ids, dtype)), labels[ids])
        loss.backward()
        torch.nn.utils.clip_grad_value_(net.parameters(), CLAMP)
        opt.step()
        losses.append(loss.item())
        each(i)
    return np.array(losses)


def correct(net):
    net.eval()
    pixels, labels = test_set
    with torch.no_grad():
        parts = [net(view(pixels, ids, torch.float32)).argmax(1).eq(labels[ids]).sum() for ids in torch.arange(10_000).split(500)]
    return int(sum(parts))


fresh = dalcore("fresh", 0)
trained = dalcore("trained", args.epochs, "--log-steps")
weights = load_file(str(fresh / "model.safetensors"))
steps = [json.loads(line) for line in (trained / "steps.jsonl").read_text().splitlines()]
curve = [json.loads(line) for line in (trained / "curve.jsonl").read_text().splitlines()]
train_set, test_set = cifar10()
first = [i for s in steps if s["epoch"] == 0 for i in s["ids"]]
assert first == shuffle(SEED, 0, 50_000)[: len(first)], "the order of the first epoch is not the documented permutation"
print(f"order of the first epoch: {len(first)} images, as documented", flush=True)

n = min(args.steps, len(steps))
batches = [torch.tensor(s["ids"]) for s in steps]
ours = np.array([s["loss"] for s in steps])
start = time.time()
exact = getattr(torch, args.truth)
truth = train(network(weights, exact), exact, batches[:n])
rounding = np.zeros(n)
for nudge in [1, 2, 3, 4] if args.truth == "float32" and not ROUNDED else [None, 1, 2, 3, 4]:
    net = network(weights, torch.float32, ROUNDED)
    losses = train(net if nudge is None else nudged(net, nudge), torch.float32, batches[:n])
    rounding = np.maximum(rounding, np.abs(losses - truth))
allowed = np.maximum(FLOOR, FACTOR * np.maximum.accumulate(rounding))
off = np.abs(ours[:n] - truth)
worst = int(np.argmax(off / allowed))
print(f"{n} steps, {time.time() - start:.0f} s in PyTorch. Distance to PyTorch in {args.truth}:", flush=True)
print(f"{'step':>6} {'loss':>10} {'dalcore':>10} {'torch ' + args.precision:>10} {'allowed':>10}")
for i in sorted({0, 1, 2, 5, 10, 20, 30, 50, 70, n - 1, worst} & set(range(n))):
    print(f"{i:>6} {truth[i]:>10.6f} {off[i]:>10.2e} {rounding[i]:>10.2e} {allowed[i]:>10.2e}")
held = bool((off <= allowed).all())
print(f"largest share of the allowance: {(off / allowed).max():.2f} at step {worst}: {'within' if held else 'OUTSIDE OF'} the tolerance", flush=True)

ends = set(np.cumsum([c["steps"] for c in curve]) - 1)


def curve_of(rounded):
    """Losses of all steps in PyTorch, and right answers after every epoch."""
    net, tests = network(weights, torch.float32, rounded), []
    return train(net, torch.float32, batches, lambda i: tests.append(correct(net)) if i in ends else None), tests


theirs, rows, at = {"torch": curve_of(ROUNDED), **({"torch f32": curve_of(False)} if ROUNDED else {})}, [], 0
for e, c in enumerate(curve):
    span = slice(at, at + c["steps"])
    at += c["steps"]
    row = {"dalcore": {"mean_loss": float(ours[span].mean()), "correct": c["correct"]}}
    row |= {name: {"mean_loss": float(losses[span].mean()), "correct": tests[e]} for name, (losses, tests) in theirs.items()}
    rows.append({"epoch": c["epoch"] + 1, **row})
    shown = [f"{name} mean loss {r['mean_loss']:.4f}, test accuracy {r['correct'] / 100:.2f} %" for name, r in row.items()]
    print(f"epoch {c['epoch'] + 1}: " + "; ".join(shown), flush=True)

if args.out:
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "torch": torch.__version__, "precision": args.precision, "threads": args.threads, "factor": FACTOR, "floor": FLOOR, "within_tolerance": held,
        "steps": [{"step": i, args.truth: truth[i], "dalcore_off": off[i], f"torch_{args.precision}_off": rounding[i], "allowed": allowed[i]} for i in range(n)],
        "epochs": rows, "manifest": json.loads((trained / "manifest.json").read_text()),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
sys.exit(0 if held else 1)
