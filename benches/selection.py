"""Selection on the CPU against NumPy (vectorised), scikit-learn and faiss: same data, same threads, float32, interleaved;
medians of the runs and the ratio of each peer to dalcore.

    cargo bench --bench select --no-run        # prints the program's path
    python benches/selection.py PROGRAM [--runs N] [CASE ...]

k-center   kcenter-128, kcenter-512 (45,000 rows, 5,000 labelled, 2,500 picks), kcenter-mnist; kcenter-million (memory)
BADGE      badge (45,000 rows, 10 classes, width 128, 2,500 picks); badge-tiny (90,000, 200, 512, 5,000: memory)
linkage    linkage (20,000 x 128): all merges, and how many pairs of rows share one of 20 clusters; linkage-mnist (60,000 x 50)
k-means    kmeans (45,000 x 128, 2,500 centres): seconds for an iteration of Lloyd from the same centres
The data is a mixture of 50 Gaussians in all dimensions behind a ReLU. kcenter-latent and kmeans-latent: in 12 dimensions,
then a random matrix and a ReLU, as embeddings are. kcenter-one and kmeans-one: one Gaussian, with no structure to use.
The threads are two unless RAYON_NUM_THREADS says otherwise.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

THREADS = os.environ.get("RAYON_NUM_THREADS", "2")
for key in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(key, THREADS)
import numpy as np  # noqa: E402  (the threads must be set first)

ITERATIONS = 10  # of k-means; the program has the same number


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


def farthest_first_scikit(x, labelled, k):
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


def factored_badge(delta, h, k):
    """Two matrix-vector products per pick on the factors; weights are added in f64, as the draw needs."""
    uniform = np.random.default_rng(1)
    norms = np.einsum("ij,ij->i", delta, delta) * np.einsum("ij,ij->i", h, h)
    least = np.full(len(h), np.inf, np.float32)
    picks = np.empty(k, np.int64)
    p = norms.argmax()
    for i in range(k):
        picks[i] = p
        d = delta @ delta[p]
        d *= h @ h[p]
        d *= -2
        d += norms
        d += norms[p]
        np.maximum(d, 0, out=d)
        np.minimum(least, d, out=least)
        least[picks[: i + 1]] = 0
        sums = np.cumsum(least, dtype=np.float64)
        p = min(np.searchsorted(sums, uniform.random() * sums[-1], side="right"), len(h) - 1)
    return picks


def lloyd_faiss(x, centres):
    import faiss

    faiss.omp_set_num_threads(int(THREADS))
    k = faiss.Kmeans(x.shape[1], len(centres), niter=ITERATIONS, nredo=1, min_points_per_centroid=1,
                     max_points_per_centroid=len(x))
    k.train(x, init_centroids=centres)
    return np.array([k.obj[-1]])


def lloyd_scikit(x, centres):
    from sklearn.cluster import KMeans

    k = KMeans(len(centres), init=centres, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd").fit(x)
    return np.array([k.inertia_])


def linkage_scikit(x, clusters):
    from sklearn.cluster import AgglomerativeClustering

    sizes = np.bincount(AgglomerativeClustering(clusters, linkage="average").fit_predict(x))
    return sizes * (sizes - 1) // 2


def linkage(read, clusters):
    x = read("x")
    return {"scikit-learn": lambda: linkage_scikit(x, clusters)}


def kcenter(read, case):
    labelled, k = case
    x = read("x")
    rules = {"numpy": farthest_first, "scikit-learn": farthest_first_scikit}
    return {peer: lambda rule=rule: rule(x, labelled, k) for peer, rule in rules.items()}


def badge(read, k):
    delta, h = read("delta"), read("x")
    return {"numpy": lambda: factored_badge(delta, h, k)}


def kmeans(read, k):
    x = read("x")
    return {"faiss": lambda: lloyd_faiss(x, x[:k]), "scikit-learn": lambda: lloyd_scikit(x, x[:k])}


# What the peers need; those without peers are timed and measured alone.
CASES = {
    "kcenter-128": (kcenter, (5_000, 2_500)),
    "kcenter-latent": (kcenter, (5_000, 2_500)),
    "kcenter-one": (kcenter, (5_000, 2_500)),
    "kcenter-512": (kcenter, (5_000, 2_500)),
    "kcenter-mnist": (kcenter, (1_200, 1_200)),
    "badge": (badge, 2_500),
    "kmeans": (kmeans, 2_500),
    "kmeans-latent": (kmeans, 2_500),
    "kmeans-one": (kmeans, 2_500),
    "linkage": (linkage, 20),
    "kcenter-million": None,
    "badge-tiny": None,
    "linkage-mnist": None,
}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("program")
    args.add_argument("case", nargs="*", default=[], help=", ".join(CASES))
    args.add_argument("--runs", type=int, default=3)
    args = args.parse_intermixed_args()
    for name in args.case or CASES:
        peers = {}
        if CASES[name] is not None:
            make, sizes = CASES[name]
            with tempfile.TemporaryDirectory() as folder:
                subprocess.run([args.program, "--write", name, folder], check=True)
                peers = make(lambda part: np.load(os.path.join(folder, part + ".npy")), sizes)
        times, peak = {peer: [] for peer in (*peers, "dalcore")}, 0
        for _ in range(args.runs):
            for peer, rule in peers.items():
                start = time.perf_counter()
                result = rule()
                times[peer].append(time.perf_counter() - start)
                print(f"{name} {peer}: {times[peer][-1]:.3f} s, sum {float(result.sum()):.0f}", file=sys.stderr)
            # Peers have run before in this process, all but the first time: threads and memory are there.
            how = "--again" if peers else "--once"
            said = subprocess.run([args.program, how, name], check=True, capture_output=True, text=True).stdout
            seconds, checksum, peak = said.split()[:3]
            times["dalcore"].append(float(seconds))
            print(f"{name} dalcore: {seconds} s, sum {checksum}", file=sys.stderr)
        median = {peer: float(np.median(t)) for peer, t in times.items()}
        each = ITERATIONS if name.startswith("kmeans") else 1
        print(f"{name}: {THREADS} threads, load {os.getloadavg()[0]:.1f}, dalcore's peak {int(peak) / 1024:.0f} MiB")
        for peer, m in median.items():
            t = times[peer]
            print(f"  {peer:<13} {m / each:8.3f} s  ({min(t) / each:.3f} .. {max(t) / each:.3f})"
                  f"  {m / median['dalcore']:6.1f}x", flush=True)


if __name__ == "__main__":
    main()
