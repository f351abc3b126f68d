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

    A child may write what it likes into it and make it longer. It cannot make it shorter, since reading what is not
    there any more would end its owner, nor forbid its owner to.
    """

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        if sys.platform == "linux":
            import fcntl

            self._file: BinaryIO = os.fdopen(
                os.memfd_create("kvant-logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b"
            )
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        else:
            self._file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._file.fileno()

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes.

        Raises:
            EngineError: There is none.
        """
        if self._map is not None and len(self._map) >= size:
            return
        try:
            if os.fstat(self._file.fileno()).st_size < size:  # else a child has made it longer
                os.ftruncate(self._file.fileno(), size)
            self._map = mmap.mmap(self._file.fileno(), size)
        except (OSError, ValueError, OverflowError) as error:
            raise EngineError(
                f"engine process: {size} bytes of shared memory cannot be had ({error}). Use a smaller context."
            ) from error

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
