"""What families refuse because the engine computes it otherwise: each check, on the configurations of the tables."""

from pathlib import Path
from typing import Any

import pytest

from family_cases import table
from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.registry import family_of_class, family_of_config
from kvant.formats.huggingface.reader import complete_config

CASES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("olmo2", {"tie_word_embeddings": True}, "a head of its own only"),
    ("olmo2", {"head_dim": 32}, "over heads, 16"),
    ("olmo3", {"rope_parameters": {"sliding_attention": {"rope_theta": 7.0}}}, "differ from a plain rotation"),
    ("exaone4", {"sliding_window": 4096}, "at 64 layers"),
    ("starcoder2", {"use_bias": False}, "use_bias is False"),
    ("phi2", {"qk_layernorm": True}, "qk_layernorm is True"),
    ("stablelm", {"tie_word_embeddings": True}, "a head of its own only"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "computes False only"),
    ("cohere2", {"tie_word_embeddings": False}, "no head of its own"),
    ("cohere2", {"rotary_pct": 0.5}, "rotary_pct is 0.5"),
    ("ernie4_5_moe", {"moe_layer_interval": 2}, "moe_layer_interval is 2"),
    ("ernie4_5_moe", {"moe_layer_end_index": 1}, "moe_layer_end_index is 1"),
    ("hunyuan", {"use_cla": True}, "use_cla is True"),
    ("hunyuan", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "without alpha"),
    ("mamba2", {"use_bias": True}, "use_bias is True"),
    ("mamba2", {"time_step_limit": [0.0, 0.1]}, "does not limit time"),
    ("mamba2", {"num_heads": 7}, "num_heads is 7"),
    ("falcon-h1", {"mamba_proj_bias": True}, "mamba_proj_bias is True"),
    ("falcon-h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": True}, "mamba_norm_before_gate is True"),
    ("nemotron_h", {"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'"),
    ("nemotron_h", {"use_conv_bias": False}, "use_conv_bias is False"),
    ("granitehybrid", {"mamba_conv_bias": False}, "convolves with a bias"),
    ("nemotron_h", {"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06"),
    ("nemotron_h", {"hybrid_override_pattern": "M-M-M"}, "Mamba 2 and attention beside"),
    ("bert", {"position_embedding_type": "relative_key"}, "'absolute' only"),
    ("modern-bert", {"norm_bias": True}, "norm_bias is True"),
    ("modern-bert", {"layer_types": ["sliding_attention"] * 4}, "every 3th layer"),
    ("embeddinggemma", {"use_bidirectional_attention": False}, "looks both ways"),
)


@pytest.mark.parametrize(("case", "changed", "words"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_engine_computes_otherwise_is_refused(case: str, changed: dict[str, Any], words: str) -> None:
    entries = table(case)["config"]
    family = family_of_class(entries["architectures"][0], "config.json")
    family.check(complete_config(entries, family, Path("config.json")))
    with pytest.raises(UnsupportedModelError, match=words):
        family.check(complete_config({**entries, **changed}, family, Path("config.json")))


@pytest.mark.parametrize("case", ["nemotron_h_moe", "nemotron_h_latent"])
def test_layers_of_experts_make_another_family(case: str) -> None:
    family = family_of_config(table(case)["config"], Path("config.json"))
    assert family.architecture == "nemotron_h_moe"
    mixed = {**table(case)["config"], "layers_block_type": ["mamba", "moe", "attention", "mlp", "moe"]}
    with pytest.raises(UnsupportedModelError, match="not both of these"):
        family.check(complete_config(mixed, family, Path("config.json")))


@pytest.mark.parametrize("kinds", ["M-*M", "M-*M?", ["mamba", [], 3, "mlp", "attention"], 7, {"moe": 1}])
def test_kinds_of_layers_that_are_none_are_refused(kinds: object) -> None:
    entries = {**table("nemotron_h")["config"], "layers_block_type": kinds}
    family = family_of_config(entries, Path("config.json"))
    with pytest.raises(FormatError, match="layers_block_type"):
        family.check(complete_config(entries, family, Path("config.json")))
