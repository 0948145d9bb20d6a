"""`dalcore select` beside NumPy: the ids of every deterministic rule must be identical, ties included.

    dalcore train -d mnist --out runs && dalcore embed -c .../model.safetensors -d mnist --out pool
    python3 benches/select_parity.py --dalcore target/release/dalcore --pool pool --labelled 1200 -k 600

`--pool` is a folder with embeddings.npy and probabilities.npy; without it a random pool with many ties is made.
"""

import argparse
import csv
import pathlib
import subprocess
import tempfile

import numpy as np


def coreset(x, labelled, k):
    """Farthest first by direct differences in f32, features in their order as in dalcore; ties to the lowest id."""

    def to(centre):
        total = np.zeros(len(x), np.float32)
        for j in range(x.shape[1]):
            t = x[:, j].astype(np.float64) - np.float64(x[centre, j])
            # What fma(t, t, total) gives: the square is exact in f64, and so is the sum up to one rounding of f64.
            t = t.astype(np.float32).astype(np.float64)
            total = (t * t + total).astype(np.float32)
        return total

    best = np.full(len(x), np.inf, np.float32)
    for i in labelled:
        best = np.minimum(best, to(i))
    best[labelled] = -1
    picks = []
    for _ in range(k):
        picks.append(int(np.argmax(best)))  # the first of equals
        best = np.where(best < 0, best, np.minimum(best, to(picks[-1])))
        best[picks[-1]] = -1
    return picks


def lowest(score, labelled, k):
    score = score.astype(np.float64)
    score[labelled] = np.inf
    return np.argsort(score, kind="stable")[:k].tolist()


def entropy(p):
    """In f64, classes in their order, rounded to f32 as dalcore ranks it: what differs in the last bits there is a tie."""
    total = np.zeros(len(p))
    for j in range(p.shape[1]):
        v = p[:, j].astype(np.float64)
        total += np.where(v > 0, v * np.log(np.where(v > 0, v, 1)), 0)
    return (-total).astype(np.float32)


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--dalcore", default="target/release/dalcore")
    a.add_argument("--pool")
    a.add_argument("--labelled", type=int, default=50)
    a.add_argument("-k", type=int, default=200)
    a = a.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(a.pool or made)
        r = np.random.default_rng(0)
        if not a.pool:
            x = r.integers(0, 4, (3000, 6)).astype(np.float32)
            p = r.integers(1, 6, (3000, 5)).astype(np.float64)
            np.save(folder / "embeddings.npy", x)
            np.save(folder / "probabilities.npy", (p / p.sum(1, keepdims=True)).astype(np.float32))
        x, p = np.load(folder / "embeddings.npy"), np.load(folder / "probabilities.npy")
        labelled = np.sort(r.permutation(len(x))[: a.labelled])
        ids = pathlib.Path(made) / "ids.npy"
        np.save(ids, labelled)
        wanted = {
            "coreset": lambda: coreset(x, labelled, a.k),
            "least-confidence": lambda: lowest(p.max(1), labelled, a.k),
            "margin": lambda: lowest(np.sort(p, 1)[:, -1] - np.sort(p, 1)[:, -2], labelled, a.k),
            "entropy": lambda: lowest(-entropy(p), labelled, a.k),
        }
        listing = subprocess.run([a.dalcore, "methods"], capture_output=True, text=True, check=True).stdout
        bad = 0
        for method, reference in wanted.items():
            if not any(line.startswith(method + " ") for line in listing.splitlines()):
                print(f"{method:<18} not in this build")
                continue
            command = [a.dalcore, "select", "-q", "-m", method, "-k", str(a.k), "--labeled", ids]
            command += ["--embeddings", folder / "embeddings.npy", "--probs", folder / "probabilities.npy"]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode:
                raise SystemExit(out.stderr)
            rows = list(csv.DictReader(out.stdout.splitlines()))
            got, want = [int(row["id"]) for row in rows], reference()
            same = sum(g == w for g, w in zip(got, want))
            # The distance columns by plain NumPy in f64.
            d = ((x[got][:, None].astype(np.float64) - x[labelled][None]) ** 2).sum(2) ** 0.5 if a.k * a.labelled < 4e6 else None
            far = 0 if d is None else np.abs(d.min(1) - [float(row["distance"]) for row in rows]).max()
            print(f"{method:<18} {same} of {a.k} ids identical, largest error of a distance {far:.1e}")
            bad += got != want
        raise SystemExit(bad)


if __name__ == "__main__":
    main()
