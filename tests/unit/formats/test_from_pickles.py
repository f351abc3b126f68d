"""The command that makes safetensors of pickled weights: it works as it is printed, and runs nothing of them."""

import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import UnsupportedFormatError
from kvant.formats.base import sniff
from kvant.formats.safetensors.reader import read_sharded
from kvant.tensors import n_rows

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.heavy


class Evil:
    """What runs a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def printed(error: object) -> str:
    """The command, with this Python in place of the first one on the path."""
    command = "python -c" + str(error).partition("python -c")[2]
    return command.replace("python", shlex.quote(sys.executable), 1)


def run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "files", [("pytorch_model.bin",), ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")]
)
def test_the_printed_command_makes_safetensors(files: tuple[str, ...], tmp_path: Path) -> None:
    place = tmp_path / "it's a model"
    place.mkdir()
    wanted: dict[str, Any] = {}
    for number, name in enumerate(files):
        weights = {
            f"a{number}": torch.arange(6.0).reshape(2, 3) + number,
            f"b{number}": torch.ones(3, dtype=torch.bfloat16),
        }
        weights[f"tied{number}"] = weights[f"a{number}"]
        torch.save(weights, place / name)
        wanted |= weights
    (place / "training_args.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedFormatError) as caught:
        read_sharded(place)
    done = run(printed(caught.value))
    assert done.returncode == 0, done.stderr
    found = read_sharded(place)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        theirs = wanted[name].view(torch.uint8 if wanted[name].dim() < 2 else torch.float32).numpy()
        assert tensor.read_bytes(0, n_rows(tensor)).tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_the_printed_command_runs_no_code(name: str, tmp_path: Path) -> None:
    torch.save({"a": Evil(f"touch {tmp_path / 'ran'}")}, tmp_path / name)
    with pytest.raises(UnsupportedFormatError) as caught:
        read_sharded(tmp_path)
    done = run(printed(caught.value))
    assert done.returncode != 0
    assert "weights_only" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_pickle_that_is_given_itself_is_told_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "weights.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsupportedFormatError, match=r"is a pickle.*weights_only=True.*weights.bin"):
        sniff(tmp_path / "weights.bin")
