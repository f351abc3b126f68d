"""Work on what clients wrote, done outside the gateway: templates rendered, grammars tried, in processes with limits.

Parsers recurse, and what they make can be as large as they like: here a stack that overflows, a text that doubles
without end or a loop that never does ends a small process and is one client's error. A process is started when it is
first needed, kept for the next request, and replaced when it was ended.
"""

import contextlib
import queue
import select
import subprocess
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeVar, cast

import msgspec

from kvant.errors import EngineError, LimitError
from kvant.runtime import messages
from kvant.runtime.sandbox import spawn
from kvant.runtime.sandbox.policy import Policy

CPU_SECONDS = 2
WALL_SECONDS = 30
MEMORY_BYTES = 1 << 30
PROCESSES = 2
OPEN_FILES = 64
ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)


class Render(msgspec.Struct, tag=True, frozen=True):
    """Render a chat template; see `api/templates.py`."""

    template: str
    values: dict[str, Any]


class Try(msgspec.Struct, tag=True, frozen=True):
    """Tell whether the engine could follow a grammar.

    Attributes:
        grammar: In the language of llguidance or in GBNF.
        language: `lark` or `gbnf`.
    """

    grammar: str
    language: str


class Text(msgspec.Struct, tag=True, frozen=True):
    """What a template made."""

    text: str


class Tried(msgspec.Struct, tag=True, frozen=True):
    """Why a grammar cannot be followed; None where it can."""

    error: str | None


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Why a template makes nothing."""

    reason: str


Request = Render | Try
Reply = Text | Tried | Refused


class Bounded:
    """Does such work; safe to use from several threads, each of which waits for its answer.

    Args:
        cpu_s: Seconds of processor time that one request may take.
        memory_bytes: Address space of a process.
        n: Most processes at a time.
    """

    def __init__(self, *, cpu_s: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES, n: int = PROCESSES) -> None:
        self._cpu_s, self._memory_bytes = cpu_s, memory_bytes
        self._idle: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(n):
            self._idle.put(None)
        self._all: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, request: Request, subject: str) -> Reply:
        """Have something done.

        Args:
            request: What.
            subject: What an error begins with: the field that its work is about.

        Raises:
            LimitError: It takes more time, memory or depth than it may.
        """
        with self._process() as process:
            reply = process.ask(request)
        if reply is None:
            raise LimitError(
                f"{subject}: takes over {self._cpu_s} s, {MEMORY_BYTES >> 20} MiB or the depth of the stack. "
                "Send a simpler one."
            )
        return reply

    def close(self) -> None:
        """End all processes; those that work too, whose requests then fail."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
        with contextlib.suppress(queue.Empty):
            while True:
                idle = self._idle.get_nowait()
                if idle is not None:
                    idle.close()

    @contextlib.contextmanager
    def _process(self) -> Iterator["_Process"]:
        """Hold a process; one that was ended is not given back."""
        if self._closed:
            raise EngineError("gateway: is shutting down. Try again later.")
        process = self._idle.get()
        try:
            if process is None:
                with self._lock:
                    process = _Process(self._cpu_s, self._memory_bytes)
                    self._all.add(process)
            yield process
        finally:
            if process is not None and not process.alive:
                process.close()
                with self._lock:
                    self._all.discard(process)
                process = None
            self._idle.put(process)


class _Process:
    """One such process, from its owner's side."""

    def __init__(self, cpu_s: int, memory_bytes: int) -> None:
        # Threads that ask come and go: what they start must not end with them, as `spawn.owner` explains.
        policy = Policy(address_space_bytes=memory_bytes, open_files=OPEN_FILES, parent=spawn.owner())
        self._child = subprocess.Popen(  # noqa: S603
            spawn.command(policy, "-m", "kvant.serve.bounded_worker", str(cpu_s)), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=spawn.environment(), start_new_session=True,
        )  # fmt: skip
        self._killed = False

    @property
    def alive(self) -> bool:
        return not self._killed and self._child.poll() is None

    def ask(self, request: Request) -> Reply | None:
        """Return the answer; None where the process ended over it, or was ended."""
        stdin, stdout = cast("BinaryIO", self._child.stdin), cast("BinaryIO", self._child.stdout)
        body = None
        try:
            messages.write(stdin, request)
            if select.select([stdout], [], [], WALL_SECONDS)[0]:
                body = messages.read_body(stdout)
        except (BrokenPipeError, EngineError):
            body = None
        if body is None:
            self.kill()
            return None
        return msgspec.msgpack.decode(body, type=Reply)

    def kill(self) -> None:
        self._killed = True
        self._child.kill()

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
