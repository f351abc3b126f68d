"""Decoders: kvant's at every instruction-set level against ggml's `to_float`, one thread, CPU seconds in the same run.

Blocks are random bytes. The peer is the type's `to_float` inside the engine's wheel. Runs of all alternate; medians are
divided. "same bits" compares every weight that is not NaN.

    python benchmarks/decoders.py [--types Q4_K,IQ2_S] [--runs 5] [--json]
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

from kvant.dtypes import BLOCK_TYPES, BlockType
from kvant.kernels import _ext, isa

ROWS, COLUMNS = 256, 4096


class TypeTraits(ctypes.Structure):
    """The start of ggml.h `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("sizes", ctypes.c_int64 * 3),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def load_traits() -> Callable[[int], Any]:
    """Return `ggml_get_type_traits` of the engine's shared object."""
    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    library.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return lambda number: library.ggml_get_type_traits(number).contents


def measure(kind: BlockType, to_float: Callable[..., None], runs: int) -> list[dict[str, object]]:
    """Return one row per instruction-set level."""
    data = np.random.default_rng(0).integers(0, 256, (ROWS, kind.row_bytes(COLUMNS)), np.uint8)
    out = {name: np.zeros((ROWS, COLUMNS), np.float32) for name in ("ggml", *isa.levels())}

    def decode(name: str) -> None:
        if name == "ggml":
            to_float(data.ctypes.data, out[name].ctypes.data, ROWS * COLUMNS)
        else:
            _ext.decode(kind.ggml_id, name, data, out[name], 1)

    seconds: dict[str, list[float]] = {name: [] for name in out}
    for _ in range(runs):
        for name, times in seconds.items():
            start = time.process_time()
            decode(name)
            times.append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "type": kind.name,
            "isa": level,
            "same_bits": bool(np.array_equal(out[level], out["ggml"], equal_nan=True)),
            "kvant_ns_per_weight": medians[level] / out[level].size * 1e9,
            "ratio": medians["ggml"] / medians[level],
        }
        for level in isa.levels()
    ]


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name, *_, decodes in _ext.types() if decodes and name != "F32"]
    parser.add_argument("--types", default=",".join(known))
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    traits = load_traits()
    results = [
        row
        for kind in (BLOCK_TYPES[name] for name in arguments.types.split(","))
        for row in measure(kind, traits(kind.ggml_id).to_float, arguments.runs)
    ]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "numpy": np.__version__,
        "engine": f"xllamacpp {version('xllamacpp')}",
        "weights": ROWS * COLUMNS,
        "runs": arguments.runs,
    }
    if arguments.json:
        print(json.dumps({"machine": machine, "results": results}, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'type':9}{'isa':10}{'same bits':11}{'kvant ns/w':>11}{'ratio':>8}")
    for row in results:
        same = "yes" if row["same_bits"] else "NO"
        print(f"{row['type']:9}{row['isa']:10}{same:11}{row['kvant_ns_per_weight']:11.3f}{row['ratio']:8.1f}")


if __name__ == "__main__":
    main()
