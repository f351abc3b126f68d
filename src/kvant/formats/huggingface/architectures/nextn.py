"""Heads that predict further tokens (MTP): blocks behind the others, which engines use to guess ahead.

Checkpoints often come without them although their configuration names them (transformers does not save them), so what
counts is which tensors are there.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from kvant.formats.huggingface.config import MAX_LAYERS, Config

NEXTN_NAMES = {
    "nextn.eh_proj": "eh_proj", "nextn.enorm": "enorm", "nextn.hnorm": "hnorm",
    "nextn.shared_head_norm": "shared_head.norm",
}  # fmt: skip
"""What such a block has beside an ordinary one."""

NEXTN_ENDS = {"nextn.embed_tokens": "embed_tokens", "nextn.shared_head_head": "shared_head.head"}
"""The embedding and head that some models store once more with it."""

NEXTN_SHAPES = {
    "nextn.eh_proj": ("hidden_size", "2*hidden_size"), "nextn.enorm": ("hidden_size",),
    "nextn.hnorm": ("hidden_size",), "nextn.shared_head_norm": ("hidden_size",),
    "nextn.embed_tokens": ("?", "hidden_size"), "nextn.shared_head_head": ("?", "hidden_size"),
}  # fmt: skip

MTP_LAYERS = "mtp_num_hidden_layers"
_LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?mtp\.layers\.(0|[1-9]\d{0,2})\.")
_OUTSIDE = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}


def mtp_layers(_: Config, names: Collection[str]) -> Mapping[str, Any]:
    """Return how many blocks of `mtp.*` there are among a checkpoint's tensors, as an entry of config.json."""
    found = [int(match[1]) for match in map(_LAYER.match, names) if match]
    return {MTP_LAYERS: max(found, default=-1) + 1}


def mtp_as_blocks(name: str, config: Config) -> str:
    """Return the name of a tensor of `mtp.*` within the list of blocks, behind the others.

    Source: llama.cpp 0.3.36 `conversion/qwen.py` `_QwenMtpMixin.filter_tensors`.
    """
    part, _, rest = name.removeprefix("model.").partition(".")
    if part != "mtp":
        return name
    kind, _, inner = rest.partition(".")
    if kind == "layers":
        number, _, inner = inner.partition(".")
        return f"model.layers.{config.n_layers + int(number)}.{inner}" if number.isdecimal() else name
    return f"model.layers.{config.n_layers}.{_OUTSIDE[kind]}.{inner}" if kind in _OUTSIDE else name


def with_mtp(config: Config) -> int:
    """Return the number of blocks, those of MTP included."""
    return min(config.n_layers + config.integer(MTP_LAYERS, 0, least=0), MAX_LAYERS)
