"""Read an adapter directory of PEFT: pairs of narrow matrices whose product is added to the weights of a base model.

    W' = W + scale * B A        A [r, in], B [out, r], scale = alpha / r, or alpha / sqrt(r) with `use_rslora`

Source: peft 0.19 `tuners/lora/layer.py`, `utils/save_and_load.py`; parity in tests/unit/formats/huggingface/adapters.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.errors import FormatError, UnsupportedFormatError, UnsupportedModelError
from kvant.formats.huggingface.config import finite, read_json, shown
from kvant.formats.lookalikes import ADAPTER_CONFIG
from kvant.formats.safetensors.reader import read_safetensors
from kvant.tensors import Tensor

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAX_RANK = 4096
"""Larger than any published adapter's; every row that is read costs this many products."""

_PAIR = re.compile(r"(.+)\.lora_(A|B)\.weight")
_MODULE = re.compile(r"[\w.]+")
_EMBEDDING = re.compile(r"(.+)\.lora_embedding_(A|B)")
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA, which rescales the weights as well",
    "fan_in_fan_out": "weights that are stored the other way round",
    "target_parameters": "parameters outside of linear layers",
    "trainable_token_indices": "rows of single tokens",
    "alora_invocation_tokens": "an adapter that is switched on by the text",
    "megatron_config": "layers of Megatron",
    "layer_replication": "layers that are repeated",
}
_MERGE = "Merge it with peft: merge_and_unload(), then save_pretrained()."


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What is added to one weight.

    Attributes:
        a: [r, in]; of an embedding [r, tokens].
        b: [out, r].
        scale: What the product is multiplied by.
        is_embedding: The weight is an embedding, [tokens, out], and gets the transposed product.
    """

    a: Tensor
    b: Tensor
    scale: float
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        """Length of the axis that both share."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter.

    Attributes:
        path: Its directory.
        base: What it names as its base; empty if nothing.
        alpha: `lora_alpha`.
        pairs: By transformers' name of the weight: `model.layers.0.self_attn.q_proj.weight`.
        replaced: Tensors that take the place of the base's: `modules_to_save`, and biases that were trained.
    """

    path: Path
    base: str
    alpha: float
    pairs: Mapping[str, Pair]
    replaced: Mapping[str, Tensor]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is made of."""
        return (self.path / ADAPTER_CONFIG, self.path / WEIGHTS)


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter directory: adapter_config.json and adapter_model.safetensors.

    Raises:
        FormatError: A file is missing or malformed, or a matrix has no other half or does not fit it.
        UnsupportedFormatError: The weights are a pickle.
        UnsupportedModelError: It is no LoRA adapter, or one that does more than add a product.
    """
    path = Path(directory) / ADAPTER_CONFIG
    if not path.is_file():
        raise FormatError(f"{directory}: has no {ADAPTER_CONFIG}. Give the directory that peft saved an adapter in.")
    config = read_json(path)
    _check_kind(config, path)
    if not (path.parent / WEIGHTS).is_file():
        pickle = path.parent / "adapter_model.bin"
        if pickle.is_file():
            raise UnsupportedFormatError(
                f"{pickle}: is a pickle, which can run code when it is opened. Save the adapter again with "
                f"save_pretrained(DIR, safe_serialization=True)."
            )
        raise FormatError(f"{path.parent}: has no {WEIGHTS}. Download it as well.")
    halves, replaced = _sorted_out(read_safetensors(path.parent / WEIGHTS))
    alpha = finite(config.get("lora_alpha", 8), "lora_alpha", path)
    if alpha <= 0:
        raise FormatError(f"{path}: lora_alpha is {alpha:g}, not above 0: the adapter would add nothing. Correct it.")
    base = config.get("base_model_name_or_path")
    return Adapter(
        path=path.parent, base=base if isinstance(base, str) else "", alpha=alpha,
        pairs={name: _pair(name, *parts, config, path) for name, parts in halves.items()},
        replaced=replaced,
    )  # fmt: skip


def _check_kind(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise UnsupportedModelError(
            f"{path}: peft_type is {shown(config.get('peft_type'))}, and kvant merges LORA alone. {_MERGE}"
        )
    for key, what in _REFUSED.items():
        if config.get(key):
            raise UnsupportedModelError(f"{path}: {key} is {shown(config[key])}: {what}. kvant merges none. {_MERGE}")


def _sorted_out(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, tuple[dict[str, Tensor], bool]], dict[str, Tensor]]:
    """Sort an adapter's tensors into halves by the weight they change, and those that replace others."""
    halves: dict[str, tuple[dict[str, Tensor], bool]] = {}
    replaced: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        pair, embedding = _PAIR.fullmatch(plain), _EMBEDDING.fullmatch(plain)
        found = pair or embedding
        if found is None:
            if "lora_" in plain:
                raise UnsupportedModelError(f"{name}: is no matrix of a plain LoRA adapter. {_MERGE}")
            replaced[plain] = tensor
            continue
        parts, _ = halves.setdefault(f"{found[1]}.weight", ({}, embedding is not None))
        parts[found[2]] = tensor
    return halves, replaced


def _pair(name: str, parts: Mapping[str, Tensor], is_embedding: bool, config: Mapping[str, Any], path: Path) -> Pair:
    """Return both matrices of a weight with their scale.

    Raises:
        FormatError: One is missing, or they do not fit one another.
    """
    if parts.keys() != {"A", "B"}:
        raise FormatError(f"{path.parent}: {name} has lora_{''.join(parts)} alone. Download {WEIGHTS} again.")
    a, b = parts["A"], parts["B"]
    for tensor in (a, b):
        if tensor.block_type.is_quantized or tensor.block_type.name not in ("F32", "F16", "BF16"):
            raise UnsupportedFormatError(f"{tensor.name}: its type {tensor.block_type} is not a plain float. {_MERGE}")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not 1 <= a.shape[0] <= MAX_RANK:
        raise FormatError(
            f"{path.parent}: {name} has matrices of {list(a.shape)} and {list(b.shape)}, not [r, in] and [out, r] with "
            f"r in 1..{MAX_RANK}. Download {WEIGHTS} again."
        )
    alpha = finite(_of_module(config, "alpha_pattern", name, config.get("lora_alpha", 8), path), "lora_alpha", path)
    scale = alpha / (math.sqrt(a.shape[0]) if config.get("use_rslora") else a.shape[0])
    return Pair(a=a, b=b, scale=scale, is_embedding=is_embedding)


def _of_module(config: Mapping[str, Any], key: str, name: str, default: Any, path: Path) -> Any:
    """Return what a pattern says of a module: the value whose key is its name or the end of it, else `default`."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise FormatError(f"{path}: {key} is {shown(patterns)}, not an object. Correct it.")
    module = name.removesuffix(".weight")
    for pattern, value in patterns.items():
        plain = pattern.removeprefix("^")
        if not _MODULE.fullmatch(plain):
            raise UnsupportedModelError(
                f"{path}: {key} holds the expression {pattern[:80]!r}, and kvant reads names of modules alone. {_MERGE}"
            )
        if module == plain or (module.endswith("." + plain) and not pattern.startswith("^")):
            return value
    return default
