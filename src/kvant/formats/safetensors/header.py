"""The JSON header of one safetensors file, checked against the file before any of it is believed."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import FormatError, LimitError, UnsupportedFormatError
from kvant.formats.mapped import map_file
from kvant.formats.safetensors import spec

_AGAIN = "The file is damaged or incomplete; download or convert it again."


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies in a file.

    Attributes:
        name: Its name.
        shape: Lengths of its axes.
        block_type: Its element type.
        offset: Position of its first byte in the file.
        n_bytes: Its length in bytes.
    """

    name: str
    shape: tuple[int, ...]
    block_type: BlockType
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands before the weights.

    Attributes:
        metadata: The free text entries of `__metadata__`.
        tensors: Tensors in the order of their bytes.
        data: The whole file, mapped, uint8 [file length].
    """

    metadata: dict[str, str]
    tensors: tuple[StoredTensor, ...]
    data: np.ndarray


def read_header(path: Path) -> Header:
    """Read and check the header; the weights are mapped, not read.

    Raises:
        FormatError: It is not a safetensors file, or damaged: among others, tensors that overlap or leave holes.
        LimitError: The header or a count is above a limit of `spec`.
        UnsupportedFormatError: An element type that is not read here.
    """
    data = map_file(path, least_bytes=spec.LENGTH_BYTES + len(b"{}"), suffix=spec.SUFFIX)
    length = int.from_bytes(data[: spec.LENGTH_BYTES].tobytes(), "little")
    if length > spec.MAX_HEADER_BYTES:
        raise LimitError(f"{path}: a header of {length} bytes is above the limit of {spec.MAX_HEADER_BYTES}. {_AGAIN}")
    start = spec.LENGTH_BYTES + length
    if start > len(data):
        raise FormatError(f"{path}: its header of {length} bytes reaches past its end at {len(data)}. {_AGAIN}")
    document = parse_object(data[spec.LENGTH_BYTES : start].tobytes(), path)
    metadata = _metadata(document.pop(spec.KEY_METADATA, {}), path)
    if len(document) > spec.MAX_TENSORS:
        raise LimitError(f"{path}: {len(document)} tensors are above the limit of {spec.MAX_TENSORS}. {_AGAIN}")
    tensors = sorted(
        (_entry(name, e, start, path) for name, e in document.items()), key=lambda t: (t.offset, t.n_bytes)
    )
    _check_contiguous(tensors, start, len(data), path)
    return Header(metadata=metadata, tensors=tuple(tensors), data=data)


def parse_object(raw: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object from an untrusted file: bounded in values and depth, without double keys.

    Raises:
        FormatError: It is not a JSON object of UTF-8, or a key appears twice.
        LimitError: It holds more values than a model can need.
    """
    n_values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if n_values > spec.MAX_VALUES:
        raise LimitError(f"{path}: about {n_values} JSON values are above the limit of {spec.MAX_VALUES}. {_AGAIN}")
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise FormatError(f"{path}: its JSON nests too deep. {_AGAIN}") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ones
        raise FormatError(f"{path}: its JSON cannot be read ({error}). {_AGAIN}") from error
    if not isinstance(document, dict):
        raise FormatError(f"{path}: its JSON is a {type(document).__name__}, not an object. {_AGAIN}")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _metadata(found: object, path: Path) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise FormatError(f"{path}: {spec.KEY_METADATA} is not an object of strings. {_AGAIN}")
    return found


def _entry(name: str, entry: object, start: int, path: Path) -> StoredTensor:
    """Check one tensor's entry by itself."""
    if len(name.encode("utf-8", "surrogatepass")) > spec.MAX_NAME_BYTES or not _is_text(name):
        raise FormatError(f"{path}: the tensor name {name[:64]!r} is no text of {spec.MAX_NAME_BYTES} bytes. {_AGAIN}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{path}: the entry of {name!r} is not dtype, shape and data_offsets. {_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    block_type = spec.DTYPES.get(dtype) if isinstance(dtype, str) else None
    if block_type is None:
        raise UnsupportedFormatError(
            f"{path}: {name!r} has the element type {str(dtype)[:40]!r}, not one of {', '.join(spec.DTYPES)}. "
            "Convert it to F16 or BF16 first."
        )
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or len(shape) > spec.MAX_DIMS:
        raise FormatError(f"{path}: {name!r} has a malformed shape or data_offsets. {_AGAIN}")
    n_bytes = math.prod(shape) * block_type.block_bytes
    if offsets[1] - offsets[0] != n_bytes:
        raise FormatError(
            f"{path}: {name!r} of shape {shape} needs {n_bytes} bytes, its data_offsets span "
            f"{offsets[1] - offsets[0]}. {_AGAIN}"
        )
    if not n_bytes and math.prod(n or 1 for n in shape) > spec.MAX_EMPTY_SHAPE:
        raise LimitError(f"{path}: {name!r} holds nothing but has the shape {shape}. {_AGAIN}")
    return StoredTensor(
        name=name, shape=tuple(shape), block_type=block_type, offset=start + offsets[0], n_bytes=n_bytes
    )


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: JSON can smuggle half a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _are_counts(found: object) -> bool:
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in found)


def _check_contiguous(tensors: list[StoredTensor], start: int, end: int, path: Path) -> None:
    """The format requires tensors to cover everything behind the header exactly: no overlap, no hole, no rest."""
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            what = "overlaps the one before" if tensor.offset < position else "leaves a hole before it"
            raise FormatError(f"{path}: {tensor.name!r} {what}. {_AGAIN}")
        position += tensor.n_bytes
    if position != end:
        raise FormatError(f"{path}: its tensors end at byte {position}, the file at {end}. {_AGAIN}")
