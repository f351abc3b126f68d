"""The engine computes the YaRN that the metadata asks for: an attention factor is queries and keys that much longer."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.recipes.convert.convert import convert
from kvant.runtime.llamacpp import LlamaCpp
from kvant.testing.tiny_models import weights, write_safetensors, write_tiny_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LENGTHENING = 1 + 0.1 * math.log(4)
TOKENS = np.random.default_rng(3).integers(0, 512, 96, np.int32)


def logits(directory: Path, **rope: Any) -> np.ndarray:
    """Logits of a tiny Llama; `longer` lengthens its queries and keys by hand."""
    longer = rope.pop("longer", 1.0)
    write_tiny_model("llama", directory, dtype="F32", rope_scaling={**YARN, **rope})
    tensors = dict(weights(json.loads((directory / "config.json").read_text()), 0))
    for name in tensors:
        if "q_proj" in name or "k_proj" in name:
            tensors[name] = tensors[name] * np.float32(longer)
    write_safetensors(directory / "model.safetensors", tensors, "F32")
    file = directory / "tiny.gguf"
    convert(directory, file, to="gguf", type="F32")
    with LlamaCpp(file, n_ctx=128, n_threads=1, all_logits=True) as engine:
        return np.array(engine.logits(TOKENS))


@pytest.mark.parametrize(
    ("stated", "total"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 0.5, "mscale_all_dim": 2.0}, (1 + 0.05 * math.log(4)) / (1 + 0.2 * math.log(4))),
    ],
)
def test_an_attention_factor_reaches_the_engine(stated: dict[str, float], total: float, tmp_path: Path) -> None:
    plain = logits(tmp_path / "plain")
    found = logits(tmp_path / "stated", **stated)
    expected = logits(tmp_path / "by hand", longer=total / LENGTHENING)

    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert np.abs(found - plain).max() > 0.05
