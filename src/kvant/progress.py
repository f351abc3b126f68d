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

    def __repr__(self) -> str:
        return "SILENT"

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
    """Progress of work on one thing among several: tasks are named by it and by their own first word."""

    def __init__(self, progress: Progress, prefix: str) -> None:
        self._progress, self._prefix = progress, prefix

    def start(self, task: str, total: float, unit: str) -> None:
        """Pass on."""
        self._progress.start(self._name(task), total, unit)

    def advance(self, task: str, amount: float) -> None:
        """Pass on."""
        self._progress.advance(self._name(task), amount)

    def finish(self, task: str) -> None:
        """Pass on."""
        self._progress.finish(self._name(task))

    def say(self, message: str) -> None:
        """Pass on as it is."""
        self._progress.say(message)

    def _name(self, task: str) -> str:
        return f"{self._prefix}: {task.split()[0]}"
