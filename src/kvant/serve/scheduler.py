"""Which models are loaded: started on demand as far as memory reaches, kept while they may be needed, restarted.

A request asks for a lease. It waits in its model's queue until a slot of a worker is free; callers take turns. A model
that is not loaded is loaded when its predicted memory fits under the limit; idle models make room, the one that would
expire first going first, and none that is in use. While a request waits for memory, later requests for the models in
its way wait behind it, so that a busy model cannot keep another one out.

Everything here runs on one event loop; state changes between two awaits are whole.
"""

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from kvant.devices.cache import BATCH_TOKENS
from kvant.errors import KvantError, ModelTooLargeError, QueueFullError, WorkerError
from kvant.runtime.server.workers import Worker, start_worker
from kvant.serve.lease import Lease, RetryingWorker
from kvant.serve.library import ModelFile
from kvant.serve.loaded import Known, Loaded, LoadedModel
from kvant.serve.logs import log
from kvant.serve.memory import limit_bytes, prediction, start_message
from kvant.serve.queue import FairQueue, Ticket
from kvant.serve.settings import Settings
from kvant.serve.sizing import Predict, Size, rounded, size_for
from kvant.units import format_bytes

BACKOFF_S, BACKOFF_MOST_S = 0.5, 30.0
HEALTH_EVERY_S = 15.0
MAX_SIZES = 4096
"""Sizes that are remembered: those looked up last."""

RETRY_LEAST_S, RETRY_MOST_S = 1.0, 60.0
Start = Callable[[ModelFile, Size], Awaitable[Worker]]


class Observer(Protocol):
    """Told what happens; see `metrics`."""

    def queued(self, model: str, seconds: float) -> None: ...  # noqa: D102
    def loaded(self, model: str, seconds: float, size_bytes: int) -> None: ...  # noqa: D102
    def event(self, model: str, kind: str) -> None: ...  # noqa: D102


class Scheduler:
    """Loads, keeps, evicts and restarts workers.

    Args:
        settings: Limits.
        observer: Told of queue times, loads and crashes.
        start: Starts a worker of a size for a model; by default a process.
        predict: Returns what predicts the memory of a model.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        observer: Observer | None = None,
        start: Start | None = None,
        predict: Callable[[ModelFile], Predict] | None = None,
    ) -> None:
        self.settings, self.observer = settings, observer
        self.limit_bytes = limit_bytes(settings)
        self._start = start or self._start_process
        self._predict = predict or (lambda file: prediction(file, settings))
        self._sizes: dict[tuple[str, int | None, int], Size] = {}
        self._known: dict[str, Known] = {}
        self._places: set[Loaded] = set()
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._mean_s = 1.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._waits: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    # Asking

    @contextlib.asynccontextmanager
    async def lease(
        self,
        file: ModelFile,
        *,
        caller: str,
        context: int | None = None,
        keep_alive: float | None = None,
        batch: int = 0,
    ) -> AsyncIterator[Lease]:
        """Hold a slot of a model's worker for one request.

        Args:
            file: The model.
            caller: Who asks; callers take turns.
            context: Tokens of context needed; None for the setting. At most what the model was trained for.
            keep_alive: Seconds the model stays loaded after this request; negative for ever, None for the setting.
            batch: Tokens of the longest text that must be read at once; 0 for any.

        Raises:
            QueueFullError: Too many requests wait already, or the gateway is shutting down.
            ModelTooLargeError: The model would not fit even alone.
            WorkerError: It could not be loaded.
        """
        clock = asyncio.get_running_loop().time
        begun = clock()
        loaded = await self._acquire(file, caller, context, batch)
        queued_s = clock() - begun
        if self.observer:
            self.observer.queued(file.name, queued_s)
        lease = Lease(load_s=min(loaded.load_s, queued_s), queued_s=queued_s)

        async def another() -> Worker:
            nonlocal loaded
            self._release(loaded, keep_alive)
            loaded = None  # type: ignore[assignment]
            loaded = await self._acquire(file, caller, context, batch, first=True)
            assert loaded.worker is not None
            return loaded.worker

        assert loaded.worker is not None
        lease.worker = RetryingWorker(loaded.worker, another)
        try:
            yield lease
        finally:
            if loaded is not None:
                self._mean_s += 0.1 * (clock() - begun - queued_s - self._mean_s)
                self._release(loaded, keep_alive, succeeded=loaded.worker is not None and loaded.worker.alive)

    async def sizing(self, file: ModelFile, context: int | None, batch: int = 0) -> Size:
        """Return the size of a model's worker for a request: what it asks for, the setting, or what fits.

        The model's header is read in a thread, once for each context, in the steps it is given in, and batch.
        """
        wanted = context or self.settings.context
        if wanted is not None:
            wanted = rounded(wanted, file.facts.context_length)
        key = (file.identity, wanted, batch)
        size = self._sizes[key] if key in self._sizes else await asyncio.to_thread(self._size, file, wanted, batch)
        for known in ((file.identity, *size.extent), key):
            self._sizes[known] = self._sizes.pop(known, size)
        while len(self._sizes) > MAX_SIZES:
            del self._sizes[next(iter(self._sizes))]
        return size

    def _size(self, file: ModelFile, wanted: int | None, batch: int) -> Size:
        predict = self._predict(file)

        def size(context: int | None, batch: int) -> Size:
            return size_for(
                context, batch=batch, trained=file.facts.context_length, parallel=self.settings.parallel,
                limit_bytes=self.limit_bytes, predict=predict,
            )  # fmt: skip

        if wanted is None and batch:  # the same context as without, so that neither of the two unloads the other
            same = size(size(None, 0).extent.context, batch)
            if same.size_bytes <= self.limit_bytes:
                return same
        return size(wanted, batch)

    # Looking

    def loaded(self) -> list[LoadedModel]:
        """Return the models that are loaded, the longest to stay first."""
        now, wall = asyncio.get_running_loop().time(), datetime.now(UTC)
        places = [place for place in self._places if place.worker is not None and not place.stopping]
        places.sort(key=lambda place: -place.expires)
        return [
            LoadedModel(
                file=place.file, size_bytes=place.size_bytes, context=place.size.extent.context,
                parallel=place.size.parallel, in_use=place.in_use,
                pid=place.worker.pid if place.worker else 0,
                expires_at=None if place.keep_alive_s < 0 else wall + timedelta(seconds=_left(place, now)),
            )
            for place in places
        ]  # fmt: skip

    def waiting(self) -> dict[str, int]:
        """Return the number of requests that wait, by model."""
        return {name: len(known.queue) for name, known in self._known.items()}

    def running(self) -> dict[str, int]:
        """Return the number of requests that are being answered, by model."""
        found = dict.fromkeys(self._known, 0)
        for place in self._places:
            found[place.file.name] = found.get(place.file.name, 0) + place.in_use
        return found

    def workers(self) -> list[Worker]:
        """Return the workers that can be asked."""
        return [p.worker for p in self._places if p.worker is not None and p.worker.alive and not p.stopping]

    def sizes(self) -> dict[str, int]:
        """Return the predicted memory of the models that are loaded or being loaded, bytes, by model."""
        found: dict[str, int] = {}
        for place in self._places:
            found[place.file.name] = found.get(place.file.name, 0) + place.size_bytes
        return found

    @property
    def closing(self) -> bool:
        """Whether it takes no more requests."""
        return self._closing

    # Ending

    async def unload(self, name: str) -> None:
        """Unload a model: at once if it is idle, else as soon as its requests are answered."""
        known = self._known.get(name)
        if known is None or known.loaded is None:
            return
        place = known.loaded
        place.keep_alive_s = 0.0
        if place.is_idle:
            await self._stop(place, "unloaded")

    async def aclose(self, drain_s: float = 0.0) -> None:
        """Take no more requests, wait for those in flight, stop all workers."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for known in self._known.values():
            _refuse(known.queue, QueueFullError("gateway: is shutting down. Try again later.", retry_after_s=5.0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.settled(lambda: not any(place.in_use for place in self._places))
        for place in list(self._places):
            if place.worker is None:
                for task in place.tasks:
                    task.cancel()
        stops = [self._stop(place, "unloaded") for place in list(self._places) if place.worker is not None]
        await asyncio.gather(*stops, *self._tasks, return_exceptions=True)

    async def settled(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this scheduler's state holds; it is looked at after every change."""
        if not condition():
            wait = (condition, asyncio.get_running_loop().create_future())
            self._waits.append(wait)
            try:
                await wait[1]
            finally:
                self._waits.remove(wait)

    # Inside

    async def _acquire(
        self, file: ModelFile, caller: str, context: int | None, batch: int, *, first: bool = False
    ) -> Loaded:
        """Wait for a slot of the model's worker and take it."""
        size = await self.sizing(file, context, batch_for(batch))
        wanted, need = size.extent, size.size_bytes
        if need > self.limit_bytes:
            at_once = f", read {wanted.batch} at once" if wanted.batch else ""
            less = "Send shorter texts" if wanted.batch else "Ask for a smaller context"
            raise ModelTooLargeError(
                f"model {file.name!r}: needs {format_bytes(need)} at {wanted.context} tokens of context{at_once}, "
                f"above the limit of {format_bytes(self.limit_bytes)}. {less}, start the gateway with more --max-ram, "
                "or take a smaller variant.",
                need_bytes=need, limit_bytes=self.limit_bytes,
            )  # fmt: skip
        known = self._known.setdefault(file.name, Known(file=file))
        known.file = file
        ticket: Ticket[Loaded] = Ticket(number=next(self._numbers), caller=caller, extent=wanted)
        if self._closing:
            raise QueueFullError("gateway: is shutting down. Try again later.", retry_after_s=5.0)
        known.queue.push(ticket, first=first)
        self._dispatch()
        if not ticket.granted.done():
            self._bound_queue(known, ticket)
        try:
            return await ticket.granted
        except asyncio.CancelledError:
            known.queue.discard(ticket)
            if ticket.granted.done() and not ticket.granted.cancelled() and ticket.granted.exception() is None:
                self._release(ticket.granted.result(), None)
            self._dispatch()
            raise

    def _bound_queue(self, known: Known, ticket: Ticket[Loaded]) -> None:
        """Refuse a request when too many wait: this one, or the newest of the caller who has most of them waiting."""
        if sum(self.waiting().values()) <= self.settings.max_queue:
            return
        greedy = max(
            (other for other in self._known.values() if other.queue),
            key=lambda other: other.queue.largest,
        )
        victim = ticket
        if greedy.queue.largest > known.queue.count(ticket.caller):
            victim = greedy.queue.newest_of_largest()
            greedy.queue.discard(victim)
        else:
            known.queue.discard(ticket)
        waiting = sum(self.waiting().values())
        after = min(RETRY_MOST_S, max(RETRY_LEAST_S, self._mean_s * waiting / max(1, self.settings.parallel)))
        victim.granted.set_exception(
            QueueFullError(
                f"queue: {waiting} requests wait already, the limit is {self.settings.max_queue}. "
                f"Try again in {after:.0f} s.",
                retry_after_s=math.ceil(after),
            )
        )

    def _release(self, place: Loaded, keep_alive: float | None, *, succeeded: bool = False) -> None:
        place.in_use -= 1
        place.last_used = asyncio.get_running_loop().time()
        place.keep_alive_s = self.settings.keep_alive_s if keep_alive is None else keep_alive
        known = self._known[place.file.name]
        if succeeded and known.loaded is place:
            known.failures = 0
        self._dispatch()

    def _dispatch(self) -> None:
        """Do all that the state allows: load, evict, reload, grant, expire; called after every change."""
        if not self._closing:
            waiting = sorted((known for known in self._known.values() if known.queue), key=_oldest)
            blocked = self._load_those_waiting(waiting)
            for known in waiting:
                self._grant(known, blocked)
            self._expire()
        self._notify()

    def _load_those_waiting(self, waiting: list[Known]) -> int | None:
        """Start loading what fits, oldest first; return the number of the request that waits for memory, if any."""
        now = asyncio.get_running_loop().time()
        for known in waiting:
            place = known.loaded
            head = known.queue.peek()
            assert head is not None
            if place is not None and place.is_idle and not known.serves(head.extent):
                self._background(self._stop(place, "reloaded"))
            if place is not None or now < known.not_before or self._is_leaving(known):
                continue
            size = self._sizes.get((known.file.identity, *known.queue.extent))
            if size is None:  # nobody asked for just this, or the file changed while requests for it wait
                unknown = Size(extent=head.extent, parallel=1, size_bytes=known.file.size_bytes)
                size = self._sizes.get((known.file.identity, *head.extent), unknown)
            if not self._make_room(size.size_bytes, known):
                return _oldest(known)
            self._load(known, size)
        return None

    def _is_leaving(self, known: Known) -> bool:
        return any(place.stopping and place.file.name == known.file.name for place in self._places)

    def _make_room(self, need: int, wanting: Known) -> bool:
        """Return whether there is room for a model; where idle models are in its way, begin to evict them."""
        taken = sum(place.size_bytes for place in self._places)
        leaving = sum(place.size_bytes for place in self._places if place.stopping)
        missing = taken + need - self.limit_bytes
        if missing <= 0:
            return True
        missing -= leaving
        idle = [place for place in self._places if place.is_idle and not self._wanted_before(place, wanting)]
        if missing > sum(place.size_bytes for place in idle):
            return False
        for place in sorted(idle, key=lambda p: (p.expires, p.last_used)):
            if missing <= 0:
                break
            missing -= place.size_bytes
            self._background(self._stop(place, "evicted"))
        return False

    def _wanted_before(self, place: Loaded, wanting: Known) -> bool:
        known = self._known[place.file.name]
        return bool(known.queue) and _oldest(known) < _oldest(wanting)

    def _grant(self, known: Known, blocked: int | None) -> None:
        """Give the slots of a model's worker to those who wait, as far as nobody older waits for its memory."""
        place = known.loaded
        while place is not None and place.worker is not None and place.worker.alive and not place.stopping:
            ticket = known.queue.peek()
            if ticket is None or place.in_use >= place.size.parallel or not known.serves(ticket.extent):
                return
            if blocked is not None and ticket.number > blocked:
                return
            known.queue.pop()
            if not ticket.granted.done():
                place.in_use += 1
                ticket.granted.set_result(place)

    def _expire(self) -> None:
        """Stop idle models whose time has come, and come back when the next one's does."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for place in list(self._places):
            known = self._known[place.file.name]
            if place.is_idle and place.expires <= now and not known.queue:
                self._background(self._stop(place, "expired"))
        times = [place.expires for place in self._places if place.is_idle]
        times += [known.not_before for known in self._known.values() if known.queue and known.not_before > now]
        if self._timer is not None:
            self._timer.cancel()
        soonest = min((t for t in times if t > now), default=math.inf)
        self._timer = loop.call_at(soonest, self._dispatch) if soonest < math.inf else None

    def _load(self, known: Known, size: Size) -> None:
        place = Loaded(file=known.file, size=size, keep_alive_s=self.settings.keep_alive_s)
        known.loaded = place
        self._places.add(place)
        task = self._background(self._run(known, place))
        place.tasks.add(task)

    async def _run(self, known: Known, place: Loaded) -> None:
        """Load a model, then watch over its worker until it ends."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            worker = await self._start(place.file, place.size)
        except (KvantError, OSError) as error:
            self._forget(known, place)
            self._failed(known)
            reason = error if isinstance(error, WorkerError) else WorkerError(str(error), name=place.file.name)
            reason.retry_after_s = max(1.0, known.not_before - loop.time())
            _refuse(known.queue, reason)
            self._tell(place, "load_failed")
            self._dispatch()
            return
        except asyncio.CancelledError:
            self._forget(known, place)
            raise
        place.worker, place.load_s, place.last_used = worker, loop.time() - begun, loop.time()
        log.info("model loaded", extra={"fields": _told(place)})
        if self.observer:
            self.observer.loaded(place.file.name, place.load_s, place.size_bytes)
        self._dispatch()
        await self._watch(worker)
        self._forget(known, place)
        if not place.stopping and not self._closing:
            self._failed(known)
            self._tell(place, "crashed")
        self._dispatch()

    async def _watch(self, worker: Worker) -> None:
        """Wait for a worker's end; one that does not answer is ended."""
        ended = asyncio.ensure_future(worker.wait())
        try:
            while not (await asyncio.wait([ended], timeout=HEALTH_EVERY_S))[0]:
                if not await worker.healthy() and worker.alive:
                    worker.kill()
        finally:
            ended.cancel()

    def _forget(self, known: Known, place: Loaded) -> None:
        self._places.discard(place)
        if known.loaded is place:
            known.loaded = None

    def _failed(self, known: Known) -> None:
        """Count a failure; the first restart is at once, every further one waits twice as long."""
        wait_s = 0.0 if known.failures == 0 else min(BACKOFF_MOST_S, BACKOFF_S * 2.0 ** min(known.failures - 1, 16))
        known.failures += 1
        known.not_before = asyncio.get_running_loop().time() + wait_s

    async def _stop(self, place: Loaded, why: str) -> None:
        if place.stopping or place.worker is None:
            return
        place.stopping = True
        known = self._known[place.file.name]
        if known.loaded is place:
            known.loaded = None
        self._tell(place, why)
        await place.worker.stop()
        self._places.discard(place)
        self._dispatch()

    def _tell(self, place: Loaded, kind: str) -> None:
        if self.observer:
            self.observer.event(place.file.name, kind)

    def _notify(self) -> None:
        for condition, future in self._waits:
            if not future.done() and condition():
                future.set_result(None)

    def _background(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start_process(self, file: ModelFile, size: Size) -> Worker:
        message = start_message(file, size, self.settings)
        return await start_worker(message, timeout_s=self.settings.load_timeout_s)


def batch_for(n_tokens: int) -> int:
    """Return the batch that a text of so many tokens gets: in powers of two: few sizes, few reloads."""
    return 0 if n_tokens <= BATCH_TOKENS else 1 << (n_tokens - 1).bit_length()


def _oldest(known: Known) -> int:
    number = known.queue.oldest
    assert number is not None
    return number


def _told(place: Loaded) -> dict[str, object]:
    """What the log says of a model that was loaded."""
    size = place.size
    return {
        "model": place.file.name, "context": size.extent.context, "trained": place.file.facts.context_length,
        "parallel": size.parallel, "predicted_mb": size.size_bytes // 1_000_000, "seconds": round(place.load_s, 2),
    }  # fmt: skip


def _left(place: Loaded, now: float) -> float:
    """Seconds until a model may go."""
    return place.keep_alive_s if place.in_use else max(0.0, place.expires - now)


def _refuse(queue: FairQueue[Loaded], error: KvantError) -> None:
    for ticket in queue.drain():
        if not ticket.granted.done():
            ticket.granted.set_exception(error)
