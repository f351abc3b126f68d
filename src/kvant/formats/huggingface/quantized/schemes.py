"""The table of schemes, and a checkpoint's matrices as the floats that they stand for."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from kvant.formats.huggingface.config import read_optional_json
from kvant.formats.huggingface.lazy import renamed, stacked
from kvant.formats.huggingface.quantized import bitsandbytes, compressed, fp8, gptq, mxfp4, nvfp4
from kvant.formats.huggingface.quantized.base import Checkpoint, Layer
from kvant.model import Grid, Stored
from kvant.quant.grids import hold, sample
from kvant.tensors import LazyTensor, Tensor, n_bytes, n_weights

Move = Callable[[Tensor], LazyTensor]
"""Puts the rows of a tensor where they belong here, whatever they are."""

SCHEMES: Mapping[str, Callable[[Checkpoint], Iterator[Layer]]] = {
    "FP8": fp8.find,
    "MXFP4": mxfp4.find,
    "NVFP4": nvfp4.find,
    "GPTQ and AWQ": gptq.find,
    "compressed-tensors": compressed.find,
    "bitsandbytes": bitsandbytes.find,
}
"""What finds the matrices of each way of quantizing; MLX's, whose tensors have other shapes, is in mlx/."""

ENTRIES = ("quantization_config", "compression_config")
"""Entries of config.json by which tools say how weights are quantized."""

FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files by which older tools (AutoGPTQ, AutoAWQ) and NVIDIA's ModelOpt do so."""

ACTIVATIONS = re.compile(
    r"\.(?:input|output|activation|k|v|q|prob)_scale$|_activation_scale$|\.input_global_scale$|\.qscale_act$"
    r"|\.(?:input|output)_zero_point$"
)
"""Scales of activations and of the KV cache, which say nothing of weights."""


def as_floats(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path
) -> tuple[dict[str, Tensor], dict[str, Layer], list[str]]:
    """Return tensors with every quantized matrix as F32 that is decoded as it is read.

    Args:
        weights: Tensors by their names in the checkpoint.
        config: The content of config.json.
        directory: Where they are.

    Returns:
        The tensors, those of them that are decoded, and remarks. What no scheme knows stays as it is.

    Raises:
        FormatError: The parts of a matrix do not fit one another.
    """
    checkpoint = Checkpoint(weights, settings(config, directory), str(directory))
    layers = {layer.name: layer for find in SCHEMES.values() for layer in find(checkpoint)}
    if not layers:
        return dict(weights), {}, []
    used = {part for layer in layers.values() for part in layer.parts}
    idle = [name for name in weights if name not in used and ACTIVATIONS.search(name)]
    found: dict[str, Tensor] = {}
    by_part = {layer.parts[0]: layer for layer in layers.values()}
    for name, tensor in weights.items():
        if name in by_part:
            found[by_part[name].name] = by_part[name].tensor()
        elif name not in used and name not in idle:
            found[name] = tensor
    sized = {n: replace(la, n_bytes=sum(n_bytes(weights[part]) for part in la.parts)) for n, la in layers.items()}
    return found, sized, _remarks(layers, idle)


def settings(config: Mapping[str, Any], directory: Path) -> Mapping[str, Any]:
    """Return what a checkpoint says of how it is quantized, from wherever it says so; empty if it does not."""
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        for key in ENTRIES:
            if isinstance(holder.get(key), dict) and holder[key]:
                return dict(holder[key])
    for name in FILES:
        found = read_optional_json(directory / name)
        if found:
            entry = found.get("quantization")
            return dict(entry) if isinstance(entry, dict) else dict(found)
    return {}


def _remarks(layers: Mapping[str, Layer], idle: list[str]) -> list[str]:
    said = []
    if idle:
        said.append(
            f"{len(idle)} scales of activations or of the KV cache (first {idle[0]}) are left out: engines of GGUF "
            f"compute with their own."
        )
    ordered = [layer for layer in layers.values() if layer.remark]
    if ordered:
        said.append(f"{len(ordered)} matrices, first {ordered[0].name}: {ordered[0].remark}.")
    return said


def stored_as(tensor: Tensor, parts: Sequence[tuple[Layer, Move | None]]) -> Stored:
    """Tell how a tensor is stored that is decoded from layers, with the search for the type that holds it, made once.

    Args:
        tensor: The tensor as F32, rows in the order that they have here.
        parts: The layers that it is stacked from, one of each expert, and how their rows are moved; None where more
            happens to them than that.
    """
    steps = _together(tensor, [(layer.step_tensor(), move) for layer, move in parts])
    packed = _together(tensor, [(layer.packed, move) for layer, move in parts])

    def steps_of(start: int, stop: int) -> np.ndarray:
        assert steps is not None
        return np.ascontiguousarray(steps.read_bytes(start, stop)).view(np.float32)

    known = steps_of if steps else None
    held = cache(partial(hold, tensor, steps=known, packed=packed, searches=False))
    sampled = cache(partial(sample, tensor, steps=known, packed=packed, searches=False))

    def grid(*, proven: bool) -> Grid | None:
        return held().grid if proven else sampled()

    share = n_weights(tensor) / max(1, sum(math.prod(layer.shape) for layer, _ in parts))
    return Stored(
        kind="/".join(sorted({layer.kind for layer, _ in parts})), grid=grid, is_base=True,
        n_bytes=round(share * sum(layer.n_bytes for layer, _ in parts)), blocks=lambda: held().tensor,
    )  # fmt: skip


def _together(tensor: Tensor, parts: Sequence[tuple[LazyTensor | None, Move | None]]) -> LazyTensor | None:
    """Parts of layers, stacked as the layers are; None unless all have them, of one type."""
    found = [move(part) for part, move in parts if part is not None and move is not None]
    if len(found) != len(parts) or len({(part.block_type, part.shape) for part in found}) != 1:
        return None
    return renamed(found[0], tensor.name) if len(found) == 1 else stacked(tensor.name, found)
