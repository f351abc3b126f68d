"""`fsck`: hash everything in a store, say what is wrong, and repair what can be.

Repair never deletes an object that is complete: what is broken goes to `quarantine`, the good objects in a broken file
are kept, and a name whose bytes are lost stays, so that importing or pulling its model again makes it whole.
"""

import contextlib
import hashlib
import secrets
import sqlite3
from pathlib import Path
from typing import Literal

import msgspec

from kvant.errors import KvantError
from kvant.files import sha256_file, sync_directory
from kvant.hub.disk import make_directories, unlink
from kvant.hub.index import fingerprint
from kvant.hub.ledger import Ledger
from kvant.hub.manifest import Layout, Piece, read_settings
from kvant.hub.names import ModelName, is_digest
from kvant.hub.objects import check_file
from kvant.progress import SILENT, Progress

Kind = Literal["object", "name", "settings", "link", "index", "incomplete"]


class Finding(msgspec.Struct, kw_only=True, frozen=True):
    """Something wrong.

    Attributes:
        kind: `object` bytes that are not what their name says, `name` a reference or manifest that cannot be read,
            `settings` a configuration that cannot be read, `link` a readable file that is missing or another one,
            `index` tables that differ from the names, `incomplete` a model with missing objects.
        what: The path or name.
        detail: What is wrong with it.
        repaired: Whether it is right now.
    """

    kind: Kind
    what: str
    detail: str
    repaired: bool


class Check(msgspec.Struct, kw_only=True):
    """What a check found.

    Attributes:
        models: Names that can be read.
        objects: Objects hashed.
        bytes: Bytes hashed.
        is_read_only: The store cannot be written to, so it was looked at without a lock and with no index.
        interrupted: A change that a crash had cut off and that was put right first, unless the store is read-only.
        findings: What is wrong.
        lost: Names that cannot be opened any more.
        garbage_bytes: Bytes that `gc` would free.
    """

    models: int = 0
    objects: int = 0
    bytes: int = 0
    is_read_only: bool = False
    interrupted: str | None = None
    findings: list[Finding] = []
    lost: list[str] = []
    garbage_bytes: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong any more."""
        return all(finding.repaired for finding in self.findings)


def fsck(ledger: Ledger, *, repair: bool = False, progress: Progress = SILENT) -> Check:
    """Hash every object and check every name.

    A change that was cut off by a crash is put right first, as any next change would; a store that cannot be written to
    is looked at as it is.

    Raises:
        StoreReadOnlyError: It is to be repaired, and cannot be written to.
    """
    check = Check(is_read_only=not repair and not ledger.disk.is_writable())
    journal = ledger.disk.journal
    check.interrupted = journal.read_text(errors="replace") if journal.exists() else None
    if check.is_read_only:
        ledger.index.detach()
    else:
        _check_index(ledger, check)
    with contextlib.nullcontext() if check.is_read_only else ledger.changing("fsck"):
        for path, detail in ledger.rebuild():
            check.lost.append(path.relative_to(ledger.disk.names).as_posix().removesuffix(".json"))
            _note(check, "name", path, detail, repaired=repair)
            if repair:
                _quarantine(ledger, path)
        rotten = _check_objects(ledger, check, repair, progress)
        if repair:
            ledger.rebuild()
        _check_models(ledger, check, repair, rotten)
        for path in ledger.relink() if repair else _wrong_links(ledger):
            if not any(finding.what == str(path) for finding in check.findings):
                _note(check, "link", path, "is not the file that its name means", repaired=repair)
        check.models = len(ledger.index.rows()) - len([f for f in check.findings if f.kind == "incomplete"])
        check.garbage_bytes = sum(ledger.disk.blob(d).stat().st_size for d in ledger.garbage())
    return check


def _note(check: Check, kind: Kind, what: object, detail: str, *, repaired: bool) -> None:
    check.findings.append(Finding(kind=kind, what=str(what), detail=detail, repaired=repaired))


def _check_index(ledger: Ledger, check: Check) -> None:
    """Compare the tables with what they are made from, and make them again if they differ."""
    with ledger.disk.locked("fsck"):
        if ledger.disk.journal.exists() or ledger.index.mark() != fingerprint(ledger.disk.names):
            return  # the next change makes them again
        try:
            before = (ledger.index.rows(), ledger.index.all_places())
            ledger.rebuild()
            same = before == (ledger.index.rows(), ledger.index.all_places())
        except sqlite3.DatabaseError:
            same = False
        if not same:
            ledger.index.remove()
            ledger.rebuild()
            _note(check, "index", ledger.disk.index, "differed from the names", repaired=True)


def _check_objects(ledger: Ledger, check: Check, repair: bool, progress: Progress) -> set[str]:
    """Hash what is in `blobs`; return the names there that are not what they say."""
    layouts = {layout.sha256: layout for row in ledger.index.rows() for layout in ledger.objects.layouts(row.manifest)}
    paths = sorted(ledger.disk.blobs.iterdir())
    progress.start("Hashing", sum(path.stat().st_size for path in paths), "B")
    rotten = set()
    for path in paths:
        layout = layouts.get(path.name)
        good: list[Piece] = []
        if layout is None:
            is_right = sha256_file(path, lambda n: progress.advance("Hashing", n)) == path.name
        else:
            is_right, good = check_file(path, layout, lambda n: progress.advance("Hashing", n))
        check.objects, check.bytes = check.objects + 1, check.bytes + path.stat().st_size
        if is_right and (layout is None or len(good) == len(layout.pieces)):
            continue
        rotten.add(path.name)
        detail = "is not what its name says" if is_digest(path.name) else "has no digest for a name"
        _note(check, "object", path, detail, repaired=repair)
        if repair:
            _salvage(ledger, path, layout, good)
    progress.finish("Hashing")
    return rotten


def _salvage(ledger: Ledger, path: Path, layout: Layout | None, good: list[Piece]) -> None:
    """Keep the good objects of a broken file, and put the file itself away."""
    kept = [p for p in good if ledger.objects.locate(p.digest, without={path.name}) is None]
    ledger.objects.extract((piece, (path, piece.offset)) for piece in kept)
    if layout is not None:
        for row in ledger.index.rows():
            for (file, _), link in zip(ledger.index.files(row.manifest), ledger.paths(row), strict=True):
                if file == layout.sha256:
                    unlink(link, ledger.disk.models)
    _quarantine(ledger, path)


def _check_models(ledger: Ledger, check: Check, repair: bool, rotten: set[str]) -> None:
    """Check that every name has all it needs."""
    for name in [row.name for row in ledger.index.rows()]:
        row = ledger.row(name)
        config = ledger.disk.blob(row.config)
        try:
            if row.config in rotten:
                raise OSError("its digest is wrong")
            read_settings(config.read_bytes(), str(config))
        except (KvantError, OSError) as error:
            _note(check, "settings", name, f"settings are lost ({error}), the weights are there", repaired=repair)
            if repair:
                _reset_settings(ledger, name)
                row = ledger.row(name)
        gone = [
            piece
            for layout in ledger.objects.layouts(row.manifest)
            for piece in ledger.objects.missing(layout, without=rotten)
        ]
        if gone:
            size = sum(piece.size for piece in gone)
            detail = f"{len(gone)} objects of {size} bytes are missing; import or pull it again, or remove it"
            _note(check, "incomplete", name, detail, repaired=False)
            check.lost.append(name)


def _reset_settings(ledger: Ledger, name: str) -> None:
    row = ledger.row(name)
    config = ledger.config(b"{}")
    manifest = msgspec.structs.replace(ledger.objects.manifest(row.manifest), config=config)
    ledger.set_name(ModelName.parse(name), manifest)


def _wrong_links(ledger: Ledger) -> list[Path]:
    wrong = []
    for row in ledger.index.rows():
        for (file, _), path in zip(ledger.index.files(row.manifest), ledger.paths(row), strict=True):
            target = ledger.disk.blob(file)
            if target.exists() and not (path.exists() and path.samefile(target)):
                wrong.append(path)
    return wrong


def _quarantine(ledger: Ledger, path: Path) -> None:
    """Put a broken file away under a name that says where it was."""
    make_directories(ledger.disk.quarantine, ledger.disk.root)
    where = hashlib.sha256(str(path.parent).encode()).hexdigest()[:8]
    path.replace(ledger.disk.quarantine / f"{path.name[:100]}.{where}.{secrets.token_hex(4)}")
    sync_directory(path.parent)
