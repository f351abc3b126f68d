"""Typed key-value metadata of a model: hyperparameters, tokenizer, chat template, provenance.

kvant keeps a model's metadata under the documented GGUF keys (`llama.block_count`, `tokenizer.ggml.tokens`), whatever
file it came from: that vocabulary is public, complete and what engines read, so a second one would only be a table to
keep in step. A value carries its GGUF type because a file copied must stay the same file.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md `gguf_metadata_value_type`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

Scalar = bool | int | float | str
Array = Sequence[Scalar] | np.ndarray


class ValueType(IntEnum):
    """Type of a metadata value, by its number in GGUF files."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class TokenType(IntEnum):
    """Kind of a token, by its number in `tokenizer.ggml.token_type` (llama.h `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


NUMPY_DTYPES: Mapping[ValueType, str] = {
    ValueType.UINT8: "<u1", ValueType.INT8: "<i1", ValueType.UINT16: "<u2", ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4", ValueType.INT32: "<i4", ValueType.FLOAT32: "<f4", ValueType.BOOL: "?",
    ValueType.UINT64: "<u8", ValueType.INT64: "<i8", ValueType.FLOAT64: "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """One metadata value.

    Attributes:
        type: Its type; ARRAY for arrays.
        value: A Python scalar, or for arrays a sequence: a NumPy array for numbers, a sequence of str for strings.
        item_type: Type of an array's items; None for scalars.
    """

    type: ValueType
    value: Scalar | Array
    item_type: ValueType | None = None


class StringArray(Sequence[str]):
    """Many strings in one buffer, decoded on access: a 150,000-token vocabulary opens without 150,000 objects.

    Attributes:
        data: The strings' UTF-8 bytes, uint8 [any].
        starts: Offset of each string's first byte in `data`, int64 [n].
        ends: Offset past each string's last byte, int64 [n].
    """

    def __init__(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self.data, self.starts, self.ends = data, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def raw(self, index: int) -> bytes:
        """Return the bytes of one string."""
        return self.data[self.starts[index] : self.ends[index]].tobytes()

    def __getitem__(self, index: int | slice) -> str | list[str]:  # type: ignore[override]
        if isinstance(index, slice):
            return [self.raw(i).decode("utf-8", errors="replace") for i in range(*index.indices(len(self)))]
        return self.raw(range(len(self))[index]).decode("utf-8", errors="replace")

    def __iter__(self) -> Iterator[str]:
        view = memoryview(self.data)  # type: ignore[arg-type]
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            yield str(view[start:end], "utf-8", "replace")


def u32(value: int) -> Value:
    """A UINT32 value."""
    return Value(ValueType.UINT32, int(value))


def f32(value: float) -> Value:
    """A FLOAT32 value."""
    return Value(ValueType.FLOAT32, float(value))


def boolean(value: bool) -> Value:
    """A BOOL value."""
    return Value(ValueType.BOOL, bool(value))


def string(value: str) -> Value:
    """A STRING value."""
    return Value(ValueType.STRING, value)


def array(item_type: ValueType, items: Array) -> Value:
    """An ARRAY value of items of one type."""
    return Value(ValueType.ARRAY, items, item_type)
