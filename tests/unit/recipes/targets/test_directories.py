"""Directories in the cache: whole or absent, made once, and those used longest ago make room."""

import os
from pathlib import Path

import pytest

from kvant.errors import ValueRangeError
from kvant.recipes.targets import directories


def write(directory: Path, size: int = 3) -> None:
    assert not directory.exists()
    directory.mkdir()
    (directory / "weights").write_bytes(bytes(size))


def test_a_directory_is_made_once_and_again_when_it_was_forgotten() -> None:
    calls: list[Path] = []

    def counted(directory: Path) -> None:
        calls.append(directory)
        write(directory)

    place = directories.made("ab12", counted)
    assert (place / "weights").read_bytes() == bytes(3)
    assert directories.made("ab12", counted) == place
    assert len(calls) == 1
    directories.forget("ab12")
    assert not place.exists()
    directories.forget("ab12")
    assert directories.made("ab12", counted).is_dir()
    assert len(calls) == 2


def test_one_that_fails_half_way_leaves_nothing() -> None:
    def failing(directory: Path) -> None:
        write(directory)
        raise ValueRangeError("a weight is NaN")

    with pytest.raises(ValueRangeError):
        directories.made("ab12", failing)
    assert list(directories.made("cd34", write).parent.iterdir()) == [directories.made("cd34", write)]


def test_those_used_longest_ago_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "MAX_BYTES", 100)
    places = [directories.made(key, lambda d: write(d, 40)) for key in ("a", "b")]
    os.utime(places[0], (1, 1))
    os.utime(places[1], (2, 2))
    assert directories.made("a", write) == places[0]  # used again: now the other one is the oldest
    third = directories.made("c", lambda d: write(d, 40))
    assert [p.is_dir() for p in (*places, third)] == [True, False, True]
