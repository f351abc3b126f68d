"""What runs an artifact: the protocol of every engine."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from kvant.runtime.messages import Measured


class Opened(Protocol):
    """What is asked of an open model."""

    @property
    def n_vocab(self) -> int: ...  # noqa: D102
    @property
    def n_params(self) -> int: ...  # noqa: D102
    @property
    def tensor_bytes(self) -> int: ...  # noqa: D102
    @property
    def load_s(self) -> float: ...  # noqa: D102


class Engine(Protocol):
    """An engine in a process of its own, whatever format it runs; leaving it ends the process."""

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def opened(self) -> Opened | None: ...  # noqa: D102
    def open(
        self, path: Path, *, n_ctx: int, n_threads: int, all_logits: bool = False, spinning: bool | None = None
    ) -> Opened:
        """Load a model in place of the one that was open.

        Args:
            path: An artifact's entry.
            n_ctx: Tokens of context.
            n_threads: Threads, for engines that take them.
            all_logits: Whether `logits` will be asked for more than a last position.
            spinning: Whether idle threads wait by spinning, for engines that can; None for what the files say.

        Raises:
            EngineError: The engine cannot load it, or crashed over it.
            MissingDependencyError: The engine is not installed.
        """
        ...

    def logits(self, windows: Iterable[np.ndarray], *, first: int) -> Iterator[np.ndarray]:
        """Yield the logits of each window from a position on, float32 [n - first, n_vocab]."""
        ...

    def speed(self, *, n_prompt: int, n_generate: int, repeats: int) -> Measured:
        """Measure tokens per second and memory."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
