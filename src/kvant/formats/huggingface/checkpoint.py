"""A checkpoint as it was saved, made into the weights of one full-precision model; what it is instead is named.

Training tools save models inside wrappers (PEFT, torch.compile, DDP), with heads that generate nothing (TRL's value
head), in float64, or with weights that are quantized already. What can be read through is, with a remark; the rest is
refused by what its tensors are, since configurations are wrong as often as not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.dtypes import Family
from kvant.errors import UnsupportedFormatError, UnsupportedModelError
from kvant.formats.huggingface.config import read_optional_json, shown
from kvant.formats.huggingface.quantized.base import Layer
from kvant.formats.huggingface.quantized.schemes import ENTRIES, FILES, as_floats
from kvant.formats.lookalikes import ADAPTER_CONFIG, ADAPTER_FILES, adapter_in
from kvant.formats.recode import narrowed
from kvant.formats.safetensors.reader import read_sharded
from kvant.tensors import Tensor

INDEX = "model.safetensors.index.json"

WRAPPERS = (
    ("base_model.model.", "a PEFT wrapper"),
    ("pretrained_model.", "TRL's model with a value head"),
    ("_orig_mod.", "torch.compile"),
    ("module.", "DistributedDataParallel"),
    ("_fsdp_wrapped_module.", "FSDP"),
    ("_forward_module.", "Lightning"),
)
"""Prefixes that wrappers put before the names of a model's tensors, and whose they are."""

INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What the same wrappers put inside names, around single layers."""

HEADS = re.compile(r"(?:v_head|value_head|critic_head|reward_head)\.")
"""Heads of reinforcement learning: no part of what generates."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """Tensors that only one way of quantizing leaves: their names' ends, its name, and what to do."""

    pattern: re.Pattern[str]
    method: str
    advice: str


_FULL = "Start from the 16-bit model that it was made from: merge or save that in 16 bits if it was trained."
_DEQUANTIZE = (
    "Start from the 16-bit model, or write it in 16 bits with transformers: "
    "AutoModelForCausalLM.from_pretrained(DIR).dequantize().save_pretrained(DIR)."
)
_MERGE = "Give the base, and the adapter with kvant convert BASE --lora DIR."
_MARKS = tuple(
    _Mark(re.compile(pattern), method, advice)
    for pattern, method, advice in (
        (r"lora_[AB]\b|lora_[ab]$|lora_embedding_|lora_magnitude_vector|\.ia3_l\b", "a LoRA adapter", _MERGE),
        (r"\.SCB$|\.weight_format$", "bitsandbytes 8-bit", _DEQUANTIZE),
        (
            r"\.(?:nested_)?absmax$|\.(?:nested_)?quant_map$|quant_state\.bitsandbytes",
            "bitsandbytes 4-bit",
            _DEQUANTIZE,
        ),
        (r"\.g_idx$", "GPTQ", _FULL),
        (r"\.qweight$|\.qzeros$", "AWQ or GPTQ", _FULL),
        (r"\.weight_packed$|\.weight_shape$", "compressed-tensors", _FULL),
        (r"\.weight_scale_2$", "NVFP4 (ModelOpt)", _FULL),
        (r"\.weight_scale(?:_inv)?$|\.(?:input|activation)_scale$", "FP8", _FULL),
        (r"\.W_q$", "HQQ", _FULL),
        (r"\.codebooks$|\.codes$", "AQLM", _FULL),
        (r"\.weight\._(?:data|scale|zeropoint)$", "Quanto", _FULL),
        (r"\.weight_scales$", "EETQ", _FULL),
        (r"_blocks$", "MXFP4", _FULL),
        (
            r"\.scales$",
            "MLX",
            "Copy its config.json, whose entry quantization says how, or start from the 16-bit model.",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Plain:
    """A checkpoint's tensors as floats, under the names of the model alone.

    Attributes:
        tensors: Tensors; what was quantized is F32 and decoded as it is read.
        layers: Those that are decoded, as the checkpoint holds them.
        remarks: All that was done to them, a sentence each.
        is_renamed: Other programs find other names, types or tensors in the files.
    """

    tensors: dict[str, Tensor]
    layers: dict[str, Layer]
    remarks: tuple[str, ...]
    is_renamed: bool


def weights_in_order(directory: Path) -> dict[str, Tensor]:
    """Return the tensors by shard and then by name: upstream's order, which files converted by either tool share."""
    shards = read_optional_json(directory / INDEX).get("weight_map")
    files = shards if isinstance(shards, dict) else {}
    return dict(sorted(read_sharded(directory).items(), key=lambda item: (str(files.get(item[0], "")), item[0])))


def plain_weights(weights: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path) -> Plain:
    """Return a checkpoint's tensors as plain floats under the names of the model alone.

    Args:
        weights: Tensors as they are saved.
        config: The content of config.json.
        directory: Where they are, for messages and for what lies beside them.

    Raises:
        FormatError: Parts of a quantized matrix do not fit one another.
        UnsupportedModelError: The weights are quantized in a way that is not read, or an entry says so of weights that
            are not.
        UnsupportedFormatError: They are an adapter's, or one lies beside them.
    """
    found, remarks = _unwrapped(weights)
    heads = [name for name in found if HEADS.match(name)]
    if heads:
        remarks.append(
            f"{heads[0]} is a value head of reinforcement learning, which generates nothing: "
            f"{len(heads)} tensors left out."
        )
    found = {name: tensor for name, tensor in found.items() if name not in heads}
    found, layers, said = as_floats(found, config, directory)
    _check_quantized(found, config, directory, is_decoded=bool(layers))
    wide = [name for name, tensor in found.items() if tensor.block_type.name == "F64"]
    if wide:
        remarks.append(f"{len(wide)} tensors (first {wide[0]}) are F64 and are read as F32.")
    tensors = {n: narrowed(t) if t.block_type.name == "F64" else t for n, t in found.items()}
    return Plain(tensors, layers, (*remarks, *said), bool(remarks))


def check_adapter(directory: Path) -> None:
    """Refuse an adapter, and weights with one beside them: whether it is to be applied, only the user knows.

    Raises:
        UnsupportedFormatError: There is one.
    """
    beside = [name for name in (*ADAPTER_FILES, ADAPTER_CONFIG) if (directory / name).is_file()]
    if not beside:
        return
    weights = [p.name for pattern in ("*.safetensors", "*.safetensors.index.json") for p in directory.glob(pattern)]
    if not set(weights) - set(beside):
        raise UnsupportedFormatError(f"{directory}: is {adapter_in(directory)}.")
    raise UnsupportedFormatError(
        f"{directory}: beside the model's weights lies {adapter_in(directory)}. Where it is merged already or not "
        f"wanted, move {' and '.join(beside)} away; else into a directory of its own, and give that with --lora."
    )


def _unwrapped(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take the prefixes of wrappers off; where that would give two tensors one name they stay, and are refused."""
    names, said = {name: name for name in weights}, []
    for prefix, whose in WRAPPERS * 2:  # wrappers are put into wrappers
        wrapped = [old for old, name in names.items() if name.startswith(prefix)]
        plain = {names[old].removeprefix(prefix) for old in wrapped}
        if not wrapped or plain & set(names.values()):
            continue
        names |= {old: names[old].removeprefix(prefix) for old in wrapped}
        said.append(f"{len(wrapped)} tensors are saved under {prefix}, which is {whose}'s: read without it.")
    for inner in INNER:
        within = [old for old, name in names.items() if inner in name]
        names |= {old: names[old].replace(inner, "") for old in within}
        if within:
            said.append(f"{len(within)} names hold {inner}, which is a training wrapper's: read without it.")
    return {name: weights[old] for old, name in names.items()}, said


def _check_quantized(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path, *, is_decoded: bool
) -> None:
    """Refuse quantized weights by what they are, and an entry that calls plain weights quantized."""
    key = next((k for k in ENTRIES if config.get(k) and config[k] != config.get("quantization")), None)
    old = next((name for name in FILES if (directory / name).is_file()), None)
    says = f"{key} in config.json" if key else old
    mark, name = _marked(weights, is_mlx=bool(config.get("quantization")))
    if mark:
        adapter = mark.advice is _MERGE
        advice = _FULL if mark.advice is _DEQUANTIZE and key is None else mark.advice
        raise (UnsupportedFormatError if adapter else UnsupportedModelError)(
            f"{directory}: its weights are {mark.method}{'' if adapter else ' already'} ({name}"
            f"{f', {says}' if says else ''}). {advice}"
        )
    if says is None or config.get("quantization") or is_decoded:
        return
    method = _method(config[key] if key else read_optional_json(directory / str(old)))
    kinds = sorted({t.block_type.name for t in weights.values() if t.block_type.family is Family.FLOAT})
    if any(t.block_type.family is not Family.FLOAT for t in weights.values()):
        raise UnsupportedModelError(
            f"{directory}: {says} says that the weights are quantized already ({method}), and not all are floats. "
            f"{_FULL}"
        )
    remove = f"remove {key} from config.json" if key else f"delete {old}"
    raise UnsupportedModelError(
        f"{directory}: {says} says that the weights are quantized ({method}), but every weight is {'/'.join(kinds)}. "
        f"If the model was merged or saved in full precision, {remove}; else start from the 16-bit model."
    )


def _marked(weights: Mapping[str, Tensor], *, is_mlx: bool) -> tuple[_Mark | None, str]:
    """The first way of quantizing that names or types of tensors show, and the tensor that does."""
    for mark in _MARKS:
        name = next((n for n in weights if mark.pattern.search(n) and not (is_mlx and n.endswith(".scales"))), None)
        if name is not None:
            return mark, name
    eight = next((n for n, t in weights.items() if t.block_type.name.startswith("F8_") and n.endswith(".weight")), None)
    return (_Mark(re.compile(""), "FP8", _FULL), eight) if eight else (None, "")


def _method(quantization: Any) -> str:
    keys = ("quant_method", "quant_algo", "format") if isinstance(quantization, dict) else ()
    found = next((quantization[key] for key in keys if quantization.get(key)), None)
    bits = quantization.get("bits", quantization.get("w_bit")) if isinstance(quantization, dict) else None
    return shown(found) if found else f"{shown(bits)} bits" if bits else "by a method it does not name"
