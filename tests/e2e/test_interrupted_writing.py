"""A full disk, a size limit and kill -9 during writing: the old file or the new one, never half of one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvant.dtypes import F32
from kvant.errors import KvantError
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.safetensors.reader import read_safetensors
from kvant.formats.safetensors.writer import write_safetensors
from kvant.metadata import string
from kvant.tensors import LazyTensor, array_tensor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and /dev/full are POSIX's")

METADATA = {"general.architecture": string("llama")}

# Writes ten tensors of 1 MB; after the fifth it says so and waits for its end.
_WRITER = """
import sys
from pathlib import Path
import numpy as np
from kvant.dtypes import F32
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.safetensors.writer import write_safetensors
from kvant.metadata import string
from kvant.tensors import LazyTensor

def rows(index):
    def read(start, stop):
        if index == 5:
            print("half", flush=True)
            sys.stdin.readline()
        return np.full((stop - start, 4096), index, np.uint8)
    return read

path = Path(sys.argv[1])
tensors = [LazyTensor(name=f"t{i}", shape=(256, 1024), block_type=F32, read=rows(i)) for i in range(10)]
if path.suffix == ".gguf":
    write_gguf(path, {"general.architecture": string("llama")}, tensors, overwrite=True)
else:
    write_safetensors(path, tensors, overwrite=True)
"""
# The same under a limit of 3 MB a file, as a quota or a file system sets it.
_LIMITED = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000,) * 2)\n"
    + _WRITER.replace("if index == 5:", "if False:").replace("path = ", "from kvant.errors import KvantError\npath = ")
    + "sys.exit('not reached')\n"
)


def tensors(value: float) -> list[LazyTensor]:
    return [array_tensor("t", np.full((64, 64), value, np.float32), F32)]


def write(path: Path, value: float) -> None:
    if path.suffix == ".gguf":
        write_gguf(path, METADATA, tensors(value), overwrite=True)
    else:
        write_safetensors(path, tensors(value), overwrite=True)


def value_in(path: Path) -> float:
    found = read_gguf(path).tensors if path.suffix == ".gguf" else read_safetensors(path)
    return float(found["t"].read_bytes(0, 1).view(np.float32)[0, 0])


@pytest.fixture(params=["m.gguf", "m.safetensors"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.mark.parametrize("has_old", [False, True])
def test_killed(path: Path, has_old: bool) -> None:
    if has_old:
        write(path, 1.0)
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.kill()
    assert child.returncode == -9
    partial = path.with_name(path.name + ".partial")
    assert 4_000_000 < partial.stat().st_size < 6_000_000
    assert path.exists() is has_old
    if has_old:
        assert value_in(path) == 1.0
    write(path, 2.0)  # what the dead one left is no obstacle
    assert value_in(path) == 2.0
    assert not partial.exists()


def test_a_full_disk(path: Path) -> None:
    write(path, 1.0)
    partial = path.with_name(path.name + ".partial")
    partial.symlink_to("/dev/full")
    with pytest.raises(KvantError, match=r"the disk is full\. Free space there or write elsewhere\."):
        write(path, 2.0)
    assert value_in(path) == 1.0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_at_the_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    (tmp_path / "m.gguf.partial").symlink_to("/dev/full")
    with pytest.raises(KvantError, match="the disk is full"):
        write_gguf(path, {**METADATA, "tokenizer.chat_template": string("x" * 100_000)}, tensors(1.0))
    assert list(tmp_path.iterdir()) == []


def test_a_file_above_the_size_limit(path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"kvant.errors.KvantError: {path}: is too large for its file system"
    )
    assert list(path.parent.iterdir()) == []
