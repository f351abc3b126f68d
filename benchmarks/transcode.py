"""Fused transcoding against ggml's way: convert the tensor to float32, encode it, validate the result.

The peer is what llama-quantize does to a tensor, called through the C functions that the pinned engine exports:
`ggml_fp16_to_fp32_row` (or `ggml_bf16_to_fp32_row`), `ggml_quantize_chunk`, `ggml_validate_row_data`, one thread.
Bytes are compared first. Times are CPU seconds of this process; runs of both alternate and the medians are divided.

    python benchmarks/transcode.py [--rows 2048] [--columns 4096] [--runs 5] [--json]
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

import numpy as np
import xllamacpp

import kvant
from kvant.dtypes import BLOCK_TYPES
from kvant.kernels import isa, transcode

SOURCES = ("F16", "BF16")
TARGETS = ("Q8_0", "Q4_0")


def load_engine() -> ctypes.CDLL:
    """The engine's shared object with the signatures of the peer's steps."""
    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    for convert in (library.ggml_fp16_to_fp32_row, library.ggml_bf16_to_fp32_row):
        convert.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        convert.restype = None
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library


class Peer:
    """Convert, encode and validate as llama-quantize does, with buffers that are kept, as it keeps them."""

    def __init__(self, library: ctypes.CDLL, data: np.ndarray, source: str, target: str, n: int) -> None:
        self._library, self._data, self._n, self._kind = library, data, n, BLOCK_TYPES[target]
        self._convert = library.ggml_fp16_to_fp32_row if source == "F16" else library.ggml_bf16_to_fp32_row
        self._x = np.zeros((data.shape[0], n), np.float32)
        self.out = np.zeros((data.shape[0], self._kind.row_bytes(n)), np.uint8)

    def run(self) -> None:
        """One tensor."""
        kind, x, out = self._kind.ggml_id, self._x, self.out
        self._convert(self._data.ctypes.data, x.ctypes.data, x.size)
        self._library.ggml_quantize_chunk(kind, x.ctypes.data, out.ctypes.data, 0, len(x), self._n, None)
        if not self._library.ggml_validate_row_data(kind, out.ctypes.data, out.nbytes):
            raise SystemExit("ggml refused its own rows")


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(
    library: ctypes.CDLL, data: np.ndarray, source: str, target: str, n: int, runs: int
) -> list[dict[str, object]]:
    """One row per instruction-set level."""
    peer = Peer(library, data, source, target, n)
    peer.run()
    rows: list[dict[str, object]] = []
    for level in isa.levels():
        os.environ["KVANT_ISA"] = level
        same = bool(np.array_equal(transcode(data, source, target, n, threads=1), peer.out))
        ours, theirs = [], []
        for _ in range(runs):
            ours.append(cpu_seconds(lambda: transcode(data, source, target, n, threads=1)))
            theirs.append(cpu_seconds(peer.run))
        mine, ggml = statistics.median(ours), statistics.median(theirs)
        weights = data.shape[0] * n
        rows.append(
            {
                "source": source,
                "target": target,
                "isa": level,
                "identical": same,
                "ratio": ggml / mine,
                "kvant_ns_per_weight": mine / weights * 1e9,
                "ggml_ns_per_weight": ggml / weights * 1e9,
            }
        )
    return rows


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    library = load_engine()
    x = (np.random.default_rng(0).standard_normal((arguments.rows, arguments.columns)) * 0.02).astype(np.float32)
    results = [
        row
        for source in SOURCES
        for target in TARGETS
        for row in measure(library, kvant.encode(x, source), source, target, arguments.columns, arguments.runs)
    ]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "engine": f"xllamacpp {version('xllamacpp')}",
        "weights": x.size,
        "runs": arguments.runs,
    }
    if arguments.json:
        print(json.dumps({"machine": machine, "results": results}, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'source':7}{'target':8}{'isa':10}{'same bytes':12}{'kvant ns/w':>11}{'ggml ns/w':>11}{'ratio':>8}")
    for row in results:
        print(
            f"{row['source']:7}{row['target']:8}{row['isa']:10}{'yes' if row['identical'] else 'NO':12}"
            f"{row['kvant_ns_per_weight']:11.3f}{row['ggml_ns_per_weight']:11.3f}{row['ratio']:8.1f}"
        )


if __name__ == "__main__":
    main()
