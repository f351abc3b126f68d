"""Durable files: a temporary name, sync, rename; locks. And the one place where kvant keeps things of its own."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kvant.errors import KvantError, OutputExistsError

CHUNK_BYTES = 1 << 22
PATIENCE_S, LOOK_AGAIN_S = 1.0, 0.02
MAX_HOLDER_BYTES = 300
_LOG = logging.getLogger("kvant.files")
_HELD = threading.local()


def home() -> Path:
    """Return kvant's own directory: `$KVANT_HOME`, else `~/.kvant`."""
    path = Path(os.environ.get("KVANT_HOME") or Path.home() / ".kvant")
    check_path_name(path)
    return path


def check_path_name(path: Path) -> None:
    """Check that a path is text: Linux allows any bytes in names, but reports, metadata and engines take UTF-8.

    Raises:
        KvantError: It, or a directory above it, is not UTF-8.
    """
    for place in (path, Path(os.path.abspath(path))):  # noqa: PTH100 - links keep the names that the user gave
        if not is_text(str(place)):
            bad = next(part for part in place.parts if not is_text(part))
            raise KvantError(
                f"{printable(bad)}: this name is not UTF-8, the encoding that model files, reports and engines keep "
                "names in. Rename it, for example with mv, and give the new name."
            )


def is_text(text: str) -> bool:
    """Whether a text from the system can be written as UTF-8; bytes of another encoding come as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    r"""Return a text from the system with the bytes that are no UTF-8 as `\xNN`."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", text.encode("utf-8", "backslashreplace").decode())


def cache_dir(*parts: str) -> Path:
    """Return a directory under kvant's cache, made if absent; its content can be deleted at any time."""
    path = home().joinpath("cache", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def trim_directories(home: Path, max_bytes: int, *, keep: Path) -> None:
    """Delete the directories in a cache that were used longest ago until the rest fits; `keep` stays.

    One that is being written has a name with a dot or a hyphen, and stays as well.
    """
    places = [p for p in home.iterdir() if p.is_dir() and p != keep and p.name.isalnum()]
    room = max_bytes
    for place in [keep, *sorted(places, key=lambda p: p.stat().st_mtime, reverse=True)]:
        room -= sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        if room < 0 and place != keep:
            shutil.rmtree(place, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """Return the temporary name that `path` has while it is being written."""
    return path.with_name(path.name + ".partial")


def check_output(path: Path, *, overwrite: bool, read: Iterable[Path] = ()) -> None:
    """Refuse an output that exists, or is one of the files that are read, or whose directory does not exist.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is false, or is a directory.
        KvantError: Its directory does not exist.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path}: is a directory, and a file is to be written. Give the name of a file.")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path}: exists already. Choose another name or pass --overwrite.")
    check_apart(path, read)
    if not path.parent.is_dir():
        raise KvantError(f"{path.parent}: is not a directory. Create it first.")


def check_apart(path: Path, read: Iterable[Path]) -> None:
    """Refuse an output that is what is read, by whatever name: overwriting it would cost the original.

    Raises:
        OutputExistsError: It is.
    """
    if path.exists() and any(other.exists() and path.samefile(other) for other in read):
        raise OutputExistsError(f"{path}: is what is read, and would be lost. Choose another name.")


def commit_file(partial: Path, path: Path) -> None:
    """Give a finished, synced file its final name, so that a crash leaves the old file or the new one."""
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space", "over quota" and "file too large" while `path` is written into an error with a remedy.

    Raises:
        KvantError: The disk or the quota is full, or the file is too large for its file system.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise KvantError(f"{path}: the disk is full. Free space there or write elsewhere.") from error
        if error.errno == errno.EFBIG:
            raise KvantError(f"{path}: is too large for its file system. Split it or write elsewhere.") from error
        raise


@contextlib.contextmanager
def atomic_write(path: Path, *, overwrite: bool = True, is_shared: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that appears under its name only when the block ends without an error.

    Args:
        path: Final name.
        overwrite: Replace a file of that name.
        is_shared: Others may write the same file at the same time, as in the cache: each has a temporary name of its
            own, and the last one's is there in the end, whole.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is false.
        KvantError: The disk is full; nothing is left under either name.
    """
    check_output(path, overwrite=overwrite)
    own = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    partial = partial_path(own if is_shared else path)
    try:
        with disk_errors(path), partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        commit_file(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_file(path: Path, on_bytes: Callable[[int], object] = lambda _: None) -> str:
    """Return the SHA-256 of a file as hex; `on_bytes` is told the bytes of every chunk read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Keep other processes and threads out while the block runs; in a thread that has the lock already it is one hold.

    Whoever waits for longer than a second is told which process has it and what that does.

    Args:
        path: The lock file, made if absent; its directory is there.
        what: What is done meanwhile, for those who wait.

    Raises:
        OSError: The lock file cannot be made or opened.
    """
    held: set[str] = _HELD.__dict__.setdefault("paths", set())
    key = os.path.realpath(path)
    if key in held:
        yield
        return
    with path.open("a+b") as file:
        _take(file, path)
        _sign(file, what)
        held.add(key)
        try:
            yield
        finally:
            held.discard(key)


def lock(file: BinaryIO, *, wait: bool = True) -> None:
    """Lock an open file for this process alone until it is closed.

    Raises:
        BlockingIOError: Another has it, and `wait` is false.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK  # type: ignore[attr-defined,unused-ignore]
        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), mode, 1)  # type: ignore[attr-defined,unused-ignore]
                return
            except OSError as error:  # LK_LOCK gives up after ten seconds
                if not wait:
                    raise BlockingIOError(*error.args) from error
    else:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _take(file: BinaryIO, path: Path) -> None:
    """Wait for a lock, and say for whom if it takes long."""
    patience = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(BlockingIOError):
            lock(file, wait=False)
            return
        if time.monotonic() >= patience:
            break
        time.sleep(LOOK_AGAIN_S)
    _LOG.warning("%s: waiting for process %s.", path, _holder(file))
    lock(file)


def _sign(file: BinaryIO, what: str) -> None:
    """Write who has the lock; a disk that is full does not matter here."""
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"{os.getpid()} ({what[:100]})".encode(errors="replace")[:MAX_HOLDER_BYTES])


def _holder(file: BinaryIO) -> str:
    """Return what the lock's holder wrote; on Windows nobody else can read it."""
    with contextlib.suppress(OSError):
        file.seek(0)
        said = file.read(MAX_HOLDER_BYTES).decode(errors="replace")
        return "".join(c if c.isprintable() else "?" for c in said) or "of unknown number"
    return "of unknown number"
