"""What stands for the full-precision model: its identity, and where its F32 weights are kept."""

import hashlib
from pathlib import Path

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.files import atomic_write, cache_dir, sha256_file

MAX_BASE_BYTES = 24 << 30

CONVERSION = 2
"""Raised when models are read otherwise than before, so that bases and logits in the cache are left alone."""


class Seen(msgspec.Struct, frozen=True):
    """A file's hash, believed while size and time of change stay."""

    size: int
    mtime_ns: int
    sha256: str


def identity(files: tuple[Path, ...]) -> str:
    """Return a hash over the content of files, SHA-256 hex; unchanged files are not read again."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hex, from memory while its size and time of change stay."""
    memo_path = cache_dir("logits") / "hashes.json"
    memo = _read_memo(memo_path)
    status, name = path.stat(), str(path.resolve())
    seen = memo.get(name)
    if seen is None or (seen.size, seen.mtime_ns) != (status.st_size, status.st_mtime_ns):
        seen = memo[name] = Seen(status.st_size, status.st_mtime_ns, sha256_file(path))
        with atomic_write(memo_path, is_shared=True) as file:
            file.write(msgspec.json.encode(memo))
    return seen.sha256


def _read_memo(path: Path) -> dict[str, Seen]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Seen])
    except (OSError, *JSON_ERRORS):
        return {}
