"""Cut a GGUF file into objects while it is copied, and put objects together to a file; both hash what they write."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from kvant.errors import StoreError
from kvant.files import CHUNK_BYTES, disk_errors
from kvant.formats.gguf.header import read_header
from kvant.hub.manifest import MAX_ZEROS, Layout, Piece

Cut = tuple[int, int, str]  # start, end, title: "" the header, a tensor's name, or GAP
GAP = "gap"


def cuts(path: Path) -> list[Cut]:
    """Return where the objects of a GGUF file lie: they cover it from its first byte to its last.

    Raises:
        FormatError: It is not a GGUF file, or damaged.
    """
    header = read_header(path)
    size = len(header.data)
    tensors = sorted((t.offset, t.offset + t.n_bytes, t.name) for t in header.tensors if t.n_bytes)
    bounds = [tensors[0][0] if tensors else size]
    found: list[Cut] = [(0, bounds[0], "")]
    for start, end, name in tensors:
        if start > found[-1][1]:
            found.append((found[-1][1], start, GAP))
        found.append((start, end, name))
    if found[-1][1] < size:
        found.append((found[-1][1], size, GAP))
    return found


def scan(source: Path, copy: BinaryIO | None, on_bytes: Callable[[int], object]) -> tuple[Layout, list[str]]:
    """Hash a GGUF file and its objects in one pass, and copy it on the way.

    Args:
        source: The file.
        copy: Where its bytes are written to; None: nowhere.
        on_bytes: Told the bytes of every chunk.

    Returns:
        Its layout, and the titles of its pieces.

    Raises:
        FormatError: It is not a GGUF file, or damaged.
        StoreError: It became shorter while it was read.
    """
    parts = _Parts(cuts(source))
    whole = hashlib.sha256()
    with source.open("rb") as file, ThreadPoolExecutor(2) as workers:
        left = parts.size
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise StoreError(f"{source}: became shorter while it was read. Leave it alone and try again.")
            left -= len(chunk)
            hashing = [workers.submit(whole.update, chunk), workers.submit(parts.update, chunk)]
            if copy is not None:
                copy.write(chunk)
            for work in hashing:
                work.result()
            on_bytes(len(chunk))
    pieces, titles = parts.finish()
    return Layout(whole.hexdigest(), parts.size, tuple(pieces)), titles


class _Parts:
    """Hashes a file's objects as its bytes come by."""

    def __init__(self, found: Sequence[Cut]) -> None:
        self.size = found[-1][1]
        self._cuts, self._digests = found, [hashlib.sha256() for _ in found]
        self._is_zero = [title == GAP and end - start <= MAX_ZEROS for start, end, title in found]
        self._position, self._index = 0, 0

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the file."""
        view = memoryview(chunk)
        while view:
            end = self._cuts[self._index][1]
            part, view = view[: end - self._position], view[end - self._position :]
            self._digests[self._index].update(part)
            if self._is_zero[self._index] and any(part):
                self._is_zero[self._index] = False
            self._position += len(part)
            if self._position == end:
                self._index += 1

    def finish(self) -> tuple[list[Piece], list[str]]:
        """Return the objects; a gap of zeros is a number beside the object before it."""
        pieces: list[Piece] = []
        titles: list[str] = []
        for (start, end, title), digest, is_zero in zip(self._cuts, self._digests, self._is_zero, strict=True):
            if is_zero:
                last = pieces.pop()
                pieces.append(Piece(last.digest, last.offset, last.size, end - start))
            else:
                pieces.append(Piece(digest.hexdigest(), start, end - start, 0))
                titles.append(title)
        return pieces, titles


def join(
    layout: Layout,
    place: Callable[[str], tuple[Path, int]],
    target: Path,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> None:
    """Put a file together from objects.

    Args:
        layout: The file.
        place: Tells where an object lies: a file and an offset in it.
        target: Path to write to.
        on_bytes: Told the bytes of every chunk.

    Raises:
        StoreError: An object is shorter than it should be, or the whole is not the file that it should be.
    """
    whole = hashlib.sha256()
    with disk_errors(target), target.open("wb") as out, ThreadPoolExecutor(1) as worker:
        for piece in layout.pieces:
            path, offset = place(piece.digest)
            zeros = itertools.repeat(bytes(piece.zeros), 1 if piece.zeros else 0)
            for chunk in itertools.chain(read_range(path, offset, piece.size), zeros):
                hashing = worker.submit(whole.update, chunk)
                out.write(chunk)
                hashing.result()
                on_bytes(len(chunk))
    if whole.hexdigest() != layout.sha256:
        raise StoreError(
            f"{layout.sha256[:12]}: its objects make the file {whole.hexdigest()[:12]}. Run: kvant fsck --repair"
        )


def read_range(path: Path, offset: int, size: int) -> Iterator[bytes]:
    """Give a part of a file in chunks.

    Raises:
        StoreError: The file ends before.
    """
    with path.open("rb") as file:
        file.seek(offset)
        got = 0
        for chunk in read_open(file, size):
            got += len(chunk)
            yield chunk
    if got != size:
        raise StoreError(f"{path}: ends {size - got} bytes too early. Run: kvant fsck --repair")


def read_open(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Give the next bytes of an open file in chunks, fewer if it ends."""
    while size and (chunk := file.read(min(CHUNK_BYTES, size))):
        size -= len(chunk)
        yield chunk
