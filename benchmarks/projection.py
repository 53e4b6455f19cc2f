"""Our UMAP against umap-learn's default on the same vectors, interleaved in one warm process; and a series of maps.

Quoted are medians of neighbouring samples' ratios (ours over the default; below 1 is faster), wall time and CPU time of
the process, and the trustworthiness of both. A ratio holds; an absolute time on a shared machine does not.

    python benchmarks/projection.py [--rounds 3] [--points 2000 10000] [--descent] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from moescope.projection import project, project_series, warm_up
from moescope.projection.quality import trustworthiness

FEATURES, CLUSTERS, STEPS = 64, 12, 8


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """Overlapping Gaussian clusters, as router inputs look."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(CLUSTERS, FEATURES))
    return (centres[rng.integers(0, CLUSTERS, n)] + rng.normal(size=(n, FEATURES))).astype(np.float32)


def default(data: np.ndarray) -> np.ndarray:
    import umap

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")
        return umap.UMAP(random_state=0).fit_transform(data)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    return done, time.perf_counter() - wall, time.process_time() - cpu


def compare(n: int, rounds: int) -> dict[str, float]:
    data = vectors(n)
    samples: list[tuple[float, float, float, float, float]] = []
    trust = 0.0
    for _ in range(rounds):
        theirs, their_wall, their_cpu = timed(lambda: default(data))
        ours, our_wall, our_cpu = timed(lambda: project(data, "umap"))
        plain, pca_wall, _ = timed(lambda: project(data, "pca"))
        samples.append((our_wall, their_wall, our_cpu, their_cpu, pca_wall))
        trust = trustworthiness(data, theirs)[0]
    middle = [statistics.median(column) for column in zip(*samples, strict=True)]
    return {
        "points": n,
        "ours_s": middle[0],
        "default_s": middle[1],
        "ours_cpu_s": middle[2],
        "default_cpu_s": middle[3],
        "ratio": statistics.median(ours / theirs for ours, theirs, *_ in samples),
        "ratio_cpu": statistics.median(sample[2] / sample[3] for sample in samples),
        "pca_s": middle[4],
        "trust_ours": ours.trustworthiness,
        "trust_default": trust,
        "trust_pca": plain.trustworthiness,
    }


def series(n: int) -> dict[str, float]:
    """Eight snapshots from noise to clusters: each from the positions before, against each on its own."""
    target, noise = vectors(n), np.random.default_rng(1).normal(size=(n, FEATURES))
    steps = [((1 - part) * noise + part * target).astype(np.float32) for part in np.linspace(0.3, 1, STEPS)]
    linked, wall, cpu = timed(lambda: project_series(steps, "umap"))
    alone, alone_wall, alone_cpu = timed(lambda: [project(step, "umap") for step in steps])
    return {
        "points": n,
        "series_s": wall,
        "alone_s": alone_wall,
        "ratio_cpu": cpu / alone_cpu,
        "trust_series": float(np.mean([step.trustworthiness for step in linked])),
        "trust_alone": float(np.mean([step.trustworthiness for step in alone])),
        "moved_series": _moved([step.xy for step in linked]),
        "moved_alone": _moved([step.xy for step in alone]),
    }


def _moved(maps: list[np.ndarray]) -> float:
    steps = [np.linalg.norm(after - before, axis=1) / before.std() for before, after in pairwise(maps)]
    return float(np.median(steps))


def descent(n: int) -> dict[str, float]:
    """Approximate neighbours against exact ones, as used for sizes where exact ones would take minutes."""
    from moescope.projection import neighbours

    data = vectors(n)
    exact, exact_wall, _ = timed(lambda: neighbours.nearest(data, 15, 0)[0])
    limit, neighbours.EXACT_UP_TO = neighbours.EXACT_UP_TO, 0.0
    try:
        _, compiled, _ = timed(lambda: neighbours.nearest(data[:500], 15, 0))
        found, wall, _ = timed(lambda: neighbours.nearest(data, 15, 0)[0])
    finally:
        neighbours.EXACT_UP_TO = limit
    recall = np.mean([np.intersect1d(a, b).size / 15 for a, b in zip(exact[::20], found[::20], strict=True)])
    return {"points": n, "exact_s": exact_wall, "descent_s": wall, "first_s": compiled, "recall": float(recall)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--descent", action="store_true", help="also approximate neighbours of 20,000 vectors")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    _, first, _ = timed(warm_up)
    default(vectors(200))
    found: dict[str, Any] = {"warm_up_s": first, "maps": [compare(n, args.rounds) for n in args.points]}
    found["series"] = series(args.points[0])
    if args.descent:
        found["descent"] = descent(20_000)
    if args.json:
        print(json.dumps(found))
        return
    print(f"first UMAP of a process: {first:.1f} s")
    for row in [*found["maps"], found["series"], *([found["descent"]] if args.descent else [])]:
        print(f"\n{row.pop('points'):,} points")
        print("  " + "  ".join(f"{name} {value:.3g}" for name, value in row.items()))


if __name__ == "__main__":
    main()
