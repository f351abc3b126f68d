"""What an engine's process has in common with another engine's, seen from its owner: one child, ended on leaving."""

from types import TracebackType
from typing import Generic, Self, TypeVar

from kvant.runtime.child import Child
from kvant.runtime.shared import SharedRows

OpenedT = TypeVar("OpenedT")


class Owner(Generic[OpenedT]):
    """The owner of at most one child; use it as a context manager. Leaving it kills the child.

    Args:
        timeout_s: Seconds that one request may take.

    Attributes:
        path: The model that was opened last.
        opened: What the engine said of it; None if none is open.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._shared = SharedRows()
        self._child: Child | None = None
        self.path = ""
        self.opened: OpenedT | None = None

    def close(self) -> None:
        """End the child at once."""
        self._end()
        self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child, self.opened = None, None
