"""GLM-4 (dense, norms after each part) and GLM-4.5 to 4.7 (experts behind leading dense layers, a block that guesses).

transformers rotates GLM-4's neighbouring pairs as llama.cpp does, so no row moves.
"""

from collections.abc import Collection, Mapping
from typing import Any

from kvant.formats.huggingface.architectures.experts import (
    EXPERT_BIAS,
    EXPERT_SHAPES,
    EXPERT_STEMS,
    MLP_EXPERTS,
    SCORE_CORRECTION,
    SHARED_EXPERTS,
    SHARED_EXPERTS_SHAPES,
    SIGMOID,
    is_dense,
)
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import EXPERTS, Key, Kind
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, ATTENTION_NAMES, MLP_NAMES, QK_NORMS
from kvant.formats.huggingface.config import MAX_LAYERS, Config
from kvant.metadata import Value, u32

BIASES = ATTENTION_BIASES[:3]
"""What `attention_bias` asks for here; the output projection has none."""

GLM4_NAMES = {
    **{ours: theirs for ours, theirs in ATTENTION_NAMES.items() if ours != "ffn_norm"},
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_mlp_layernorm",
}
MOE_NAMES = {
    **{ours: theirs for ours, theirs in ATTENTION_NAMES.items() if ours != "ffn_norm"},
    "post_attention_norm": "post_attention_layernorm",
    **QK_NORMS,
    **MLP_NAMES,
    "ffn_gate_inp": "mlp.gate",
    **SHARED_EXPERTS,
}


def rotated(config: Config) -> dict[str, Value]:
    """Return how many components of a head are rotated."""
    share = Config(values=config.rope, path=config.path).number("partial_rotary_factor", 0.5)
    return {"rope.dimension_count": u32(int(config.head_dim * share))}
