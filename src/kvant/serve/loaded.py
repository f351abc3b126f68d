"""What a scheduler knows of models: which are loaded, which are asked for."""

import asyncio
import math
from dataclasses import dataclass, field
from datetime import datetime

from kvant.runtime.server.workers import Worker
from kvant.serve.extent import Extent
from kvant.serve.library import ModelFile
from kvant.serve.queue import FairQueue
from kvant.serve.sizing import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is loaded.

    Attributes:
        file: The model.
        size_bytes: Predicted memory.
        expires_at: When it will be unloaded if nobody asks for it, UTC; None for never.
        context: Tokens of context of one request.
        parallel: Requests that it answers at a time.
        in_use: Requests it is answering.
        pid: Its process.
    """

    file: ModelFile
    size_bytes: int
    expires_at: datetime | None
    context: int
    parallel: int
    in_use: int
    pid: int


@dataclass(slots=True, kw_only=True, eq=False)
class Loaded:
    """A worker's place in memory, from the decision to load it until its process has gone."""

    file: ModelFile
    size: Size
    keep_alive_s: float
    worker: Worker | None = None
    load_s: float = 0.0
    in_use: int = 0
    last_used: float = 0.0
    stopping: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def size_bytes(self) -> int:
        """Predicted memory."""
        return self.size.size_bytes

    @property
    def expires(self) -> float:
        """When it may go, on the loop's clock."""
        return math.inf if self.keep_alive_s < 0 else self.last_used + self.keep_alive_s

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and nobody uses it."""
        return self.worker is not None and self.in_use == 0 and not self.stopping


@dataclass(slots=True, kw_only=True, eq=False)
class Known:
    """A model that somebody asked for."""

    file: ModelFile
    queue: FairQueue[Loaded] = field(default_factory=FairQueue)
    loaded: Loaded | None = None
    failures: int = 0
    not_before: float = 0.0

    def serves(self, extent: Extent) -> bool:
        """Whether what is loaded does for a request; a smaller one does not need a reload."""
        loaded = self.loaded
        if loaded is None or _identity(loaded.file) != _identity(self.file):
            return False
        return loaded.size.extent.covers(extent)


def _identity(file: ModelFile) -> tuple[str, str | None]:
    """What a worker is started with: another file or another template needs another worker."""
    return file.identity, file.settings.template
