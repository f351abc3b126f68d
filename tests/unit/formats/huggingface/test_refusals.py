"""What families refuse because the engine computes it otherwise: each check, on the configurations of the tables."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from family_cases import CASES as TABLES
from family_cases import table
from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.registry import FAMILIES, family_of_config
from kvant.formats.huggingface.reader import check_computed, complete_config
from kvant.testing.tiny_models import tiny_config

PATH = Path("config.json")

WHOLE = {"partial_rotary_factor": 0.5}
YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5}

CASES: Mapping[str, tuple[tuple[dict[str, Any], str], ...]] = {
    "llama": ((WHOLE, "partial_rotary_factor is 0.5, but models of this class rotate whole heads"),),
    "mistral": ((WHOLE, "rotate whole heads"),),
    "smollm3": ((WHOLE, "rotate whole heads"), ({"no_rope_layers": [1, 1, 1, 1]}, "every 4th layer only")),
    "qwen2": ((WHOLE, "rotate whole heads"), ({"head_dim": 256}, "qwen2 has heads of hidden size over heads, 32")),
    "qwen3-embedding": ((WHOLE, "rotate whole heads"),),
    "gemma2": (
        (WHOLE, "rotate whole heads"), ({"query_pre_attn_scalar": 7}, "query_pre_attn_scalar is 7.0"),
        ({"layer_types": ["full_attention"] * 2}, "windows every second layer"),
        ({"attn_logit_softcapping": None}, "attn_logit_softcapping is None, but llama.cpp's gemma2 always has one"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
    ),
    "gemma3": (
        (WHOLE, "rotate whole heads"), ({"query_pre_attn_scalar": 7}, "scales by"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "after every 0 windowed layers"),
        ({"use_bidirectional_attention": True}, "which llama.cpp's gemma3 does not compute"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, which"),
        ({"rope_local_base_freq": 1e4, "rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
         "rotates windowed layers without scaling"),
    ),
    "gemma3n": (
        ({"laurel_rank": 32}, "laurel_rank is 32, but llama.cpp's gemma3n computes 64"),
        ({"num_kv_shared_layers": 3}, "num_kv_shared_layers is 3"),
        ({"final_logit_softcapping": None}, "caps its logits"),
        ({"activation_sparsity_pattern": 0.5}, "activation_sparsity_pattern is"),
        ({"intermediate_size": [96, 64]}, "one length for all layers"),
    ),
    "gemma4-31b": (
        ({"num_kv_shared_layers": 1}, "just before are"), ({"use_bidirectional_attention": "all"}, "does not compute"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear"}, "full_attention": {"rope_type":
          "proportional"}}}, "rope_type of sliding_attention asks for"),
        ({"per_layer_config": {"0": {"head_dim": 7}}}, "per_layer_config is"),
    ),
    "gemma4-12b": (({"use_bidirectional_attention": "all"}, "use_bidirectional_attention asks for what"),),
    "phi3": (({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope type 'linear' is none that llama.cpp"),),
    "granite": ((WHOLE, "rotate whole heads"),),
    "qwen2moe": (
        ({"decoder_sparse_step": 2}, "dense layers between"), ({"mlp_only_layers": [0]}, "dense layers between"),
        ({"norm_topk_prob": True}, "norm_topk_prob is True"), (WHOLE, "rotate whole heads"),
    ),
    "qwen3moe": (({"norm_topk_prob": False}, "norm_topk_prob is False"), ({"mlp_only_layers": [0]}, "dense layers")),
    "qwen3next": (
        ({"linear_value_head_dim": 8}, "one length for both"), ({"norm_topk_prob": False}, "computes True"),
        ({"decoder_sparse_step": 2}, "dense layers between"),
    ),
    "qwen35": (({"attn_output_gate": False}, "attn_output_gate is False"),),
    "qwen35moe": (({"mtp_use_dedicated_embeddings": True}, "mtp_use_dedicated_embeddings is True"),),
    "qwen2vl": ((WHOLE, "rotate whole heads"), ({"head_dim": 256}, "over heads")),
    "qwen3vl": ((WHOLE, "rotate whole heads"),),
    "qwen3vlmoe": (({"decoder_sparse_step": 2}, "dense layers between"), (WHOLE, "rotate whole heads")),
    "mistral3": (({"model_type": "gemma"}, "the text model is 'gemma'"), (WHOLE, "rotate whole heads")),
    "mixtral": ((WHOLE, "rotate whole heads"),),
    "gpt_oss": (
        ({"swiglu_limit": 6.0}, "swiglu_limit is 6.0"), ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"layer_types": ["full_attention"] * 2}, "a window in every other layer"), (WHOLE, "rotate whole heads"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is none"),
    ),
    "lfm2": (({"conv_L_cache": 1}, "convolves over 2 tokens"),),
    "lfm2moe": (({"norm_topk_prob": False}, "norm_topk_prob is False"), ({"routed_scaling_factor": 2.0}, "is 2.0")),
    "granitemoe": ((WHOLE, "rotate whole heads"),),
    "granitehybrid": (
        ({"mamba_conv_bias": False}, "convolves with a bias"), ({"mamba_expand": 3}, "expands by 2"),
        ({"position_embedding_type": "rope"}, "position_embedding_type is 'rope'"),
        ({"time_step_limit": [0.0, 1.0]}, "time_step_limit is"), (WHOLE, "rotate whole heads"),
    ),
    "granitehybrid_dense": (({"shared_intermediate_size": 7}, "shared_intermediate_size is 7"),),
    "olmo2": (
        ({"tie_word_embeddings": True}, "a head of its own only"), ({"head_dim": 32}, "over heads, 16"),
        (WHOLE, "rotate whole heads"),
    ),
    "olmo3": (({"rope_parameters": {"sliding_attention": {"rope_theta": 7.0}}}, "differ from a plain rotation"),),
    "exaone4": (({"sliding_window": 4096}, "at 64 layers"), ({"head_dim": 7}, "over heads"), (WHOLE, "whole heads")),
    "seed_oss": ((WHOLE, "rotate whole heads"),),
    "stablelm": (({"tie_word_embeddings": True}, "a head of its own only"), ({"head_dim": 7}, "over heads")),
    "starcoder2": (({"use_bias": False}, "use_bias is False"), ({"norm_type": "rms"}, "norm_type is 'rms'")),
    "phi2": (({"qk_layernorm": True}, "qk_layernorm is True"), ({"tie_word_embeddings": True}, "of its own only")),
    "gpt2": (
        ({"scale_attn_by_inverse_layer_idx": True}, "computes False only"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
    ),
    "cohere2": (
        ({"tie_word_embeddings": False}, "no head of its own"), ({"rotary_pct": 0.5}, "rotary_pct is 0.5"),
        ({"use_parallel_block": False}, "use_parallel_block is False"),
    ),
    "ernie4_5": ((WHOLE, "rotate whole heads"),),
    "ernie4_5_moe": (
        ({"moe_layer_interval": 2}, "moe_layer_interval is 2"),
        ({"moe_layer_end_index": 1}, "moe_layer_end_index is 1"), ({"moe_gate": "x"}, "moe_gate is 'x'"),
    ),
    "glm4": (({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is none that llama.cpp's glm4"),),
    "glm4moe": (({"hidden_act": "relu"}, "the activation function is 'relu'"),),
    "hunyuan": (
        ({"use_cla": True}, "use_cla is True"), ({"use_qk_norm": False}, "use_qk_norm is False"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "without alpha"),
    ),
    "hunyuan-moe": (({"position_embedding_xdrope": True}, "position_embedding_xdrope is True"),),
    "mamba2": (
        ({"use_bias": True}, "use_bias is True"), ({"time_step_limit": [0.0, 0.1]}, "does not limit time"),
        ({"num_heads": 7}, "num_heads is 7"),
    ),
    "falcon-h1": (
        ({"mamba_proj_bias": True}, "mamba_proj_bias is True"), ({"tie_word_embeddings": True}, "of its own only"),
        ({"mamba_rms_norm": True, "mamba_norm_before_gate": True}, "mamba_norm_before_gate is True"),
        ({"time_step_limit": [0.0, 0.1]}, "does not limit time"),
    ),
    "nemotron_h": (
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'"), ({"use_conv_bias": False}, "use_conv_bias is False"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06"), ({"tie_word_embeddings": True}, "of its own only"),
        ({"hybrid_override_pattern": "M-M-M"}, "Mamba 2 and attention beside"),
    ),
    "bert": (
        ({"position_embedding_type": "relative_key"}, "'absolute' only"), ({"is_decoder": True}, "is_decoder is True"),
        ({"head_dim": 7}, "over heads"),
    ),
    "xlm-roberta": (({"position_embedding_type": "relative_key"}, "'absolute' only"),),
    "nomic-bert": (
        ({"prenorm": True}, "prenorm is True"), ({"moe_every_n_layers": 2}, "moe_every_n_layers is 2"),
        ({"rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5"),
    ),
    "modern-bert": (
        ({"norm_bias": True}, "norm_bias is True"), ({"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        ({"layer_types": ["sliding_attention"] * 4}, "every 3th layer"),
    ),
    "embeddinggemma": (
        ({"use_bidirectional_attention": False}, "looks both ways"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ),
    "deepseek3": (
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'"), ({"q_lora_rank": None}, "q_lora_rank is None"),
        ({"rope_scaling": YARN}, "lengthens whole heads alone"), ({"moe_layer_freq": 2}, "moe_layer_freq is 2"),
    ),
    "deepseek2_lite": (
        ({"n_group": 2}, "n_group is 2"), ({"norm_topk_prob": True}, "norm_topk_prob is True"),
        ({"q_lora_rank": 8}, "q_lora_rank is 8 at 26 layers"), (WHOLE, "rotate whole heads"),
    ),
}  # fmt: skip
"""By a table of golden/families or a tiny model: entries that its family refuses, and words of the reason."""


def config_of(case: str) -> dict[str, Any]:
    """Return a family's config.json, the text model's entries over the rest."""
    if case not in TABLES:
        return tiny_config(case)
    entries: dict[str, Any] = table(case)["config"]
    return {**entries, **entries.get("text_config", {})}


def refuse(entries: dict[str, Any], changed: dict[str, Any]) -> None:
    family = family_of_config(entries, PATH)
    check_computed(complete_config({**entries, **changed}, family, PATH), family)


@pytest.mark.parametrize(
    ("case", "changed", "words"),
    [(case, changed, words) for case, refused in CASES.items() for changed, words in refused],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_engine_computes_otherwise_is_refused(case: str, changed: dict[str, Any], words: str) -> None:
    entries = config_of(case)
    refuse(entries, {})
    with pytest.raises(UnsupportedModelError, match=re.escape(words)):
        refuse(entries, changed)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.classes[0])
def test_every_family_has_its_refusals_here(family: Family) -> None:
    cases = [case for case in CASES if family_of_config(config_of(case), PATH) is family]
    assert cases, family.classes
    entries = config_of(cases[0])
    key = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    with pytest.raises(UnsupportedModelError, match="the activation function is 'relu9'"):
        refuse(entries, {key: "relu9"})
    if family.rope_types:
        scaling = {"rope_type": "nonsense", "factor": 2.0}
        with pytest.raises(UnsupportedModelError, match=r"'nonsense' is none that llama\.cpp"):
            refuse(entries, {"rope_scaling": scaling, "rope_parameters": {"full_attention": scaling}})


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
