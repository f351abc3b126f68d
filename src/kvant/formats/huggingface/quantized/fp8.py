"""Eight-bit floats under a scale: of the whole matrix, of each row, or of blocks of 128 x 128.

    weight = E4M3(code) * scale

Source: config.json `quantization_config` of DeepSeek-V3 (`weight_block_size`, tensors `weight_scale_inv`), and
compressed-tensors' `float-quantized` (`weight_scale`); `qscale_weight` is Mistral's name. The scale is multiplied,
whatever its name says.
"""

from collections.abc import Iterator

import numpy as np

from kvant.errors import FormatError
from kvant.formats.huggingface.quantized.base import E4M3, E5M2, E8M0, FLOATS, Checkpoint, Layer, floats, small_floats
from kvant.tensors import Tensor, n_weights

SCALES = (".weight_scale_inv", ".weight_scale", ".scale", ".qscale_weight")
BLOCK = (128, 128)


def find(checkpoint: Checkpoint) -> Iterator[Layer]:
    """Yield the matrices of E4M3 or E5M2.

    Raises:
        FormatError: A scale fits neither matrix, rows nor blocks, or one matrix has none though others do.
    """
    found = [
        (checkpoint.weights[path + ".weight"], checkpoint.part(path, *SCALES)) for path in checkpoint.ending(".weight")
    ]
    found = [(weight, scale) for weight, scale in found if weight.block_type in (E4M3, E5M2) and len(weight.shape) == 2]
    others = next((scale.name for _, scale in found if scale is not None), None)
    for weight, scale in found:
        if scale is None and others is not None:
            raise FormatError(
                f"{checkpoint.subject}: {weight.name} of {weight.block_type} has no scale, while others have "
                f"(first {others}). Download all weight files."
            )
        yield _layer(checkpoint, weight, scale)


def _layer(checkpoint: Checkpoint, weight: Tensor, scale: Tensor | None) -> Layer:
    block = _block(checkpoint, weight, scale)
    values, (rows, n) = small_floats(weight.block_type), weight.shape
    name = weight.block_type.name.removeprefix("F8_")
    of = {(rows, n): " per tensor", (1, n): " per channel"}.get(block, f" {block[0]}x{block[1]}")

    def read(start: int, stop: int) -> np.ndarray:
        codes = values[weight.read_bytes(start, stop)]
        if scale is None:
            return np.asarray(codes)
        if n_weights(scale) == 1:
            return np.asarray(codes * floats(scale, 0, 1).ravel()[0])
        if len(scale.shape) == 1:
            return np.asarray(codes * floats(scale, 0, 1).ravel()[start:stop, None])
        first = start // block[0]
        found = floats(scale, first, -(-stop // block[0]))[np.arange(start, stop) // block[0] - first]
        return np.asarray(codes * np.repeat(found, block[1], axis=1)[:, :n])

    parts = (weight.name,) if scale is None else (weight.name, scale.name)
    return Layer(name=weight.name, kind=f"FP8 {name}{of if scale else ''}", shape=weight.shape, parts=parts, rows=read)


def _block(checkpoint: Checkpoint, weight: Tensor, scale: Tensor | None) -> tuple[int, int]:
    """Rows and columns that a scale stands for."""
    rows, n = weight.shape
    if scale is None:
        return rows, n
    if scale.block_type not in (*FLOATS, E8M0):
        raise checkpoint.misfit(weight.name, scale, "floats or powers of two")
    if n_weights(scale) == 1:
        return rows, n
    if scale.shape == (rows,):
        return 1, n
    if len(scale.shape) == 2 and scale.shape[0] == rows and scale.shape[1] and n % scale.shape[1] == 0:
        return 1, n // scale.shape[1]
    asked = checkpoint.settings.get("weight_block_size") or _structure(checkpoint) or BLOCK
    block = tuple(asked) if isinstance(asked, list | tuple) else BLOCK
    if not (len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
        block = BLOCK
    wanted = (-(-rows // block[0]), -(-n // block[1]))
    if scale.shape != wanted:
        raise checkpoint.misfit(
            weight.name, scale, f"one scale for each of {wanted[0]} x {wanted[1]} blocks of {block}"
        )
    return block


def _structure(checkpoint: Checkpoint) -> object:
    """The block that compressed-tensors' configuration names for the first group."""
    groups = checkpoint.settings.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights.get("block_structure") if isinstance(weights, dict) else None
