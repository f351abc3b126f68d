"""How far an interrupted file got: a few lines beside the partial file, synced after the bytes they speak of."""

import contextlib
import os
from pathlib import Path

MAX_JOURNAL_BYTES = 1 << 24


class Journal:
    """Notes durably how many tensors of a partial file are complete.

    The first line names the work (model, plan, importance, version); a journal of other work counts for nothing.
    """

    def __init__(self, path: Path, work: str) -> None:
        self.path, self._work = path, work

    def done(self) -> int:
        """Return how many tensors are complete; 0 without a journal of this work."""
        try:
            with self.path.open(encoding="ascii", errors="replace") as file:
                lines = file.read(MAX_JOURNAL_BYTES).split("\n")
        except OSError:
            return 0
        # The last element is empty, or a line that a crash cut off.
        finished = [int(line) for line in lines[1:-1] if line.isdigit()]
        return finished[-1] if lines[0] == self._work and finished else 0

    def start(self) -> None:
        """Begin anew."""
        with self.path.open("w", encoding="ascii") as file:
            file.write(self._work + "\n")
            file.flush()
            os.fsync(file.fileno())

    def note(self, done: int) -> None:
        """Record that `done` tensors are complete; call only when their bytes are synced."""
        with self.path.open("a", encoding="ascii") as file:
            file.write(f"{done}\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Forget: the file is finished."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
