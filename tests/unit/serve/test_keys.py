import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvant.errors import AccessError, FormatError
from kvant.serve.keys import Keys, parse_expiry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
posix = pytest.mark.skipif(os.name != "posix", reason="file modes")


def test_a_key_is_known_until_it_is_revoked_and_its_text_is_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    token = Keys(path).add("laptop", ("inference", "metrics", "inference"))
    keys = Keys(path)  # another process

    found = keys.find(token)

    assert found is not None
    assert (found.name, found.scopes) == ("laptop", ("inference", "metrics"))
    assert len(token) > 43
    assert token not in path.read_text()
    assert token.removeprefix("kvant-") not in path.read_text()
    Keys(path).revoke("laptop")
    assert keys.find(token) is None
    assert keys.list() == ()


@posix
def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    Keys(path).add("laptop")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(AccessError, match=r"others than its owner may read it\. Run: chmod 600"):
        Keys(path).list()


def test_more_keys_than_can_be_kept_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvant.serve.keys.MAX_KEYS", 2)
    keys = Keys(tmp_path / "keys.json")
    tokens = [keys.add(name) for name in ("a", "b")]
    with pytest.raises(AccessError, match=r"there are 2 keys, the limit is 2\. Revoke some"):
        keys.add("c")
    keys.revoke("a")
    tokens.append(keys.add("c"))
    assert [found.name if (found := keys.find(token)) else None for token in tokens] == [None, "b", "c"]


def test_an_expired_key_is_none(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    token = keys.add("guest", expires=NOW + timedelta(days=1))
    assert keys.find(token, NOW) is not None
    assert keys.find(token, NOW + timedelta(days=1)) is None


@pytest.mark.parametrize("token", ["", "x", "kvant-", "kvant-\udcff", "k" * 100_000])
def test_what_is_no_key(tmp_path: Path, token: str) -> None:
    keys = Keys(tmp_path / "keys.json")
    keys.add("one")
    assert keys.find(token) is None


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        ("", ("inference",), "is not letters"),
        ("../x", ("inference",), "is not letters"),
        ("a\n", ("inference",), "is not letters"),
        ("ok", ("root",), "scope: 'root' is not one of"),
        ("ok", (), "has no scope"),
        ("taken", ("inference",), "exists already"),
    ],
)
def test_keys_that_cannot_be_made(tmp_path: Path, name: str, scopes: tuple[str, ...], message: str) -> None:
    keys = Keys(tmp_path / "keys.json")
    keys.add("taken")
    with pytest.raises(AccessError, match=message):
        keys.add(name, scopes)
    assert len(keys.list()) == 1


def test_revoking_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="'x': is not there"):
        Keys(tmp_path / "keys.json").revoke("x")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"keys": 3}', b"\x00" * 10])
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="is no list of keys"):
        Keys(path).find("x")


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda i: Keys(path).add(f"k{i}"), range(16)))
    keys = Keys(path)
    assert all(keys.find(token) for token in tokens)


@pytest.mark.parametrize(("text", "seconds"), [("30d", 2_592_000), ("12h", 43200), ("90m", 5400), ("1w", 604800)])
def test_expiry(text: str, seconds: int) -> None:
    assert parse_expiry(text, NOW) == NOW + timedelta(seconds=seconds)
    assert parse_expiry("never") is None


@pytest.mark.parametrize("text", ["", "0d", "-1d", "30", "d", "1y", "999999w", "1 d"])
def test_no_expiry(text: str) -> None:
    with pytest.raises(AccessError, match="expiry"):
        parse_expiry(text, NOW)
