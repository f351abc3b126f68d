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


class Prefixed:
    """Progress whose task names begin with a prefix, so that two pieces of work can report to one watcher."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress, self._prefix = progress, prefix

    def start(self, task: str, total: float, unit: str) -> None:
        """Pass on."""
        self._progress.start(f"{self._prefix} {task}", total, unit)

    def advance(self, task: str, amount: float) -> None:
        """Pass on."""
        self._progress.advance(f"{self._prefix} {task}", amount)

    def finish(self, task: str) -> None:
        """Pass on."""
        self._progress.finish(f"{self._prefix} {task}")

    def say(self, message: str) -> None:
        """Pass on as it is."""
        self._progress.say(message)
