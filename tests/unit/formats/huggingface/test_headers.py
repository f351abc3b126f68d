import json
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.headers import usual_name
from kvant.formats.open import open_as_stored, open_model, open_to_estimate
from kvant.recipes.advise import advise
from kvant.recipes.inspect.inspect import inspect
from kvant.testing.tiny_models import write_safetensors

HIDDEN, FFN, EXPERTS, LAYERS = 64, 32, 4, 2


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A mixture of experts of a class that nobody has made yet."""
    config = {
        "architectures": ["NextYearForCausalLM"], "model_type": "next_year", "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "num_experts": EXPERTS, "num_experts_per_tok": 1, "moe_intermediate_size": FFN, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (100, HIDDEN), "lm_head.weight": (100, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}mlp.router.weight": (EXPERTS, HIDDEN),
        }
        for expert in range(EXPERTS):
            shapes |= {f"{prefix}mlp.experts.{expert}.{n}_proj.weight": (FFN, HIDDEN) for n in ("gate", "up")}
            shapes[f"{prefix}mlp.experts.{expert}.down_proj.weight"] = (HIDDEN, FFN)
    write_safetensors(tmp_path / "model.safetensors", {n: np.ones(s, np.float32) for n, s in shapes.items()}, "BF16")
    return tmp_path


def test_headers_of_an_unknown_class_are_told(unknown: Path) -> None:
    with pytest.raises(UnsupportedModelError):
        open_model(unknown)
    found = inspect(unknown)
    assert found.architecture == "NextYearForCausalLM"
    assert found.weights == 2 * 100 * HIDDEN + LAYERS * (
        HIDDEN * HIDDEN + EXPERTS * HIDDEN + 3 * EXPERTS * FFN * HIDDEN
    )
    # One of four experts is read, and one row of the embedding.
    left_out = LAYERS * 3 * (EXPERTS - 1) * FFN * HIDDEN + 99 * HIDDEN
    assert found.active_weights == found.weights - left_out
    assert {share.name: share.tensors for share in found.by_role}["ffn"] == LAYERS * 3 * EXPERTS
    assert any("headers alone" in warning and "NextYearForCausalLM" in warning for warning in found.warnings)
    assert "model.layers.0.self_attn.q_proj.weight" in {tensor.name for tensor in found.tensors}
    assert not any("tokenizer" in warning for warning in found.warnings)


def test_what_it_would_need_is_estimated(unknown: Path) -> None:
    advice = advise(unknown, use_case="desktop")
    assert advice.weights == open_as_stored(unknown).n_weights
    sizes = {row.preset: row.size_bytes for row in advice.rows}
    assert sizes["Q8_0"] < sizes["BF16"]
    assert any("headers alone" in warning for warning in advice.warnings)
    assert open_to_estimate(unknown).hyper("attention.head_count_kv") == 2


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.layers.3.self_attn.o_proj.weight", "blk.3.attn_output.weight"),
        ("transformer.h.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.1.mlp.experts.17.up_proj.weight", "blk.1.ffn_up_exps.17.weight"),
        ("model.layers.1.mlp.experts.down_proj", "blk.1.ffn_down_exps.weight"),
        ("model.layers.1.mlp.shared_expert.up_proj.weight", "blk.1.ffn_up_shexp.weight"),
        ("model.layers.1.input_layernorm.weight", "blk.1.input_layer_norm.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("some.thing.else", "some.thing.else"),
    ],
)
def test_usual_words(theirs: str, ours: str) -> None:
    assert usual_name(theirs) == ours
