"""How far the gradient of a training step is from the exact one, here and in PyTorch, in f32 and in bf16.

    python benches/precision.py --records data_batch_1.bin fresh=CHECKPOINT trained=CHECKPOINT ...

ResNet-18 of width 16: for the first 256 records of a CIFAR-10 binary file and every named checkpoint (`dalcore train` writes
model.safetensors; with train.epochs=0 it is the fresh network). Exact is PyTorch in float64. `error` is |g - exact| / |exact|
over all parameters; `share` is g . exact / |exact|^2, 1 for an error without a direction. Needs torch, safetensors,
numpy, and cargo or PEER, the path of the compiled `peer` benchmark. Writes benches/results/precision.md."""
import argparse, os, pathlib, subprocess, tempfile

import numpy as np
import torch
from safetensors.torch import load_file

from bench_binary import peer_binary
from torch_resnet import MEAN, STD, network

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
p.add_argument("--records", required=True)
args = p.parse_args()
for c in args.checkpoints:
    if "=" not in c:
        p.error(f"NAME=CHECKPOINT is wanted, not {c}")
N = 256
records = np.fromfile(args.records, np.uint8, N * 3073)
if len(records) < N * 3073:
    p.error(f"{args.records} holds fewer than {N} records")
records = records.reshape(N, 3073)
peer = peer_binary()


def torch_gradient(weights, dtype, rounded=False):
    net = network(weights, dtype, rounded).train()
    mean, std = (torch.tensor(v, dtype=dtype).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    x = (torch.from_numpy(records[:, 1:].reshape(N, 3, 32, 32).copy()).to(dtype) / 255 - mean) / std
    y = torch.from_numpy(records[:, 0].astype(np.int64))
    torch.nn.functional.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y).backward()
    return {name: w.grad.double() for name, w in net.named_parameters()}


def our_gradient(checkpoint, precision):
    with tempfile.TemporaryDirectory() as folder:
        batch, out = pathlib.Path(folder) / "batch.bin", pathlib.Path(folder) / "gradient.safetensors"
        batch.write_bytes(records.tobytes())
        env = os.environ | {"DALCORE_BENCH_PRECISION": precision}
        subprocess.run([peer, "gradient", checkpoint, batch, out], check=True, env=env)
        return {name: g.double() for name, g in load_file(out).items()}


out = ["# Gradients against float64", "",
       f"ResNet-18 of width 16 on {N} images of CIFAR-10 (benches/precision.py, PyTorch {torch.__version__} on a CPU). `error` is the",
       "distance from the exact gradient over its length, `share` what of the exact gradient is in it.", "",
       "| network | f32 error | PyTorch | bf16 error | PyTorch | bf16 share | PyTorch |", "|---|---:|---:|---:|---:|---:|---:|"]
for name, checkpoint in (c.split("=", 1) for c in args.checkpoints):
    weights = load_file(checkpoint)
    exact = torch_gradient(weights, torch.float64)
    square = sum(float((g**2).sum()) for g in exact.values())
    found = []
    for g in [our_gradient(checkpoint, "f32"), torch_gradient(weights, torch.float32),
              our_gradient(checkpoint, "bf16"), torch_gradient(weights, torch.float32, True)]:
        error = sum(float(((g[n] - e) ** 2).sum()) for n, e in exact.items())
        found.append(((error / square) ** 0.5, sum(float((g[n] * e).sum()) for n, e in exact.items()) / square))
    cells = [f"{e:.5f}" for e, _ in found[:2]] + [f"{e:.4f}" for e, _ in found[2:]] + [f"{s:.4f}" for _, s in found[2:]]
    out.append(f"| {name} | " + " | ".join(cells) + " |")
    print(out[-1], flush=True)
(pathlib.Path(__file__).parent / "results/precision.md").write_text("\n".join(out) + "\n")
