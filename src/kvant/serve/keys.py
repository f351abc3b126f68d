"""API keys: who may come in, to do what, until when.

A key is 256 random bits, so its hash needs no salt and no slowness: nobody can guess or enumerate keys, and a fast
hash is as safe as a slow one. (Slow hashes protect passwords that people make up.) Only the SHA-256 is kept. It is also
what a key is looked up by: how long that takes tells something about hashes at most, and a hash leads to no key.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import AccessError, FormatError
from kvant.files import commit_file, exclusive, home, partial_path

PREFIX = "kvant-"
RANDOM_BYTES = 32
SCOPES = ("inference", "manage", "metrics", "admin")
"""What a key can be for; `admin` is for all of it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SPAN = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MAX_FILE_BYTES = 1 << 24
MAX_KEYS = 10_000


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a key.

    Attributes:
        name: Who has it.
        sha256: Hash of the key, hex.
        scopes: What it is for.
        created: When it was made, UTC.
        expires: From when on it is no key any more; None for never.
    """

    name: str
    sha256: str
    scopes: tuple[str, ...]
    created: datetime
    expires: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.expires is None or now < self.expires


class _File(msgspec.Struct, frozen=True, kw_only=True):
    version: int = 1
    keys: tuple[Key, ...] = ()


class Keys:
    """The keys in a file; what another process changes there holds from the next request on.

    Args:
        path: The file; by default `keys.json` in kvant's own directory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or home() / "keys.json"
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        self._by_hash: dict[str, Key] = {}

    def list(self) -> tuple[Key, ...]:
        """Return all keys, expired ones too.

        Raises:
            AccessError: Others may read the file.
            FormatError: It is damaged.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys, self._by_hash = None, (), {}
            return ()
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._keys = _read(self.path, status)
            self._by_hash = {key.sha256: key for key in self._keys}
            self._seen = seen
        return self._keys

    def find(self, token: str, now: datetime | None = None) -> Key | None:
        """Return the key that a token is, if it is one now; it takes as long whatever number of keys there is."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
        self.list()
        found = self._by_hash.get(digest)
        return found if found is not None and found.is_valid(now or datetime.now(UTC)) else None

    def add(self, name: str, scopes: tuple[str, ...] = ("inference",), expires: datetime | None = None) -> str:
        """Make a key and return it; it cannot be had again.

        Raises:
            AccessError: The name is taken or no name, a scope is not known, or there are too many keys.
        """
        if not _NAME.fullmatch(name):
            raise AccessError(f"key name: {name[:80]!r} is not letters, digits, dots and dashes. Choose such a name.")
        for scope in scopes:
            if scope not in SCOPES:
                raise AccessError(f"scope: {scope!r} is not one of {', '.join(SCOPES)}. Choose among those.")
        if not scopes:
            raise AccessError("key: has no scope. Give it one.")
        token = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
        key = Key(
            name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), scopes=tuple(dict.fromkeys(scopes)),
            created=datetime.now(UTC), expires=expires,
        )  # fmt: skip
        with self._changing() as keys:
            if any(other.name == name for other in keys):
                raise AccessError(f"key {name!r}: exists already. Choose another name or revoke it first.")
            if len(keys) >= MAX_KEYS:
                raise AccessError(f"key {name!r}: there are {len(keys)} keys, the limit is {MAX_KEYS}. Revoke some.")
            self._write((*keys, key))
        return token

    def revoke(self, name: str) -> Key:
        """Remove a key.

        Raises:
            AccessError: There is none of that name.
        """
        with self._changing() as keys:
            gone = next((key for key in keys if key.name == name), None)
            if gone is None:
                raise AccessError(f"key {name[:80]!r}: is not there. List them with: kvant key list")
            self._write(tuple(key for key in keys if key is not gone))
        return gone

    @contextlib.contextmanager
    def _changing(self) -> Iterator[tuple[Key, ...]]:
        """Keep other processes from changing the file at the same time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path.with_name(self.path.name + ".lock"), "change keys"):
            yield self.list()

    def _write(self, keys: tuple[Key, ...]) -> None:
        """Replace the file, whole or not at all; nobody else can read it at any moment."""
        partial = partial_path(self.path)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(_File(keys=keys)), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        commit_file(partial, self.path)


def parse_expiry(text: str, now: datetime | None = None) -> datetime | None:
    """Return when a key ends: `30d`, `12h`, `never`.

    Raises:
        AccessError: Not a span of time.
    """
    if text == "never":
        return None
    match = _SPAN.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise AccessError(f"expiry: {text[:40]!r} is not a span of time. Write 30d, 12h, 90m or never.")
    try:
        return (now or datetime.now(UTC)) + timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        raise AccessError(f"expiry: {text!r} is beyond the calendar. Write never.") from None


def _read(path: Path, status: os.stat_result) -> tuple[Key, ...]:
    if os.name == "posix" and status.st_mode & 0o077:
        raise AccessError(f"{path}: others than its owner may read it. Run: chmod 600 {path}")
    if status.st_size > _MAX_FILE_BYTES:
        raise FormatError(f"{path}: {status.st_size} bytes are too many for keys. Delete it and make new keys.")
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).keys
    except JSON_ERRORS as error:
        raise FormatError(f"{path}: is no list of keys ({error}). Delete it and make new keys.") from None
