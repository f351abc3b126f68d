"""What tests of the gateway share: model files that need no weights, and workers that need no engine."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvant.errors import WorkerError
from kvant.hub.manifest import ModelSettings
from kvant.serve import logs
from kvant.serve.library import Facts, ModelFile
from kvant.serve.scheduler import Scheduler
from kvant.serve.settings import Settings
from kvant.serve.sizing import Size

MB = 1_000_000


def model_file(name: str, *, digest: str = "0", trained: int = 8192, path: Path = Path("/nonexistent")) -> ModelFile:
    facts = Facts(
        architecture="llama", parameters=1, context_length=trained, embedding_length=1, quantization="F16", types={},
        type_bytes={}, has_template=False, capabilities=["completion"], metadata={},
    )  # fmt: skip
    return ModelFile(
        name=name, path=path, digest=f"{name}-{digest}", size_bytes=MB, modified_at=datetime.now(UTC),
        settings=ModelSettings(), facts=facts,
    )  # fmt: skip


class FakeWorker:
    """Answers without an engine; `kill` makes it crash as a process would."""

    numbers = itertools.count(1)

    def __init__(self, name: str, context: int) -> None:
        self.name, self.context, self.pid = name, context, next(self.numbers)
        self.ended = asyncio.Event()
        self.fails_after: int | None = None
        self.template: str | None = None
        self.is_healthy = True

    @property
    def alive(self) -> bool:
        return not self.ended.is_set()

    def _check(self) -> None:
        if not self.alive or self.fails_after == 0:
            self.kill()
            raise WorkerError(f"model {self.name!r}: crashed.", name=self.name)

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self._check()
        return 200, {"path": path, "pid": self.pid, **body}

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:  # noqa: ARG002
        for index in range(3):
            if self.fails_after == index:
                self.kill()
            self._check()
            yield f"{self.pid}:{index}".encode()

    async def get(self, path: str) -> tuple[int, bytes]:
        self._check()
        return 200, path.encode()

    async def healthy(self) -> bool:
        return self.is_healthy

    async def stop(self) -> None:
        self.ended.set()

    def kill(self) -> None:
        self.ended.set()

    async def wait(self) -> None:
        await self.ended.wait()


class FakeEngines:
    """Starts fake workers; a load waits while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.started: list[FakeWorker] = []
        self.error: WorkerError | None = None
        self.events: list[tuple[str, str]] = []

    async def start(self, file: ModelFile, size: Size) -> FakeWorker:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        worker = FakeWorker(file.name, size.extent.context)
        self.started.append(worker)
        return worker

    def queued(self, model: str, seconds: float) -> None:  # noqa: ARG002
        assert seconds >= 0

    def loaded(self, model: str, seconds: float, size_bytes: int) -> None:  # noqa: ARG002
        self.events.append((model, "loaded"))

    def event(self, model: str, kind: str) -> None:
        self.events.append((model, kind))


def scheduler(engines: FakeEngines, *, model_bytes: int = 100 * MB, **settings: Any) -> Scheduler:
    """Return a scheduler over fake engines: a model takes `model_bytes`, and a byte per token of context and batch."""
    settings.setdefault("max_ram_bytes", 10**12)
    return Scheduler(
        Settings(**settings), observer=engines, start=engines.start,
        predict=lambda _: lambda extent, _: model_bytes + extent.context + extent.batch,
    )  # fmt: skip


async def turns(n: int = 20) -> None:
    """Let every other task go as far as it can without input from outside."""
    for _ in range(n):
        await asyncio.sleep(0)


@contextlib.contextmanager
def loggers_as_before() -> Iterator[None]:
    """Undo what `logs.configure` does when the block ends."""
    loggers = [logging.getLogger(name) for name in logs.LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
