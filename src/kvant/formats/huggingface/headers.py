"""A Hugging Face directory whose architecture is not known, as far as its headers tell: to look at, not to convert.

Tensors keep the checkpoint's own names and values; hyperparameters get GGUF's keys where config.json uses the words
that most models use. `usual_names` goes on to guess what each tensor does, which is enough for sizes and memory.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvant.formats.huggingface.config import architecture_name, read_config
from kvant.formats.huggingface.lazy import renamed
from kvant.formats.huggingface.naming import directory_identifier
from kvant.formats.safetensors.reader import read_sharded, weight_files
from kvant.metadata import Value, string, u32
from kvant.model import Model
from kvant.tensors import Tensor

_KEYS = {
    "block_count": ("num_hidden_layers", "n_layer", "num_layers"),
    "context_length": ("max_position_embeddings", "n_positions", "seq_length"),
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_dim"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok", "moe_topk", "top_k_experts"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
}
"""Entries of config.json by GGUF key, the most common first."""

_MOST = 1 << 31

_OUTSIDE = {
    "embed_tokens": "token_embd.weight", "wte": "token_embd.weight", "word_embeddings": "token_embd.weight",
    "lm_head": "output.weight", "embed_out": "output.weight",
}  # fmt: skip
_INSIDE = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "out_proj": "attn_output",
    "qkv_proj": "attn_qkv", "query_key_value": "attn_qkv", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
    "down_proj": "ffn_down", "gate_up_proj": "ffn_up", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
}  # fmt: skip
"""What a matrix does, by the last word of its name before `.weight`."""

_LISTS = frozenset({"layers", "h", "blocks", "block"})
"""What checkpoints call the list of their layers."""


def read_headers(directory: Path, why: str) -> Model:
    """Read what configuration and headers of weights say of a directory.

    Args:
        directory: The model directory.
        why: Why it is not read as a model, for its remarks.

    Raises:
        FormatError: A file is missing or damaged.
        UnsupportedFormatError: Its weights are pickles, or of a type not known here.
    """
    raw = read_config(directory)
    architecture = architecture_name(raw, directory / "config.json")[:80]
    text = raw.get("text_config")
    config = {**raw, **text} if isinstance(text, dict) else raw
    numbers = {f"{architecture}.{key}": u32(n) for key, n in _hyperparameters(config).items()}
    known_as = directory_identifier(directory)
    metadata: dict[str, Value] = {
        "general.architecture": string(architecture), "general.name": string(known_as), **numbers,
    }  # fmt: skip
    return Model(
        metadata=metadata, tensors=dict(read_sharded(directory)), path=directory, known_as=known_as,
        files=(*weight_files(directory), directory / "config.json"),
        remarks=(f"headers alone are read here, it cannot be converted: {why}",),
    )  # fmt: skip


def usual_names(model: Model) -> Model:
    """Return a model of headers with tensors named by what the usual words in their names say they do.

    Experts that stand alone stay so, as `blk.N.ffn_up_exps.E.weight`; a name without a usual word is kept.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        usual = usual_name(name)
        tensors[usual if usual not in tensors else name] = renamed(tensor, usual if usual not in tensors else name)
    return dataclasses.replace(model, tensors=tensors)


def usual_name(name: str) -> str:
    """Return the canonical name that a tensor most likely has."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts[:-2]) if part in _LISTS and parts[i + 1].isdecimal()), None)
    stem = name.removesuffix(".weight").rpartition(".")[2]
    if at is None:
        return _OUTSIDE.get(stem, name)
    layer, rest = parts[at + 1], ".".join(parts[at + 2 :])
    if rest.endswith("norm.weight"):
        return f"blk.{layer}.{rest.removesuffix('norm.weight').removesuffix('_')}_norm.weight"
    part = _INSIDE.get(stem)
    if part is None:
        return f"blk.{layer}.{rest}"
    expert = re.search(r"experts\.(\d+)\.", rest)
    if expert:
        return f"blk.{layer}.{part}_exps.{expert[1]}.weight"
    if "shared_expert" in rest:
        return f"blk.{layer}.{part}_shexp.weight"
    return f"blk.{layer}.{part}{'_exps' if 'experts' in rest else ''}.weight"


def _hyperparameters(config: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for key, words in _KEYS.items():
        for word in words:
            value = config.get(word)
            if type(value) is int and 0 < value < _MOST:
                found[key] = value
                break
    return found
