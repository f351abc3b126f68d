"""Files made to break a reader, and the exercise that each must survive: an error of ours, or a sound model."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import raw_files as raw
from kvant.formats.gguf.layout import TensorInfo, file_layout
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.safetensors.reader import read_safetensors
from kvant.metadata import StringArray
from kvant.tensors import Tensor, n_bytes, n_rows

BIG = 1 << 63
HUGE = (1 << 64) - 1
T1 = raw.tensor("t", [8])
A = raw.ARCHITECTURE


def exercise_gguf(path: Path) -> None:
    """Open a file and use all of it as its users do.

    Raises:
        KvantError: It is not a model; any other exception is a defect.
    """
    model = read_gguf(path)
    for value in model.metadata.values():
        if isinstance(value.value, StringArray):
            assert len(list(value.value)) == len(value.value)
        assert isinstance(value.value, np.ndarray | StringArray | bool | int | float | str)
    _read_all(model.tensors)
    infos = [TensorInfo(t.name, t.shape, t.block_type) for t in model.tensors.values()]
    assert file_layout(model.metadata, infos).total_bytes > 0
    assert isinstance(model.name + model.architecture, str)


def exercise_safetensors(path: Path) -> None:
    """The same for a safetensors file."""
    _read_all(read_safetensors(path))


def _read_all(tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        assert tensor.read_bytes(0, n_rows(tensor)).size == n_bytes(tensor)


def _header(*counts: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<I", version) + b"".join(struct.pack("<Q", n) for n in counts)


def _nested_arrays(depth: int) -> bytes:
    """A key whose value is an array of one array of one array ..."""
    levels = struct.pack("<IQ", raw.ARRAY, 1) * depth
    return raw.text("deep") + struct.pack("<I", raw.ARRAY) + levels + struct.pack("<IQ", raw.U8, 0)


def _tensor_file(*tensors: bytes, data: bytes = bytes(256)) -> bytes:
    return raw.gguf([A], tensors, data)


def _key_file(*keys: bytes) -> bytes:
    return raw.gguf([A, *keys])


def _alignment(kind: int, value: object) -> bytes:
    return raw.gguf([raw.key("general.alignment", kind, value)], [T1], bytes(64))


GGUF: dict[str, bytes] = {
    # What is no GGUF file, or ends too early.
    "empty": b"", "one byte": b"G", "magic alone": b"GGUF", "other magic": b"GGML" + bytes(60),
    "reversed magic": b"FUGG" + bytes(60), "zeros": bytes(4096), "text": b"hello, world. " * 20,
    "html": b"<!DOCTYPE html><html><body>404</body></html>", "version cut": b"GGUF\x03\0",
    "counts cut": _header(1), "no keys where some are told": _header(0, 1), "tensor list cut": _header(1, 0),
    # Versions.
    **{f"version {n}": _header(0, 0, version=n) for n in (0, 1, 4, 255, 0xFFFFFFFF)},
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    # Counts.
    **{f"{n} tensors": raw.gguf([A], [T1], n_tensors=n) for n in (2, 1 << 17, 1 << 32, BIG - 1, BIG, HUGE)},
    **{f"{n} keys": raw.gguf([A], [], bytes(100), n_keys=n) for n in (3, 1 << 16, 1 << 32, BIG - 1, BIG, HUGE)},
    "more keys than the limit": raw.gguf([raw.key(f"k{i}", raw.U8, 0) for i in range(65537)]),
    # Keys and values.
    "empty key": _key_file(raw.key("", raw.U8, 1)), "key twice": _key_file(A),
    "key not UTF-8": _key_file(raw.key(b"\xff\xfe", raw.U8, 1)),
    "long key": _key_file(raw.key("k" * 65536, raw.U8, 1)),
    "long key of an unknown type": _key_file(raw.text("k" * 60000) + struct.pack("<IQ", 99, 0)),
    **{f"key of {n} bytes": _key_file(struct.pack("<Q", n) + b"key") for n in (1000, BIG, HUGE - 7, HUGE)},
    **{f"value type {n}": _key_file(raw.text("k") + struct.pack("<IQ", n, 0)) for n in (13, 255, BIG >> 32, 2**32 - 1)},
    **{
        f"string of {n} bytes": _key_file(raw.text("k") + struct.pack("<IQ", raw.STRING, n) + b"abc")
        for n in (1000, (1 << 30) + 1, BIG, HUGE - 7, HUGE)
    },
    "value cut": _header(0, 1) + raw.text("k") + struct.pack("<I", raw.U64) + b"123",
    # Arrays.
    **{
        f"array of {n} x type {kind}": _key_file(raw.array_key("k", kind, [], n), bytes(64))
        for n in (1000, 1 << 30, 1 << 61, BIG, HUGE) for kind in (raw.U8, raw.U64, raw.STRING)
    },
    "array of type 13": _key_file(raw.text("k") + struct.pack("<IIQ", raw.ARRAY, 13, 0)),
    "array of arrays": _key_file(_nested_arrays(1)), "arrays 100,000 deep": _key_file(_nested_arrays(100_000)),
    "array of strings whose last is cut": _header(0, 1) + raw.array_key("k", raw.STRING, ["a"]) [:-1],
    **{
        f"array of strings with one of {n} bytes": _key_file(
            raw.array_key("k", raw.STRING, ["a"], 2) + struct.pack("<Q", n) + bytes(50)
        )
        for n in (51 + 64, BIG, HUGE - 8, HUGE)
    },
    # Alignment.
    **{f"alignment {n}": _alignment(raw.U32, n) for n in (0, 3, 33, 1 << 21, 1 << 31, 2**32 - 1)},
    "alignment of 8 bytes": _alignment(raw.U64, 32), "alignment as text": _alignment(raw.STRING, "32"),
    "alignment true": _alignment(raw.BOOL, 1),
    # Tensors.
    **{f"{n} dimensions": _tensor_file(raw.tensor("t", [1] * min(n, 9), n_dims=n)) for n in (5, 9, 2**32 - 1)},
    **{f"dimension {n}": _tensor_file(raw.tensor("t", [n])) for n in (65, 1 << 32, BIG - 1, BIG, HUGE)},
    "product beyond 64 bits": _tensor_file(raw.tensor("t", [1 << 32, 1 << 32])),
    "product that wraps to 8": _tensor_file(raw.tensor("t", [8, (1 << 62) + 1, 1 << 2])),
    "product that wraps to 0": _tensor_file(raw.tensor("t", [1 << 16, 1 << 16, 1 << 16, 1 << 16])),
    "endless rows of nothing": _tensor_file(raw.tensor("t", [0, 1 << 40])),
    "no rows of endless length": _tensor_file(raw.tensor("t", [BIG, 0])),
    **{f"block type {n}": _tensor_file(raw.tensor("t", [256], n)) for n in (4, 5, 31, 38, 99, 2**31, 2**32 - 1)},
    "half a block": _tensor_file(raw.tensor("t", [16, 2], 2)),
    "no whole superblock": _tensor_file(raw.tensor("t", [32], 12)),
    **{f"offset {n}": _tensor_file(raw.tensor("t", [8], 0, n)) for n in (1, 31, 256, 1 << 40, BIG, HUGE - 31, HUGE)},
    "weights cut": _tensor_file(raw.tensor("t", [8]), data=bytes(31)), "no weights": _tensor_file(T1, data=b""),
    "no padding": raw.gguf([A], [T1])[:-5],
    "tensors on one place": _tensor_file(T1, raw.tensor("u", [8])),
    "tensors that overlap": _tensor_file(raw.tensor("t", [32], 0, 0), raw.tensor("u", [8], 0, 96)),
    "name twice": _tensor_file(T1, raw.tensor("t", [8], 0, 32)),
    "name not UTF-8": _tensor_file(raw.tensor(b"\xc3\x28", [8])), "long name": _tensor_file(raw.tensor("n" * 256, [8])),
    **{f"name of {n} bytes": _tensor_file(struct.pack("<Q", n) + bytes(40)) for n in (2000, BIG, HUGE)},
    # Shards that are none.
    **{
        f"split.count {n}": _key_file(raw.key("split.count", kind, n))
        for n, kind in (
            (2, raw.U16), (65535, raw.U16), (-1, raw.I32), (1 << 40, raw.U64), ("2", raw.STRING), (1.5, raw.F32),
        )
    },
    "split.count as a list": _key_file(raw.array_key("split.count", raw.U16, [1, 2])),
}  # fmt: skip

_E = raw.entry


def _st(**entries: object) -> bytes:
    return raw.safetensors(entries, bytes(16))


def _raw_header(header: bytes) -> bytes:
    return raw.safetensors({}, bytes(16), raw=header)


_GOOD = json.dumps({"t": _E("F32", [4], 0, 16)}).encode()
_DTYPES: list[object] = ["f32", "", "I1", 4, None, [], {}, "F" * 9999]
_SHAPES: list[object] = [
    None, 4, "4", [-4], [4.0], [True, 4], ["4"], [None], [[4]], [5], [1 << 62, 4], [1 << 70], [HUGE, HUGE], {"0": 4},
    [1] * 8 + [4],
]  # fmt: skip
_OFFSETS: list[object] = [
    None, [], [0], [0, 16, 16], [16, 0], [0, 17], [0.0, 16.0], [-16, 0], [4, 20], [BIG, BIG + 16], ["0", "16"],
    {"0": 0}, [False, 16],
]  # fmt: skip
SAFETENSORS: dict[str, bytes] = {
    "empty": b"", "seven bytes": bytes(7), "eight bytes": bytes(8), "zeros": bytes(4096), "gguf": raw.small_gguf(),
    "text": b"hello, world. " * 20,
    **{
        f"header of {n} bytes": raw.safetensors({}, length=n)
        for n in (0, 1, 3, 1000, 1 << 25, (1 << 25) + 1, BIG, HUGE)
    },
    "array": _raw_header(b"[]"), "number": _raw_header(b"3"), "null": _raw_header(b"null"),
    "cut": _raw_header(_GOOD[:-1]),
    "garbage behind": _raw_header(_GOOD + b"x"), "bytes not UTF-8": _raw_header(b'{"\xff":1}'),
    "byte order mark": _raw_header(b"\xef\xbb\xbf" + _GOOD), "UTF-16": _raw_header(_GOOD.decode().encode("utf-16")),
    "NaN": _raw_header(b'{"t":NaN}'), "key twice": _raw_header(_GOOD[:-1] + b"," + _GOOD[1:]),
    "entry key twice": _raw_header(_GOOD[:-2] + b',"dtype":"F32"}}'),
    "number of 5,000 digits": _raw_header(_GOOD.replace(b"[4]", b"[" + b"9" * 5000 + b"]")),
    "arrays 200,000 deep": _raw_header(b"[" * 200_000), "objects 200,000 deep": _raw_header(b'{"a":' * 200_000),
    "closed arrays 100,000 deep": _raw_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "three million values": _raw_header(b'{"t":[' + b"0," * 3_000_000 + b"0]}"),
    "140,000 empty tensors": _raw_header(
        b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(140_000)) + b"}"
    ),
    "metadata a list": _st(__metadata__=[]), "metadata of numbers": _st(__metadata__={"a": 1}),
    "metadata alone": _st(), "entry a list": _st(t=[]), "entry a string": _st(t="F32"), "entry empty": _st(t={}),
    "entry with more": _st(t={**_E("F32", [4], 0, 16), "more": 1}),
    **{f"dtype {d!r}": _st(t={**_E("F32", [4], 0, 16), "dtype": d}) for d in _DTYPES},
    **{f"shape {s!r}": _st(t={**_E("F32", [4], 0, 16), "shape": s}) for s in _SHAPES},
    **{f"offsets {o!r}": _st(t={**_E("F32", [4], 0, 16), "data_offsets": o}) for o in _OFFSETS},
    "no rows of endless length": _st(t=_E("F32", [4], 0, 16), u=_E("F32", [0, 1 << 62], 16, 16)),
    "endless rows of nothing": _st(t=_E("F32", [4], 0, 16), u=_E("F32", [1 << 40, 0], 16, 16)),
    "overlap": _st(a=_E("F32", [3], 0, 12), b=_E("F32", [2], 8, 16)),
    "same place": _st(a=_E("U8", [16], 0, 16), b=_E("U8", [16], 0, 16)),
    "hole": _st(a=_E("U8", [4], 0, 4), b=_E("U8", [8], 8, 16)), "hole in front": _st(a=_E("U8", [8], 8, 16)),
    "rest behind": _st(a=_E("U8", [15], 0, 15)),
    "weights cut": raw.safetensors({"t": _E("F32", [4], 0, 16)}, bytes(15)),
    "half a surrogate pair": _raw_header(_GOOD.replace(b'"t"', b'"\\ud800"')),
    "long name": _raw_header(_GOOD.replace(b'"t"', b'"' + b"n" * 1025 + b'"')),
}  # fmt: skip

JSON: dict[str, bytes] = {
    "empty": b"", "array": b"[]", "number": b"3", "null": b"null", "cut": b'{"weight_map": {"t": "mod',
    "not UTF-8": b'{"\xff": 1}', "deep": b'{"a":' * 100_000, "deep arrays": b"[" * 100_000,
    "half a surrogate pair": b'{"weight_map": {"\\ud800": "x"}, "quantization": {"mode": "\\udfff"}}',
    "no keys": b"{}", "wrong kinds": b'{"weight_map": 3, "model_type": 4, "architectures": 5}',
    "binary": bytes(range(256)) * 4, "gguf": raw.small_gguf(), "digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
}  # fmt: skip
