"""Reading safetensors files, alone and sharded, as the `safetensors` package writes them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import raw_files as raw
from kvant.errors import FormatError, UnsupportedFormatError
from kvant.formats.safetensors.header import read_header
from kvant.formats.safetensors.reader import read_safetensors, read_sharded, weight_files
from kvant.tensors import n_rows

RNG = np.random.default_rng(7)
ARRAYS: dict[str, np.ndarray] = {
    "matrix": RNG.standard_normal((5, 7)).astype(np.float32), "half": RNG.standard_normal((3, 2, 4)).astype(np.float16),
    "double": RNG.standard_normal(9), "bytes": np.arange(5, dtype=np.int8), "ids": np.arange(6).reshape(2, 3),
    "mask": np.array([True, False]), "scalar": np.array(3.5, np.float32), "none": np.zeros((0, 4), np.float32),
    "u16": np.arange(4, dtype=np.uint16),
}  # fmt: skip


def test_every_type_the_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(ARRAYS, path, {"format": "np", "note": "ü"})
    found = read_safetensors(path)
    assert found.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        tensor = found[name]
        assert tensor.shape == expected.shape
        assert tensor.block_type.block_bytes == expected.itemsize
        rows = tensor.read_bytes(0, n_rows(tensor))
        assert rows.tobytes() == expected.tobytes()
        assert not rows.flags.owndata
    assert found["matrix"].read_bytes(2, 4).tobytes() == ARRAYS["matrix"][2:4].tobytes()
    assert read_header(path).metadata == {"format": "np", "note": "ü"}


def test_bfloat16_and_eight_bit_floats_open(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    entries = {"b": raw.entry("BF16", [3], 0, 6), "f": raw.entry("F8_E4M3", [2, 2], 6, 10)}
    path.write_bytes(raw.safetensors(entries, bytes(10)))
    assert {n: t.block_type.name for n, t in read_safetensors(path).items()} == {"b": "BF16", "f": "F8_E4M3"}


def test_a_four_bit_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw.safetensors({"t": raw.entry("F4", [4], 0, 2)}, bytes(2)))
    with pytest.raises(UnsupportedFormatError, match="'t' has the element type 'F4', not one of F32"):
        read_safetensors(path)


def write_shards(directory: Path, weight_map: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Two shards and their index."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {f"t{i}": np.full((2, 3), i, np.float32) for i in range(4)}
    names = {"t0": "a.safetensors", "t1": "b.safetensors", "t2": "a.safetensors", "t3": "b.safetensors"}
    for shard in ("a.safetensors", "b.safetensors"):
        save_file({n: arrays[n] for n, s in names.items() if s == shard}, directory / shard)
    index = {"metadata": {"total_size": 96}, "weight_map": names if weight_map is None else weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return arrays


class TestDirectories:
    def test_sharded(self, tmp_path: Path) -> None:
        arrays = write_shards(tmp_path)
        found = read_sharded(tmp_path)
        assert {n: t.read_bytes(0, 2).tobytes() for n, t in found.items()} == {
            n: a.tobytes() for n, a in arrays.items()
        }
        assert weight_files(tmp_path) == (tmp_path / "a.safetensors", tmp_path / "b.safetensors")

    def test_tensors_the_index_does_not_name_are_left_out(self, tmp_path: Path) -> None:
        write_shards(tmp_path, {"t0": "a.safetensors"})
        assert list(read_sharded(tmp_path)) == ["t0"]

    @pytest.mark.parametrize("name", ["model.safetensors", "consolidated.safetensors"])
    def test_one_file(self, tmp_path: Path, name: str) -> None:
        save_file({"t": np.zeros(3, np.float32)}, tmp_path / name)
        assert list(read_sharded(tmp_path)) == ["t"]
        assert weight_files(tmp_path) == (tmp_path / name,)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ((), "holds no safetensors file"),
            (("pytorch_model.bin",), r"its weights are pickles \(pytorch_model.bin\), which can run code"),
            (("a.safetensors", "b.safetensors"), "2 safetensors files but no model.safetensors.index.json"),
        ],
    )
    def test_no_weights_to_read(self, tmp_path: Path, files: tuple[str, ...], message: str) -> None:
        for name in files:
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(FormatError, match=message):
            read_sharded(tmp_path)

    @pytest.mark.parametrize(
        "name", ["../a.safetensors", "/etc/passwd", "x/a.safetensors", "..", "", "C:a.safetensors", "a\0.safetensors",
                 "..\\a.safetensors", "missing.safetensors", "config.json"],
    )  # fmt: skip
    def test_names_that_leave_the_directory(self, tmp_path: Path, name: str) -> None:
        write_shards(tmp_path / "model", {"t0": name})
        write_shards(tmp_path)  # the file that "../a.safetensors" means is there
        with pytest.raises(FormatError):
            read_sharded(tmp_path / "model")

    @pytest.mark.parametrize(
        "weight_map", [{}, [], None, {"t0": 1}, {"t0": None}, {"t9": "a.safetensors"}, {"t1": "a.safetensors"}]
    )
    def test_a_malformed_index(self, tmp_path: Path, weight_map: Any) -> None:
        write_shards(tmp_path)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(FormatError):
            read_sharded(tmp_path)


class TestLinks:
    """What symbolic links may lead to: see formats.base.member."""

    def snapshot(self, cache: Path) -> Path:
        """A snapshot as huggingface_hub lays it out: links into the model's blobs."""
        directory = cache / "models--org--name" / "snapshots" / "0123abc"
        blobs = cache / "models--org--name" / "blobs"
        directory.mkdir(parents=True)
        blobs.mkdir()
        save_file({"t": np.zeros(3, np.float32)}, blobs / "d00d")
        (directory / "model.safetensors").symlink_to(Path(os.pardir, os.pardir, "blobs", "d00d"))
        return directory

    def test_a_snapshot_of_the_cache_opens(self, tmp_path: Path) -> None:
        directory = self.snapshot(tmp_path)
        assert list(read_sharded(directory)) == ["t"]
        (tmp_path / "link").symlink_to(directory)
        assert list(read_sharded(tmp_path / "link")) == ["t"]

    def test_a_link_inside_the_directory_opens(self, tmp_path: Path) -> None:
        save_file({"t": np.zeros(3, np.float32)}, tmp_path / "weights.bin")
        (tmp_path / "model.safetensors").symlink_to("weights.bin")
        assert list(read_sharded(tmp_path)) == ["t"]

    def test_a_link_out_of_the_directory_is_refused(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside.safetensors"
        save_file({"t": np.zeros(3, np.float32)}, outside)
        plain = tmp_path / "plain"
        plain.mkdir()
        snapshot = self.snapshot(tmp_path / "cache")
        (snapshot / "model.safetensors").unlink()
        for directory in (plain, snapshot):
            (directory / "model.safetensors").symlink_to(outside)
            with pytest.raises(FormatError, match="leads to"):
                read_sharded(directory)

    def test_loops_and_dead_links_are_refused(self, tmp_path: Path) -> None:
        link = tmp_path / "x.safetensors"
        for target in ("x.safetensors", "gone"):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            with pytest.raises(FormatError):
                read_sharded(tmp_path)
