"""Where objects lie, and how they move between files of their own and the whole files that hold them.

The bytes of a tensor are kept once where the engine needs no second file with them: in a whole file that is there, or,
if there is none, in a file of their own. A model that shares at least `SHARE` of its bytes with others is kept in parts
until it is first used.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from kvant.errors import StoreError
from kvant.files import disk_errors, sync_directory
from kvant.hub.disk import Disk, sync_file
from kvant.hub.index import Index
from kvant.hub.manifest import Layout, Manifest, Piece, file_layouts, read_manifest
from kvant.hub.pieces import read_open, read_range

SHARE = 0.1

Place = tuple[Path, int]


class Objects:
    """The objects of one store. Whoever changes them holds the store's lock."""

    def __init__(self, disk: Disk, index: Index) -> None:
        self._disk, self._index = disk, index

    def manifest(self, digest: str) -> Manifest:
        """Read a manifest.

        Raises:
            StoreError: It is missing or broken.
        """
        path = self._disk.blob(digest)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: the manifest cannot be read: {error.strerror}. Run: kvant fsck") from error
        if hashlib.sha256(raw).hexdigest() != digest:
            raise StoreError(f"{path}: the manifest is not what its name says. Run: kvant fsck --repair")
        return read_manifest(raw, str(path))

    def layouts(self, manifest: str) -> list[Layout]:
        """Return the files of a manifest."""
        return list(file_layouts(self.manifest(manifest)))

    def locate(self, digest: str, *, without: Collection[str] = ()) -> Place | None:
        """Return a file and an offset where an object lies, other than in the whole files `without`."""
        own = self._disk.blob(digest)
        if digest not in without and own.exists():
            return own, 0
        for file, offset in self._index.places(digest):
            if file not in without and self._disk.blob(file).exists():
                return self._disk.blob(file), offset
        return None

    def place(self, digest: str) -> Place:
        """Return where an object lies.

        Raises:
            StoreError: Nowhere.
        """
        found = self.locate(digest)
        if found is None:
            raise StoreError(f"{digest}: the object is missing. Import or pull its model again, or see: kvant fsck")
        return found

    def shared(self, layout: Layout, *, without: Collection[str] = ()) -> int:
        """Return how many bytes of a file are here already, in other files than itself and those `without`."""
        others = {layout.sha256, *without}
        sizes = {piece.digest: piece.size for piece in layout.pieces}
        return sum(size for digest, size in sizes.items() if size and self.locate(digest, without=others))

    def extract(self, pieces: Iterable[tuple[Piece, Place]]) -> int:
        """Give objects files of their own, if they have none; return the bytes written.

        Raises:
            StoreError: The bytes at a place are not the object.
        """
        written = 0
        for piece, (path, offset) in pieces:
            target = self._disk.blob(piece.digest)
            if target.exists():
                continue
            with self._disk.temporary() as partial:
                digest = hashlib.sha256()
                with disk_errors(target), partial.open("wb") as file:
                    for chunk in read_range(path, offset, piece.size):
                        digest.update(chunk)
                        file.write(chunk)
                if digest.hexdigest() != piece.digest:
                    raise StoreError(f"{path}: byte {offset} starts another object. Run: kvant fsck --repair")
                sync_file(partial)
                partial.chmod(0o444)
                partial.replace(target)
            written += piece.size
        sync_directory(self._disk.blobs)
        return written

    def rescue(self, going: Collection[str], layouts: Iterable[Layout], needed: Collection[str] = ()) -> None:
        """Before the whole files `going` are removed, keep what other models have nowhere else.

        Args:
            going: Whole files.
            layouts: What is in them.
            needed: Objects to keep even if no other model in the index has them.
        """
        kept = []
        for layout in layouts:
            path = self._disk.blob(layout.sha256)
            if layout.sha256 not in going or not path.exists():
                continue
            for piece in layout.pieces:
                is_needed = piece.digest in needed or any(
                    file not in going for file, _ in self._index.places(piece.digest)
                )
                if is_needed and self.locate(piece.digest, without=going) is None:
                    kept.append((piece, (path, piece.offset)))
        self.extract(kept)

    def drop_unused(self, layouts: Iterable[Layout]) -> None:
        """Remove what no model needs any more, and what a whole file holds too, among the objects of some files."""
        for layout in layouts:
            if not self._index.users(layout.sha256):
                self._disk.blob(layout.sha256).unlink(missing_ok=True)
        for digest in {piece.digest for layout in layouts for piece in layout.pieces}:
            path = self._disk.blob(digest)
            if not path.exists() or self._index.users(digest) or self._index.is_document(digest):
                continue
            if not self._index.places(digest) or self.locate(digest, without=(digest,)) is not None:
                path.unlink(missing_ok=True)

    def missing(self, layout: Layout, *, without: Collection[str] = ()) -> list[Piece]:
        """Return the objects of a file that are nowhere else than in files `without`."""
        if layout.sha256 not in without and self._disk.blob(layout.sha256).exists():
            return []
        return [piece for piece in layout.pieces if self.locate(piece.digest, without=without) is None]


def check_file(path: Path, layout: Layout, on_bytes: Callable[[int], object]) -> tuple[bool, list[Piece]]:
    """Hash a whole file and its objects in one pass.

    Returns:
        Whether the whole is what its digest says, and the pieces that are what theirs say.
    """
    whole, good = hashlib.sha256(), []
    with path.open("rb") as file:
        for piece in layout.pieces:
            digest = hashlib.sha256()
            for chunk in read_open(file, piece.size):
                whole.update(chunk)
                digest.update(chunk)
                on_bytes(len(chunk))
            if digest.hexdigest() == piece.digest:
                good.append(piece)
            for chunk in read_open(file, piece.zeros):
                whole.update(chunk)
                on_bytes(len(chunk))
        whole.update(file.read(1))
    return whole.hexdigest() == layout.sha256, good
