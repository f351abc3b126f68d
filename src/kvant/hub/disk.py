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
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kvant.errors import StoreError, StoreReadOnlyError
from kvant.files import disk_errors, exclusive, lock, sync_directory

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
            StoreError: The directory is another kind of OCI layout, or cannot be made.
        """
        marker = self.root / "oci-layout"
        with self.writing():
            for path in (self.blobs, self.names, self.models, self.tmp):
                path.mkdir(parents=True, exist_ok=True)
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
        with contextlib.ExitStack() as stack:
            with self.writing():
                stack.enter_context(_held(guard))
            try:
                yield path
            finally:
                _discard(path)
                guard.unlink(missing_ok=True)

    def note(self, what: str) -> None:
        """Begin the journal; that it is there counts, so a disk too full for its words does not keep models from going.

        Not synced: after a power cut the names alone tell what is complete.
        """
        with self.journal.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            file.write(what.encode(errors="replace"))

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
        total = 0
        for entry in os.scandir(self.blobs):
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                total += entry.stat().st_size
        return total

    @contextlib.contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Wait until no other process or thread changes the store, and keep them out meanwhile.

        Args:
            what: What is done, for those who wait.

        Raises:
            StoreReadOnlyError: Nothing can be written here.
        """
        with contextlib.ExitStack() as stack:
            with self.writing():
                stack.enter_context(exclusive(self.root / "lock", what))
            yield

    def is_writable(self) -> bool:
        """Tell whether this user can change the store."""
        lock_file = self.root / "lock"
        return os.access(self.root, os.W_OK) and (not lock_file.exists() or os.access(lock_file, os.W_OK))

    def still(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Keep changes out while something is read; where this user cannot lock, it is read as it is."""
        return self.locked(what) if self.is_writable() else contextlib.nullcontext()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what a store that cannot be written to raises into an error with a remedy.

        Raises:
            StoreReadOnlyError: It cannot be written to.
            KvantError: The disk is full.
        """
        try:
            with disk_errors(self.root):
                yield
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            where = error.filename or self.root
            raise StoreReadOnlyError(
                f"{where}: the store cannot be written to ({error.strerror}). "
                "Work as the user who owns it, or set KVANT_HOME to a directory of yours."
            ) from error


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
