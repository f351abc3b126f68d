"""What a tensor does in its model, read from its name: the rules of presets speak of roles, not of names.

Source: llama.cpp b11434 `src/llama-quant.cpp` (`tensor_get_category`, `tensor_allows_quantization`) and
`src/llama-model-loader.h` (`weight_name_comparer`): which names count and in which order files are written.
"""

import re
from collections.abc import Iterable
from enum import Enum


class Role(Enum):
    """What a tensor does in its model."""

    EMBEDDING = "embedding"
    OUTPUT = "output"
    ATTENTION_Q = "attention query"
    ATTENTION_K = "attention key"
    ATTENTION_V = "attention value"
    ATTENTION_OUTPUT = "attention output"
    FFN_UP = "feed-forward up"
    FFN_GATE = "feed-forward gate"
    FFN_DOWN = "feed-forward down"
    OTHER = "other"


# The first part that a name contains decides; fused query-key-value counts as value, the most sensitive of the three.
_PARTS = (
    ("attn_qkv.weight", Role.ATTENTION_V),
    ("attn_kv_b.weight", Role.ATTENTION_V),
    ("attn_v.weight", Role.ATTENTION_V),
    ("attn_k.weight", Role.ATTENTION_K),
    ("attn_q.weight", Role.ATTENTION_Q),
    ("attn_output.weight", Role.ATTENTION_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"

# Small or delicate matrices that stay as they are.
_LEFT_ALONE = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_LEFT_ALONE_NAMES = ("position_embd.weight", "token_types.weight")
_LEFT_ALONE_GLM5 = (
    "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape",
    "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight",
    "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
)  # fmt: skip

_LAYER = re.compile(r"blk\.(\d+)\.")


def role_of(name: str) -> Role:
    """Return the role of the tensor `name`."""
    if name == OUTPUT:
        return Role.OUTPUT
    if name in EMBEDDINGS:
        return Role.EMBEDDING
    return next((role for part, role in _PARTS if part in name), Role.OTHER)


def layer_of(name: str) -> int | None:
    """Return the layer that a tensor belongs to; None outside the layers."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor has more than one row; leading axes of length 1 do not count."""
    return any(length > 1 for length in shape[:-1])


ALWAYS_F32 = re.compile(
    r"(blk\.\d+\.)?(ffn_gate_inp(_shexp)?|ssm_conv1d|shortconv\.conv|altup_(correct|predict)_coef"
    r"|time_mix_(first|w1|w2|decay_w1|decay_w2|lerp_fused)|position_embd|token_types)\.weight"
)
"""Matrices that the engine reads as F32 only; they come with GGUFs of other architectures."""


def is_float32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the engine computes with this tensor as F32 only: a vector, a norm, or whatever is no weight.

    Source: upstream's converter, `ModelBase.prepare_tensors`; parity in tests/parity/test_upstream_converter.py.
    """
    is_other = len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight")
    return is_other or ALWAYS_F32.fullmatch(name) is not None


def is_quantizable(name: str, shape: tuple[int, ...], architecture: str) -> bool:
    """Whether presets store this tensor as blocks: a weight matrix that is neither a norm, a router nor tiny."""
    if not is_matrix(shape) or not name.endswith("weight") or name in _LEFT_ALONE_NAMES:
        return False
    if architecture == "glm5-next" and any(part in name for part in _LEFT_ALONE_GLM5):
        return False
    return not any(part in name for part in _LEFT_ALONE)


def file_order(names: Iterable[str]) -> list[str]:
    """Sort tensor names as llama.cpp writes them: by layer, those outside the layers first, then by name."""

    def key(name: str) -> tuple[int, bytes]:
        layer = layer_of(name)
        return -1 if layer is None else layer, name.encode()

    return sorted(names, key=key)
