"""Lower bounds on an H100 of every layer and of whole training steps, from the counts of an emulating driver.

    python benches/bounds.py --driver FOLDER [--precision bf16] [--networks lenet resnet18-w16] [--batch 256]

FOLDER holds a libcuda.so that executes the compiled kernels and, with PTX_DEVICE_PROFILE=FILE, writes one line of JSON
a kernel: instructions by class, sectors and shared wavefronts with their ideals, tensor flops. Writes
benches/results/bounds-NETWORK-PRECISION.md. Needs cargo with nvcc, or the environment variable PEER with the path of
the compiled `peer` benchmark (built with kernels).

A bound is not a time: no latency, no dependencies, and nothing that the assembler decides is in it."""
import argparse, json, os, pathlib, subprocess, tempfile

from bench_binary import peer_binary

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--driver", required=True)
p.add_argument("--precision", default="bf16", choices=["f32", "bf16"])
p.add_argument("--networks", nargs="+", default=["lenet", "resnet18-w16"])
p.add_argument("--batch", type=int, default=256)
p.add_argument("--no-step", action="store_true", help="layers only")
args = p.parse_args()

# H100 SXM: clock times multiprocessors, then what one of them does in a clock.
RATE = 132 * 1.755e9
LAUNCH = 2.5e-6


def counted(*case):
    """The kernels of a run."""
    with tempfile.TemporaryDirectory() as folder:
        profile = pathlib.Path(folder) / "profile"
        env = dict(os.environ, LD_LIBRARY_PATH=args.driver, PTX_DEVICE_PROFILE=str(profile), DALCORE_BENCH_DEVICE="cuda",
                   DALCORE_BENCH_BATCH=str(args.batch), DALCORE_BENCH_PRECISION=args.precision, DALCORE_BENCH_STEPS="1")
        subprocess.run([binary, *case], check=True, env=env, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in profile.read_text().splitlines()]


def parts(k):
    """Seconds that each resource needs for a kernel's launches."""
    lanes = lambda names, per: sum(k["classes"].get(n, 0) for n in names) * 32 / (per * RATE)
    shared = k["shared_read"]["cost"] + k["shared_write"]["cost"]
    sectors = k["global_read"]["cost"] + k["global_write"]["cost"]
    return {
        "issue": sum(k["classes"].values()) / (4 * RATE),
        "fp32": lanes(["Fp32", "Half"], 128),
        "tensor": sum(n for n in k["tensor_flops"].values()) / (4096 * RATE),
        "shared": shared / RATE,
        "L2": sectors * 32 / 5.5e12,
        "DRAM": k["distinct_sectors"] * 32 / 3.35e12,
    }


def row(k):
    s = parts(k)
    limit = max(s, key=s.get)
    waste = lambda n: k[n]["cost"] / k[n]["ideal"] if k[n]["ideal"] else 1.0
    tensor = f"{s['tensor'] / s['issue']:.2f}" if s["tensor"] else "-"
    return (f"| `{k['kernel']}` | {k['launches']} | {k['bound_h100_s'] * 1e6:.1f} | {limit} {s[limit] * 1e6:.1f} | {tensor} "
            f"| {waste('global_read'):.2f} | {waste('global_write'):.2f} | {waste('shared_read'):.2f} | {waste('shared_write'):.2f} |")


HEAD = ("kernel | launches | bound µs | limited by, µs | tensor / issue | sectors read | written | wavefronts read | written")
HEAD = f"| {HEAD} |\n|" + "---|" * 9
binary = peer_binary("--features", "cuda")
listed = [line.split() for line in subprocess.run([binary, "layers"], check=True, capture_output=True, text=True).stdout.splitlines()]
results = pathlib.Path(__file__).parent / "results"
results.mkdir(exist_ok=True)
for net in args.networks:
    out = [f"# {net}, {args.precision}, batch {args.batch}: lower bounds on an H100, not times", "",
           "From the counts of the compiled kernels on an emulating driver (benches/bounds.py). Sectors and wavefronts are",
           "multiples of the ideal. A bound holds 2.5 µs for each launch. `tensor / issue` above 1: tensor instructions, not",
           "issue slots, are what is waited for.", ""]
    if not args.no_step:
        kernels = counted("step", net)
        launches = sum(k["launches"] for k in kernels)
        total = sum(k["bound_h100_s"] for k in kernels)
        work = total - launches * LAUNCH
        out += [f"## One training step: {launches} launches, bound {total * 1e6:.0f} µs ({work * 1e6:.0f} µs without launches)", "", HEAD]
        out += [row(k) for k in sorted(kernels, key=lambda k: -k["bound_h100_s"])] + [""]
    out += ["## Layers, forward and backward", ""]
    for name, times, flops in listed:
        if not name.startswith(net + "/"):
            continue
        out += [f"### {name.split('/')[1]} ({times} in a step, {float(flops) / 256 * args.batch / 1e9:.2f} GFLOP forward)", "", HEAD]
        out += [row(k) for k in counted("once", name)] + [""]
        print(name, flush=True)
    (results / f"bounds-{net}-{args.precision}.md").write_text("\n".join(out))
