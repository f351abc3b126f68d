"""Quantized layers as tensors: one matrix becomes words, scales and biases, and back."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock

import numpy as np

from kvant.dtypes import BF16, BLOCK_TYPES, F16, F32, BlockType
from kvant.errors import FormatError, ValueRangeError
from kvant.formats.huggingface.mlx.schemes import Scheme
from kvant.formats.safetensors.spec import DTYPES
from kvant.kernels import decode
from kvant.kernels import mlx as kernels
from kvant.kernels.mlx import Grouping, Quantized
from kvant.kernels.mlx_blocks import block_holding, from_blocks, to_blocks
from kvant.tensors import LazyTensor, Tensor, n_bytes, n_rows, row_length

WEIGHT, SCALES, BIASES = ".weight", ".scales", ".biases"
CHUNK_WEIGHTS = 1 << 21

Encoder = Callable[[np.ndarray], Quantized]


class QuantizedLayer:
    """A matrix that is quantized when its first part is read, and forgotten after the last row of its last part.

    Args:
        tensor: The matrix, `PATH.weight`.
        grouping: How to quantize it.
        scale_type: Type of affine scales and biases.
        encoder: Gives the encoder of rows when the matrix is read; None for that of `mx.quantize`.
        threads: Threads over rows.
        keeps_blocks: The matrix is of blocks whose values the grouping holds: they are not encoded but moved.
    """

    def __init__(
        self,
        tensor: Tensor,
        grouping: Grouping,
        scale_type: BlockType,
        *,
        encoder: Callable[[], Encoder | None] = lambda: None,
        threads: int = 1,
        keeps_blocks: bool = False,
    ) -> None:
        kernels.check(grouping, row_length(tensor))
        self._tensor, self._grouping, self._scale_type = tensor, grouping, scale_type
        self._encoder = encoder
        self._threads = threads
        self._keeps_blocks = keeps_blocks
        self._found: Quantized | None = None
        self._lock = Lock()

    def parts(self) -> list[LazyTensor]:
        """Return the tensors it is stored as, in the order they are to be read."""
        rows, n = n_rows(self._tensor), row_length(self._tensor)
        path = self._tensor.name.removesuffix(WEIGHT)
        is_affine = self._grouping.mode == "affine"
        groups = n // self._grouping.group_size
        words = n * self._grouping.bits // kernels.WORD_BITS
        shapes = {WEIGHT: (words, DTYPES["U32"]), SCALES: (groups, self._scale_type if is_affine else DTYPES["U8"])}
        if is_affine:
            shapes[BIASES] = (groups, self._scale_type)
        last = list(shapes)[-1]
        return [
            LazyTensor(
                name=path + part, shape=(rows, width), block_type=kind, read=partial(self._read, part, part == last)
            )
            for part, (width, kind) in shapes.items()
        ]

    def _read(self, part: str, is_last: bool, start: int, stop: int) -> np.ndarray:
        with self._lock:
            found = self._found = self._found or self._quantized()
        if is_last and stop == n_rows(self._tensor):
            self._found = None
        values = {WEIGHT: found.words, SCALES: found.scales, BIASES: found.biases}[part]
        assert values is not None, part
        return np.ascontiguousarray(values[start:stop]).view(np.uint8)

    def _quantized(self) -> Quantized:
        rows, n = n_rows(self._tensor), row_length(self._tensor)
        encode = self._encoder() or partial(kernels.quantize, kind=self._grouping, scale_type=self._scale_type)
        step = max(1, CHUNK_WEIGHTS // n)
        starts = range(0, rows, step)
        with ThreadPoolExecutor(max(1, self._threads)) as pool:
            pieces = list(pool.map(partial(self._piece, encode), starts, [min(start + step, rows) for start in starts]))
        return Quantized(
            words=np.concatenate([p.words for p in pieces]),
            scales=np.concatenate([p.scales for p in pieces]),
            biases=None if pieces[0].biases is None else np.concatenate([p.biases for p in pieces]),
        )

    def _piece(self, encode: Encoder, start: int, stop: int) -> Quantized:
        rows, kind = self._tensor.read_bytes(start, stop), self._tensor.block_type
        try:
            if self._keeps_blocks:
                return from_blocks(rows, kind)
            return encode(decode(rows, kind, row_length(self._tensor), threads=1))
        except ValueRangeError as error:
            raise ValueRangeError(f"{self._tensor.name}: rows from {start} on: {error}") from error


def dequantized(weights: Mapping[str, Tensor], scheme: Scheme, subject: str) -> dict[str, Tensor]:
    """Return tensors with every quantized layer as a matrix of F32 that is computed as it is read.

    Raises:
        FormatError: The parts of a layer do not fit one another.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        path, dot, part = name.rpartition(".")
        if path not in scheme.layers or dot + part not in (WEIGHT, SCALES, BIASES):
            found[name] = tensor
        elif dot + part == WEIGHT:
            scales, biases = weights[path + SCALES], weights.get(path + BIASES)
            found[name] = _matrix(name, tensor, scales, biases, scheme.layers[path], subject)
    return found


def same_blocks(weights: Mapping[str, Tensor], path: str, grouping: Grouping) -> LazyTensor | None:
    """Return a quantized layer as blocks of exactly its values; None if no block type holds them."""
    words, scales, biases = weights[path + WEIGHT], weights[path + SCALES], weights.get(path + BIASES)
    scale_type = BLOCK_TYPES.get(scales.block_type.name, F32)
    values = [None if part is None or grouping.mode != "affine" else _floats(part) for part in (scales, biases)]
    kind = block_holding(np.empty(0) if values[0] is None else values[0], values[1], grouping)
    if kind is None:
        return None

    def read(start: int, stop: int) -> np.ndarray:
        return to_blocks(_rows(words, scales, biases, start, stop), grouping, scale_type, kind)

    shape = (n_rows(words), row_length(words) * kernels.WORD_BITS // grouping.bits)
    return LazyTensor(name=path + WEIGHT, shape=shape, block_type=kind, read=read)


def layer_bytes(weights: Mapping[str, Tensor], path: str) -> int:
    """Return the bytes of all parts of a quantized layer."""
    return sum(n_bytes(weights[path + part]) for part in (WEIGHT, SCALES, BIASES) if path + part in weights)


def part_path(name: str) -> str:
    """Return the path of what a tensor is the matrix of, or a part of; empty for others: vectors, added biases."""
    path, dot, part = name.rpartition(".")
    return path if dot + part in (WEIGHT, SCALES, BIASES) else ""


def layers_of(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the paths of quantized layers: those with scales."""
    paths = (name.removesuffix(SCALES) for name in weights if name.endswith(SCALES))
    return [path for path in paths if path + WEIGHT in weights]


def _matrix(
    name: str, words: Tensor, scales: Tensor, biases: Tensor | None, grouping: Grouping, subject: str
) -> LazyTensor:
    rows = n_rows(words)
    n = row_length(words) * kernels.WORD_BITS // grouping.bits
    is_affine = grouping.mode == "affine"
    kinds = (F16, BF16, F32) if is_affine else (DTYPES["U8"],)
    parts = [scales] + ([biases] if is_affine and biases is not None else [])
    fits = all(p.shape == (*words.shape[:-1], n // grouping.group_size) and p.block_type in kinds for p in parts)
    if words.block_type != DTYPES["U32"] or not fits or len(parts) != 1 + is_affine or n % grouping.group_size:
        raise FormatError(
            f"{subject}: {name} of {words.block_type} {words.shape} does not fit its scales {scales.shape} and "
            f"{grouping.bits} bits in groups of {grouping.group_size}. Download or convert the model again."
        )
    scale_type = BLOCK_TYPES.get(scales.block_type.name, F32)

    def read(start: int, stop: int) -> np.ndarray:
        return kernels.dequantize(_rows(words, scales, biases, start, stop), grouping, scale_type).view(np.uint8)

    return LazyTensor(name=name, shape=(rows, n), block_type=F32, read=read)


def _rows(words: Tensor, scales: Tensor, biases: Tensor | None, start: int, stop: int) -> Quantized:
    return Quantized(
        words=np.ascontiguousarray(words.read_bytes(start, stop)).view("<u4"),
        scales=np.ascontiguousarray(scales.read_bytes(start, stop)),
        biases=None if biases is None else np.ascontiguousarray(biases.read_bytes(start, stop)),
    )


def _floats(tensor: Tensor) -> np.ndarray:
    return decode(tensor.read_bytes(0, n_rows(tensor)), tensor.block_type, row_length(tensor), threads=1)
