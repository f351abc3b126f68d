"""NVFP4: four-bit floats, 16 of a row under an E4M3 scale, the matrix under one more.

    ModelOpt             X.weight uint8 [rows, n / 2], X.weight_scale E4M3 [rows, n / 16], X.weight_scale_2: multiplied
    compressed-tensors   X.weight_packed uint8, X.weight_scale likewise, X.weight_global_scale: divided by

A byte holds weight 2i in its low half. ggml's block of 64 holds the codes and the E4M3 scales, but not the scale of the
matrix: blocks hold the values exactly only where that is a power of two that the E4M3 scales can take up.
Source: ModelOpt's `nvfp4_tensor.py`, compressed-tensors' `nvfp4-pack-quantized`; ggml-common.h `block_nvfp4`.
"""

from collections.abc import Iterator

import numpy as np

from kvant.dtypes import BLOCK_TYPES
from kvant.formats.huggingface.quantized.base import (
    E2M1_VALUES,
    E4M3,
    FLOATS,
    U8,
    Checkpoint,
    Layer,
    all_floats,
    nibbles,
    small_floats,
)
from kvant.tensors import LazyTensor, Tensor, n_weights

GROUP, RUNS = 16, 4
KIND = "NVFP4"


def find(checkpoint: Checkpoint) -> Iterator[Layer]:
    """Yield the matrices of NVFP4.

    Raises:
        FormatError: Codes and scales do not fit.
    """
    for suffix, whole in ((".weight", ".weight_scale_2"), (".weight_packed", ".weight_global_scale")):
        for path in checkpoint.ending(suffix):
            codes, scales = checkpoint.weights[path + suffix], checkpoint.part(path, ".weight_scale")
            if scales is not None and codes.block_type == U8 and scales.block_type == E4M3:
                yield _layer(checkpoint, path + ".weight", codes, scales, checkpoint.part(path, whole))


def _layer(checkpoint: Checkpoint, name: str, codes: Tensor, scales: Tensor, whole: Tensor | None) -> Layer:
    if len(codes.shape) != 2 or scales.shape != (codes.shape[0], codes.shape[1] * 2 // GROUP):
        raise checkpoint.misfit(name, scales, f"one scale for {GROUP} of the weights of {list(codes.shape)} bytes")
    if whole is not None and (n_weights(whole) != 1 or whole.block_type not in FLOATS):
        raise checkpoint.misfit(name, whole, "one float for the matrix")
    checkpoint.check_said(name, codes, bits=4, groups=scales.shape[1], n=codes.shape[1] * 2)
    factor = np.float32(1) if whole is None else all_floats(whole).ravel()[0]
    divides = whole is not None and whole.name.endswith("_global_scale")
    shape, values = (codes.shape[0], codes.shape[1] * 2), small_floats(E4M3)

    def read(start: int, stop: int) -> np.ndarray:
        scale = values[scales.read_bytes(start, stop)]
        scale = scale / factor if divides else scale * factor
        levels = E2M1_VALUES[nibbles(codes.read_bytes(start, stop))]
        return np.asarray(levels * np.repeat(scale, GROUP, axis=1))

    parts = tuple(t.name for t in (codes, scales, whole) if t is not None)
    whole_scale = np.float32(1) / factor if divides else factor
    packed = _packed(name, codes, scales, whole_scale) if shape[1] % (GROUP * RUNS) == 0 else None
    return Layer(name=name, kind=KIND, shape=shape, parts=parts, rows=read, packed=packed)


def _packed(name: str, codes: Tensor, scales: Tensor, factor: np.float32) -> LazyTensor | None:
    """The codes in ggml's blocks, the matrix's scale taken up by theirs; None if it is no power of two."""
    fraction, exponent = np.frexp(factor)
    if fraction != 0.5:
        return None
    values = small_floats(E4M3)
    positive, supers = values[:0x7F].astype(np.float64), scales.shape[1] // RUNS

    def read(start: int, stop: int) -> np.ndarray:
        scale = np.ldexp(values[scales.read_bytes(start, stop)].astype(np.float64), int(exponent) - 1)
        at = np.clip(np.searchsorted(positive, scale), 0, len(positive) - 1).astype(np.uint8)  # proven by the reader
        raw = nibbles(codes.read_bytes(start, stop)).reshape(stop - start, supers, RUNS, GROUP)
        halves = raw[..., :8] | raw[..., 8:] << 4
        blocks = [at.reshape(stop - start, supers, RUNS), halves.reshape(stop - start, supers, 8 * RUNS)]
        return np.concatenate(blocks, axis=-1).reshape(stop - start, supers * 9 * RUNS)

    shape = (codes.shape[0], codes.shape[1] * 2)
    return LazyTensor(name=name, shape=shape, block_type=BLOCK_TYPES[KIND], read=read)
