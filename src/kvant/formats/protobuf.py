"""Protocol buffers field by field, without building objects of them.

Source of the wire format: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10

_LENGTHS = {FIXED32: 4, FIXED64: 8}

Field = tuple[int, int, int, int, int]
"""Field number; wire type; the value of a varint, else 0; where the bytes of a value begin and end."""


class WireError(ValueError):
    """These bytes are no message.

    Attributes:
        at: Where, in bytes.
    """

    def __init__(self, message: str, at: int) -> None:
        super().__init__(f"{message} at byte {at}")
        self.at = at


def fields(data: bytes | memoryview, at: int, end: int) -> Iterator[Field]:
    """Yield the fields of a message that lies at `at` to `end`.

    Raises:
        WireError: A field ends beyond its message, or is a group or of an unknown kind.
    """
    while at < end:
        tag, at = _varint(data, at, end)
        wire, value, start = tag & 7, 0, at
        if wire == VARINT:
            value, at = _varint(data, at, end)
        elif wire == BYTES:
            length, start = _varint(data, at, end)
            at = start + length
        elif wire in _LENGTHS:
            at += _LENGTHS[wire]
        else:
            raise WireError(f"a value of wire type {wire}", at)
        if at > end:
            raise WireError(f"a field of {at - start} bytes in a message that ends at {end}", start)
        yield tag >> 3, wire, value, start, at


def _varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for i in range(min(MAX_VARINT_BYTES, end - at)):
        byte = data[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise WireError("a number that does not end", at)
