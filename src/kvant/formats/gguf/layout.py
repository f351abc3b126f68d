"""The exact bytes of a GGUF header and the place of every tensor, before a single weight is known.

The layout equals that of upstream's writers: keys in order, tensors in order, every tensor padded to the alignment.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Parity: tests/unit/formats/gguf/test_gguf_layout.py.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import BlockShapeError, FormatError, LimitError
from kvant.formats.gguf import spec
from kvant.metadata import NUMPY_DTYPES, StringArray, Value, ValueType

_CODES = {
    ValueType.UINT8: "<B", ValueType.INT8: "<b", ValueType.UINT16: "<H", ValueType.INT16: "<h", ValueType.UINT32: "<I",
    ValueType.INT32: "<i", ValueType.FLOAT32: "<f", ValueType.BOOL: "<?", ValueType.UINT64: "<Q",
    ValueType.INT64: "<q", ValueType.FLOAT64: "<d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor to be written.

    Attributes:
        name: Its name, at most 63 bytes of UTF-8.
        shape: Lengths of its axes in NumPy order, at most four.
        block_type: How its rows are stored.
    """

    name: str
    shape: tuple[int, ...]
    block_type: BlockType

    @property
    def n_bytes(self) -> int:
        """Bytes of its rows, without padding."""
        length = self.shape[-1] if self.shape else 1
        return math.prod(self.shape[:-1]) * self.block_type.row_bytes(length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything of a file lies.

    Attributes:
        header: All bytes before the first tensor, padding included.
        offsets: Position of each tensor's first byte in the file, in file order.
        total_bytes: Length of the file.
        alignment: Every tensor starts at a multiple of this.
    """

    header: bytes
    offsets: dict[str, int]
    total_bytes: int
    alignment: int


def file_layout(metadata: Mapping[str, Value], infos: Sequence[TensorInfo]) -> Layout:
    """Lay a file out: its header's bytes, every tensor's offset and its length, exactly.

    Args:
        metadata: Values by key, in the order they are written; `general.alignment` is honoured.
        infos: Tensors in the order they are written.

    Raises:
        FormatError: A key or name is empty, too long or there twice; a value is not of its type; a bad alignment.
        BlockShapeError: A row length is not a multiple of its type's block.
        LimitError: A tensor has more than four dimensions.
    """
    alignment = checked_alignment(metadata)
    names = {info.name for info in infos}
    if len(names) != len(infos):
        raise FormatError("tensors: a name appears twice. Give every tensor its own.")
    parts = [spec.MAGIC, struct.pack("<IQQ", spec.VERSION, len(infos), len(metadata))]
    for key, value in metadata.items():
        parts += [_name(key, "key", spec.MAX_KEY_BYTES), _value(key, value)]
    position, relative = 0, {}
    for info in infos:
        _check_info(info)
        relative[info.name] = position
        parts.append(_tensor_info(info, position))
        position += padded(info.n_bytes, alignment)
    header = b"".join(parts)
    header += bytes(padded(len(header), alignment) - len(header))
    return Layout(
        header=header,
        offsets={name: len(header) + offset for name, offset in relative.items()},
        total_bytes=len(header) + position,
        alignment=alignment,
    )


def checked_alignment(metadata: Mapping[str, Value]) -> int:
    """Return the alignment that `metadata` asks for; 32 if it does not say."""
    value = metadata.get(spec.KEY_ALIGNMENT)
    if value is None:
        return spec.DEFAULT_ALIGNMENT
    found = value.value
    if (
        value.type is not ValueType.UINT32
        or not isinstance(found, int)
        or not 0 < found <= spec.MAX_ALIGNMENT
        or found & (found - 1)
    ):
        raise FormatError(
            f"{spec.KEY_ALIGNMENT}: {found!r} is not a UINT32 power of two up to {spec.MAX_ALIGNMENT}. Use 32."
        )
    return found


def padded(n_bytes: int, alignment: int) -> int:
    """Round a length up to a multiple of the alignment."""
    return -(-n_bytes // alignment) * alignment


def _check_info(info: TensorInfo) -> None:
    if any(length < 0 for length in info.shape):
        raise FormatError(f"{info.name}: the shape {info.shape} has a negative length. Correct it.")
    if len(info.shape) > spec.MAX_DIMS:
        raise LimitError(f"{info.name}: {len(info.shape)} dimensions are above {spec.MAX_DIMS}. Merge some of them.")
    length = info.shape[-1] if info.shape else 1
    if length % info.block_type.block_length:
        raise BlockShapeError(
            f"{info.name}: row length {length} is not a multiple of the {info.block_type} block size "
            f"{info.block_type.block_length}. Use Q8_0 (block 32) or keep F16."
        )


def _tensor_info(info: TensorInfo, offset: int) -> bytes:
    n_dims = len(info.shape)
    numbers = struct.pack(f"<I{n_dims}QIQ", n_dims, *reversed(info.shape), info.block_type.ggml_id, offset)
    return _name(info.name, "tensor name", spec.MAX_WRITTEN_NAME_BYTES) + numbers


def _name(text: str, what: str, limit: int) -> bytes:
    """A name as stored."""
    raw = text.encode("utf-8", "surrogatepass")
    if not 0 < len(raw) <= limit or any("\ud800" <= c <= "\udfff" for c in text):
        raise FormatError(f"{what} {text[:80]!r}: is not text of 1 to {limit} bytes. Rename it.")
    return _string(raw)


def _string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Value) -> bytes:
    """A value as stored: its type, then its content."""
    kind = struct.pack("<I", value.type)
    try:
        if value.type is not ValueType.ARRAY:
            return kind + _scalar(value.type, value.value)
        if value.item_type is None or isinstance(value.value, bool | int | float | str):
            raise TypeError("an array needs items and their type")
        return kind + struct.pack("<IQ", value.item_type, len(value.value)) + _items(value.item_type, value.value)
    except (struct.error, OverflowError, AttributeError, TypeError, UnicodeEncodeError) as error:
        raise FormatError(f"{key}: its value does not fit its type {value.type.name}: {error}. Correct one.") from error


def _scalar(kind: ValueType, value: object) -> bytes:
    if kind is ValueType.STRING:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no text")
        return _string(value.encode())
    return struct.pack(_CODES[kind], value)


def _items(kind: ValueType, items: object) -> bytes:
    if isinstance(items, StringArray):
        return _string_array(items)
    if kind is ValueType.STRING:
        return b"".join(_string(s if isinstance(s, bytes) else s.encode()) for s in items)  # type: ignore[attr-defined]
    found = np.asarray(items)
    if isinstance(items, list | tuple) and kind is ValueType.UINT64 and found.dtype.kind == "f":
        found = np.array(items, object)  # NumPy makes float64, which drops bits, of integers on both sides of 2^63
    exact = found.astype(NUMPY_DTYPES[kind])
    if found.dtype.kind in "iu" and exact.dtype.kind in "iu" and not np.array_equal(found, exact):
        raise OverflowError(f"an item is outside the range of {kind.name}")
    return exact.tobytes()


def _string_array(items: StringArray) -> bytes:
    """Strings as stored; the buffer itself where it already is that (it came from a GGUF file)."""
    lengths = items.ends - items.starts
    size = int(items.ends[-1]) if len(items) else 0
    in_place = len(items) > 0 and int(lengths.sum()) + 8 * len(items) == size == len(items.data)
    if in_place and items.starts[0] == 8 and np.array_equal(items.starts[1:], items.ends[:-1] + 8):
        return items.data.tobytes()
    return b"".join(_string(items.raw(i)) for i in range(len(items)))
