"""compressed-tensors' whole numbers: packed in words (`pack-quantized`) or one to a byte (`int-quantized`).

    pack-quantized   X.weight_packed int32 [rows, ceil(n * bits / 32)], codes + 2 ** (bits - 1), lowest bits first;
                     X.weight_scale [rows, groups]; X.weight_shape [2]; X.weight_zero_point int32, packed along rows
    int-quantized    X.weight int8 [rows, n]; X.weight_scale [1], [rows, 1] or [rows, groups]; X.weight_zero_point int8

    weight = (code - zero) * scale

Source: compressed_tensors 0.20 `compressors/quantized_compressors` (`pack_to_int32`, `dequantize`).
"""

from collections.abc import Iterator

import numpy as np

from kvant.formats.huggingface.quantized.base import (
    FLOATS,
    I8,
    I32,
    I64,
    Checkpoint,
    Layer,
    floats,
    spread,
    unpacked,
    words,
)
from kvant.tensors import Tensor, n_rows, n_weights

PACKED, SHAPE, SCALE = ".weight_packed", ".weight_shape", ".weight_scale"
ZERO, G_IDX = ".weight_zero_point", ".weight_g_idx"
WIDTHS = (2, 4, 8)


def find(checkpoint: Checkpoint) -> Iterator[Layer]:
    """Yield the matrices of whole numbers.

    Raises:
        FormatError: The parts do not fit one another.
    """
    for path in checkpoint.ending(PACKED):
        packed, scale, shape = (checkpoint.part(path, part) for part in (PACKED, SCALE, SHAPE))
        if packed is not None and packed.block_type == I32 and scale is not None and shape is not None:
            yield _packed(checkpoint, path, packed, scale, shape)
    for path in checkpoint.ending(SCALE):
        weight, scale = checkpoint.part(path, ".weight"), checkpoint.weights[path + SCALE]
        if weight is not None and weight.block_type == I8 and scale.block_type in FLOATS:
            yield _bytes(checkpoint, path, weight, scale)


def _packed(checkpoint: Checkpoint, path: str, packed: Tensor, scale: Tensor, shape: Tensor) -> Layer:
    name = path + ".weight"
    rows, n = _shape(checkpoint, name, shape)
    bits = next((b for b in WIDTHS if packed.shape == (rows, -(-n * b // 32))), None)
    if bits is None:
        raise checkpoint.misfit(name, packed, f"{rows} x {n} codes of 2, 4 or 8 bits in words")
    _check_scale(checkpoint, name, scale, rows, n)
    checkpoint.check_said(name, packed, bits=bits, groups=scale.shape[-1] if len(scale.shape) == 2 else 1, n=n)
    zero, order = checkpoint.part(path, ZERO), checkpoint.part(path, G_IDX)
    middle = 1 << (bits - 1)
    group = _order(checkpoint, name, order, n, scale.shape[-1])
    if zero is not None and zero.shape != (-(-rows * bits // 32), scale.shape[1]):
        raise checkpoint.misfit(name, zero, f"a zero point of {bits} bits for each scale {list(scale.shape)}")

    def step(start: int, stop: int) -> np.ndarray:
        return floats(scale, start, stop)

    def offset(start: int, stop: int) -> np.ndarray | int:
        if zero is None:
            return middle
        per_word = 32 // bits
        first = start // per_word
        found = unpacked(np.ascontiguousarray(words(zero, first, -(-stop // per_word)).T), bits).T
        return spread_by(found[start - first * per_word : stop - first * per_word].astype(np.int16))

    def spread_by(values: np.ndarray) -> np.ndarray:
        return spread(values, n) if group is None else values[:, group]

    def read(start: int, stop: int) -> np.ndarray:
        codes = unpacked(words(packed, start, stop), bits)[:, :n].astype(np.int16)
        return np.asarray((codes - offset(start, stop)).astype(np.float32) * spread_by(step(start, stop)))

    parts = tuple(t.name for t in (packed, scale, shape, zero, order) if t is not None)
    kind = (
        f"compressed-tensors int{bits}-g{n // scale.shape[1]}"
        if scale.shape[1] > 1
        else f"compressed-tensors int{bits}"
    )
    return Layer(
        name=name, kind=kind, shape=(rows, n), parts=parts, rows=read, steps=step if group is None else None
    )  # fmt: skip


def _bytes(checkpoint: Checkpoint, path: str, weight: Tensor, scale: Tensor) -> Layer:
    name = path + ".weight"
    if len(weight.shape) != 2:
        raise checkpoint.misfit(name, weight, "a matrix")
    rows, n = weight.shape
    is_one = n_weights(scale) == 1
    if not is_one:
        _check_scale(checkpoint, name, scale, rows, n)
    has_groups = not is_one and len(scale.shape) == 2
    checkpoint.check_said(name, weight, bits=8, groups=scale.shape[1] if has_groups else 1, n=n)
    zero = checkpoint.part(path, ZERO)
    if zero is not None and (zero.block_type != I8 or n_weights(zero) != n_weights(scale)):
        raise checkpoint.misfit(name, zero, f"a zero point for each scale {list(scale.shape)}")

    def step(start: int, stop: int) -> np.ndarray:
        return np.broadcast_to(floats(scale, 0, 1).reshape(1, 1), (stop - start, 1)) if is_one else _rows(start, stop)

    def _rows(start: int, stop: int) -> np.ndarray:
        found = floats(scale, 0, n_rows(scale)) if len(scale.shape) == 1 else floats(scale, start, stop)
        return found.reshape(-1, 1)[start:stop] if len(scale.shape) == 1 else found

    def read(start: int, stop: int) -> np.ndarray:
        codes = np.ascontiguousarray(weight.read_bytes(start, stop)).view(np.int8).astype(np.int16)
        if zero is not None:
            every = n_weights(zero) == 1 or len(zero.shape) == 1
            raw = zero.read_bytes(0, n_rows(zero)) if every else zero.read_bytes(start, stop)
            found = np.ascontiguousarray(raw).view(np.int8)
            found = found.reshape(-1, 1)[start:stop] if every and n_weights(zero) > 1 else found
            codes = codes - spread(np.broadcast_to(found, (stop - start, found.shape[-1])), n)
        return np.asarray(codes.astype(np.float32) * spread(step(start, stop), n))

    parts = tuple(t.name for t in (weight, scale, zero) if t is not None)
    what = (
        " per tensor"
        if is_one
        else " per channel"
        if scale.shape in ((rows,), (rows, 1))
        else f"-g{n // scale.shape[1]}"
    )
    return Layer(name=name, kind=f"compressed-tensors int8{what}", shape=(rows, n), parts=parts, rows=read, steps=step)


def _check_scale(checkpoint: Checkpoint, name: str, scale: Tensor, rows: int, n: int) -> None:
    shape = scale.shape if len(scale.shape) == 2 else (*scale.shape, 1)
    if scale.block_type not in FLOATS or len(shape) != 2 or shape[0] != rows or not shape[1] or n % shape[1]:
        raise checkpoint.misfit(name, scale, f"scales of equal groups of {rows} rows of {n} weights")


def _shape(checkpoint: Checkpoint, name: str, shape: Tensor) -> tuple[int, int]:
    if shape.shape != (2,) or shape.block_type not in (I32, I64):
        raise checkpoint.misfit(name, shape, "two whole numbers")
    raw = np.ascontiguousarray(shape.read_bytes(0, 1))
    rows, n = (int(v) for v in raw.view("<i8" if shape.block_type == I64 else "<i4").ravel())
    if not (0 < rows < 1 << 31 and 0 < n < 1 << 31):
        raise checkpoint.misfit(name, shape, "the shape of a matrix")
    return rows, n


def _order(checkpoint: Checkpoint, name: str, order: Tensor | None, n: int, groups: int) -> np.ndarray | None:
    """The group of each input, where groups are no runs; None where they are."""
    if order is None:
        return None
    if order.shape != (n,) or order.block_type != I32:
        raise checkpoint.misfit(name, order, f"a group for each of {n} inputs")
    found = np.ascontiguousarray(order.read_bytes(0, 1)).view("<i4").ravel().astype(np.int64)
    if (found < 0).all():  # as saved where it was never set
        return None
    if found.min() < 0 or found.max() >= groups:
        raise checkpoint.misfit(name, order, f"numbers of {groups} groups")
    return None if (found == np.arange(n) * groups // n).all() else found
