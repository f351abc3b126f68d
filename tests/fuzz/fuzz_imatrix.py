"""Fuzz importance files of both layouts: `python tests/fuzz/fuzz_imatrix.py -runs=100000`."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
from kvant.formats import imatrix
from kvant.formats.gguf import header, layout, reader, strings
from kvant.quant.importance import Entry, Importance


def seeds(work: Path) -> list[bytes]:
    """Small files of both layouts."""
    found = []
    for suffix, matrices in ((".dat", 1), (".gguf", 1), (".gguf", 2)):
        sums = np.arange(1, 4 * matrices + 1, dtype=np.float32).reshape(matrices, 4)
        entries = {f"blk.{i}.w": Entry(sums=sums, counts=np.full(matrices, 3, np.float32)) for i in range(2)}
        made = Importance(entries=entries, datasets=("x",), n_chunks=2, chunk_size=16)
        imatrix.write_imatrix(work / f"seed{suffix}", made, overwrite=True)
        found.append((work / f"seed{suffix}").read_bytes())
    return found


def exercise(path: Path) -> None:
    """Read a file; its weights are finite, and it can be written in both layouts and read again."""
    found = imatrix.read_imatrix(path)
    assert len(found.sha256) == 64
    for entry in found.entries.values():
        weights = entry.weights()
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()
    for suffix in (".dat", ".gguf"):
        other = path.with_suffix(suffix)
        imatrix.write_imatrix(other, found, overwrite=True)
        if suffix == ".gguf":
            assert imatrix.read_imatrix(other).entries.keys() == found.entries.keys()


if __name__ == "__main__":
    fuzzing.instrument(imatrix, header, layout, reader, strings)
    fuzzing.run(exercise, seeds)
