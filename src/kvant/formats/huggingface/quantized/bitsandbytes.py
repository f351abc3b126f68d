"""bitsandbytes: NF4 and FP4 under the largest magnitude of 64 weights, and int8 under that of a row.

    4 bits   X.weight uint8 [weights / 2, 1], the first weight in the high half; weight = quant_map[code] * absmax
             X.weight.absmax, one for `blocksize` weights of the flattened matrix; X.weight.quant_map [16];
             X.weight.quant_state.bitsandbytes__nf4: JSON of shape, blocksize and type
             nested: absmax = nested_quant_map[absmax] * nested_absmax + nested_offset, in runs of nested_blocksize
    int8     X.weight int8 [rows, n], X.SCB float32 [rows]; weight = code * SCB / 127

Source: bitsandbytes 0.50 `functional.py` (`QuantState.from_dict`, `dequantize_4bit`, `int8_vectorwise_dequant`).
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from kvant.documents import JSON_ERRORS
from kvant.errors import FormatError
from kvant.formats.huggingface.quantized.base import FLOATS, I8, U8, Checkpoint, Layer, all_floats, floats
from kvant.tensors import Tensor, n_rows, n_weights

STATE = ".weight.quant_state.bitsandbytes__"
SCB, FORMAT = ".SCB", ".weight_format"
INT8_SCALE = np.float32(7.874015718698502e-3)
"""1 / 127, as bitsandbytes multiplies it."""

MAX_STATE_BYTES = 1 << 16


class _State(msgspec.Struct):
    shape: tuple[int, int]
    blocksize: int
    nested_blocksize: int = 0
    nested_offset: float = 0.0


class _Absmax(NamedTuple):
    """Largest magnitudes, plain or nested."""

    absmax: Tensor
    nested: np.ndarray | None
    nested_map: np.ndarray | None
    state: _State

    def read(self, start: int, stop: int) -> np.ndarray:
        """Those of blocks start..stop, float32 [stop - start]."""
        if self.nested is None or self.nested_map is None:
            return floats(self.absmax, 0, 1).ravel()[start:stop]
        codes = np.ascontiguousarray(self.absmax.read_bytes(0, n_rows(self.absmax))).ravel()[start:stop]
        runs = self.nested[np.arange(start, stop) // self.state.nested_blocksize]
        return np.asarray(self.nested_map[codes] * runs + np.float32(self.state.nested_offset), np.float32)


def find(checkpoint: Checkpoint) -> Iterator[Layer]:
    """Yield the matrices of bitsandbytes.

    Raises:
        FormatError: The parts do not fit one another.
    """
    for kind in ("nf4", "fp4"):
        for path in checkpoint.ending(STATE + kind):
            yield _four_bits(checkpoint, path, kind)
    for path in checkpoint.ending(SCB):
        weight, scale = checkpoint.part(path, ".weight"), checkpoint.weights[path + SCB]
        if weight is not None and weight.block_type == I8 and len(weight.shape) == 2:
            yield _int8(checkpoint, path, weight, scale)


def _four_bits(checkpoint: Checkpoint, path: str, kind: str) -> Layer:
    name = path + ".weight"
    state_tensor = checkpoint.weights[path + STATE + kind]
    state = _read_state(checkpoint, name, state_tensor)
    rows, n = state.shape
    codes, absmax, table = (checkpoint.part(name, part) for part in ("", ".absmax", ".quant_map"))
    nested, nested_map = (checkpoint.part(name, part) for part in (".nested_absmax", ".nested_quant_map"))
    if codes is None or absmax is None or table is None or (nested is None) != (nested_map is None):
        raise FormatError(f"{checkpoint.subject}: {name}: parts of its 4 bits are missing. Download the model again.")
    if codes.block_type != U8 or n_weights(codes) * 2 != rows * n or n % 2 or table.shape != (16,):
        raise checkpoint.misfit(name, codes, f"4-bit codes of {rows} x {n} weights")
    blocks = -(-rows * n // state.blocksize)
    wanted = U8 if nested else FLOATS[0]
    if absmax.shape != (blocks,) or absmax.block_type != wanted:
        raise checkpoint.misfit(name, absmax, f"{blocks} magnitudes")
    if nested is not None and (
        nested_map is None or nested_map.shape != (256,) or state.nested_blocksize < 1
        or nested.shape != (-(-blocks // state.nested_blocksize),)
    ):  # fmt: skip
        raise checkpoint.misfit(name, nested, f"magnitudes of {blocks} magnitudes")
    scales = _Absmax(
        absmax, None if nested is None else all_floats(nested), None if nested_map is None else all_floats(nested_map),
        state,
    )  # fmt: skip
    values, row_bytes = all_floats(table), n // 2

    def read(start: int, stop: int) -> np.ndarray:
        at = (start * row_bytes, stop * row_bytes)
        raw = np.ascontiguousarray(_flat(codes, *at))
        found = values[np.stack([raw >> 4, raw & 15], axis=-1).reshape(-1)]
        first, last = start * n // state.blocksize, -(-stop * n // state.blocksize)
        scale = np.repeat(scales.read(first, last), state.blocksize)
        scale = scale[start * n - first * state.blocksize :][: len(found)]
        return np.asarray(found * scale).reshape(stop - start, n)

    parts = tuple(t.name for t in (codes, absmax, table, state_tensor, nested, nested_map) if t is not None)
    return Layer(
        name=name, kind=f"bitsandbytes {kind.upper()}-g{state.blocksize}", shape=(rows, n), parts=parts, rows=read
    )


def _flat(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Bytes start..stop of a tensor of bytes, whatever its shape."""
    width = max(1, n_weights(tensor) // max(1, n_rows(tensor)))
    first = start // width
    return tensor.read_bytes(first, -(-stop // width)).reshape(-1)[start - first * width : stop - first * width]


def _int8(checkpoint: Checkpoint, path: str, weight: Tensor, scale: Tensor) -> Layer:
    name = path + ".weight"
    rows, n = weight.shape
    if scale.block_type not in FLOATS or n_weights(scale) != rows:
        raise checkpoint.misfit(name, scale, f"a magnitude for each of {rows} rows")
    layout = checkpoint.part(path, FORMAT)
    if layout is not None and np.asarray(layout.read_bytes(0, n_rows(layout))).any():
        raise checkpoint.misfit(name, layout, "0, rows in order; save the model with a bitsandbytes of 2024 or later")

    def magnitude(start: int, stop: int) -> np.ndarray:
        return all_floats(scale).reshape(-1, 1)[start:stop]

    def read(start: int, stop: int) -> np.ndarray:
        codes = np.ascontiguousarray(weight.read_bytes(start, stop)).view(np.int8).astype(np.float32)
        return np.asarray(codes * magnitude(start, stop) * INT8_SCALE)

    parts = tuple(t.name for t in (weight, scale, layout) if t is not None)
    return Layer(
        name=name, kind="bitsandbytes int8", shape=(rows, n), parts=parts, rows=read,
        steps=lambda a, b: magnitude(a, b) * INT8_SCALE,
    )  # fmt: skip


def _read_state(checkpoint: Checkpoint, name: str, tensor: Tensor) -> _State:
    if tensor.block_type != U8 or n_weights(tensor) > MAX_STATE_BYTES:
        raise checkpoint.misfit(name, tensor, "a short text")
    try:
        state = msgspec.json.decode(bytes(np.ascontiguousarray(tensor.read_bytes(0, n_rows(tensor)))), type=_State)
    except JSON_ERRORS as error:
        raise FormatError(
            f"{checkpoint.subject}: {name}: its quant_state cannot be read ({error}). Download the model again."
        ) from None
    if not (0 < state.blocksize < 1 << 20 and 0 < state.shape[0] < 1 << 31 and 0 < state.shape[1] < 1 << 31):
        raise checkpoint.misfit(name, tensor, "a shape and a block size")
    return state
