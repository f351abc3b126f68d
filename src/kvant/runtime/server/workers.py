"""One engine process per loaded model: started, watched, asked, stopped."""

import asyncio
import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from kvant.errors import EngineReplyError, WorkerError
from kvant.formats.gguf.reader import files_of
from kvant.runtime.sandbox import spawn
from kvant.runtime.server.loopback import EVENT_BYTES, Exchange, LoopbackError, decoded
from kvant.runtime.server.start import ENGINES, Ready, Start

LOG_LINES, LOG_LINE_CHARS = 200, 500
KILL_AFTER_S = 5.0
HEALTH_TIMEOUT_S = 30.0
STALL_S = 900.0
"""Longest turn of an engine's loop, which reads up to 2,048 tokens of a prompt: at 2.3 a second on a slow machine."""

ABANDONED_S = 30.0
"""The same for a turn that nobody waits for, or four times the longest that ended by itself, if that is more."""

SENT_S = 1.0
"""A request that is sent so long after a look at the loop may still be part of the turn that was looked at."""

TEMPLATE_S = 15.0
"""Seconds that the engine may try a model's chat template: it takes a fraction of one, or does not end."""

TEMPLATE_NEXT = "initializing, n_slots"
"""What the engine logs when weights and memory are there and the chat template is next; seen in its log."""

# Threads that wait for each other spin for microseconds, then sleep: workers share the cores, and OpenMP's default of
# milliseconds makes every other worker wait (with ten busy processes on two cores: 2 instead of 5 tokens a second).
GIVEN = {"GOMP_SPINCOUNT": "1000", "MALLOC_ARENA_MAX": "4"}
OWN_WORDS = "kvant-engine:"
"""What the engine's process begins its own last words with."""

FATAL = ("GGML_ASSERT", "terminate called", "out of memory", "bad_alloc", "Segmentation")
MAX_SOCKET_BYTES = 100  # the kernel's own limit for the path of a Unix socket is 108


class Worker(Protocol):
    """A loaded model that can be asked; the paths and bodies are those of llama.cpp's server."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def context(self) -> int:
        """Tokens of context of one request."""
        ...

    @property
    def template(self) -> str | None:
        """Chat template it uses in place of the file's own."""
        ...

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        ...

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Ask, and return the status and the whole answer, whatever the status.

        Raises:
            WorkerError: The engine crashed.
        """
        ...

    def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """Ask, and yield the payload of every `data:` line as it comes; closing the iterator stops the engine.

        Raises:
            EngineReplyError: The engine refused the request.
            WorkerError: The engine crashed.
        """
        ...

    async def get(self, path: str) -> tuple[int, bytes]:
        """Fetch something, and return the status and the body.

        Raises:
            WorkerError: The engine crashed.
        """
        ...

    async def healthy(self) -> bool:
        """Whether it answers."""
        ...

    async def stop(self) -> None:
        """End the process and wait until it has gone."""
        ...

    def kill(self) -> None:
        """End the process at once."""
        ...

    async def wait(self) -> None:
        """Wait until the process has ended, for whatever reason."""
        ...


class WorkerProcess:
    """A `Worker` that is a child process; `start_worker` makes one.

    Attributes:
        confined: What keeps the process in.
    """

    def __init__(self, process: asyncio.subprocess.Process, start: Start) -> None:
        self._process, self._start = process, start
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._address: str | int = 0
        self._stopping = False
        self._turn: asyncio.Task[None] | None = None
        self._turn_began = self._longest_turn_s = 0.0
        self._open: dict[object, float] = {}  # requests somebody waits for, and when they were sent
        self._given_up = ""
        self._template_next = asyncio.Event()
        self._took_template = False
        self.confined: tuple[str, ...] = ()
        self._reader = asyncio.create_task(self._read_log())

    @property
    def name(self) -> str:
        """The model's name."""
        return self._start.name

    @property
    def context(self) -> int:
        """Tokens of context of one request."""
        return self._start.context

    @property
    def template(self) -> str | None:
        """Chat template it uses in place of the file's own."""
        return self._start.template if self._took_template else None

    @property
    def alive(self) -> bool:
        """Whether its process runs and nobody asked it to end."""
        return self._process.returncode is None and not self._stopping

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> list[str]:
        """The last lines the engine wrote."""
        return list(self._log)

    async def ready(self, timeout_s: float) -> None:
        """Send the start message and wait until the engine listens.

        Raises:
            WorkerError: It could not load the model, with its own words, or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(self._start) + b"\n")
            await self._process.stdin.drain()
            line = await self._first_line(timeout_s)
            told = msgspec.json.decode(line, type=Ready)
        except TimeoutError:
            raise WorkerError(
                f"model {self.name!r}: was not loaded within {timeout_s:.0f} s. Use a smaller one or a faster disk.",
                name=self.name, retry_after_s=30,
            ) from None  # fmt: skip
        except (OSError, msgspec.DecodeError):
            raise await self._failed("could not be loaded", _telling) from None
        if not self._is_own(told.address):
            self.kill()
            raise await self._failed(f"says it listens on {str(told.address)[:80]!r}, which is not its own", _fatal)
        self._address, self.confined, self._took_template = told.address, told.confined, told.template

    def _is_own(self, address: str | int) -> bool:
        """Whether a worker may listen there: it must not lead its owner to somebody else's socket."""
        own = self._start.socket
        return isinstance(address, int) if not own else Path(str(address)).parent == Path(own).parent

    async def _first_line(self, timeout_s: float) -> bytes:
        """Return the first line of its standard output; a template that does not end is not waited for.

        Raises:
            TimeoutError: None came in time.
            WorkerError: It is stuck in the chat template.
        """
        assert self._process.stdout is not None

        async def stuck() -> None:
            await self._template_next.wait()
            await asyncio.sleep(TEMPLATE_S)

        line, watch = asyncio.ensure_future(self._process.stdout.readline()), asyncio.ensure_future(stuck())
        try:
            await asyncio.wait({line, watch}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if line.done():
                return line.result()
            if watch.done():
                raise WorkerError(
                    f"model {self.name!r}: its chat template does not end within {TEMPLATE_S:.0f} s. Give the model "
                    "another one: a Modelfile with FROM and TEMPLATE, and kvant create.",
                    name=self.name,
                )
            raise TimeoutError
        finally:
            line.cancel()
            watch.cancel()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """See `Worker.post`."""
        try:
            with self._awaited():
                async with self._exchange("POST", path, body) as exchange:
                    return exchange.status, decoded(await exchange.body())
        except LoopbackError as error:
            raise await self._crashed(error) from error

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """See `Worker.stream`."""
        try:
            with self._awaited():
                async with self._exchange("POST", path, body) as exchange:
                    if exchange.status != 200:
                        raise EngineReplyError(exchange.status, decoded(await exchange.body(EVENT_BYTES)))
                    async with contextlib.aclosing(exchange.events()) as events:  # type: ignore[type-var]
                        async for payload in events:
                            yield payload
        except LoopbackError as error:
            raise await self._crashed(error) from error

    async def get(self, path: str) -> tuple[int, bytes]:
        """See `Worker.get`."""
        try:
            async with self._exchange("GET", path) as exchange:
                return exchange.status, await exchange.body()
        except LoopbackError as error:
            raise await self._crashed(error) from error

    async def healthy(self) -> bool:
        """Whether the engine's server answers, within `HEALTH_TIMEOUT_S`, and its loop turns, within `STALL_S`.

        A turn that nobody waits for any more may take `ABANDONED_S`: everyone whose request it can be about has left.

        `/health` is answered beside the loop; `/slots` by it, between two turns: one that is held by a grammar, or by a
        request whose client has left, is seen by that alone.
        """
        clock = asyncio.get_running_loop().time
        if self._turn is None or self._turn.done():
            self._turn, self._turn_began = asyncio.create_task(self._turns()), clock()
        elif self._is_stuck(clock() - self._turn_began):
            return False
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                return (await self.get("/health"))[0] == 200
        except (TimeoutError, WorkerError):
            return False

    def _is_stuck(self, turn_s: float) -> bool:
        """Whether a turn of the engine's loop, so many seconds long by now, is to be its last."""
        is_awaited = any(sent <= self._turn_began + SENT_S for sent in self._open.values())
        limit_s = STALL_S if is_awaited else min(STALL_S, max(ABANDONED_S, 4 * self._longest_turn_s))
        if turn_s > limit_s:
            self._given_up = "nobody waited for what it did" if not is_awaited else "it answered nobody"
        return turn_s > limit_s

    @contextlib.contextmanager
    def _awaited(self) -> Iterator[None]:
        """Note that somebody waits for an answer."""
        request = object()
        self._open[request] = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            del self._open[request]

    async def _turns(self) -> None:
        """Wait until the engine's loop has turned."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        with contextlib.suppress(WorkerError):
            await self.get("/slots")
            self._longest_turn_s = max(self._longest_turn_s, clock() - begun)

    async def stop(self) -> None:
        """End the process: its standard input is closed, and it is killed where that does not help."""
        self._stopping = True
        if self._turn is not None:
            self._turn.cancel()
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), KILL_AFTER_S)
            except (TimeoutError, asyncio.CancelledError):
                self.kill()
                await self._process.wait()
        await self.wait()

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> None:
        """Wait until the process has ended and its last words are read."""
        await self._process.wait()
        await asyncio.wait([self._reader], timeout=1)
        _forget_socket(self._start.socket)

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None = None) -> Exchange:
        data = None if body is None else msgspec.json.encode(body)
        return Exchange(self._address, self._start.api_key, method, path, data)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than the reader's limit; what follows is read as lines of its own
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()[:LOG_LINE_CHARS]
            self._log.append(text)
            if TEMPLATE_NEXT in text:
                self._template_next.set()

    async def _crashed(self, error: LoopbackError) -> WorkerError:
        """Return the error for a request whose connection broke; a process that still runs then is given up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.wait()), 0.5)
        if self._process.returncode is None:
            self.kill()
            if str(error).startswith("sent "):  # too much
                return await self._failed(f"was ended, for it {error}", _fatal)
        ended = f"was ended, for it was stuck and {self._given_up}" if self._given_up else "crashed"
        return await self._failed(ended, _fatal)

    async def _failed(self, what: str, words: Callable[[list[str]], list[str]]) -> WorkerError:
        """Return the error that says how the process ended and those of its last words that everybody may read."""
        try:
            await asyncio.wait_for(self.wait(), KILL_AFTER_S)
        except TimeoutError:
            self.kill()
            await self.wait()
        code = self._process.returncode or 0
        how = f"signal {-code}" if code < 0 else f"status {code}"
        said = " | ".join(words(self.log)) or "it did not say why"
        return WorkerError(
            f"model {self.name!r}: the engine {what} ({how}: {said}). Try again, or check the file with: kvant inspect",
            name=self.name, was_waiting=self._given_up.startswith("nobody"),
        )  # fmt: skip


def _fatal(log: list[str]) -> list[str]:
    """The last lines about the engine itself: others may quote requests, which is no business of the next caller."""
    return [line for line in log if any(word in line for word in FATAL)][-3:]


def _telling(log: list[str]) -> list[str]:
    """The last lines that say what went wrong, without the engine's time stamps; else the last ones."""
    lines = [line.split(maxsplit=1)[-1] if line[:1].isdigit() else line for line in log if line.strip()]
    lines = [line[max(0, line.find(OWN_WORDS)) :] for line in lines]  # the engine's log may end in the middle of a line
    telling = [line for line in lines if line.startswith(("E ", OWN_WORDS)) or "error" in line.lower()]
    return (telling or lines)[-3:]


def environment() -> dict[str, str]:
    """Return what a worker finds in its environment."""
    return {**GIVEN, **spawn.environment()}


def _socket_path() -> str:
    """Return where a worker may listen: in a directory of its own, which nobody else may enter."""
    directory = tempfile.mkdtemp(prefix="kvant-")
    if len(os.fsencode(directory)) > MAX_SOCKET_BYTES:
        Path(directory).rmdir()
        directory = tempfile.mkdtemp(prefix="kvant-", dir="/tmp")
    return str(Path(directory) / ".sock")


def _forget_socket(path: str) -> None:
    """Remove a socket's directory, if there is one."""
    if path:
        shutil.rmtree(Path(path).parent, ignore_errors=True)


async def start_worker(
    start: Start,
    *,
    timeout_s: float,
    engine: str = "llamacpp",
    spawned: Callable[[WorkerProcess], object] | None = None,
) -> WorkerProcess:
    """Start an engine's process and wait until it has loaded its model.

    Args:
        start: What it is told; a key, its files, its socket and the owner's process id are filled in.
        timeout_s: Seconds that loading may take.
        engine: Its name in `ENGINES`.
        spawned: Told the worker as soon as its process runs.

    Raises:
        WorkerError: It could not load the model; nothing is left running.
    """
    opened = [file for path in (start.path, start.draft, start.projector) if path for file in files_of(Path(path))]
    address = _socket_path() if sys.platform == "linux" else ""
    start = msgspec.structs.replace(
        start, api_key=secrets.token_urlsafe(32), parent=spawn.owner(), files=tuple(map(str, opened)),
        socket=address,
    )  # fmt: skip
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", ENGINES[engine],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=environment(), start_new_session=True,
        )  # fmt: skip
    except BaseException:
        _forget_socket(address)
        raise
    worker = WorkerProcess(process, start)
    try:
        if spawned is not None:
            spawned(worker)
        await worker.ready(timeout_s)
    except BaseException:
        worker.kill()
        await worker.wait()
        raise
    return worker
