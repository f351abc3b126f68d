"""Memory that an engine's process fills with logits and its owner reads."""

import mmap
import os
import sys
import tempfile
from typing import BinaryIO, cast

import numpy as np

from kvant.errors import EngineError


class SharedRows:
    """A file without a name, in memory where the system can; the child is given its descriptor.

    A child may write what it likes into it, and cannot make it shorter: reading what is not there any more would end
    its owner.
    """

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        if sys.platform == "linux":
            import fcntl

            self._file: BinaryIO = os.fdopen(
                os.memfd_create("kvant-logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b"
            )
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        else:
            self._file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._file.fileno()

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes."""
        if self._map is None or len(self._map) < size:
            os.ftruncate(self._file.fileno(), size)
            self._map = mmap.mmap(self._file.fileno(), size)

    def rows(self, count: int, width: int, *, offset: int = 0) -> np.ndarray:
        """Return rows that a child says it wrote, float32 [count, width]: a view.

        Raises:
            EngineError: They are more than there is room for.
        """
        room = (len(self._map) if self._map else 0) - offset
        if not 0 <= count * width * 4 <= room:
            raise EngineError(
                f"engine process: {count} rows of {width} logits break the room of {room} bytes. Report it."
            )
        return np.frombuffer(self._map or b"", np.float32, count=count * width, offset=offset).reshape(count, width)

    def close(self) -> None:
        """Close the file; views stay valid."""
        self._file.close()
