"""The differentiable decoder against llama.cpp, every architecture it knows, on tiny models in F32.

Both compute in float32; llama.cpp keeps its key-value cache in F16, which the tolerance allows for.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvant.calibrate.decoder import Decoder
from kvant.formats.open import open_model
from kvant.recipes.convert.convert import convert
from kvant.runtime.process import EngineProcess
from kvant.testing.tiny_models import write_tiny_model

LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "untied with rotary factors": ("llama3", {}),
    "biases on all four": ("llama", {"attention_bias": True}),
    "linear scaling": ("llama", {"rope_scaling": LINEAR_ROPE}),
    "wide heads": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}
TOLERANCE = 0.01
"""Absolute, of logits whose standard deviation is 0.8 to 3.5; the largest difference found is 0.005."""


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_the_engine(case: str, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    path = tmp_path / "tiny.gguf"
    convert(write_tiny_model(family, tmp_path / "hf", **overrides), path, to="gguf", type="F32")
    tokens = np.random.default_rng(0).integers(3, 500, (2, 96), dtype=np.int32)
    with torch.no_grad():
        found = Decoder(open_model(path)).logits(tokens).numpy()
    with EngineProcess() as engine:
        engine.open(path, n_ctx=96, n_threads=1, all_logits=True)
        for ours, theirs in zip(found, engine.logits(tokens, first=0), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
