"""Garbage collection: remove what no name needs, and whole files whose parts others hold."""

from typing import TYPE_CHECKING

import msgspec

from kvant.errors import StoreError
from kvant.hub.disk import unlink
from kvant.hub.index import Row
from kvant.hub.manifest import Layout

if TYPE_CHECKING:
    from kvant.hub.store import Store


class Collected(msgspec.Struct, kw_only=True):
    """What a collection did.

    Attributes:
        objects: Objects removed.
        swept: Incomplete files of interrupted work removed.
        packed: Models whose readable file was taken apart; it is made again when it is used.
        freed_bytes: By how much the store shrank.
        usage_bytes: What it takes now.
    """

    objects: int = 0
    swept: int = 0
    packed: list[str] = []
    freed_bytes: int = 0
    usage_bytes: int = 0


def gc(store: "Store", *, pack: bool = False) -> Collected:
    """Remove what no name needs.

    Args:
        store: The store.
        pack: Take the readable files apart, too, whose parts other files hold to a tenth or more.

    Raises:
        StoreError: A name cannot be read, so what it needs is not known; nothing is removed.
    """
    with store.changing("gc"):
        broken = store.rebuild()
        if broken:
            raise StoreError(f"{broken[0][0]}: cannot be read, so nothing is removed. Run: kvant fsck --repair")
        before = store.usage()
        done = Collected(swept=store.disk.sweep())
        if pack:
            rows = sorted(store.index.rows(), key=lambda row: row.modified)
            done.packed = [row.name for row in rows if _pack(store, row)]
        for digest in garbage(store):
            store.disk.blob(digest).unlink()
            done.objects += 1
        store.relink()
        done.usage_bytes = store.usage()
        done.freed_bytes = before - done.usage_bytes
        return done


def garbage(store: "Store") -> list[str]:
    """Return the objects that no name needs, and those of their own that a whole file holds too."""
    rows = store.index.rows()
    kept = {digest for row in rows for digest in (row.manifest, row.config)}
    kept |= {file for row in rows for file, _ in store.index.files(row.manifest)}
    there = {path.name for path in store.disk.blobs.iterdir()}
    places = store.index.all_places()
    return sorted(
        digest
        for digest in there - kept
        if digest not in places or any(file in there and file != digest for file, _ in places[digest])
    )


def _pack(store: "Store", row: Row) -> bool:
    """Take the whole files of a model apart that share enough with others."""
    packed = False
    for layout in store.objects.layouts(row.manifest):
        path = store.disk.blob(layout.sha256)
        if path.exists() and store.keep_parts(layout, set()):
            _take_apart(store, layout)
            packed = True
    if packed:
        for path in store.paths(row):
            unlink(path, store.disk.models)
    return packed


def _take_apart(store: "Store", layout: Layout) -> None:
    path = store.disk.blob(layout.sha256)
    own = [p for p in layout.pieces if store.objects.locate(p.digest, without={layout.sha256}) is None]
    store.objects.extract((piece, (path, piece.offset)) for piece in own)
    path.unlink()
