"""Opening a GGUF file with a large vocabulary: kvant's reader against the official `gguf.GGUFReader`.

The file has Qwen2's vocabulary size (151,936 tokens, 151,387 merges, their types) and 340 tensors. Opening means:
header read and checked, every tensor's name, shape and type listed, one token decoded. Runs of both alternate in one
process; times are CPU milliseconds, medians are divided. The file is in the page cache for both.

    python benchmarks/gguf_reader.py [--runs 15] [--json]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np

import kvant
from kvant.dtypes import BLOCK_TYPES
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.metadata import ValueType, array, string, u32
from kvant.tensors import LazyTensor

N_TOKENS, N_MERGES, N_TENSORS = 151_936, 151_387, 340


def write_model(path: Path) -> None:
    """A model with a real vocabulary's sizes: tokens of 1 to 12 bytes, merges of two of them."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (N_TOKENS, 12), np.uint8)
    tokens = [row[:n].tobytes().decode() for row, n in zip(letters, rng.integers(1, 13, N_TOKENS), strict=True)]
    merges = [f"{tokens[i]} {tokens[-i]}" for i in range(N_MERGES)]
    metadata = {
        "general.architecture": string("qwen2"),
        "qwen2.block_count": u32(28),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, np.ones(N_TOKENS, np.int32)),
        "tokenizer.ggml.merges": array(ValueType.STRING, merges),
    }
    kind = BLOCK_TYPES["Q4_K"]
    data = np.zeros((64, kind.row_bytes(256)), np.uint8)
    tensors = [
        LazyTensor(name=f"blk.{i}.ffn_up.weight", shape=(64, 256), block_type=kind, read=lambda a, b: data[a:b])
        for i in range(N_TENSORS)
    ]
    write_gguf(path, metadata, tensors)


def open_kvant(path: Path) -> object:
    """Open, list, decode one token."""
    model = read_gguf(path)
    listed = [(t.name, t.shape, t.block_type) for t in model.tensors.values()]
    tokens = model.metadata["tokenizer.ggml.tokens"].value
    assert not isinstance(tokens, bool | int | float)
    return listed, tokens[1000]


def list_kvant(path: Path) -> object:
    """The same, and every token and merge as text."""
    metadata = read_gguf(path).metadata
    return [list(metadata[f"tokenizer.ggml.{key}"].value) for key in ("tokens", "merges")]  # type: ignore[arg-type]


def open_official(path: Path) -> object:
    """Open, list, decode one token."""
    reader = gguf.GGUFReader(path)
    field = reader.fields["tokenizer.ggml.tokens"]
    listed = [(t.name, t.shape, t.tensor_type) for t in reader.tensors]
    return listed, bytes(field.parts[field.data[1000]]).decode()


def list_official(path: Path) -> object:
    """The same, and every token and merge as text."""
    reader = gguf.GGUFReader(path)
    return [reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges")]


def seconds(work: Callable[[Path], object], path: Path) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work(path)
    return time.process_time() - start


def measure(path: Path, runs: int) -> list[dict[str, object]]:
    """One row per task: medians of CPU milliseconds of both readers, and their ratio."""
    rows: list[dict[str, object]] = []
    for task, ours, theirs, times in (
        ("open and list tensors", open_kvant, open_official, runs),
        ("and all strings as text", list_kvant, list_official, max(3, runs // 5)),
    ):
        ours(path)
        pairs = [(seconds(ours, path), seconds(theirs, path)) for _ in range(times)]
        mine, peer = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append({"task": task, "kvant_ms": mine, "official_ms": peer, "ratio": peer / mine, "runs": times})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.gguf")
        write_model(path)
        rows = measure(path, options.runs)
    versions = {"kvant": kvant.__version__, "gguf": version("gguf"), "numpy": np.__version__}
    machine = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    if options.json:
        print(json.dumps({"environment": machine, "rows": rows}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"{'task':28}{'kvant ms':>10}{'official ms':>13}{'ratio':>8}{'runs':>6}")
    for row in rows:
        print(f"{row['task']:28}{row['kvant_ms']:10.2f}{row['official_ms']:13.1f}{row['ratio']:8.0f}{row['runs']:6}")


if __name__ == "__main__":
    main()
