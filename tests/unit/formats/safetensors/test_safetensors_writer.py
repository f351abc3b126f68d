"""Files written here load in the `safetensors` package."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from kvant.dtypes import BF16, F16, F32, block_type
from kvant.errors import FormatError, KvantError, OutputExistsError, UnsupportedFormatError
from kvant.formats.safetensors.reader import read_safetensors
from kvant.formats.safetensors.writer import write_safetensors
from kvant.tensors import LazyTensor, array_tensor


def test_loads_in_the_package(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays: dict[str, np.ndarray] = {
        "ü.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones((2, 2, 2), np.float16),
        "s": np.array(2, np.float32), "none": np.zeros((3, 0), np.float32),
    }  # fmt: skip
    tensors = [array_tensor(n, a, F16 if a.dtype == np.float16 else F32) for n, a in arrays.items()]
    write_safetensors(path, tensors, {"format": "pt"})
    found = load_file(path)
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in found.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in arrays.items()
    }
    with safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "pt"}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert length % 8 == 0
    assert list(json.loads(path.read_bytes()[8 : 8 + length])) == ["__metadata__", *arrays]


def test_bfloat16_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    values = np.arange(6, dtype=np.uint16).reshape(2, 3)
    write_safetensors(path, [array_tensor("t", values, BF16)])
    found = read_safetensors(path)["t"]
    assert (found.block_type, found.shape, found.read_bytes(0, 2).tobytes()) == (BF16, (2, 3), values.tobytes())


def test_what_cannot_be_held_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    block = LazyTensor(name="q", shape=(1, 32), block_type=block_type("Q4_0"), read=lambda a, b: np.empty((b - a, 18)))
    with pytest.raises(UnsupportedFormatError, match="q: Q4_0 is no element type of safetensors"):
        write_safetensors(path, [block])
    one = array_tensor("t", np.zeros(2, np.float32), F32)
    with pytest.raises(FormatError, match="t: appears twice"):
        write_safetensors(path, [one, one])
    with pytest.raises(FormatError, match="is reserved"):
        write_safetensors(path, [array_tensor("__metadata__", np.zeros(2, np.float32), F32)])
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_and_nothing_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"

    def fail(_start: int, _stop: int) -> np.ndarray:
        raise KvantError("source gone")

    broken = LazyTensor(name="t", shape=(2, 2), block_type=F32, read=fail)
    with pytest.raises(KvantError, match="source gone"):
        write_safetensors(path, [broken])
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        write_safetensors(path, [array_tensor("t", np.zeros(2, np.float32), F32)])
    assert path.read_bytes() == b"mine"
