"""Garbage collection: remove what no name needs, and whole files whose parts others hold."""

import msgspec

from kvant.errors import StoreError
from kvant.hub.disk import unlink
from kvant.hub.index import Row
from kvant.hub.ledger import Ledger
from kvant.hub.manifest import Layout


class Collected(msgspec.Struct, kw_only=True):
    """What a collection did.

    Attributes:
        objects: Objects removed.
        swept: Incomplete files of interrupted work removed.
        packed: Models whose readable file was taken apart; it is made again when it is used.
        freed_bytes: By how much the store shrank.
        usage_bytes: What it takes now.
        quota_bytes: Most that it may take; None for no limit of its own.
    """

    objects: int = 0
    swept: int = 0
    packed: list[str] = []
    freed_bytes: int = 0
    usage_bytes: int = 0
    quota_bytes: int | None = None


def gc(ledger: Ledger, *, pack: bool = False) -> Collected:
    """Remove what no name needs.

    Args:
        ledger: The store's.
        pack: Take the readable files apart, too, whose parts other files hold to a tenth or more.

    Raises:
        StoreError: A name cannot be read, so what it needs is not known; nothing is removed.
    """
    with ledger.changing("gc"):
        broken = ledger.rebuild()
        if broken:
            raise StoreError(f"{broken[0][0]}: cannot be read, so nothing is removed. Run: kvant fsck --repair")
        before = ledger.usage()
        done = Collected(swept=ledger.disk.sweep(), quota_bytes=ledger.quota)
        if pack:
            rows = sorted(ledger.index.rows(), key=lambda row: row.modified)
            done.packed = [row.name for row in rows if _pack(ledger, row)]
        for digest in ledger.garbage():
            ledger.disk.blob(digest).unlink()
            done.objects += 1
        ledger.relink()
        done.usage_bytes = ledger.usage()
        done.freed_bytes = before - done.usage_bytes
        return done


def _pack(ledger: Ledger, row: Row) -> bool:
    """Take the whole files of a model apart that share enough with others."""
    packed = False
    for layout in ledger.objects.layouts(row.manifest):
        path = ledger.disk.blob(layout.sha256)
        if path.exists() and ledger.keep_parts(layout, set()):
            _take_apart(ledger, layout)
            packed = True
    if packed:
        for path in ledger.paths(row):
            unlink(path, ledger.disk.models)
    return packed


def _take_apart(ledger: Ledger, layout: Layout) -> None:
    path = ledger.disk.blob(layout.sha256)
    own = [p for p in layout.pieces if ledger.objects.locate(p.digest, without={layout.sha256}) is None]
    ledger.objects.extract((piece, (path, piece.offset)) for piece in own)
    path.unlink()
