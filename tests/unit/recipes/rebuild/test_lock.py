import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvant.errors import FormatError, KvantError
from kvant.recipes.rebuild.lock import (
    Lock,
    LockedCalibration,
    LockedImportance,
    LockedOutput,
    LockedPlan,
    LockedSource,
    present_encoder,
    read_lock,
    write_lock,
)  # fmt: skip

HASH = "0123456789abcdef" * 4
LOCK = Lock(
    format=1, kvant="0.1", versions={"numpy": "2"},
    source=LockedSource(name="org/little", files={"config.json": HASH}, metadata_sha256=HASH),
    calibration=LockedCalibration(
        text="book.txt", text_sha256=HASH, windows=3, seed=1, statistics_sha256=HASH
    ),
    importance=LockedImportance(file="a.gguf", sha256=HASH), encoder=present_encoder(),
    plan=LockedPlan(preset="Q8_0", file_type=7, types={"output.weight": "Q8_0"}),
    output=LockedOutput(file="little-Q8_0.gguf", size_bytes=10, sha256=HASH),
)  # fmt: skip


def test_a_lock_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "little.lock.json"
    write_lock(path, LOCK)
    assert read_lock(path) == LOCK
    assert list(json.loads(path.read_text()))[:2] == ["format", "kvant"]
    bare = msgspec.structs.replace(LOCK, calibration=None, importance=None, encoder=None)
    write_lock(path, bare)
    assert read_lock(path) == bare
    assert "calibration" not in path.read_text()


def changed(path: tuple[str, ...], value: Any) -> bytes:
    document = msgspec.to_builtins(LOCK)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return msgspec.json.encode(document)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "breaks the lock format"),
        (b"[]", "Expected `object`, got `array`"),
        (b"\xff\xfe{}", "breaks the lock format"),
        (b'{"format": 1}', "missing required field"),
        (b"{" * 100_000, "breaks the lock format"),
        (b'{"a":' * 100_000, "breaks the lock format"),
        (changed(("format",), 2), "lock format 2 is not 1"),
        (changed(("format",), "1"), "Expected `int`, got `str`"),
        (changed(("distillation",), {}), "unknown field `distillation`"),
        (changed(("plan", "fallbacks"), []), "unknown field `fallbacks`"),
        (changed(("plan", "types", "output.weight"), 8), "Expected `str`, got `int`"),
        (changed(("output", "file"), "../../.bashrc"), "matching regex"),
        (changed(("output", "file"), "a\\b"), "matching regex"),
        (changed(("output", "file"), ""), "matching regex"),
        (changed(("output", "sha256"), HASH.upper()), "matching regex"),
        (changed(("output", "size_bytes"), -1), "Expected `int` >= 0"),
        (changed(("calibration", "windows"), 1e300), "Expected `int`"),
        (changed(("calibration", "seed"), -1), "Expected `int` >= 0"),
        (changed(("source", "files"), [HASH]), "Expected `object`, got `array`"),
    ],
)
def test_hostile_and_damaged_locks_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.lock.json"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=words):
        read_lock(path)


def test_a_file_too_large_and_an_absent_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.lock.json"
    write_lock(path, LOCK)
    monkeypatch.setattr("kvant.recipes.rebuild.lock.MAX_LOCK_BYTES", 100)
    with pytest.raises(FormatError, match="more than 100 bytes is no lock"):
        read_lock(path)
    with pytest.raises(KvantError, match="No such file"):
        read_lock(tmp_path / "absent.json")
