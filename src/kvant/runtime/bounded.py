"""Work on what others wrote, done in processes with limits: templates rendered, grammars tried, pictures unpacked.

Parsers recurse, and what they make can be as large as they like: here a stack that overflows, a text that doubles
without end or a loop that never does ends a small process and is one request's error. A process is started when it is
first needed, kept for the next request, and replaced when it was ended.
"""

import contextlib
import select
import subprocess
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import msgspec

from kvant.errors import EngineError, LimitError
from kvant.runtime import messages
from kvant.runtime.sandbox import spawn
from kvant.runtime.sandbox.policy import Policy
from kvant.units import format_bytes

CPU_SECONDS = 2
WALL_SECONDS = 30
MEMORY_BYTES = 1 << 30
PROCESSES = 2
OPEN_FILES = 64


class Render(msgspec.Struct, tag=True, frozen=True):
    """Render a chat template."""

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


class Inflate(msgspec.Struct, tag=True, frozen=True):
    """Tell whether a PNG's pixels unpack to no more than they may.

    Attributes:
        data: The PNG.
        most: Bytes.
    """

    data: bytes
    most: int


class Text(msgspec.Struct, tag=True, frozen=True):
    """What a template made."""

    text: str


class Tried(msgspec.Struct, tag=True, frozen=True):
    """Why a grammar cannot be followed; None where it can."""

    error: str | None


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Why a template makes nothing, or a picture is none."""

    reason: str


Request = Render | Try | Inflate
Reply = Text | Tried | Refused


class Bounded:
    """Does such work; `ask` is safe to use from several threads, each of which waits for its answer.

    Args:
        cpu_s: Seconds of processor time that one request may take.
        memory_bytes: Address space of a process.
        n: Most processes at a time.
    """

    def __init__(self, *, cpu_s: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES, n: int = PROCESSES) -> None:
        self._cpu_s, self._memory_bytes = cpu_s, memory_bytes
        self._free = n
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._change = threading.Condition()
        self._closed = False

    def ask(self, request: Request, subject: str) -> Reply:
        """Have something done.

        Args:
            request: What.
            subject: What an error begins with: the field that its work is about.

        Raises:
            LimitError: It takes more time, memory or depth than it may.
            EngineError: It was closed.
        """
        with self._process() as process:
            reply = process.ask(request)
        if reply is None:
            if self._closed:
                raise _ending()
            raise LimitError(
                f"{subject}: takes over {self._cpu_s} s, {format_bytes(self._memory_bytes)} or the depth of the stack. "
                "Send a simpler one."
            )
        return reply

    def close(self) -> None:
        """End all processes; those that work too, whose requests then fail, as do those that wait."""
        with self._change:
            self._closed = True
            for process in self._all:
                process.kill()
            while self._idle:
                self._end(self._idle.pop())
            self._change.notify_all()

    @contextlib.contextmanager
    def _process(self) -> Iterator["_Process"]:
        """Hold a process; one that was ended, or outlives its owner, is not given back."""
        with self._change:
            self._change.wait_for(lambda: self._closed or self._free)
            if self._closed:
                raise _ending()
            process = self._idle.pop() if self._idle else _Process(self._cpu_s, self._memory_bytes)
            self._all.add(process)
            self._free -= 1
        try:
            yield process
        finally:
            with self._change:
                self._free += 1
                if self._closed or not process.alive:
                    self._end(process)
                else:
                    self._idle.append(process)
                self._change.notify()

    def _end(self, process: "_Process") -> None:
        process.close()
        self._all.discard(process)


def _ending() -> EngineError:
    return EngineError("kvant: is shutting down. Try again later.")


class _Process:
    """One such process, from its owner's side."""

    def __init__(self, cpu_s: int, memory_bytes: int) -> None:
        # Threads that ask come and go: what they start must not end with them, as `spawn.owner` explains.
        policy = Policy(address_space_bytes=memory_bytes, open_files=OPEN_FILES, parent=spawn.owner())
        self._child = subprocess.Popen(  # noqa: S603
            spawn.command(policy, "-m", "kvant.runtime.bounded_worker", str(cpu_s)), stdin=subprocess.PIPE,
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
