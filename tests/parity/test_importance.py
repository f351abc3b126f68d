"""Importance against llama.cpp's own llama-imatrix: its files, and its values on the same tokens of a tiny model.

The files in data/imatrix were written by tools/imatrix_parity.py. Upstream adds up in float32 and keeps its key-value
cache in F16, which the tolerance allows for.
"""

import json
from pathlib import Path

import numpy as np

from kvant.calibrate.importance import measure
from kvant.formats.imatrix import read_imatrix, write_imatrix
from kvant.recipes.measure.base import f32_file
from kvant.recipes.source import open_model
from kvant.testing.tiny_models import write_tiny_model

DATA = Path(__file__).resolve().parent / "data" / "imatrix"
TOLERANCE = 0.002
"""Relative, of every channel; the largest difference found is 0.0005."""


def test_values_agree_with_upstreams_on_the_same_tokens(tmp_path: Path) -> None:
    tokens = np.array(json.loads((DATA / "tokens.json").read_text())["tokens"], np.int32)
    model = open_model(write_tiny_model("llama", tmp_path / "hf", num_hidden_layers=1))
    found = measure(
        f32_file(model)[0], model, tokens, directory=tmp_path / "sums", threads=1, datasets=("text.txt",)
    )  # fmt: skip
    expected = read_imatrix(DATA / "tiny.gguf")
    assert found.entries.keys() == expected.entries.keys()
    assert (found.n_chunks, found.chunk_size) == (expected.n_chunks, expected.chunk_size) == tokens.shape
    assert found.datasets == expected.datasets
    for name, entry in found.entries.items():
        np.testing.assert_array_equal(entry.counts, expected.entries[name].counts)
        np.testing.assert_allclose(entry.sums, expected.entries[name].sums, rtol=TOLERANCE)


def test_the_old_layout_is_written_byte_for_byte_as_upstream_writes_it(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "tiny.dat", read_imatrix(DATA / "tiny.gguf"))
    assert (tmp_path / "tiny.dat").read_bytes() == (DATA / "tiny.dat").read_bytes()


def test_both_of_upstreams_layouts_are_read_alike() -> None:
    new, old = read_imatrix(DATA / "tiny.gguf"), read_imatrix(DATA / "tiny.dat")
    assert (new.datasets, new.n_chunks) == (old.datasets, old.n_chunks)
    for name, entry in new.entries.items():
        np.testing.assert_allclose(entry.weights(), old.entries[name].weights(), rtol=3e-7)
