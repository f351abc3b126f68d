"""Our header and layout equal, byte for byte, what the official `gguf` package writes."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import raw_files as raw
from kvant.dtypes import BF16, F16, F32, block_type
from kvant.errors import BlockShapeError, FormatError, LimitError
from kvant.formats.gguf.layout import TensorInfo, file_layout
from kvant.formats.gguf.reader import read_gguf
from kvant.metadata import StringArray, Value, ValueType, array, string, u32

SCALARS: dict[str, Value] = {
    "a.u8": Value(ValueType.UINT8, 255), "a.i8": Value(ValueType.INT8, -128), "a.u16": Value(ValueType.UINT16, 65535),
    "a.i16": Value(ValueType.INT16, -1), "a.u32": u32(2**32 - 1), "a.i32": Value(ValueType.INT32, -(2**31)),
    "a.f32": Value(ValueType.FLOAT32, 0.1), "a.f64": Value(ValueType.FLOAT64, 0.1),
    "a.u64": Value(ValueType.UINT64, 2**64 - 1), "a.i64": Value(ValueType.INT64, -(2**63)),
    "a.true": Value(ValueType.BOOL, True), "a.text": string("Grüße, 世界 🙂"), "a.nothing": string(""),
}  # fmt: skip
ARRAYS: dict[str, Value] = {
    "b.strings": array(ValueType.STRING, ["a", "", "ü" * 300]),
    "b.f32": array(ValueType.FLOAT32, np.array([1, -0.0, np.inf], np.float32)),
    "b.i32": array(ValueType.INT32, [1, -2, 3]),
    "b.u8": array(ValueType.UINT8, np.arange(200, dtype=np.uint8)),
    "b.bool": array(ValueType.BOOL, [True, False]),
}
TENSORS = (
    ("token_embd.weight", (10, 64), "F16"), ("blk.0.attn_norm.weight", (63,), "F32"), ("scalar", (), "F32"),
    ("blk.0.attn_q.weight", (7, 256), "Q4_K"), ("blk.0.ffn_up_exps.weight", (2, 3, 32), "Q8_0"),
    ("blk.0.x", (1, 2, 3, 4), "BF16"),
)  # fmt: skip


def infos() -> list[TensorInfo]:
    return [TensorInfo(name, shape, block_type(kind)) for name, shape, kind in TENSORS]


def official(path: Path, metadata: dict[str, Value], tensors: list[TensorInfo]) -> bytes:
    """The same content by upstream's writer; weights are the bytes 0, 1, 2, ..."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        items: Any = value.value
        if isinstance(items, np.ndarray):
            items = items.tolist()
        elif value.type is ValueType.ARRAY:
            items = list(items)
        sub_type = None if value.item_type is None else gguf.GGUFValueType(value.item_type)
        writer.add_key_value(key, items, gguf.GGUFValueType(value.type), sub_type)
        if key == "general.alignment":
            writer.data_alignment = items
    for info in tensors:
        kind = gguf.GGMLQuantizationType(info.block_type.ggml_id)
        data = (np.arange(info.n_bytes) % 251).astype(np.uint8)
        rows = data.reshape(*info.shape[:-1], -1) if info.shape else data.view(np.float32).reshape(())
        writer.add_tensor(info.name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("alignment", [None, 8, 32, 256])
def test_equals_the_official_writer(tmp_path: Path, alignment: int | None) -> None:
    metadata = {"general.architecture": string("llama"), **SCALARS, **ARRAYS}
    if alignment is not None:
        metadata["general.alignment"] = u32(alignment)
    expected = official(tmp_path / "m.gguf", metadata, infos())
    layout = file_layout(metadata, infos())
    assert expected[: len(layout.header)] == layout.header
    assert layout.total_bytes == len(expected)
    for info in infos():
        start = layout.offsets[info.name]
        assert start % layout.alignment == 0
        assert expected[start : start + info.n_bytes] == (np.arange(info.n_bytes) % 251).astype(np.uint8).tobytes()


def test_no_tensors(tmp_path: Path) -> None:
    metadata = {"general.architecture": string("llama")}
    assert file_layout(metadata, []).header == official(tmp_path / "m.gguf", metadata, [])


def test_strings_from_a_file_are_written_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw.gguf([raw.array_key("t", raw.STRING, [b"\xff\xfe", "", "ok"])]))
    metadata = read_gguf(path).metadata
    assert file_layout(metadata, []).header == path.read_bytes()


def test_strings_in_a_buffer_of_another_make_are_written() -> None:
    buffer = np.frombuffer(b"xabcy", np.uint8)
    strings = StringArray(buffer, np.array([1, 1, 3]), np.array([3, 1, 4]))
    assert (
        file_layout({"t": array(ValueType.STRING, strings)}, []).header
        == file_layout({"t": array(ValueType.STRING, ["ab", "", "c"])}, []).header
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Value(ValueType.UINT8, 256), "k: its value does not fit its type UINT8"),
        (Value(ValueType.UINT32, "text"), "does not fit its type UINT32"),
        (Value(ValueType.STRING, 3), "does not fit its type STRING"),
        (Value(ValueType.STRING, "\ud800"), "does not fit its type STRING"),
        (array(ValueType.UINT8, [1, 300]), "does not fit its type ARRAY"),
        (array(ValueType.INT8, np.array([200])), "does not fit its type ARRAY"),
        (array(ValueType.STRING, [1]), "does not fit its type ARRAY"),
        (Value(ValueType.ARRAY, [1]), "does not fit its type ARRAY"),
        (Value(ValueType.ARRAY, 1, ValueType.UINT8), "does not fit its type ARRAY"),
    ],
)
def test_values_of_another_type_are_refused(value: Value, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        file_layout({"k": value}, [])


@pytest.mark.parametrize(
    ("keys", "tensor", "error"),
    [
        ({"": u32(1)}, None, FormatError),
        ({"k" * 70000: u32(1)}, None, FormatError),
        ({"general.alignment": u32(24)}, None, FormatError),
        ({"general.alignment": Value(ValueType.UINT64, 32)}, None, FormatError),
        ({"general.alignment": u32(0)}, None, FormatError),
        ({"\ud800": u32(1)}, None, FormatError),
        ({}, TensorInfo("", (1,), F32), FormatError),
        ({}, TensorInfo("\udfff", (1,), F32), FormatError),
        ({}, TensorInfo("ü" * 32, (1,), F32), FormatError),
        ({}, TensorInfo("t", (1, 1, 1, 1, 1), F32), LimitError),
        ({}, TensorInfo("t", (-1,), F32), FormatError),
        ({}, TensorInfo("t", (2, 100), block_type("Q4_K")), BlockShapeError),
    ],
)
def test_what_no_reader_takes_is_refused(keys: dict[str, Value], tensor: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        file_layout(keys, [] if tensor is None else [tensor])


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(FormatError, match="appears twice"):
        file_layout({}, [TensorInfo("t", (1,), F16), TensorInfo("t", (1,), BF16)])


def test_longest_name_that_llama_cpp_takes() -> None:
    header = file_layout({}, [TensorInfo("n" * 63, (1,), F32)]).header
    assert struct.pack("<Q", 63) + b"n" * 63 in header


def test_large_and_small_unsigned_integers_of_one_list_keep_every_bit() -> None:
    numbers = [1, 2**64 - 1, 2**63 + 1]
    header = file_layout({"a": Value(ValueType.ARRAY, numbers, ValueType.UINT64)}, []).header
    assert b"".join(number.to_bytes(8, "little") for number in numbers) in header
