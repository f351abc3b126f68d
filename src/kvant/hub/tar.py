"""Read the plainest kind of tar file as a stream, and refuse every other.

Only regular files and directories by short relative names: no links, devices, sparse files, long names or extended
headers, whose handling is where hostile archives do harm.

Source: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html (ustar Interchange Format), and GNU tar's
base-256 sizes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from kvant.errors import FormatError
from kvant.hub.pieces import read_open

BLOCK = 512
MAX_SIZE = 1 << 50

_NAME = re.compile(r"(?:\./)?[a-z0-9.-]+(?:/[a-z0-9.-]+)*/?")
_REGULAR, _DIRECTORY = (b"0", b"\x00"), b"5"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in an archive.

    Attributes:
        name: Its relative name.
        size: Its bytes.
        file: The archive, at its first byte; the next entry is read from where its last one is.
    """

    name: str
    size: int
    file: BinaryIO

    def chunks(self) -> Iterator[bytes]:
        """Give the content in chunks.

        Raises:
            FormatError: The archive ends before.
        """
        got = 0
        for chunk in read_open(self.file, self.size):
            got += len(chunk)
            yield chunk
        if got != self.size or len(self.file.read(-self.size % BLOCK)) != -self.size % BLOCK:
            raise FormatError(f"{self.name}: the bundle ends before it does. Copy the bundle again.")

    def read(self, limit: int) -> bytes:
        """Return the content.

        Raises:
            FormatError: It is longer than `limit`, or the archive ends before.
        """
        if self.size > limit:
            raise FormatError(f"{self.name}: {self.size} bytes are above {limit}. This is not a bundle of kvant's.")
        return b"".join(self.chunks())


def entries(file: BinaryIO) -> Iterator[Entry]:
    """Give the files of an archive in order; each is read whole before the next is asked for.

    Raises:
        FormatError: It is damaged, or holds anything but files and directories.
    """
    while True:
        head = file.read(BLOCK)
        if head == bytes(BLOCK):
            return
        if len(head) != BLOCK:
            raise FormatError("bundle: ends without the end mark of a tar file. Copy it again.")
        _check_sum(head)
        name, kind = _name(head), head[156:157]
        if kind == _DIRECTORY:
            continue
        if kind not in _REGULAR:
            raise FormatError(
                f"{name}: is of type {kind!r} in the bundle, not a plain file. Make it with kvant export."
            )
        yield Entry(name, _size(head, name), file)


def _name(head: bytes) -> str:
    raw, prefix = head[:100].split(b"\0")[0], head[345:500].split(b"\0")[0]
    name = raw.decode("ascii", "replace")
    has_prefix = head[257:263] == b"ustar\0" and prefix
    if has_prefix or not _NAME.fullmatch(name) or ".." in name:
        raise FormatError(f"{name!r}: is not a name of a file in a bundle. Make the bundle with kvant export.")
    return name.removeprefix("./")


def _size(head: bytes, name: str) -> int:
    field = head[124:136]
    if field[0] == 0x80:  # GNU's base 256
        size = int.from_bytes(field[1:])
    else:
        digits = field.strip(b" \0")
        if not re.fullmatch(rb"[0-7]{1,12}", digits):
            raise FormatError(f"{name}: its size in the bundle is not a number. Copy the bundle again.")
        size = int(digits, 8)
    if size > MAX_SIZE:
        raise FormatError(f"{name}: {size} bytes are above {MAX_SIZE}. Copy the bundle again.")
    return size


def _check_sum(head: bytes) -> None:
    digits = head[148:156].strip(b" \0")
    total = sum(head[:148]) + 8 * ord(" ") + sum(head[156:])
    if not re.fullmatch(rb"[0-7]{1,8}", digits) or int(digits, 8) != total:
        raise FormatError("bundle: a header in it is damaged, or it is not a tar file. Copy it again.")
