"""Count what is in a protocol buffer without building it, so that a small file cannot become gigabytes of objects."""

from functools import cache
from pathlib import Path
from typing import Any

from kvant.errors import FormatError, LimitError
from kvant.formats.onnx.spec import MAX_DEPTH, MAX_MESSAGES, MAX_PACKED_BYTES
from kvant.formats.protobuf import BYTES, VARINT, WireError, fields

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
    try:
        _walk(data, descriptor, path)
    except WireError as error:
        raise FormatError(
            f"{path}: is no ONNX file or damaged at byte {error.at}. Download or export it again."
        ) from None


def _walk(data: memoryview, descriptor: Any, path: Path) -> None:
    messages = packed = 0
    waiting = [(0, len(data), descriptor, 0)]
    while waiting:
        at, end, kind, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise LimitError(f"{path}: messages lie deeper than {MAX_DEPTH} in one another. Export the model again.")
        inner, integers, texts = _fields(kind)
        for number, wire, _, start, stop in fields(data, at, end):
            if wire == VARINT:
                packed += 1
            elif wire == BYTES:
                if number in inner:
                    waiting.append((start, stop, inner[number], depth + 1))
                elif number in texts:
                    _check_text(data[start:stop], start, path)
                packed += stop - start if number in integers else 0
                messages += 1
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
