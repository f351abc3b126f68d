"""Matrix products and factors: kvant's at every instruction-set level, NumPy's BLAS and, where installed, torch's.

The peers may fuse multiplication and addition and choose any order of summation; kvant's bytes are the same everywhere.
Rounds alternate between candidates, whose medians count: CPU seconds of one thread, or the wall clock with more.

    python benchmarks/linalg.py [--rounds 5] [--threads 1] [--shapes 2048x576x1536] [--factor 2048] [--json]
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

SHAPES = "2048x576x1536,2048x1536x576,2048x1536x8960,64x576x49152"
Work = Callable[..., object]


def with_level(level: str, work: Work) -> Work:
    """`work` at an instruction-set level."""

    def run() -> None:
        os.environ["KVANT_ISA"] = level
        work()

    return run


def median_gflops(candidates: dict[str, Work], operations: float, arguments: argparse.Namespace) -> dict[str, float]:
    """GFLOPS of each candidate's median round."""
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for work in candidates.values():
        work()
    for _ in range(arguments.rounds):
        for name, work in candidates.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
    return {name: operations / statistics.median(times) / 1e9 for name, times in seconds.items()}


def measure(arguments: argparse.Namespace, torch: Any) -> Iterator[dict[str, object]]:
    """One row per operation and shape."""
    import numpy as np

    from kvant.kernels import isa, linalg

    rng = np.random.default_rng(0)

    def row(name: str, operations: float, work: Work, **peers: Work) -> dict[str, object]:
        candidates = {level: with_level(level, partial(work, threads=arguments.threads)) for level in isa.levels()}
        return {"operation": name, **median_gflops(candidates | peers, operations, arguments)}

    for shape in arguments.shapes.split(","):
        m, k, n = map(int, shape.split("x"))
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
        peers: dict[str, Work] = {"numpy": partial(np.matmul, a, b.T)}
        if torch:
            peers["torch"] = partial(torch.matmul, torch.from_numpy(a), torch.from_numpy(b).T)
        yield row(f"[{m},{k}] x [{n},{k}]^T", 2 * m * k * n, partial(linalg.matmul_nt, a, b), **peers)
        yield row(f"gram of [{m},{k}]", m * k * k, partial(linalg.gram, a), numpy=partial(np.matmul, a.T, a))
    n = arguments.factor
    x = rng.standard_normal((n + 64, n))
    h = x.T @ x
    peers = {"numpy": partial(np.linalg.cholesky, h)}
    if torch:
        peers["torch"] = partial(torch.linalg.cholesky, torch.from_numpy(h))
    yield row(f"cholesky of [{n},{n}]", n**3 / 3, partial(linalg.cholesky, h), **peers)
    yield row(f"inverse_cholesky_upper of [{n},{n}]", 2 * n**3 / 3, partial(linalg.inverse_cholesky_upper, h))


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", default=SHAPES, help="m x k x n of products, separated by commas")
    parser.add_argument("--factor", type=int, default=2048, help="rows of the matrix that is factored")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = str(arguments.threads)  # read when NumPy is imported
    try:
        torch = importlib.import_module("torch")
        torch.set_num_threads(arguments.threads)
    except ImportError:
        torch = None
    rows = list(measure(arguments, torch))
    machine = {
        "processor": platform.processor() or platform.machine(), "threads": arguments.threads,
        "numpy": sys.modules["numpy"].__version__, "torch": torch.__version__ if torch else None,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps({"machine": machine, "unit": "GFLOPS", "rows": rows}, indent=1))
        return
    print(machine, "GFLOPS")
    names = [name for name in rows[0] if name != "operation"]
    print(f"{'':40}" + "".join(f"{name:>10}" for name in names))
    for row in rows:
        cells = [f"{row[name]:10.1f}" if name in row else " " * 10 for name in names]
        print(f"{row['operation']:40}" + "".join(cells))


if __name__ == "__main__":
    main()
