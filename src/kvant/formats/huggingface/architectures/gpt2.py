"""GPT-2: positions as embeddings, one projection for queries, keys and values, matrices with inputs along the rows.

Source: llama.cpp 0.3.36 `src/models/gpt2.cpp`; transformers 5.24 `GPT2Config.attribute_map`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.hyper import integer
from kvant.formats.huggingface.architectures.keys import INTEGERS, NORM_EPSILON
from kvant.formats.huggingface.architectures.refusals import check_values
from kvant.formats.huggingface.architectures.transforms import TRANSPOSED
from kvant.formats.huggingface.config import Config

SPELLINGS: Mapping[str, str] = MappingProxyType({
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings", "n_inner": "intermediate_size", "activation_function": "hidden_act",
})  # fmt: skip
"""Entries of its config.json: name, and what other families call it."""

NAMES = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
_MATRICES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
_BIASED = (*NAMES, "output_norm")


def respelled(raw: Mapping[str, Any], spellings: Mapping[str, str]) -> dict[str, Any]:
    """Return entries of config.json with further ones under the names of other families; those come first."""
    others = {known: raw[own] for own, known in spellings.items() if raw.get(own) is not None}
    return {**others, **{key: value for key, value in raw.items() if value is not None or key not in others}}


def _spelled(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    entries = respelled(raw, SPELLINGS)
    width = entries.get("hidden_size")
    if entries.get("intermediate_size") is None and isinstance(width, int):
        entries["intermediate_size"] = 4 * width
    return entries


def check(config: Config) -> None:
    """Refuse attention that is scaled otherwise, or attends to something else as well."""
    check_values(
        config, "gpt2", scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False,
    )  # fmt: skip


GPT2 = Family(
    architecture="gpt2",
    classes=("GPT2LMHeadModel",),
    model_type="gpt2",
    models="GPT-2, DistilGPT2, DialoGPT",
    activation="gelu_pytorch_tanh",
    rope_types=frozenset(),
    block="transformer.h",
    names=NAMES,
    outside={
        "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    ends=("token_embd", "position_embd", "output_norm"),
    transforms=dict.fromkeys(_MATRICES, TRANSPOSED),
    spelled=_spelled,
    required=tuple(NAMES),
    shapes={
        "attn_qkv": ("3*hidden_size", "hidden_size"), "attn_output": ("hidden_size", "hidden_size"),
        "ffn_up": ("intermediate_size", "hidden_size"), "ffn_down": ("hidden_size", "intermediate_size"),
        "position_embd": ("max_position_embeddings", "hidden_size"), "output_norm": ("hidden_size",),
    },
    counts=INTEGERS[:4],
    epsilons=(NORM_EPSILON,),
    biased=_BIASED,
    engine_biases=frozenset(_BIASED),
    check=check,
    entries=frozenset(SPELLINGS) | {
        "n_ctx", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention",
        "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
        "summary_proj_to_labels", "summary_first_dropout",
    },
    returned=lambda model: {"n_inner": integer(model, "feed_forward_length")},
    defaults={
        "vocab_size": 50257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "max_position_embeddings": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "hidden_act": "gelu_new",
    },
)  # fmt: skip
