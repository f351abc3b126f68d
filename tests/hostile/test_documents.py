"""JSON documents that are malformed, of other types, not UTF-8 or so deep that a decoder runs out of stack."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

import hostile_cases
from kvant.errors import KvantError
from kvant.hub.manifest import read_manifest, read_settings
from kvant.quant.plan import read_plan
from kvant.recipes.rebuild.lock import read_lock

READERS: dict[str, Callable[[Path], object]] = {
    "plan": read_plan,
    "lock": read_lock,
    "manifest": lambda path: read_manifest(path.read_bytes(), "manifest"),
    "settings": lambda path: read_settings(path.read_bytes(), "settings"),
}
MORE = {
    "deep where nobody reads": b'{"unknown":' + b'{"a":[' * 50_000,
    "deep types": b'{"types":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "text not UTF-8": b'{"preset":"\xff","file_type":1,"types":{}}',
}


@pytest.mark.parametrize("case", [*hostile_cases.JSON, *MORE])
@pytest.mark.parametrize("reader", READERS)
def test_only_errors_of_ours(reader: str, case: str, tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_bytes((hostile_cases.JSON | MORE)[case])
    with contextlib.suppress(KvantError):
        READERS[reader](path)
        assert reader == "settings"  # all of its keys may be left out
