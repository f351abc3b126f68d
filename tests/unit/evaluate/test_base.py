import os
from pathlib import Path

import pytest

from kvant.evaluate import base
from kvant.evaluate.base import identity
from kvant.evaluate.baselogits import trim


def test_identity_follows_content_and_names(tmp_path: Path) -> None:
    files = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for file in files:
        file.write_bytes(b"weights")
    both = identity(tuple(files))
    assert identity(tuple(reversed(files))) == both != identity((files[0],))
    files[1].write_bytes(b"Weights")
    assert identity(tuple(files)) != both


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"weights")
    first = identity((file,))
    monkeypatch.setattr(base, "sha256_file", lambda _: pytest.fail("read again"))
    assert identity((file,)) == first


def test_a_damaged_memo_is_forgotten(tmp_path: Path, own_home: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"weights")
    first = identity((file,))
    (memo,) = own_home.rglob("hashes.json")
    memo.write_text("{")
    assert identity((file,)) == first


def test_trim_deletes_what_was_used_longest_ago(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "middle", "old"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    trim(tmp_path, 250, keep=tmp_path / "middle")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["middle", "new"]
    trim(tmp_path, 10, keep=tmp_path / "middle")
    assert [p.name for p in tmp_path.iterdir()] == ["middle"]
