import errno
import hashlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvant import files
from kvant.errors import KvantError, OutputExistsError
from kvant.files import atomic_write, cache_dir, check_path_name, exclusive, home, partial_path, printable, sha256_file


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert not partial_path(path).exists()


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"new" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(KvantError, match="the disk is full"), atomic_write(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="--overwrite"), atomic_write(path, overwrite=False):
        pass
    assert path.read_bytes() == b"old"


def test_a_directory_is_no_output_file(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="is a directory, and a file is to be written"), atomic_write(tmp_path):
        pass


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(KvantError, match="Create it first"), atomic_write(tmp_path / "no" / "a.bin"):
        pass


def test_hash_reports_the_bytes_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 5_000_000)
    read: list[int] = []
    assert sha256_file(path, read.append) == hashlib.sha256(b"x" * 5_000_000).hexdigest()
    assert sum(read) == 5_000_000


def test_home_is_where_the_environment_says(own_home: Path) -> None:
    assert home() == own_home
    assert cache_dir("logits").is_dir()
    assert cache_dir("logits").is_relative_to(own_home)


@pytest.mark.parametrize("path", [Path("malli-\udce4.gguf"), Path("/tmp/malli-\udce4/model.gguf")])
def test_a_name_that_is_not_text_is_named_and_refused(path: Path) -> None:
    with pytest.raises(KvantError, match=r"malli-\\xe4(.gguf)?: this name is not UTF-8.*Rename it"):
        check_path_name(path)
    assert printable("malli-\udce4 ä") == r"malli-\xe4 ä"


def test_a_lock_is_one_hold_however_often_a_thread_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive(path, "outer"):
        with exclusive(tmp_path / "." / "lock", "inner"):
            pass
        assert path.read_text() == f"{os.getpid()} (outer)"
        with path.open("r+b") as other, pytest.raises(BlockingIOError):
            files.lock(other, wait=False)
    with path.open("r+b") as other:
        files.lock(other, wait=False)


def test_who_waits_for_a_lock_is_told_for_whom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE_S", 0.0)
    path, order = tmp_path / "lock", []
    told = threading.Event()
    monkeypatch.setattr(files._LOG, "handlers", [_Setting(told)])

    def second() -> None:
        with exclusive(path, "second"):
            order.append("second")

    with exclusive(path, "import \x1b[31mm"), caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(60)
        order.append("first")
    thread.join(60)

    assert order == ["first", "second"]
    assert caplog.messages == [f"{path}: waiting for process {os.getpid()} (import ?[31mm)."]


class _Setting(logging.Handler):
    """Tells that something was logged."""

    def __init__(self, told: threading.Event) -> None:
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self._told.set()


def test_many_write_the_same_file_at_once(tmp_path: Path) -> None:
    begin = threading.Barrier(8)

    def run(number: int) -> None:
        begin.wait()
        for _ in range(20):
            with atomic_write(tmp_path / "same", is_shared=True) as file:
                file.write(bytes([number]) * 5000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    (path,) = tmp_path.iterdir()
    assert len(set(path.read_bytes())) == 1
    assert path.stat().st_size == 5000
