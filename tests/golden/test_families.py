"""Every family against upstream's converter, by committed tables: names, types, shapes, bytes of tensors, metadata."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from family_cases import CASES, digest, table, write_checkpoint
from kvant.dtypes import F32
from kvant.formats.huggingface.architectures.registry import BY_CLASS, FAMILIES
from kvant.formats.huggingface.reader import read_huggingface
from kvant.metadata import Value
from kvant.model import Model
from kvant.recipes.convert.writers import gguf_tensors
from kvant.tensors import Tensor, n_rows

OTHERS = ("general.name", "general.quantization_version", "general.file_type", "general.size_label")
"""Keys of the directory and the writer, which have tests of their own."""

MAX_DIVERGENCE = {"kl": 1e-6, "cosine": 1e-6, "score": 1e-4}
"""Nats per token; cosine distance of encoders; scores of rerankers, whose GELU the engine takes from a table."""


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_metadata_are_upstreams(case: str, tmp_path: Path) -> None:
    wanted = table(case)
    model = read_huggingface(write_checkpoint(wanted, tmp_path / "tiny"))
    found = {t.name: described(t) for t in gguf_tensors(model, F32)}
    assert {name: what[:2] for name, what in found.items()} == {n: w[:2] for n, w in wanted["tensors"].items()}
    assert [name for name, what in found.items() if what[2] != wanted["tensors"][name][2]] == []
    assert hyperparameters(model) == {**wanted["metadata"], **wanted.get("differences", {})}
    assert [remark for remark in model.remarks if "nobody reads" in remark] == []


def described(tensor: Tensor) -> list[Any]:
    data = tensor.read_bytes(0, n_rows(tensor))
    return [tensor.block_type.name, list(tensor.shape), digest(data.tobytes())]


def hyperparameters(model: Model) -> dict[str, Any]:
    """Return the metadata beside tokenizer and directory, as JSON has it."""
    return {
        key: plain(value)
        for key, value in model.metadata.items()
        if not key.startswith("tokenizer.") and key not in OTHERS
    }


def plain(value: Value) -> Any:
    found = value.value
    if isinstance(found, float):
        return float(np.float32(found))
    if isinstance(found, np.ndarray):
        return found.tolist()
    return [str(item) for item in found] if isinstance(found, (list, tuple)) else found


@pytest.mark.parametrize("case", CASES)
def test_the_engine_computes_what_transformers_computes(case: str) -> None:
    """As measured when the table was made; tools/family_goldens.py measures it again."""
    found = {name: figure for name, figure in table(case).items() if name in MAX_DIVERGENCE}
    assert found
    assert {name: figure for name, figure in found.items() if not figure <= MAX_DIVERGENCE[name]} == {}


def test_every_family_has_a_table() -> None:
    proven = {name for case in CASES for name in table(case)["config"]["architectures"]}
    first = {"0.1"}  # proven from tiny models of their own, tests/parity/test_upstream_converter.py
    unproven = {family.classes[0] for family in FAMILIES if family.since not in first} - proven
    assert unproven == set()
    assert proven <= BY_CLASS.keys()
