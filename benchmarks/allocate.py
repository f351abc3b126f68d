"""How long the allocator takes and what memory: exact solves of synthetic models, the largest that two cores calibrate.

Costs are random sensitivities times 2^(-2 bits). The budget is 4.5 bits per weight, or the largest choice ("whole
curve"). Time is wall seconds of one process on one core, memory its largest resident set beyond the start; every row
runs in a process of its own.

    python benchmarks/allocate.py [--json]
"""

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable

import numpy as np

from kvant.allocate.deadline import solve_within
from kvant.allocate.options import Option, allowed_types, stored_bytes, total_bytes, total_cost, total_seconds
from kvant.allocate.solver import solve
from kvant.devices.detect import detect
from kvant.devices.speed import CORE_BYTES_S
from kvant.dtypes import block_type

TYPES = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "IQ4_XS", "Q4_0", "Q4_1", "Q5_0",
    "Q5_1", "Q5_K", "Q6_K", "Q8_0",
)  # fmt: skip
SHAPES = {
    "197 tensors, as Qwen2.5-1.5B": (28, 1536, 256, 8960, 151936),
    "400 tensors, as Qwen2.5-14B": (57, 5120, 1024, 13824, 152064),
    "197 tensors, odd vocabulary": (28, 1536, 256, 8960, 151937),
    "197 tensors, all rows odd": (28, 1536, 255, 8961, 151937),
}
Options = dict[str, tuple[Option, ...]]


def synthetic(layers: int, width: int, key: int, ffn: int, vocabulary: int) -> Options:
    """Options of every matrix of a decoder with a tied embedding."""
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (vocabulary, width)}
    for layer in range(layers):
        rows = {"attn_q": (width, width), "attn_k": (key, width), "attn_v": (key, width), "attn_output": (width, width)}
        rows |= {"ffn_gate": (ffn, width), "ffn_up": (ffn, width), "ffn_down": (width, ffn // 256 * 256)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in rows.items()}
    return {name: tuple(_options(name, shape, float(rng.lognormal(0, 1)))) for name, shape in shapes.items()}


def _options(name: str, shape: tuple[int, int], weight: float) -> list[Option]:
    rng = np.random.default_rng(len(name) + shape[0])
    found = []
    for kind in allowed_types(name, shape, TYPES):
        size, bits = stored_bytes(name, shape, kind), block_type(kind).bpw
        cost = weight * shape[0] * shape[1] * 1e-9 * 4.0**-bits * float(rng.uniform(0.6, 1.0))
        found.append(Option(kind=kind, n_bytes=size, cost=cost, seconds=size / CORE_BYTES_S[block_type(kind).family]))
    return found


def measure(shape: str, what: str) -> dict[str, object]:
    """Solve once; what it took."""
    options = synthetic(*SHAPES[shape])
    weights = sum(kinds[-1].n_bytes * 8 / block_type(kinds[-1].kind).bpw for kinds in options.values())
    largest = total_bytes(max(kinds, key=lambda o: o.n_bytes) for kinds in options.values())
    budget = largest if what == "whole curve" else int(weights * 4.5 / 8)
    row: dict[str, object] = {"model": shape, "what": what}
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if what == "decode time":
        quick = solve(options, budget).at(budget)
        limit = 0.8 * total_seconds(quick.values())
        started = time.perf_counter()
        chosen = solve_within(options, max_bytes=budget, max_seconds=limit)
        row["share_of_limit"] = total_seconds(chosen.values()) / limit
    else:
        solution = solve(options, budget)
        chosen = solution.at(budget)
        row |= {"states": len(solution.charges), "unit": solution.unit_bytes, "waste": solution.waste_bytes / budget}
    row["seconds"] = time.perf_counter() - started
    row["MB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    row |= {"unused": 1 - total_bytes(chosen.values()) / budget, "cost": total_cost(chosen.values())}
    return row


def alone(work: Callable[[str, str], dict[str, object]], *names: str) -> dict[str, object]:
    """Run in a fresh process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, names)


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases = [(shape, what) for shape in SHAPES for what in ("4.5 bits", "whole curve")]
    rows = [alone(measure, *case) for case in [*cases, (next(iter(SHAPES)), "decode time")]]
    machine = f"{detect(measure=False).cpu}; numpy {np.__version__}; python {platform.python_version()}"
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
        return
    print(machine)
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
