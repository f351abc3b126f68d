"""GGUF and safetensors files put together byte by byte, right or wrong: independent of the writers under test."""

import json
import struct
from collections.abc import Sequence
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def text(value: str | bytes) -> bytes:
    """A GGUF string: its length, then its bytes."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value: Any) -> bytes:
    """A value without its type."""
    return text(value) if kind == STRING else struct.pack("<" + CODES[kind], value)


def key(name: str | bytes, kind: int, value: Any) -> bytes:
    """A key with a scalar value."""
    return text(name) + struct.pack("<I", kind) + scalar(kind, value)


def array_key(name: str, item_kind: int, items: Sequence[Any], count: int | None = None) -> bytes:
    """A key with an array, that claims to have `count` items."""
    head = struct.pack("<IIQ", ARRAY, item_kind, len(items) if count is None else count)
    return text(name) + head + b"".join(scalar(item_kind, item) for item in items)


def tensor(name: str | bytes, dims: Sequence[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    """A tensor's entry; `dims` in the file's order, the row's length first."""
    return (
        text(name)
        + struct.pack("<I", len(dims) if n_dims is None else n_dims)
        + b"".join(struct.pack("<Q", d) for d in dims)
        + struct.pack("<IQ", kind, offset)
    )


def gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; counts can be made to lie."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    body = head + b"".join(keys) + b"".join(tensors)
    return body + bytes(-len(body) % alignment) + data


ARCHITECTURE = key("general.architecture", STRING, "llama")


def small_gguf() -> bytes:
    """A valid file with every kind of value, 2 tensors and padding between them."""
    keys = [
        ARCHITECTURE,
        key("n.u8", U8, 200), key("n.i8", I8, -5), key("n.u16", U16, 60000), key("n.i16", I16, -300),
        key("n.u32", U32, 4_000_000_000), key("n.i32", I32, -7), key("n.f32", F32, 0.1), key("n.bool", BOOL, 1),
        key("n.u64", U64, 2**63), key("n.i64", I64, -(2**62)), key("n.f64", F64, 0.1),
        array_key("a.strings", STRING, ["one", "", "drei 3"]), array_key("a.f32", F32, [1.5, -2.5]),
        array_key("a.bool", BOOL, [0, 1, 1]), array_key("a.i32", I32, [-1, 2]), array_key("a.empty", STRING, []),
        key("tokenizer.chat_template", STRING, "{{ messages }}"),
    ]  # fmt: skip
    tensors = [tensor("a.weight", [5, 2], 0, 0), tensor("b.weight", [32, 3], 8, 64)]
    return gguf(keys, tensors, bytes(range(40)) + bytes(24) + bytes(range(102)) + bytes(26))


def safetensors(entries: Any, data: bytes = b"", *, length: int | None = None, raw: bytes | None = None) -> bytes:
    """A whole safetensors file; the header's length can be made to lie, its text be any bytes."""
    header = json.dumps(entries).encode() if raw is None else raw
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    """A tensor's entry in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
