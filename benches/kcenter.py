"""k-center: dalcore against vectorised NumPy and scikit-learn, interleaved, same data, same threads, float32.

    cargo bench --bench select --no-run        # prints the program's path
    python benches/kcenter.py PROGRAM [CASE ...]
"""
import os
import subprocess
import sys
import tempfile
import time

for key in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(key, "2")
import numpy as np  # noqa: E402  (the threads must be set first)

CASES = {"mnist": (1_200, 1_200), "cifar": (5_000, 2_500), "wide": (5_000, 2_500)}  # labelled, picks


def farthest_first(x, labelled, k):
    """|a - b|^2 = |a|^2 + |b|^2 - 2 a.b with the norms computed once; one matrix-vector product per pick."""
    pool, centres = x[labelled:], x[:labelled]
    norms = np.einsum("ij,ij->i", pool, pool)
    least = np.full(len(pool), np.inf, np.float32)
    for at in range(0, labelled, 500):
        c = centres[at : at + 500]
        d = pool @ c.T
        d *= -2
        d += np.einsum("ij,ij->i", c, c)
        np.minimum(least, d.min(axis=1), out=least)
    least += norms
    picks = np.empty(k, np.int64)
    for i in range(k):
        p = picks[i] = least.argmax()
        d = pool @ pool[p]
        d *= -2
        d += norms
        d += norms[p]
        np.minimum(least, d, out=least)
        least[p] = -1
    return picks + labelled


def scikit(x, labelled, k):
    from sklearn.metrics import pairwise_distances_argmin_min
    from sklearn.metrics.pairwise import euclidean_distances

    pool = x[labelled:]
    norms = np.einsum("ij,ij->i", pool, pool)[:, None]
    least = pairwise_distances_argmin_min(pool, x[:labelled], metric="sqeuclidean")[1]
    picks = np.empty(k, np.int64)
    for i in range(k):
        p = picks[i] = least.argmax()
        d = euclidean_distances(pool, pool[p : p + 1], X_norm_squared=norms, squared=True)[:, 0]
        np.minimum(least, d, out=least)
        least[p] = -1
    return picks + labelled


def timed(f, *args):
    start = time.perf_counter()
    picks = f(*args)
    return time.perf_counter() - start, int(picks.sum())


def main():
    program, cases = sys.argv[1], sys.argv[2:] or ["mnist", "cifar"]
    for name in cases:
        with tempfile.NamedTemporaryFile(suffix=".npy") as f:
            subprocess.run([program, "--write", name, f.name], check=True)
            x = np.load(f.name)
        labelled, k = CASES[name]
        times = {"numpy": [], "scikit-learn": [], "dalcore": []}
        for _ in range(3):
            for peer, rule in (("numpy", farthest_first), ("scikit-learn", scikit)):
                seconds, total = timed(rule, x, labelled, k)
                times[peer].append(seconds)
                print(f"{name} {peer}: {seconds:.3f} s, sum of picks {total}", file=sys.stderr)
            said = subprocess.run([program, "--once", name], check=True, capture_output=True, text=True).stdout
            times["dalcore"] += [float(line.split()[0]) for line in said.splitlines()]
            print(f"{name} dalcore: {said.split()}", file=sys.stderr)
        median = {peer: float(np.median(t)) for peer, t in times.items()}
        print(f"{name}: {x.shape[0]}x{x.shape[1]}, L {labelled}, K {k}; load {os.getloadavg()[0]:.1f}")
        for peer, m in median.items():
            t = times[peer]
            print(f"  {peer:<13} {m:8.3f} s  ({min(t):.3f} .. {max(t):.3f})  {m / median['dalcore']:6.1f}x")


if __name__ == "__main__":
    main()
