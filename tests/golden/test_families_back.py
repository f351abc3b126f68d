"""The way back of every family that has one: directory, GGUF, directory gives the same tensors and hyperparameters.

The logits of transformers on both directories are compared when the table is made (tools/family_goldens.py, `back`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from family_cases import CASES, table, write_checkpoint
from kvant.dtypes import BF16
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.huggingface.architectures.registry import FAMILIES, family_of_config
from kvant.formats.huggingface.reader import read_huggingface
from kvant.formats.huggingface.writer import write_huggingface
from kvant.formats.safetensors.reader import read_safetensors
from kvant.model import Model
from kvant.recipes.convert.writers import gguf_tensors
from kvant.tensors import Tensor, n_rows

HEADS = ("qwen3-reranker", "qwen3-reranker-untied")
"""Whose head is no language model's."""

BACK = [case for case in CASES if not family_of_config(table(case)["config"], Path()).one_way and case not in HEADS]

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")

NOT_BACK = {
    "hunyuan": ("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    "olmo3": ("rope.scaling.yarn_attn_factor",),
    "qwen3-embedding": ("pooling_type",),
}
"""What the second GGUF says otherwise: a base that was stretched by another rule is as good as a base; the engine reads
no such factor; how vectors are pooled is in files beside a model."""


@pytest.mark.parametrize("case", BACK)
def test_tensors_and_hyperparameters_come_back(case: str, tmp_path: Path) -> None:
    made = {**table(case), "dtype": "BF16"}
    for key in {*EPSILONS} & made["config"].keys():
        made["config"][key] = 3e-4  # no class's default
    model = read_huggingface(write_checkpoint(made, tmp_path / "source"))
    write_gguf(tmp_path / "a.gguf", model.metadata, list(gguf_tensors(model, BF16)))
    write_huggingface(read_gguf(tmp_path / "a.gguf"), tmp_path / "back", dtype="BF16")
    source, found = (saved(tmp_path / name) for name in ("source", "back"))
    assert found.keys() == source.keys()
    assert [name for name, tensor in found.items() if raw(tensor) != raw(source[name])] == []
    again = read_huggingface(tmp_path / "back")
    left = {f"{model.architecture}.{key}" for key in NOT_BACK.get(case.removesuffix("-moe"), ())}
    assert hyperparameters(again, left) == hyperparameters(model, left)


def saved(directory: Path) -> dict[str, Tensor]:
    return dict(read_safetensors(directory / "model.safetensors"))


def raw(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    return tensor.shape, np.asarray(tensor.read_bytes(0, n_rows(tensor))).tobytes()


def hyperparameters(model: Model, left: set[str]) -> dict[str, Any]:
    return {
        key: np.asarray(value.value).tolist()
        for key, value in model.metadata.items()
        if key.startswith(f"{model.architecture}.") and key not in left
    }


@pytest.mark.parametrize("case", BACK)
def test_transformers_computes_the_same_from_both(case: str) -> None:
    """As measured when the table was made."""
    assert table(case)["back"] <= 1e-5


def test_every_family_comes_back_or_says_why_not() -> None:
    first = {"0.1"}  # tests/e2e/test_convert.py
    proven = {id(family_of_config(table(case)["config"], Path())) for case in BACK}
    assert [f.classes[0] for f in FAMILIES if not f.one_way and f.since not in first and id(f) not in proven] == []
