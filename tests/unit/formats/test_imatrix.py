import dataclasses
import mmap
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from kvant.dtypes import F16, F32
from kvant.errors import FormatError, KvantError, OutputExistsError, UnsupportedFormatError, ValueRangeError
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.imatrix import read_imatrix, write_imatrix
from kvant.metadata import Value, ValueType, string
from kvant.quant.importance import Entry, Importance
from kvant.tensors import LazyTensor, array_tensor

IMPORTANCE = Importance(
    entries={
        "blk.0.ffn_up.weight": Entry(sums=np.array([[1, 4, 10]], np.float32), counts=np.array([3], np.float32)),
        "blk.0.ffn_up_exps.weight": Entry(
            sums=np.arange(6, dtype=np.float32).reshape(2, 3), counts=np.array([2, 0], np.float32)
        ),
    },
    datasets=("prose.txt", "code.txt"),
    n_chunks=9,
    chunk_size=512,
)


def legacy(*, calls: int = 4, tail: bytes = b"", values: tuple[float, ...] = (2.0, 6.0)) -> bytes:
    name = b"blk.0.attn_q.weight"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
    return struct.pack("<i", 1) + entry + struct.pack(f"<{len(values)}f", *values) + tail


def u64(number: int) -> Value:
    return Value(ValueType.UINT64, number)


def i32(number: int) -> Value:
    return Value(ValueType.INT32, number)


TAIL = struct.pack("<ii", 7, 8) + b"text.txt"


def test_gguf_comes_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, IMPORTANCE)
    found = read_imatrix(path)
    assert (found.datasets, found.n_chunks, found.chunk_size) == (("prose.txt", "code.txt"), 9, 512)
    assert found.source == path.name
    assert list(found.entries) == list(IMPORTANCE.entries)
    for name, entry in IMPORTANCE.entries.items():
        np.testing.assert_array_equal(found.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(found.entries[name].counts, entry.counts)
    with pytest.raises(OutputExistsError):
        write_imatrix(path, IMPORTANCE)


def test_the_official_reader_finds_what_upstream_writes(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "imatrix.gguf", IMPORTANCE)
    reader = GGUFReader(tmp_path / "imatrix.gguf")
    found = {tensor.name: (tensor.tensor_type.name, list(map(int, tensor.shape))) for tensor in reader.tensors}
    assert found == {
        "blk.0.ffn_up.weight.in_sum2": ("F32", [3, 1]),
        "blk.0.ffn_up.weight.counts": ("F32", [1, 1]),
        "blk.0.ffn_up_exps.weight.in_sum2": ("F32", [3, 2]),
        "blk.0.ffn_up_exps.weight.counts": ("F32", [1, 2]),
    }
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 9
    assert reader.fields["imatrix.datasets"].contents() == ["prose.txt", "code.txt"]


def test_the_old_layout_is_written_byte_by_byte(tmp_path: Path) -> None:
    entries = {
        "blk.1.ffn_down_exps.weight": Entry(
            sums=np.array([[6, 3], [5, 5]], np.float32), counts=np.array([600, 0], np.float32)
        ),
        "blk.0.attn_q.weight": Entry(sums=np.array([[256, 1024]], np.float32), counts=np.array([1024], np.float32)),
        "blk.2.never": Entry(sums=np.zeros((1, 2), np.float32), counts=np.zeros(1, np.float32)),
    }
    path = tmp_path / "imatrix.dat"
    write_imatrix(path, dataclasses.replace(IMPORTANCE, entries=entries, n_chunks=2))
    # 1024 tokens are 2 calls of 512, 600 are rounded up to 2; an expert that was never called counts 1 per call.
    assert path.read_bytes() == b"".join(
        (
            bytes.fromhex("02000000"),
            bytes.fromhex("13000000") + b"blk.0.attn_q.weight" + bytes.fromhex("02000000 02000000 0000003f 00000040"),
            bytes.fromhex("1a000000") + b"blk.1.ffn_down_exps.weight" + bytes.fromhex("02000000 04000000"),
            np.array([np.float32(6) / np.float32(600) * 2, np.float32(3) / np.float32(600) * 2, 2, 2], "<f4").tobytes(),
            bytes.fromhex("02000000 08000000") + b"code.txt",
        )
    )
    with pytest.raises(OutputExistsError):
        write_imatrix(path, IMPORTANCE)


def test_the_old_layout_comes_back_with_the_same_weights(tmp_path: Path) -> None:
    entry = Entry(sums=np.array([[1, 40, 1e6, 1e-6]], np.float32), counts=np.array([1536], np.float32))
    importance = dataclasses.replace(IMPORTANCE, entries={"blk.0.ffn_up.weight": entry}, n_chunks=3)
    write_imatrix(tmp_path / "i.dat", importance)
    found = read_imatrix(tmp_path / "i.dat")
    assert (found.datasets, found.n_chunks, found.chunk_size) == (("code.txt",), 3, 0)
    assert found.entries["blk.0.ffn_up.weight"].counts == 3
    np.testing.assert_allclose(found.entries["blk.0.ffn_up.weight"].weights(), entry.weights(), rtol=2e-7)
    write_imatrix(tmp_path / "again.DAT", found)
    assert (tmp_path / "again.DAT").read_bytes() == (tmp_path / "i.dat").read_bytes()


@pytest.mark.parametrize(
    ("data", "weights", "chunks", "datasets"),
    [
        (legacy(), [0.5, 1.5], 0, ()),
        (legacy(tail=TAIL), [0.5, 1.5], 7, ("text.txt",)),
        (legacy(tail=TAIL[:4]), [0.5, 1.5], 7, ()),
        (legacy(calls=0), [2.0, 6.0], 0, ()),
    ],
)
def test_the_old_layout(
    tmp_path: Path, data: bytes, weights: list[float], chunks: int, datasets: tuple[str, ...]
) -> None:
    (tmp_path / "i.dat").write_bytes(data)
    found = read_imatrix(tmp_path / "i.dat")
    np.testing.assert_array_equal(found.entries["blk.0.attn_q.weight"].weights(), np.array([weights], np.float32))
    assert (found.n_chunks, found.datasets) == (chunks, datasets)


def test_every_cut_of_an_old_file_is_an_error_or_a_whole_file(tmp_path: Path) -> None:
    whole = legacy(tail=TAIL)
    optional = {len(whole) - len(TAIL), len(whole) - len(TAIL) + 4}
    for length in range(len(whole)):
        if length not in optional:
            (tmp_path / "i.dat").write_bytes(whole[:length])
            with pytest.raises(FormatError):
                read_imatrix(tmp_path / "i.dat")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<i", -1),
        struct.pack("<i", 2**31 - 1),
        struct.pack("<ii", 1, -5),
        struct.pack("<ii", 1, 2**31 - 1),
        legacy(values=()),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1),
        legacy().replace(b"blk", b"bl\xff"),
        legacy(tail=TAIL[:-1] + b"\xff"),
        struct.pack("<i", 2) + 2 * legacy()[4:],
    ],
)
def test_hostile_old_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(FormatError):
        read_imatrix(tmp_path / "i.dat")


def test_infinite_importance_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(legacy(values=(1.0, float("inf"))))
    with pytest.raises(ValueRangeError, match="NaN or infinity"):
        read_imatrix(tmp_path / "i.dat")


def test_importance_below_zero_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(legacy(values=(1.0, -2.0)))
    with pytest.raises(ValueRangeError, match=r"holds -0\.5, below zero"):
        read_imatrix(tmp_path / "i.dat")


@pytest.mark.parametrize("count", [np.nan, np.inf, -np.inf, -1.0])
def test_counts_that_count_nothing_are_refused(tmp_path: Path, count: float) -> None:
    write_gguf(tmp_path / "i.gguf", {}, [sums("x.in_sum2", 1, 2), sums("x.counts", count)])
    with pytest.raises(FormatError, match=r"x: a count is .* or not finite"):
        read_imatrix(tmp_path / "i.gguf")


@pytest.mark.parametrize("value", [u64(1 << 31), u64((1 << 64) - 1), string("many"), i32(-1)])
@pytest.mark.parametrize("key", ["imatrix.chunk_count", "imatrix.chunk_size"])
def test_chunks_that_no_file_can_hold_are_refused(tmp_path: Path, key: str, value: Value) -> None:
    write_gguf(tmp_path / "i.gguf", {key: value}, [sums("x.in_sum2", 1, 2), sums("x.counts", 1)])
    with pytest.raises(FormatError, match=rf"{key} .* is not a count up to 2147483647"):
        read_imatrix(tmp_path / "i.gguf")


@pytest.mark.parametrize(("total", "count"), [(3e38, 1e30), (3e38, 3e9), (3e38, 1.0), (1.0, 3.4e38)])
def test_huge_counts_come_back_from_both_layouts(tmp_path: Path, total: float, count: float) -> None:
    write_gguf(tmp_path / "i.gguf", {}, [sums("x.in_sum2", total, total / 2), sums("x.counts", count)])
    found = read_imatrix(tmp_path / "i.gguf")
    for name in ("again.gguf", "again.dat"):
        write_imatrix(tmp_path / name, found)
        again = read_imatrix(tmp_path / name)
        np.testing.assert_allclose(again.entries["x"].weights(), found.entries["x"].weights(), rtol=1e-6, atol=1e-44)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KvantError, match="Check the path"):
        read_imatrix(tmp_path / "none.dat")


def sums(name: str, *values: float) -> LazyTensor:
    return array_tensor(name, np.array([values], np.float32), F32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "GGUF without importance .*kvant calibrate"),
        ([sums("x.in_sum2", 1, 2)], "do not pair"),
        ([sums("x.in_sum2", 1, 2), sums("y.counts", 1)], "do not pair"),
        ([sums("x.in_sum2", 1, 2, 3), sums("x.counts", 1, 1)], "3 sums for 2 counts"),
        ([array_tensor("x.in_sum2", np.ones((1, 2), np.float16), F16), sums("x.counts", 1)], "not F32"),
    ],
)
def test_gguf_files_that_hold_no_importance(tmp_path: Path, tensors: list[LazyTensor], message: str) -> None:
    write_gguf(tmp_path / "i.gguf", {"general.type": string("imatrix")}, tensors)
    with pytest.raises(FormatError, match=message):
        read_imatrix(tmp_path / "i.gguf")


@pytest.mark.parametrize("name", ["x.dat", "x.gguf"])
def test_values_are_mapped_and_not_read(tmp_path: Path, name: str) -> None:
    entry = Entry(sums=np.ones((1, 1 << 20), np.float32), counts=np.ones(1, np.float32))
    path = tmp_path / name
    write_imatrix(path, Importance(entries={"blk.0.attn_q.weight": entry}, n_chunks=1, chunk_size=1))
    found = read_imatrix(path).entries["blk.0.attn_q.weight"].sums
    assert not found.flags.owndata
    base: object = found
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def test_a_note_of_the_file_is_told_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 5\n")
    with pytest.raises(UnsupportedFormatError, match=r"Git LFS pointer.*git lfs pull"):
        read_imatrix(tmp_path / "i.dat")
