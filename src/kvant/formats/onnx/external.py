"""Weights of an ONNX model in files beside it: where they may lie and how long they must be."""

import math
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from kvant.errors import FormatError, LimitError, UnsupportedFormatError
from kvant.formats.lookalikes import HEAD_BYTES, check_pointer
from kvant.formats.onnx.spec import ELEMENT_BITS, EXTERNAL, MAX_TENSOR_BYTES, STRING

if TYPE_CHECKING:
    import onnx

_COPY = "Copy the file itself into the model's directory."


def tensor_bytes(tensor: "onnx.TensorProto", path: Path) -> int:
    """Return the bytes a tensor's shape and type ask for.

    Raises:
        FormatError: A negative dimension.
        LimitError: More than `MAX_TENSOR_BYTES`.
        UnsupportedFormatError: An unknown element type, or strings.
    """
    if any(d < 0 for d in tensor.dims):
        raise FormatError(
            f"{path}: tensor {tensor.name[:80]!r} has a dimension of {min(tensor.dims)}. Export it again."
        )
    bits = ELEMENT_BITS.get(tensor.data_type)
    if bits is None:
        raise UnsupportedFormatError(
            f"{path}: tensor {tensor.name[:80]!r} has element type {tensor.data_type}, which is not known here. "
            "Update kvant, or export the model with types of onnx 1.23."
        )
    size: int = (math.prod(tensor.dims) * bits + 7) // 8
    if size > MAX_TENSOR_BYTES:
        raise LimitError(
            f"{path}: tensor {tensor.name[:80]!r} of shape {list(tensor.dims)[:8]} needs {size} bytes, above "
            f"{MAX_TENSOR_BYTES}. Export it again."
        )
    return size


def check_data(tensor: "onnx.TensorProto", path: Path) -> None:
    """Check that a tensor's data are there and as long as its shape says.

    Raises:
        FormatError: They are not, or lie in a file that is not the model's own.
    """
    if tensor.data_type == STRING:
        if tensor.data_location == EXTERNAL or len(tensor.string_data) != math.prod(tensor.dims):
            raise FormatError(f"{path}: strings of tensor {tensor.name[:80]!r} do not fit its shape. Export it again.")
        return
    size = tensor_bytes(tensor, path)
    if tensor.data_location == EXTERNAL:
        external_range(tensor, path)
        return
    found = len(tensor.raw_data) if tensor.HasField("raw_data") else _typed_bytes(tensor)
    if found != size:
        raise FormatError(
            f"{path}: tensor {tensor.name[:80]!r} of shape {list(tensor.dims)[:8]} holds {found} bytes, not {size}. "
            "Download or export it again."
        )


def external_range(tensor: "onnx.TensorProto", path: Path) -> tuple[Path, int, int]:
    """Return the file of a tensor stored outside, and the offset and length of its bytes there.

    The file must be a regular one of the model's own directory or below it, reached through no symbolic link, and known
    under one name only: a link could make any file of the machine part of a model that is passed on.

    Raises:
        FormatError: It is not, or is too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = external_path(path, entries.get("location", ""))
    offset, wanted = _number(entries, "offset", tensor, path), tensor_bytes(tensor, path)
    length = _number(entries, "length", tensor, path) if "length" in entries else wanted
    if length != wanted or offset + length > place.stat().st_size:
        with place.open("rb") as file:
            check_pointer(place, file.read(HEAD_BYTES))
        raise FormatError(
            f"{path}: tensor {tensor.name[:80]!r} needs {wanted} bytes; {place.name} has {place.stat().st_size}, of "
            f"which {length} from {offset} on are said to be its. Download or export the model again."
        )
    return place, offset, length


def external_path(path: Path, location: str) -> Path:
    """Return the path of a file of external data; see `external_range`."""
    parts = PurePosixPath(location).parts
    named = parts and not PurePosixPath(location).is_absolute() and not PureWindowsPath(location).drive
    if not named or ".." in parts or any(c in location for c in "\\:\0"):
        raise FormatError(f"{path}: keeps weights in {location[:80]!r}, outside its own directory. {_COPY}")
    place = path.parent
    for part in parts:
        place = place / part
        try:
            mode = place.lstat()
        except OSError as error:
            raise FormatError(f"{place}: is missing, but {path.name} keeps weights there. Download it too.") from error
        if stat.S_ISLNK(mode.st_mode):
            raise FormatError(f"{place}: is a symbolic link, which weights may not lie behind. {_COPY}")
    if not stat.S_ISREG(mode.st_mode):
        raise FormatError(f"{place}: is not a regular file, but {path.name} keeps weights there. Export it again.")
    if mode.st_nlink > 1:
        raise FormatError(f"{place}: has {mode.st_nlink} names on this disk (hard links). {_COPY}")
    return place


def _number(entries: dict[str, str], key: str, tensor: "onnx.TensorProto", path: Path) -> int:
    text = entries.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise FormatError(f"{path}: tensor {tensor.name[:80]!r} has the {key} {text[:40]!r}. Export it again.")
    return int(text)


def _typed_bytes(tensor: "onnx.TensorProto") -> int:
    """Bytes of a tensor kept in one of the typed fields. Source: onnx.proto, at `int32_data` and so on."""
    bits = ELEMENT_BITS[tensor.data_type]
    if tensor.data_type in (14, 15):  # complex: two numbers each
        return 4 * len(tensor.float_data) if tensor.data_type == 14 else 8 * len(tensor.double_data)
    if bits < 8:  # packed as in raw data, a byte in each number
        return len(tensor.int32_data)
    count = len(tensor.float_data) + len(tensor.int32_data) + len(tensor.int64_data)
    return (count + len(tensor.double_data) + len(tensor.uint64_data)) * bits // 8
