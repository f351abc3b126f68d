"""The header of one GGUF file: every count, length, type and offset is checked against the file before it is used.

Nothing is allocated for a count that the remaining bytes could not hold, so time and memory are bounded by the length
of the file. Arrays of strings are walked in one native pass.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvant.dtypes import BY_GGML_ID, BlockType
from kvant.errors import FormatError, LimitError, UnsupportedFormatError
from kvant.formats.gguf import spec
from kvant.formats.gguf.strings import string_bounds
from kvant.formats.mapped import map_file
from kvant.metadata import NUMPY_DTYPES, Scalar, StringArray, Value, ValueType

_AGAIN = "The file is damaged or incomplete; download or convert it again."
_SHOWN = 80  # characters of a key in a message
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in {
    ValueType.UINT8: "B", ValueType.INT8: "b", ValueType.UINT16: "H", ValueType.INT16: "h", ValueType.UINT32: "I",
    ValueType.INT32: "i", ValueType.FLOAT32: "f", ValueType.BOOL: "?", ValueType.UINT64: "Q", ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}.items()}  # fmt: skip
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies in a file.

    Attributes:
        name: Its name.
        shape: Lengths of its axes in NumPy order.
        block_type: How its rows are stored.
        offset: Position of its first byte in the file.
        n_bytes: Its length in bytes, without padding.
    """

    name: str
    shape: tuple[int, ...]
    block_type: BlockType
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands before the weights of one file.

    Attributes:
        version: 2 or 3.
        metadata: Values by key, in file order.
        tensors: Tensors in file order.
        alignment: Every tensor starts at a multiple of this.
        data: The whole file, mapped, uint8 [file length].
    """

    version: int
    metadata: dict[str, Value]
    tensors: tuple[StoredTensor, ...]
    alignment: int
    data: np.ndarray


def read_header(path: Path) -> Header:
    """Read and check the header of one file; the weights are mapped, not read.

    Raises:
        FormatError: It is not a GGUF file, or damaged.
        UnsupportedFormatError: Its version, byte order, or a type in it is not read here.
        LimitError: A count or length is above a limit of `spec`.
    """
    cursor = _Cursor(path, map_file(path, least_bytes=len(spec.MAGIC), suffix=".gguf"))
    version, n_tensors, n_keys = _read_counts(cursor)
    metadata = _read_metadata(cursor, n_keys)
    alignment = _alignment(path, metadata)
    raw = [_read_tensor_info(cursor) for _ in range(n_tensors)]
    start = -(-cursor.position // alignment) * alignment
    tensors = tuple(_place(cursor, info, start, alignment) for info in raw)
    _check_unique(path, tensors)
    _check_apart(path, tensors)
    return Header(version=version, metadata=metadata, tensors=tensors, alignment=alignment, data=cursor.data)


class _Cursor:
    """A position in a mapped file; every step forward is checked against its end."""

    __slots__ = ("data", "end", "path", "position", "view")

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.data, self.view, self.position, self.end = path, data, data.data, 0, len(data)

    def skip(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes` and return where they start."""
        start = self.position
        if n_bytes > self.end - start:
            raise FormatError(
                f"{self.path}: {what} needs {n_bytes} bytes at byte {start} but the file ends at {self.end}. {_AGAIN}"
            )
        self.position = start + n_bytes
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.view, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.view, self.skip(8, what))[0])

    def string(self, what: str, limit: int) -> bytes:
        """Read a string: its length, then its bytes."""
        length = self.u64(what)
        if length > limit:
            raise LimitError(f"{self.path}: {what} of {length} bytes is above the limit of {limit}. {_AGAIN}")
        start = self.skip(length, what)
        return self.data[start : start + length].tobytes()

    def name(self, what: str, limit: int) -> str:
        """Read a string that identifies something: UTF-8 is required, because a guess could make two names one."""
        raw = self.string(what, limit)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: {what} {raw[:64]!r} is not UTF-8. {_AGAIN}") from error

    def count(self, found: int, what: str, *, limit: int, least_bytes: int) -> int:
        """Check a number of things to come against a limit and against what the rest of the file can hold."""
        if found > limit:
            raise LimitError(f"{self.path}: {found} {what} are above the limit of {limit}. {_AGAIN}")
        if found * least_bytes > self.end - self.position:
            raise FormatError(
                f"{self.path}: {found} {what} need at least {found * least_bytes} bytes but only "
                f"{self.end - self.position} follow. {_AGAIN}"
            )
        return found


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    """Read magic, version, number of tensors and number of keys."""
    start = cursor.skip(4, "the magic number")
    magic = cursor.data[start : start + 4].tobytes()
    if magic != spec.MAGIC:
        raise FormatError(f"{cursor.path}: starts with {magic!r}, not with {spec.MAGIC!r}. Give a GGUF file.")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise UnsupportedFormatError(
            f"{cursor.path}: version {version:#010x} means big-endian, only little-endian is read. "
            "Convert it on the machine it was made for."
        )
    if version not in spec.VERSIONS:
        raise UnsupportedFormatError(
            f"{cursor.path}: GGUF version {version} is not one of {spec.VERSIONS}. Convert the model again."
        )
    n_tensors, n_keys = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
    cursor.count(n_keys, "keys", limit=spec.MAX_KEYS, least_bytes=spec.MIN_KEY_BYTES)
    cursor.count(n_tensors, "tensors", limit=spec.MAX_TENSORS, least_bytes=spec.MIN_TENSOR_BYTES)
    return version, n_tensors, n_keys


def _read_metadata(cursor: _Cursor, n_keys: int) -> dict[str, Value]:
    """Read all keys and their values, in order."""
    metadata: dict[str, Value] = {}
    for index in range(n_keys):
        key = cursor.name(f"key {index}", spec.MAX_KEY_BYTES)
        if not key:
            raise FormatError(f"{cursor.path}: key {index} is empty. {_AGAIN}")
        if key in metadata:
            raise FormatError(f"{cursor.path}: key {key[:_SHOWN]!r} appears twice. {_AGAIN}")
        label = repr(key[:_SHOWN])
        kind = _value_type(cursor, label)
        is_array = kind is ValueType.ARRAY
        metadata[key] = _read_array(cursor, label) if is_array else Value(kind, _scalar(cursor, label, kind))
    return metadata


def _value_type(cursor: _Cursor, label: str) -> ValueType:
    number = cursor.u32(f"the type of {label}")
    if number > max(ValueType):
        raise UnsupportedFormatError(f"{cursor.path}: {label} has the unknown value type {number}. {_AGAIN}")
    return ValueType(number)


def _scalar(cursor: _Cursor, label: str, kind: ValueType) -> Scalar:
    if kind is ValueType.STRING:
        return cursor.string(label, spec.MAX_STRING_BYTES).decode("utf-8", errors="replace")
    form = _SCALARS[kind]
    found: Scalar = form.unpack_from(cursor.view, cursor.skip(form.size, label))[0]
    return found


def _read_array(cursor: _Cursor, label: str) -> Value:
    """Read an array: numbers in one copy, strings as one buffer with their bounds."""
    kind = _value_type(cursor, label)
    if kind is ValueType.ARRAY:
        raise UnsupportedFormatError(
            f"{cursor.path}: {label} is an array of arrays, which no engine reads. Remove the key."
        )
    n = cursor.u64(f"the length of {label}")
    what = f"items of {label}"
    if kind is ValueType.STRING:
        cursor.count(n, what, limit=spec.MAX_ARRAY_ITEMS, least_bytes=_U64.size)
        return Value(ValueType.ARRAY, _read_strings(cursor, label, n), kind)
    dtype = np.dtype("u1" if kind is ValueType.BOOL else NUMPY_DTYPES[kind])
    cursor.count(n, what, limit=spec.MAX_ARRAY_ITEMS, least_bytes=dtype.itemsize)
    start = cursor.skip(n * dtype.itemsize, what)
    items = cursor.data[start : cursor.position].copy().view(dtype)
    return Value(ValueType.ARRAY, items != 0 if kind is ValueType.BOOL else items, kind)


def _read_strings(cursor: _Cursor, label: str, n: int) -> StringArray:
    rest = cursor.data[cursor.position :]
    bounds = string_bounds(rest, n, spec.MAX_STRING_BYTES)
    if bounds is None:
        raise FormatError(f"{cursor.path}: a string of {label} reaches past the end of the file. {_AGAIN}")
    starts, ends = bounds
    used = int(ends[-1]) if n else 0
    cursor.skip(used, label)
    return StringArray(rest[:used], starts, ends)


def _alignment(path: Path, metadata: dict[str, Value]) -> int:
    value = metadata.get(spec.KEY_ALIGNMENT)
    if value is None:
        return spec.DEFAULT_ALIGNMENT
    found = value.value
    if value.type is not ValueType.UINT32 or not isinstance(found, int):
        raise FormatError(f"{path}: {spec.KEY_ALIGNMENT} has the type {value.type.name}, not UINT32. {_AGAIN}")
    if found < 1 or found & (found - 1) or found > spec.MAX_ALIGNMENT:
        raise FormatError(
            f"{path}: {spec.KEY_ALIGNMENT} {found} is not a power of two up to {spec.MAX_ALIGNMENT}. {_AGAIN}"
        )
    return found


def _read_tensor_info(cursor: _Cursor) -> StoredTensor:
    """Read one tensor's name, shape, type and offset (still relative to the start of the weights)."""
    name = cursor.name("a tensor name", spec.MAX_NAME_BYTES)
    n_dims = cursor.u32(f"the shape of {name!r}")
    if n_dims > spec.MAX_DIMS:
        raise LimitError(f"{cursor.path}: {name!r} has {n_dims} dimensions, above {spec.MAX_DIMS}. {_AGAIN}")
    shape = tuple(cursor.u64(f"the shape of {name!r}") for _ in range(n_dims))[::-1]
    number = cursor.u32(f"the type of {name!r}")
    block_type = BY_GGML_ID.get(number)
    if block_type is None:
        raise UnsupportedFormatError(f"{cursor.path}: {name!r} has the unknown block type {number}. {_AGAIN}")
    length = shape[-1] if shape else 1
    if length % block_type.block_length:
        raise FormatError(
            f"{cursor.path}: {name!r} has rows of {length} weights, not a multiple of the {block_type} block of "
            f"{block_type.block_length}. {_AGAIN}"
        )
    n_bytes = math.prod(shape[:-1]) * block_type.row_bytes(length)
    if not n_bytes and math.prod(n or 1 for n in shape) > spec.MAX_EMPTY_SHAPE:
        raise LimitError(f"{cursor.path}: {name!r} holds nothing but has the shape {shape}. {_AGAIN}")
    offset = cursor.u64(f"the offset of {name!r}")
    return StoredTensor(name=name, shape=shape, block_type=block_type, offset=offset, n_bytes=n_bytes)


def _place(cursor: _Cursor, info: StoredTensor, start: int, alignment: int) -> StoredTensor:
    """Check a tensor's offset and length against the file and make the offset absolute."""
    if info.offset % alignment:
        raise FormatError(
            f"{cursor.path}: {info.name!r} starts at {info.offset}, not a multiple of the "
            f"alignment {alignment}. {_AGAIN}"
        )
    offset = start + info.offset
    if offset + info.n_bytes > cursor.end:
        raise FormatError(
            f"{cursor.path}: {info.name!r} needs {info.n_bytes} bytes at byte {offset} but the file ends at "
            f"{cursor.end}. {_AGAIN}"
        )
    return StoredTensor(
        name=info.name, shape=info.shape, block_type=info.block_type, offset=offset, n_bytes=info.n_bytes
    )


def _check_unique(path: Path, tensors: tuple[StoredTensor, ...]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise FormatError(f"{path}: tensor {tensor.name!r} appears twice. {_AGAIN}")
        seen.add(tensor.name)


def _check_apart(path: Path, tensors: tuple[StoredTensor, ...]) -> None:
    """Refuse tensors that share bytes: no writer makes them, and a small file could pose as a huge model."""
    end, previous = 0, ""
    for tensor in sorted((t for t in tensors if t.n_bytes), key=lambda t: t.offset):
        if tensor.offset < end:
            raise FormatError(f"{path}: tensors {previous!r} and {tensor.name!r} overlap. {_AGAIN}")
        end, previous = tensor.offset + tensor.n_bytes, tensor.name
