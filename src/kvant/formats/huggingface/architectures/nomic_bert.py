"""Nomic Embed v1 and v1.5: BERT with rotated queries and keys, a gated MLP and no biases but those of norms.

Source: llama.cpp 0.3.36 `conversion/bert.py` `NomicBertModel`, `src/models/nomic-bert.cpp`, `src/models/bert.cpp`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kvant.formats.huggingface.architectures.bert import ENTRIES, computed
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.gpt2 import SPELLINGS, respelled
from kvant.formats.huggingface.architectures.keys import INTEGERS, NORM_EPSILON
from kvant.formats.huggingface.architectures.pooling import POOLED
from kvant.formats.huggingface.architectures.refusals import check_derived_head, check_values
from kvant.formats.huggingface.config import Config

TRAINED = 2048
"""Tokens that the models were trained with; their `n_positions` is what they can be stretched to."""

_SPELLINGS: Mapping[str, str] = MappingProxyType({**SPELLINGS, "rotary_emb_base": "rope_theta"})
_FIXED = MappingProxyType({
    "prenorm": False, "parallel_block": False, "use_rms_norm": False, "qkv_proj_bias": False, "mlp_fc1_bias": False,
    "mlp_fc2_bias": False, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "causal": False,
    "moe_every_n_layers": 0,
})  # fmt: skip
"""Entries that have one value in every model that llama.cpp's nomic-bert computes."""

NAMES = {
    "attn_qkv": "attn.Wqkv", "attn_output": "attn.out_proj", "attn_output_norm": "norm1", "ffn_up": "mlp.fc11",
    "ffn_gate": "mlp.fc12", "ffn_down": "mlp.fc2", "layer_output_norm": "norm2",
}  # fmt: skip
_BIASED = ("attn_output_norm", "layer_output_norm", "token_embd_norm")
_SQUARE = ("hidden_size", "hidden_size")


def _spelled(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    entries = respelled(raw, _SPELLINGS)
    if entries.get("hidden_act") == "swiglu":
        entries["hidden_act"] = "silu"
    stretched = raw.get("n_positions")
    if isinstance(stretched, int) and raw.get("max_position_embeddings") is None:
        entries["max_position_embeddings"] = min(stretched, raw.get("max_trained_positions") or TRAINED)
    return entries


def check(config: Config) -> None:
    """Refuse other orders of norms, biases, shares of rotation, and mixtures of experts (Nomic Embed v2)."""
    check_derived_head(config, "nomic-bert")
    check_values(config, "nomic-bert", **_FIXED)


NOMIC_BERT = Family(
    architecture="nomic-bert",
    classes=("NomicBertModel",),
    model_type="nomic_bert",
    models="Nomic Embed v1 and v1.5",
    rope_types=frozenset({"default"}),
    block="encoder.layers",
    names=NAMES,
    outside={
        "token_embd": "embeddings.word_embeddings", "token_types": "embeddings.token_type_embeddings",
        "token_embd_norm": "emb_ln",
    },
    skipped=("pooler.", "cls."),
    modules=POOLED,
    spelled=_spelled,
    ends=("token_embd", "token_types", "token_embd_norm"),
    has_head=False,
    required=tuple(NAMES),
    shapes={
        "attn_qkv": ("3*hidden_size", "hidden_size"), "attn_output": _SQUARE,
        "ffn_up": ("intermediate_size", "hidden_size"), "ffn_gate": ("intermediate_size", "hidden_size"),
        "ffn_down": ("hidden_size", "intermediate_size"),
    },
    counts=INTEGERS[:4],
    epsilons=(NORM_EPSILON,),
    biased=_BIASED,
    engine_biases=frozenset(_BIASED),
    check=check,
    computed=computed,
    computes_head_dim=True,
    entries=frozenset({
        *ENTRIES, *_SPELLINGS, *_FIXED, "layer_norm_epsilon", "rotary_emb_scale_base", "rotary_scaling_factor",
        "max_trained_positions", "fused_bias_fc", "fused_dropout_add_ln", "use_flash_attn", "use_xentropy",
        "last_layer_subset", "dense_seq_output", "pad_vocab_size_multiple", "mlp_ratio", "expert_choice_router",
        "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "summary_type",
        "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "pooler_type",
    }),
    one_way="its pooling is in files of sentence-transformers, which a GGUF does not hold",
    defaults={
        "vocab_size": 30528, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": TRAINED, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "rope_theta": 1000.0, "hidden_act": "silu",
    },
)  # fmt: skip
