"""Mapping files: views that cannot be written, and nothing but regular files."""

import os
import sys
from pathlib import Path

import pytest

from kvant.dtypes import BLOCK_TYPES
from kvant.errors import FormatError
from kvant.formats.mapped import map_file, mapped_tensor


def test_rows_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(range(100)))
    data = map_file(path, least_bytes=4, suffix=".bin")
    assert data.tobytes() == path.read_bytes()
    assert not data.flags.writeable
    tensor = mapped_tensor(data, "t", (2, 3, 4), BLOCK_TYPES["I16"], 10)
    assert tensor.read_bytes(1, 3).tobytes() == bytes(range(18, 34))
    assert tensor.read_bytes(0, 6).base is not None
    scalar = mapped_tensor(data, "s", (), BLOCK_TYPES["F32"], 96)
    assert scalar.read_bytes(0, 1).tobytes() == bytes(range(96, 100))


def test_short_files_and_directories_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    for length in (0, 3):
        path.write_bytes(bytes(length))
        with pytest.raises(FormatError, match=rf"m\.bin: {length} bytes are too few for a \.bin file"):
            map_file(path, least_bytes=4, suffix=".bin")
    with pytest.raises(FormatError, match="is not a file"):
        map_file(tmp_path, least_bytes=4, suffix=".bin")


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes in the file system are POSIX's")
def test_a_pipe_is_refused_and_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(FormatError, match="is not a file"):
        map_file(path, least_bytes=4, suffix=".bin")
