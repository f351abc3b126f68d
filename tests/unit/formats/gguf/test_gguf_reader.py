"""Reading valid GGUF files: values with their types and order, tensors as views, shards as one model."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import raw_files as raw
from kvant.dtypes import BLOCK_TYPES
from kvant.errors import FormatError
from kvant.formats.gguf.header import read_header
from kvant.formats.gguf.reader import read_gguf
from kvant.metadata import StringArray, Value, ValueType
from kvant.tensors import n_rows


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(raw.small_gguf())
    return path


def test_scalars_keep_their_types_and_order(small: Path) -> None:
    model = read_gguf(small)
    assert [(k, v.type.name, v.value) for k, v in model.metadata.items() if k.startswith("n.")] == [
        ("n.u8", "UINT8", 200), ("n.i8", "INT8", -5), ("n.u16", "UINT16", 60000), ("n.i16", "INT16", -300),
        ("n.u32", "UINT32", 4_000_000_000), ("n.i32", "INT32", -7), ("n.f32", "FLOAT32", float(np.float32(0.1))),
        ("n.bool", "BOOL", True), ("n.u64", "UINT64", 2**63), ("n.i64", "INT64", -(2**62)), ("n.f64", "FLOAT64", 0.1),
    ]  # fmt: skip
    assert type(model.get("n.bool")) is bool


def test_arrays_keep_their_item_types(small: Path) -> None:
    metadata = read_gguf(small).metadata
    strings = metadata["a.strings"].value
    assert isinstance(strings, StringArray)
    assert list(strings) == ["one", "", "drei 3"]
    assert [strings[0], strings[-1], strings[:2]] == ["one", "drei 3", ["one", ""]]
    assert strings.raw(2) == b"drei 3"
    for name, expected in (("a.f32", [1.5, -2.5]), ("a.bool", [False, True, True]), ("a.i32", [-1, 2])):
        np.testing.assert_array_equal(np.asarray(metadata[name].value), expected)
    assert metadata["a.f32"].item_type is ValueType.FLOAT32
    assert list(metadata["a.empty"].value) == []  # type: ignore[arg-type]


def test_tensors_are_views_in_numpy_order(small: Path) -> None:
    tensors = read_gguf(small).tensors
    assert {n: (t.shape, t.block_type.name) for n, t in tensors.items()} == {
        "a.weight": ((2, 5), "F32"), "b.weight": ((3, 32), "Q8_0"),
    }  # fmt: skip
    rows = tensors["a.weight"].read_bytes(1, 2)
    assert rows.tobytes() == bytes(range(20, 40))
    assert not rows.flags.writeable
    assert not rows.flags.owndata
    assert tensors["b.weight"].read_bytes(0, 3).tobytes() == bytes(range(102))
    assert tensors["b.weight"].read_bytes(1, 1).shape == (0, 34)


@pytest.mark.parametrize("dims", [[], [0], [7], [7, 1, 1, 1]])
def test_odd_shapes_open(tmp_path: Path, dims: list[int]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw.gguf([raw.ARCHITECTURE], [raw.tensor("t", dims)], bytes(28)))
    found = read_gguf(path).tensors["t"]
    assert found.shape == tuple(reversed(dims))
    assert found.read_bytes(0, n_rows(found)).size == 4 * int(np.prod(dims))


def test_version_2_and_a_large_alignment_open(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = [raw.key("general.alignment", raw.U32, 4096)]
    path.write_bytes(raw.gguf(keys, [raw.tensor("t", [3])], b"123456789012", version=2, alignment=4096))
    header = read_header(path)
    assert (header.version, header.alignment, header.tensors[0].offset) == (2, 4096, 4096)
    assert read_gguf(path).tensors["t"].read_bytes(0, 1).tobytes() == b"123456789012"


def test_text_that_is_not_utf8_opens_where_it_identifies_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = [raw.key("general.name", raw.STRING, b"caf\xe9"), raw.array_key("t", raw.STRING, [b"\xff", "ok"])]
    path.write_bytes(raw.gguf(keys))
    model = read_gguf(path)
    assert model.get("general.name") == "caf\ufffd"
    assert list(model.metadata["t"].value) == ["\ufffd", "ok"]  # type: ignore[arg-type]


def test_every_block_type_agrees_with_the_official_reader(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "bc", "é€"])
    known = [t for t in BLOCK_TYPES.values() if t.ggml_id in {int(q) for q in gguf.GGMLQuantizationType}]
    for kind in known:
        data = np.arange(3 * kind.block_bytes, dtype=np.uint8).reshape(3, -1)
        writer.add_tensor(f"t.{kind.name}", data, raw_dtype=gguf.GGMLQuantizationType(kind.ggml_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = read_gguf(path)
    for theirs in gguf.GGUFReader(path).tensors:
        tensor = ours.tensors[theirs.name]
        assert tensor.shape == tuple(int(n) for n in reversed(theirs.shape))
        assert tensor.block_type.ggml_id == theirs.tensor_type
        assert tensor.read_bytes(0, n_rows(tensor)).tobytes() == theirs.data.tobytes()
    assert len(ours.tensors) == len(known) > 30
    assert list(ours.metadata["tokens"].value) == ["a", "bc", "é€"]  # type: ignore[arg-type]


class TestShards:
    """Shards written here key by key; test_gguf_writer reads those of our writer and of upstream's."""

    def write(self, directory: Path, **changes: Any) -> list[Path]:
        """Three shards of one tensor each; `changes` maps `<key><shard>` to another value, None leaves it out."""
        paths = []
        for index in range(3):
            values: dict[str, Any] = {"no": index, "count": 3, "tensors": 3, "name": f"t{index}", "arch": "llama"}
            values |= {k[:-1]: v for k, v in changes.items() if k.endswith(str(index))}
            keys = [
                raw.key("general.architecture", raw.STRING, values["arch"]),
                *(
                    raw.key(name, kind, values[short])
                    for name, kind, short in (
                        ("split.no", raw.U16, "no"), ("split.count", raw.U16, "count"),
                        ("split.tensors.count", raw.I32, "tensors"),
                    )
                    if values[short] is not None
                ),
            ]  # fmt: skip
            path = directory / f"m-{index + 1:05d}-of-00003.gguf"
            path.write_bytes(raw.gguf(keys, [raw.tensor(values["name"], [1])], bytes([index]) * 4))
            paths.append(path)
        return paths

    @pytest.mark.parametrize("given", [0, 1, 2])
    def test_any_shard_names_the_whole(self, tmp_path: Path, given: int) -> None:
        paths = self.write(tmp_path)
        model = read_gguf(paths[given])
        assert [t.read_bytes(0, 1)[0, 0] for t in model.tensors.values()] == [0, 1, 2]
        assert model.files == tuple(paths)
        assert model.path == paths[given]
        assert dict(model.metadata) == {"general.architecture": Value(ValueType.STRING, "llama")}

    def test_without_the_optional_total(self, tmp_path: Path) -> None:
        assert len(read_gguf(self.write(tmp_path, tensors0=None, tensors1=None, tensors2=None)[0]).tensors) == 3

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"no1": 0}, "says it is shard 1 of 3, its name says 2 of 3"),
            ({"count2": 2}, "says it is shard 3 of 2"),
            ({"count2": None}, "says it is shard 3 of -1"),
            ({"tensors0": 5}, "says 5 but the shards hold 3"),
            ({"tensors1": -1}, "is not a count"),
            ({"name2": "t0"}, "is in another shard too"),
            ({"arch1": "qwen2"}, "its architecture differs"),
            ({"count0": 4}, "not named like one"),
        ],
    )
    def test_contradictions_are_refused(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(FormatError, match=message):
            read_gguf(self.write(tmp_path, **changes)[0])

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        paths = self.write(tmp_path)
        paths[1].unlink()
        with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf: shard 2 of 3 is missing"):
            read_gguf(paths[2])

    def test_a_renamed_shard_is_explained(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)[0].rename(tmp_path / "model.gguf")
        with pytest.raises(FormatError, match="Name them <model>-00001-of-00003"):
            read_gguf(path)

    def test_shards_that_are_links_to_one_file_are_refused(self, tmp_path: Path) -> None:
        paths = self.write(tmp_path)
        for path in paths[1:]:
            path.unlink()
            path.symlink_to(paths[0])
        with pytest.raises(FormatError, match="says it is shard 1 of 3"):
            read_gguf(paths[2])


def test_split_keys_of_one_file_alone_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "merged.gguf"
    path.write_bytes(raw.gguf([raw.ARCHITECTURE, raw.key("split.count", raw.U16, 1), raw.key("split.no", raw.U16, 0)]))
    assert list(read_gguf(path).metadata) == ["general.architecture"]
