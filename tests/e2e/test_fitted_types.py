"""Blocks fitted under a Hessian in the engine itself: it looks rows up and multiplies as their decoder says."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvant.dtypes import F32, block_type
from kvant.formats.open import open_model
from kvant.kernels import decode
from kvant.quant.curvature import Curvatures
from kvant.quant.plan import Plan
from kvant.recipes.targets.gguf.write import quantize
from kvant.runtime.process import EngineProcess
from kvant.tensors import array_tensor, n_rows, row_length
from kvant.testing.tiny_models import write_tiny_model

TOLERANCE = 0.25
"""Of log-probabilities, which lie within 5 of each other: the engine rounds activations to 8 bits."""


def hessian_of(n: int) -> np.ndarray:
    x = np.random.default_rng(n).standard_normal((2 * n, n)) @ (np.eye(n) + 0.1)
    return np.asarray(x.T @ x / (2 * n))


def log_probabilities(file: Path) -> np.ndarray:
    tokens = np.arange(3, 99, 3, dtype=np.int32)[None]
    with EngineProcess() as engine:
        engine.open(file, n_ctx=64, n_threads=1, all_logits=True)
        (logits,) = engine.logits(tokens, first=0)
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ1_M", "MXFP4", "NVFP4", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0"])
def test_the_engine_computes_with_what_was_fitted(kind: str, tmp_path: Path) -> None:
    length = block_type(kind).block_length
    hidden = 3 * length if length < 256 else 256  # an odd number of blocks where those are short
    model = open_model(
        write_tiny_model(
            "llama3", tmp_path / "tiny", num_hidden_layers=1, intermediate_size=256, head_dim=64, hidden_size=hidden,
            num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
        )
    )  # fmt: skip
    matrices = ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"]  # looked up, multiplied
    types = {name: kind if name in matrices else "F32" for name in model.tensors}
    curvatures = Curvatures(
        names=matrices, hessian=lambda name: hessian_of(model.tensors[name].shape[-1]), sha256="", n_tokens=1024
    )
    plan = Plan(preset="custom", file_type=0, types=types, has_importance=True)
    quantize(model, plan, tmp_path / "fitted.gguf", curvatures=curvatures)
    fitted = open_model(tmp_path / "fitted.gguf")
    assert {fitted.tensors[name].block_type.name for name in matrices} == {kind}

    values = {}
    for name in matrices:
        tensor = fitted.tensors[name]
        rows = decode(tensor.read_bytes(0, n_rows(tensor)), tensor.block_type, row_length(tensor))
        values[name] = array_tensor(name, rows, F32)
    decoded = dataclasses.replace(model, tensors={**model.tensors, **values})
    floats = msgspec.structs.replace(plan, types=dict.fromkeys(types, "F32"))
    quantize(decoded, floats, tmp_path / "floats.gguf")
    difference = log_probabilities(tmp_path / "fitted.gguf") - log_probabilities(tmp_path / "floats.gguf")
    assert np.abs(difference).max() < TOLERANCE
