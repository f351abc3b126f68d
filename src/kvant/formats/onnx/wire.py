"""Count what is in a protocol buffer without building it, so that a small file cannot become gigabytes of objects.

Source of the wire format: protobuf.dev/programming-guides/encoding.
"""

from functools import cache
from pathlib import Path
from typing import Any

from kvant.errors import FormatError, LimitError
from kvant.formats.onnx.spec import MAX_DEPTH, MAX_MESSAGES, MAX_PACKED_BYTES

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TEXT_TYPE = 9
_PACKED_TYPES = frozenset({3, 4, 5, 8, 13, 14, 17, 18})
"""Field types whose elements are of variable length: (u)int32, (u)int64, bool, enum, sint32, sint64."""


def check_wire(data: memoryview, descriptor: Any, path: Path) -> None:
    """Walk all messages of a protocol buffer.

    Args:
        data: The serialized message, uint8 [n].
        descriptor: The message's descriptor, e.g. `onnx.ModelProto.DESCRIPTOR`.
        path: For error messages.

    Raises:
        FormatError: A field ends beyond its message, is of a kind ONNX does not use, or is text that is not UTF-8,
            which the parser would hand out as bytes.
        LimitError: More messages, packed integers or nesting than the limits in spec.py.
    """
    messages = packed = 0
    waiting = [(0, len(data), descriptor, 0)]
    while waiting:
        at, end, kind, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise LimitError(f"{path}: messages lie deeper than {MAX_DEPTH} in one another. Export the model again.")
        inner, integers, texts = _fields(kind)
        while at < end:
            tag, at = _varint(data, at, end, path)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                _, at = _varint(data, at, end, path)
                packed += 1
            elif wire == _BYTES:
                length, at = _varint(data, at, end, path)
                if length > end - at:
                    raise _broken(path, at)
                if number in inner:
                    waiting.append((at, at + length, inner[number], depth + 1))
                elif number in texts:
                    _check_text(data[at : at + length], at, path)
                packed += length if number in integers else 0
                messages += 1
                at += length
            elif wire in (_FIXED32, _FIXED64):
                at += 4 if wire == _FIXED32 else 8
            else:
                raise _broken(path, at)
            if at > end:
                raise _broken(path, at)
            if messages > MAX_MESSAGES:
                raise LimitError(f"{path}: holds more than {MAX_MESSAGES} messages. Export a simpler graph.")
            if packed > MAX_PACKED_BYTES:
                raise LimitError(
                    f"{path}: more than {MAX_PACKED_BYTES} bytes are integers of variable length. "
                    "Save it again with its weights as raw data."
                )


@cache
def _fields(descriptor: Any) -> tuple[dict[int, Any], frozenset[int], frozenset[int]]:
    """Fields that are messages, fields of packed integers and fields of text, by number."""
    inner = {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}
    integers = frozenset(field.number for field in descriptor.fields if field.type in _PACKED_TYPES)
    return inner, integers, frozenset(field.number for field in descriptor.fields if field.type == _TEXT_TYPE)


def _check_text(text: memoryview, at: int, path: Path) -> None:
    try:
        str(text, "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path}: the text at byte {at} is not UTF-8 ({error.reason}). Download or export the model again."
        ) from None


def _varint(data: memoryview, at: int, end: int, path: Path) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise _broken(path, at)


def _broken(path: Path, at: int) -> FormatError:
    return FormatError(f"{path}: is no ONNX file or damaged at byte {at}. Download or export it again.")
