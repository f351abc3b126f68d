"""MXFP4: four-bit floats, 32 of a row under a power of two.

    weight = E2M1(code) * 2 ** (e - 127)

    gpt-oss              X_blocks uint8 [experts, rows, n / 32, 16], X_scales uint8 [experts, rows, n / 32]
    compressed-tensors   X.weight_packed uint8 [rows, n / 2], X.weight_scale uint8 [rows, n / 32]
    DeepSeek-V4          X.weight int8 [rows, n / 2], X.scale F8_E8M0 [rows, n / 32]

A byte holds weight 2i in its low half and 2i + 1 in its high one. ggml's block holds the same codes in another order:
weight j beside weight j + 16, after the exponent (`block_mxfp4 {uint8 e; uint8 qs[16]}`, ggml-common.h).

gpt-oss keeps the rows of gate and up projection in turn: rows 0, 2, ... of `gate_up_proj` are the gate's; see
`every_other`. Source: transformers `integrations/mxfp4.py`, llama.cpp `conversion/gpt_oss.py`.
"""

import math
from collections.abc import Iterator

import numpy as np

from kvant.dtypes import BLOCK_TYPES
from kvant.formats.huggingface.quantized.base import (
    E2M1_VALUES,
    E8M0,
    I8,
    U8,
    Checkpoint,
    Layer,
    nibbles,
    powers,
)
from kvant.kernels.reference import bits
from kvant.tensors import LazyTensor, Tensor, n_rows, n_weights, row_length

BLOCKS, SCALES = "_blocks", "_scales"
GROUP = 32
KIND = "MXFP4"


def find(checkpoint: Checkpoint) -> Iterator[Layer]:
    """Yield the matrices of MXFP4, experts stacked as they are saved.

    Raises:
        FormatError: Codes and exponents do not fit.
    """
    forms = ((BLOCKS, SCALES, (U8,)), (".weight_packed", ".weight_scale", (U8,)), (".weight", ".scale", (U8, I8)))
    for one, other, kinds in forms:
        for path in checkpoint.ending(one):
            codes, scales = checkpoint.weights[path + one], checkpoint.part(path, other)
            if scales is not None and codes.block_type in kinds and scales.block_type in (U8, E8M0):
                yield layer(checkpoint, path + ".weight", codes, scales)


def layer(checkpoint: Checkpoint, name: str, codes: Tensor, scales: Tensor) -> Layer:
    """Return a matrix of codes, two to a byte, and exponents, one for 32 of them.

    Args:
        checkpoint: Where they are, for messages.
        name: The matrix's name.
        codes: Bytes, [..., rows, n / 2] or [..., rows, n / 32, 16].
        scales: Exponents, uint8 or E8M0 [..., rows, n / 32].

    Raises:
        FormatError: They do not fit each other.
    """
    groups = row_length(scales)
    if codes.block_type not in (U8, I8) or scales.block_type not in (U8, E8M0):
        raise checkpoint.misfit(name, codes, "bytes of MXFP4 codes with exponents of one byte")
    if n_weights(codes) != 16 * n_weights(scales) or not groups:
        raise checkpoint.misfit(name, codes, f"16 bytes for each of the {list(scales.shape)} exponents")
    shape = (*scales.shape[:-1], groups * GROUP)
    checkpoint.check_said(name, codes, bits=4, groups=groups, n=shape[-1])
    per_row = n_rows(codes) // max(1, math.prod(shape[:-1]))  # 4-D blocks have a row of 16 bytes per group

    def parts(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        raw = np.ascontiguousarray(codes.read_bytes(start * per_row, stop * per_row)).reshape(stop - start, groups, 16)
        return raw, np.ascontiguousarray(scales.read_bytes(start, stop)).view(np.uint8)

    def read(start: int, stop: int) -> np.ndarray:
        raw, exponents = parts(start, stop)
        values = E2M1_VALUES[nibbles(raw)] * powers(exponents)[..., None]
        return np.asarray(values).reshape(stop - start, shape[-1])

    def read_blocks(start: int, stop: int) -> np.ndarray:
        raw, exponents = parts(start, stop)
        halves = bits.pack_nibbles(nibbles(raw))
        return np.concatenate([exponents[..., None], halves], axis=-1).reshape(stop - start, groups * 17)

    packed = LazyTensor(name=name, shape=shape, block_type=BLOCK_TYPES[KIND], read=read_blocks)
    return Layer(name=name, kind=KIND, shape=shape, parts=(codes.name, scales.name), rows=read, packed=packed)


def every_other(tensor: Tensor, first: int, name: str) -> LazyTensor:
    """Rows first, first + 2, ... of each matrix, in any block type: gpt-oss's gate (0) or up projection (1).

    Args:
        tensor: Stacked matrices of an even number of rows each, [..., rows, n].
        first: 0 or 1.
        name: Name of the result.
    """
    shape = (*tensor.shape[:-2], tensor.shape[-2] // 2, tensor.shape[-1])

    def read(start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return tensor.read_bytes(start, start)
        return np.ascontiguousarray(tensor.read_bytes(2 * start + first, 2 * stop - 1 + first)[::2])

    return LazyTensor(name=name, shape=shape, block_type=tensor.block_type, read=read)
