"""Where the store keeps what, and how it writes so that a power cut at any instant loses nothing that was complete.

    oci-layout              says what this directory is
    blobs/sha256/<hex>      manifests, configurations, whole files, and objects that are in no whole file
    names/<host>/<namespace>/<model>/<tag>.json    which manifest a name means: the only truth about names
    models/<name>/<tag>.gguf    hard links to whole files, for people and engines
    index.sqlite            a cache of the above
    journal                 what is being changed; there after a crash alone
    lock, tmp/, quarantine/

Whatever is complete has been synced under a temporary name before it is renamed; a name appears after all it needs,
and what it needs disappears after the name.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kvant.errors import StoreError
from kvant.files import disk_errors, sync_directory

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Disk:
    """The directories of one store.

    Attributes:
        root: The store's directory.
        blobs: Objects by digest.
        names: Which manifest a name means.
        models: Readable files.
        tmp: What is not complete.
        quarantine: What was found broken.
        index: The index's file.
        journal: There while the store is changed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.names, self.models = root / "names", root / "models"
        self.tmp, self.quarantine = root / "tmp", root / "quarantine"
        self.index, self.journal = root / "index.sqlite", root / "journal"

    def create(self) -> None:
        """Make what is missing.

        Raises:
            StoreError: The directory is another kind of OCI layout.
        """
        for path in (self.blobs, self.names, self.models, self.tmp):
            path.mkdir(parents=True, exist_ok=True)
        marker = self.root / "oci-layout"
        if not marker.exists():
            self.write(marker, LAYOUT)
        if marker.read_bytes()[:200].strip() != LAYOUT:
            raise StoreError(f"{marker}: is not of version 1.0.0. Choose another directory for the store.")

    def blob(self, digest: str) -> Path:
        """Path of an object of its own, whether there or not."""
        return self.blobs / digest

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """Give a fresh name under `tmp`, locked against sweeps; what is there at the end is removed."""
        path = self.tmp / secrets.token_hex(12)
        guard = path.with_name(path.name + ".lock")
        with _held(guard):
            try:
                yield path
            finally:
                _discard(path)
                guard.unlink(missing_ok=True)

    def write(self, path: Path, raw: bytes) -> None:
        """Write a small file durably, whole or not at all."""
        make_directories(path.parent, self.root)
        with self.temporary() as partial:
            with disk_errors(path), partial.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_directory(path.parent)

    def put(self, raw: bytes) -> str:
        """Store an object of a few bytes and return its digest."""
        digest = hashlib.sha256(raw).hexdigest()
        if not self.blob(digest).exists():
            self.write(self.blob(digest), raw)
        return digest

    def keep(self, partial: Path, digest: str) -> None:
        """Give a finished temporary file its place as an object; nobody writes to it again."""
        sync_file(partial)
        partial.chmod(0o444)
        partial.replace(self.blob(digest))
        sync_directory(self.blobs)

    def sweep(self) -> int:
        """Remove temporary files that no process works on; return how many."""
        swept = 0
        for path in sorted(self.tmp.iterdir()):
            guard = path.with_name(path.name.removesuffix(".lock") + ".lock")
            if _is_held(guard):
                continue
            _discard(path)
            guard.unlink(missing_ok=True)
            swept += path != guard
        return swept

    def usage(self) -> int:
        """Bytes of all objects; readable files are links to some of them."""
        return sum(entry.stat().st_size for entry in os.scandir(self.blobs))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process or thread changes the store, and keep them out meanwhile."""
        with (self.root / "lock").open("ab") as file:
            lock(file)
            yield


def make_directories(path: Path, top: Path) -> None:
    """Make a directory below `top` durably."""
    missing = []
    while path != top and not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def link(target: Path, path: Path, top: Path) -> None:
    """Make `path` another name of `target`; a symbolic link where the file system has no hard ones."""
    if path.exists() and path.samefile(target):
        return
    make_directories(path.parent, top)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        os.link(target, partial)
    except OSError:
        partial.symlink_to(os.path.relpath(target, path.parent))
    partial.replace(path)
    partial.unlink(missing_ok=True)  # renaming a file to another name of the same file does nothing
    sync_directory(path.parent)


def unlink(path: Path, top: Path) -> None:
    """Remove a file, and the directories up to `top` that become empty."""
    path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == top or not parent.is_relative_to(top):
            break
        try:
            parent.rmdir()
        except OSError:
            break
    if path.parent.is_dir():
        sync_directory(path.parent)


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


@contextlib.contextmanager
def _held(guard: Path) -> Iterator[None]:
    """Lock a file of that name; made again if a sweep took it between its making and its locking."""
    while True:
        with guard.open("wb") as file:
            lock(file)
            if _same(file, guard):
                yield
                return


def _same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _discard(path: Path) -> None:
    """Remove a file or a directory, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_held(guard: Path) -> bool:
    try:
        with guard.open("r+b") as file:
            lock(file, wait=False)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):
        return True
    return False
