"""What a gateway is doing now, for `kvant top` and the web page."""

import functools
from datetime import datetime
from pathlib import Path

import msgspec

from kvant.runtime.sandbox import spawn
from kvant.serve.scheduler import Scheduler

PAGE_BYTES = 4096


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is loaded or wanted.

    Attributes:
        name: Its name.
        pid: Its worker's process; 0 if it is not loaded.
        context: Tokens of context of one request.
        parallel: Requests that it answers at a time.
        running: Requests being answered.
        waiting: Requests that wait.
        predicted_bytes: Memory predicted for it.
        resident_bytes: Memory its worker has now; None where the system does not tell.
        expires_at: When it will be unloaded; None for never.
    """

    name: str
    pid: int = 0
    context: int = 0
    parallel: int = 0
    running: int = 0
    waiting: int = 0
    predicted_bytes: int = 0
    resident_bytes: int | None = None
    expires_at: datetime | None = None


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway at one moment.

    Attributes:
        models: Models that are loaded or wanted.
        limit_bytes: Memory that models may take.
        predicted_bytes: Memory predicted for those that are loaded or being loaded.
        resident_bytes: Memory of the gateway itself; None where the system does not tell.
        confined: What keeps engines in: `landlock-7`, `seccomp`, ...; docs/explanation/sandbox.md has the list.
        unconfined: What does not hold on this machine, and what an engine can therefore do.
    """

    models: list[ModelStatus]
    limit_bytes: int
    predicted_bytes: int
    resident_bytes: int | None
    confined: tuple[str, ...] = ()
    unconfined: dict[str, str] = {}


@functools.cache
def confined() -> tuple[str, ...]:
    """Return what keeps engines in on this machine; the first call tries it, which takes a tenth of a second."""
    return spawn.probe()


def unconfined() -> dict[str, str]:
    """Return what does not hold, and what an engine can therefore do."""
    return {wall: spawn.WALLS[wall] for wall in spawn.missing(confined())}


def gateway_status(scheduler: Scheduler) -> GatewayStatus:
    """Return what is loaded, running and waiting."""
    waiting, running, sizes = scheduler.waiting(), scheduler.running(), scheduler.sizes()
    loaded = {model.file.name: model for model in scheduler.loaded()}
    models = [
        ModelStatus(
            name=name, running=running.get(name, 0), waiting=waiting.get(name, 0), predicted_bytes=sizes.get(name, 0),
            pid=loaded[name].pid if name in loaded else 0,
            context=loaded[name].context if name in loaded else 0,
            parallel=loaded[name].parallel if name in loaded else 0,
            resident_bytes=resident_bytes(loaded[name].pid) if name in loaded else None,
            expires_at=loaded[name].expires_at if name in loaded else None,
        )
        for name in sorted({*waiting, *sizes})
        if name in sizes or waiting.get(name)
    ]  # fmt: skip
    return GatewayStatus(
        models=models, limit_bytes=scheduler.limit_bytes, predicted_bytes=sum(sizes.values()),
        resident_bytes=resident_bytes("self"), confined=confined(), unconfined=unconfined(),
    )  # fmt: skip


def resident_bytes(pid: int | str) -> int | None:
    """Return a process's resident memory; None where the system does not tell."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * PAGE_BYTES
