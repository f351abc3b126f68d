"""What is written is read back: any metadata, any tensors, any split, GGUF and safetensors."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from kvant.dtypes import BLOCK_TYPES, BlockType
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import GGUFWriter, TensorInfo, file_layout, write_gguf
from kvant.formats.safetensors.reader import read_safetensors
from kvant.formats.safetensors.writer import write_safetensors
from kvant.metadata import NUMPY_DTYPES, StringArray, Value, ValueType
from kvant.tensors import LazyTensor, n_rows

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
INTEGERS = {
    kind: st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for kind, dtype in NUMPY_DTYPES.items()
    if np.dtype(dtype).kind in "iu"
}
SCALARS: dict[ValueType, st.SearchStrategy[Any]] = {
    **INTEGERS, ValueType.FLOAT32: st.floats(width=32, allow_nan=False), ValueType.FLOAT64: st.floats(allow_nan=False),
    ValueType.BOOL: st.booleans(), ValueType.STRING: TEXT,
}  # fmt: skip


@st.composite
def values(draw: st.DrawFn) -> Value:
    """A scalar of any type, or an array of any type."""
    kind = draw(st.sampled_from(sorted(SCALARS)))
    if draw(st.booleans()):
        return Value(kind, draw(SCALARS[kind]))
    items = draw(st.lists(SCALARS[kind], max_size=6))
    return Value(ValueType.ARRAY, items, kind)


METADATA = st.dictionaries(
    TEXT.filter(lambda key: bool(key) and key != "general.alignment" and not key.startswith("split.")),
    values(), max_size=6,
)  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn, kinds: tuple[BlockType, ...] = tuple(BLOCK_TYPES.values())) -> list[LazyTensor]:
    """Tensors of any type with up to four axes, whose bytes are random."""
    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=15)
    found = []
    for name in draw(st.lists(names, unique=True, max_size=5)):
        kind = draw(st.sampled_from(kinds))
        shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
        if shape or kind.block_length > 1:
            shape = (*shape, kind.block_length * draw(st.integers(1, 3)))
        rows = math.prod(shape[:-1])
        row_bytes = kind.row_bytes(shape[-1] if shape else 1)
        seed = draw(st.integers(0, 2**32))
        data = np.random.default_rng(seed).integers(0, 256, (rows, row_bytes), np.uint8)
        found.append(LazyTensor(name=name, shape=shape, block_type=kind, read=_reader(data)))
    return found


def _reader(data: np.ndarray) -> Any:
    return lambda start, stop: data[start:stop]


def plain(value: Value) -> tuple[ValueType, ValueType | None, object]:
    """A value in a form that compares by content, minus zero apart from zero."""
    content = value.value
    if value.type is ValueType.ARRAY:
        return value.type, value.item_type, [repr(v) for v in _items(content)]
    return value.type, None, repr(content)


def _items(content: Any) -> list[object]:
    return content.tolist() if isinstance(content, np.ndarray) else list(content)


def same(found: Any, expected: LazyTensor) -> bool:
    rows = n_rows(expected)
    return bool(
        (found.name, found.shape, found.block_type) == (expected.name, expected.shape, expected.block_type)
        and np.array_equal(found.read_bytes(0, rows), expected.read_bytes(0, rows))
    )


@FEW
@given(METADATA, tensors())
def test_gguf(tmp_path: Path, metadata: dict[str, Value], given_tensors: list[LazyTensor]) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata, given_tensors, overwrite=True)
    model = read_gguf(path)
    assert [(k, plain(v)) for k, v in model.metadata.items()] == [(k, plain(v)) for k, v in metadata.items()]
    assert all(same(model.tensors[t.name], t) for t in given_tensors)
    assert list(model.tensors) == [t.name for t in given_tensors]
    infos = [TensorInfo(t.name, t.shape, t.block_type) for t in given_tensors]
    assert path.stat().st_size == file_layout(metadata, infos).total_bytes
    first = path.read_bytes()
    write_gguf(path, model.metadata, model.tensors.values(), overwrite=True)  # what was read is written alike
    assert path.read_bytes() == first


@FEW
@given(METADATA, tensors(), st.integers(0, 2000))
def test_split_gguf(tmp_path: Path, metadata: dict[str, Value], given_tensors: list[LazyTensor], spare: int) -> None:
    infos = [TensorInfo(t.name, t.shape, t.block_type) for t in given_tensors]
    bare = file_layout(metadata, []).total_bytes  # the first part holds all metadata, with or without tensors
    largest = max((file_layout(metadata, [info]).total_bytes for info in infos), default=bare) + 200
    for old in tmp_path.iterdir():
        old.unlink()
    paths = write_gguf(tmp_path / "m.gguf", metadata, given_tensors, max_file_bytes=largest + spare)
    assert all(path.stat().st_size <= largest + spare for path in paths)
    model = read_gguf(paths[-1])
    assert {k: plain(v) for k, v in model.metadata.items()} == {k: plain(v) for k, v in metadata.items()}
    assert all(same(model.tensors[t.name], t) for t in given_tensors)


@FEW
@given(tensors(), st.data())
def test_any_pieces_make_the_same_file(tmp_path: Path, given_tensors: list[LazyTensor], data: st.DataObject) -> None:
    infos = [TensorInfo(t.name, t.shape, t.block_type) for t in given_tensors]
    stream = np.concatenate([np.empty(0, np.uint8), *(t.read_bytes(0, n_rows(t)).reshape(-1) for t in given_tensors)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    with GGUFWriter(tmp_path / "pieces.gguf", {}, infos, overwrite=True) as writer:
        for piece in np.split(stream, cuts):
            writer.append(piece)
    write_gguf(tmp_path / "whole.gguf", {}, given_tensors, overwrite=True)
    assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@FEW
@given(st.lists(st.binary(max_size=20), max_size=30))
def test_strings_of_any_bytes_come_back(tmp_path: Path, strings: list[bytes]) -> None:
    lengths = np.array([len(s) for s in strings], np.int64)
    ends = np.cumsum(lengths)
    array = StringArray(np.frombuffer(b"".join(strings), np.uint8), ends - lengths, ends)
    path = tmp_path / "m.gguf"
    write_gguf(path, {"strings": Value(ValueType.ARRAY, array, ValueType.STRING)}, [], overwrite=True)
    found = read_gguf(path).metadata["strings"].value
    assert isinstance(found, StringArray)
    assert [found.raw(i) for i in range(len(found))] == strings


FLOATS = tuple(k for k in BLOCK_TYPES.values() if "safetensors" in k.formats)


@FEW
@given(tensors(FLOATS), st.dictionaries(TEXT, TEXT, max_size=3))
def test_safetensors(tmp_path: Path, given_tensors: list[LazyTensor], metadata: dict[str, str]) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, given_tensors, metadata, overwrite=True)
    found = read_safetensors(path)
    assert all(same(found[t.name], t) for t in given_tensors)
    if all(t.block_type.name != "BF16" for t in given_tensors):  # NumPy has no BF16, so the package cannot give it
        package = load_file(path)
        for tensor in given_tensors:
            assert package[tensor.name].tobytes() == tensor.read_bytes(0, n_rows(tensor)).tobytes()


@pytest.mark.parametrize("alignment", [8, 32, 128])
def test_alignment_of_every_tensor(tmp_path: Path, alignment: int) -> None:
    metadata = {"general.alignment": Value(ValueType.UINT32, alignment)}
    infos = [TensorInfo(f"t{i}", (i + 1,), BLOCK_TYPES["I8"]) for i in range(50)]
    layout = file_layout(metadata, infos)
    assert all(offset % alignment == 0 for offset in layout.offsets.values())
    with GGUFWriter(tmp_path / "m.gguf", metadata, infos) as writer:
        writer.append(np.zeros(sum(range(51)), np.uint8))
    assert len(read_gguf(tmp_path / "m.gguf").tensors) == 50
