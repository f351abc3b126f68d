"""What the store holds, as tables: a cache that is made again from the names and manifests whenever they differ.

SQLite in WAL mode: readers of other processes do not wait. Every operation opens a connection of its own, or has its
thread's of a `session`, so threads and forked processes share nothing. Where the file cannot be used (the store is
read-only, the disk is full), the tables are in memory and made from the names alone.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kvant.errors import StoreError
from kvant.hub.manifest import Layout

BUSY_S = 30.0
VERSION = 1
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_TABLES = """
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS names (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, manifest TEXT NOT NULL, config TEXT NOT NULL, size INTEGER NOT NULL,
    modified TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS names_manifest ON names (manifest);
CREATE TABLE IF NOT EXISTS files (
    manifest TEXT NOT NULL, ordinal INTEGER NOT NULL, file TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (manifest, ordinal)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_file ON files (file);
CREATE TABLE IF NOT EXISTS places (
    object TEXT NOT NULL, file TEXT NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (object, file, offset)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS places_file ON places (file);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One name.

    Attributes:
        key: What no other name may share.
        name: The name with every part.
        manifest: Its manifest's digest.
        config: Its configuration's digest.
        size: Bytes of its files.
        modified: When it was last set, in UTC.
    """

    key: str
    name: str
    manifest: str
    config: str
    size: int
    modified: datetime


class Index:
    """The tables in one file."""

    def __init__(self, path: Path) -> None:
        self._path, self._thread = path, threading.local()
        self._memory: sqlite3.Connection | None = None
        self._turn = threading.RLock()

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Use one connection for all operations of this thread while the block runs."""
        with self._open() as database:
            before = getattr(self._thread, "database", None)
            self._thread.database = database
            try:
                yield
            finally:
                self._thread.database = before

    def detach(self) -> None:
        """From now on keep the tables in memory, empty at first: the file cannot be used."""
        with self._turn:
            if self._memory is None:
                memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                memory.executescript(_TABLES)
                self._memory = memory

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.ExitStack() as stack:
            database = self._memory or getattr(self._thread, "database", None) or self._connect(stack)
            if database is self._memory:
                stack.enter_context(self._turn)
            yield database

    def _connect(self, stack: contextlib.ExitStack) -> sqlite3.Connection:
        """Open the file until the stack ends, or the tables in memory if that cannot be done."""
        try:
            database = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            stack.enter_context(contextlib.closing(database))
            if database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                database.execute("PRAGMA journal_mode = WAL")
                database.executescript(_TABLES)
                database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.OperationalError as error:
            if _code(error) in _BUSY:
                raise self._refused(error) from error
            self.detach()
            assert self._memory is not None
            return self._memory
        return database

    def _refused(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"{self._path}: cannot be used now ({error}). Free the disk or end what uses it, and try again."
        )

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:  # SQLite ends it by itself when the disk is full
                    database.execute("ROLLBACK")
                raise

    def remove(self) -> None:
        """Delete the file; the next operation makes an empty one."""
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def mark(self) -> str | None:
        """Return what the names looked like when the tables were last right."""
        try:
            with self._open() as database:
                row = database.execute("SELECT value FROM state WHERE key = 'mark'").fetchone()
        except sqlite3.DatabaseError:
            return None
        return None if row is None else str(row[0])

    def replace(self, models: Iterable[tuple[Row, list[Layout]]], mark: str) -> None:
        """Make the tables again; a file that is no database any more is made again, too, one that cannot be is left."""
        models = list(models)
        try:
            self._replace(models, mark)
        except sqlite3.DatabaseError as error:
            if _code(error) in _BUSY:
                raise self._refused(error) from error
            self._renew(is_damaged=not isinstance(error, sqlite3.OperationalError) or _code(error) in _DAMAGED)
            self._replace(models, mark)

    def _renew(self, *, is_damaged: bool) -> None:
        """Remove a damaged file; do without one that cannot be written or removed."""
        if is_damaged:
            with contextlib.suppress(OSError):
                self.remove()
                return
        self.detach()

    def _replace(self, models: list[tuple[Row, list[Layout]]], mark: str) -> None:
        with self._change() as database:
            for table in ("names", "files", "places"):
                database.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names of tables
            for row, layouts in models:
                _put(database, row, layouts)
            _mark(database, mark)

    def put(self, row: Row, layouts: list[Layout], mark: str) -> bool:
        """Add or change a name; see `_written`."""
        return self._written(row.key, lambda database: _put(database, row, layouts), mark)

    def drop(self, key: str, mark: str) -> bool:
        """Remove a name; see `_written`."""
        return self._written(key, lambda _: None, mark)

    def _written(self, key: str, put: Callable[[sqlite3.Connection], object], mark: str) -> bool:
        """Replace what a name has.

        Returns:
            Whether the tables are right; if not, the file could not be written, and the caller makes them again.
        """
        try:
            with self._change() as database:
                _drop(database, key)
                put(database)
                _mark(database, mark)
        except sqlite3.OperationalError:
            self.detach()
            return False
        return True

    def rows(self, key: str | None = None) -> list[Row]:
        """Return all names, or the one with that key."""
        where, values = ("", ()) if key is None else (" WHERE key = ?", (key,))
        query = f"SELECT key, name, manifest, config, size, modified FROM names{where} ORDER BY key"  # noqa: S608
        with self._open() as database:
            found = database.execute(query, values).fetchall()
        return [
            Row(key=a, name=b, manifest=c, config=d, size=e, modified=datetime.fromisoformat(f))
            for a, b, c, d, e, f in found
        ]

    def files(self, manifest: str) -> list[tuple[str, int]]:
        """Return the whole files of a manifest and their bytes, in order."""
        with self._open() as database:
            query = "SELECT file, size FROM files WHERE manifest = ? ORDER BY ordinal"
            return [(file, size) for file, size in database.execute(query, (manifest,))]

    def users(self, file: str) -> int:
        """Return how many names have a file."""
        with self._open() as database:
            query = "SELECT count(*) FROM names JOIN files USING (manifest) WHERE file = ?"
            return int(database.execute(query, (file,)).fetchone()[0])

    def places(self, digest: str) -> list[tuple[str, int]]:
        """Return the files that hold an object when they are there, and where in them."""
        with self._open() as database:
            query = "SELECT file, offset FROM places WHERE object = ? ORDER BY file, offset"
            return [(file, offset) for file, offset in database.execute(query, (digest,))]

    def is_document(self, digest: str) -> bool:
        """Tell whether an object is a manifest or a configuration of a name."""
        with self._open() as database:
            query = "SELECT EXISTS (SELECT 1 FROM names WHERE manifest = ? OR config = ?)"
            return bool(database.execute(query, (digest, digest)).fetchone()[0])

    def all_places(self) -> dict[str, list[tuple[str, int]]]:
        """Return `places` of every object."""
        found: dict[str, list[tuple[str, int]]] = {}
        with self._open() as database:
            for digest, file, offset in database.execute("SELECT object, file, offset FROM places ORDER BY 1, 2, 3"):
                found.setdefault(digest, []).append((file, offset))
        return found


def _code(error: sqlite3.Error) -> int:
    """Return an error's primary code; extended ones keep it in their low byte."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _put(database: sqlite3.Connection, row: Row, layouts: list[Layout]) -> None:
    database.execute(
        "INSERT INTO names VALUES (?, ?, ?, ?, ?, ?)",
        (row.key, row.name, row.manifest, row.config, row.size, row.modified.isoformat()),
    )
    for ordinal, layout in enumerate(layouts):
        database.execute(
            "INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?)", (row.manifest, ordinal, layout.sha256, layout.size)
        )
        places = [(p.digest, layout.sha256, p.offset, p.size) for p in layout.pieces]
        database.executemany("INSERT OR IGNORE INTO places VALUES (?, ?, ?, ?)", places)


def _drop(database: sqlite3.Connection, key: str) -> None:
    """Remove a name, and what no other name has any more."""
    database.execute("DELETE FROM names WHERE key = ?", (key,))
    database.execute("DELETE FROM files WHERE manifest NOT IN (SELECT manifest FROM names)")
    database.execute("DELETE FROM places WHERE file NOT IN (SELECT file FROM files)")


def _mark(database: sqlite3.Connection, mark: str) -> None:
    database.execute("INSERT OR REPLACE INTO state VALUES ('mark', ?)", (mark,))


def fingerprint(names: Path) -> str:
    """Return what tells whether any name was set since: names, times and numbers of the files that say them."""
    import hashlib

    digest = hashlib.sha256()
    for directory, folders, files in os.walk(names):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)  # noqa: PTH118 - walked often, and Path is slow
            with contextlib.suppress(FileNotFoundError):
                state = os.stat(path)  # noqa: PTH116
                digest.update(f"{path}\0{state.st_ino} {state.st_mtime_ns} {state.st_size}\n".encode())
    return digest.hexdigest()
