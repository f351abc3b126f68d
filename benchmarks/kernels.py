"""Encoders: kvant's at every instruction-set level against ggml's, one thread, CPU seconds in the same run.

Peers: libgguf, and `ggml_quantize_chunk` inside the engine's wheel (another build of the same code, usually faster).
Weights are normal with deviation 0.02; importance is the square of a normal. Each round times every candidate once, for
at least 20 ms of CPU time; the medians over rounds are divided. "identical" names the peers that give the same bytes;
libgguf 0.2.2 has an older IQ1_M.

    python benchmarks/kernels.py [--types Q4_K,Q6_K] [--levels avx512] [--rounds 5] [--json]
"""

import argparse
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import libgguf
import numpy as np
import xllamacpp

from kvant.dtypes import BLOCK_TYPES, BlockType
from kvant.kernels import _ext, isa

ROWS, COLUMNS = 64, 4096
LEAST_S = 0.02

Encode = Callable[[], object]


def engine() -> ctypes.CDLL | None:
    """The library that exports `ggml_quantize_chunk`, or None where the wheel exports nothing."""
    for path in Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"):
        library = ctypes.CDLL(str(path))
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            *[ctypes.c_void_p] * 2,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        ]
        return library
    return None


def candidates(
    kind: BlockType, x: np.ndarray, importance: np.ndarray | None, levels: list[str]
) -> dict[str, tuple[Encode, np.ndarray]]:
    """Name -> (encoder, the array that holds its bytes after a call)."""
    shape = (x.shape[0], kind.row_bytes(x.shape[1]))
    found: dict[str, tuple[Encode, np.ndarray]] = {}
    if kind.name in libgguf.GGMLQuantizationType.__members__:
        out = np.zeros(shape, np.uint8)
        number = libgguf.GGMLQuantizationType[kind.name]

        def peer() -> None:
            out[:] = np.asarray(libgguf.quantize_rows(x, number, imatrix=importance)).view(np.uint8).reshape(shape)

        found["libgguf"] = (peer, out)
    library = engine()
    if library is not None:
        ggml_out = np.zeros(shape, np.uint8)
        weights = None if importance is None else importance.ctypes.data
        arguments = (kind.ggml_id, x.ctypes.data, ggml_out.ctypes.data, 0, *x.shape, weights)
        found["ggml"] = (lambda: library.ggml_quantize_chunk(*arguments), ggml_out)
    for level in levels:
        native_out = np.zeros(shape, np.uint8)
        found[level] = (
            partial(_ext.encode, kind.ggml_id, level, x, importance, native_out, 1), native_out,
        )  # fmt: skip
    return found


def cpu_seconds(encode: Encode) -> float:
    """CPU seconds per call, repeated until they are long enough to read."""
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < LEAST_S:
        encode()
        calls += 1
    return spent / calls


def measure(kind: BlockType, weighted: bool, levels: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """One row per level."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((ROWS, COLUMNS)) * 0.02).astype(np.float32)
    importance = (rng.standard_normal(COLUMNS) ** 2).astype(np.float32) if weighted else None
    found = candidates(kind, x, importance, levels)
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, (encode, _) in found.items():
            times[name].append(cpu_seconds(encode))
    median = {name: statistics.median(values) for name, values in times.items()}
    for level in levels:
        peers = [name for name in ("libgguf", "ggml") if name in found]
        yield {
            "type": kind.name,
            "importance": weighted,
            "level": level,
            "mw_per_s": x.size / median[level] / 1e6,
            **{f"{peer}_mw_per_s": x.size / median[peer] / 1e6 for peer in peers},
            **{f"ratio_{peer}": median[peer] / median[level] for peer in peers},
            "identical": [peer for peer in peers if np.array_equal(found[level][1], found[peer][1])],
        }


def machine() -> dict[str, str]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    packages = ("kvant", "libgguf", "xllamacpp", "numpy")
    return {"cpu": model, "levels": ", ".join(isa.levels()), **{name: version(name) for name in packages}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default="", help="only these, comma-separated")
    parser.add_argument("--levels", default=",".join(isa.levels()), help="instruction-set levels, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.types.upper().split(",") if name]
    levels = arguments.levels.split(",")

    rows: list[dict[str, Any]] = []
    if not arguments.json:
        print(" · ".join(f"{key} {value}" for key, value in machine().items()))
        print(f"{'type':8}{'importance':12}{'level':10}{'Mw/s':>9}{'x libgguf':>11}{'x ggml':>9}  identical")
    for name, _, _, _, plain, weighted, _ in _ext.types():
        if wanted and name not in wanted:
            continue
        for with_importance in [False] * plain + [True] * weighted:
            for row in measure(BLOCK_TYPES[name], with_importance, levels, arguments.rounds):
                rows.append(row)
                if not arguments.json:
                    ratios = (f"{row[key]:.1f}" if key in row else "-" for key in ("ratio_libgguf", "ratio_ggml"))
                    print(
                        f"{name:8}{'yes' if with_importance else 'no':12}{row['level']:10}{row['mw_per_s']:9.1f}"
                        "{:>11}{:>9}  ".format(*ratios) + ", ".join(row["identical"]), flush=True,
                    )  # fmt: skip
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
