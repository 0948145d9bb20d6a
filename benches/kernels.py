"""Runs the device tests on both targets a machine without a GPU has, and lists every kernel with what ran it.

    python benches/kernels.py --driver FOLDER --tests target/release/deps/devices-HASH

First the sources, on the emulated driver of this repository with its checks (races, bounds, uninitialised memory), then
what nvcc made of them, on the libcuda.so in FOLDER, which executes compiled kernels: with PTX_DEVICE_CHECKS=1 it ends the
process at a finding, with PTX_DEVICE_PROFILE=FILE it writes a line of JSON a kernel. On each, the tests fail if a kernel
was not launched. Writes benches/results/kernels.md; ends with 1 if a run fails."""
import argparse, json, os, pathlib, subprocess, sys, tempfile, time

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--driver", required=True)
p.add_argument("--tests", required=True, help="the compiled device tests, with kernels")
args = p.parse_args()
root = pathlib.Path(__file__).parent.parent


def run(**env):
    start = time.time()
    # What would choose another device, or only some of the parts.
    here = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH" and not k.startswith(("DALCORE_", "PTX_DEVICE_"))}
    r = subprocess.run([args.tests, "--nocapture"], env=here | env, capture_output=True, text=True, cwd=root)
    if r.returncode:
        sys.exit(f"{env}: exit code {r.returncode}\n{r.stdout[-3000:]}{r.stderr[-3000:]}")
    print(f"{env or 'emulated driver'}: ok, {time.time() - start:.0f} s", flush=True)


run()
with tempfile.TemporaryDirectory() as folder:
    profile = pathlib.Path(folder) / "profile"
    run(LD_LIBRARY_PATH=args.driver, DALCORE_TEST_DEVICE="cuda", PTX_DEVICE_CHECKS="1", PTX_DEVICE_PROFILE=str(profile))
    if not profile.exists():
        sys.exit(f"the driver in {args.driver} has written no profile")
    launches = {k["kernel"]: k["launches"] for k in map(json.loads, profile.read_text().splitlines())}
out = ["# Every kernel on every target", "",
       f"The device tests launched {len(launches)} kernels on the emulated driver, which compiles the sources for the host and checks",
       "them, and on a driver that executes what nvcc made of them, with its checks on: no finding on either",
       "(benches/kernels.py). No GPU is in this.", "",
       "| kernel | sources, checked | compiled, checked: launches |", "|---|---|---:|"]
out += [f"| `{k}` | yes | {n} |" for k, n in sorted(launches.items())]
(root / "benches/results/kernels.md").write_text("\n".join(out) + "\n")
print(f"{len(launches)} kernels, {sum(launches.values())} launches")
