"""How long work tells its caller where it stands; the command line draws it, a library call ignores it."""

from typing import Protocol


class Progress(Protocol):
    """Receives the state of one or more named tasks."""

    def start(self, task: str, total: float, unit: str) -> None:
        """A task begins; `total` in `unit` (`B`, `tokens`, `tensors`)."""
        ...

    def advance(self, task: str, amount: float) -> None:
        """`amount` more of a task is done."""
        ...

    def finish(self, task: str) -> None:
        """A task ended."""
        ...

    def say(self, message: str) -> None:
        """Something a person should read now."""
        ...


class Silent:
    """Progress that nobody watches."""

    def start(self, task: str, total: float, unit: str) -> None:
        """Ignore."""

    def advance(self, task: str, amount: float) -> None:
        """Ignore."""

    def finish(self, task: str) -> None:
        """Ignore."""

    def say(self, message: str) -> None:
        """Ignore."""


SILENT: Progress = Silent()
