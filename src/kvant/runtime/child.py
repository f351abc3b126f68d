"""A confined process that is asked over pipes, from its owner's side: whatever it does, limits of time and size hold.

A child may write half an answer and stop, close its end and live on, or not read what it is sent. So every wait has an
end, whole messages and not their first bytes are waited for, and a child that is done with is killed.
"""

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from kvant.runtime.sandbox import spawn
from kvant.runtime.sandbox.policy import Policy

STDERR_TAIL_BYTES = 2000
PART_BYTES = 1 << 20
GRACE_S = 1.0
"""Seconds that a child which has closed its answers gets to end by itself, so that its own status can be told."""


class Reader:
    """A pipe's bytes until a moment; nothing is read ahead.

    Args:
        descriptor: The pipe's end.
        timeout_s: Seconds from now that all reading together may take.
    """

    def __init__(self, descriptor: int, timeout_s: float) -> None:
        self._descriptor, self._until = descriptor, time.monotonic() + timeout_s
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def read(self, size: int) -> bytes:
        """Return at most so many bytes, as soon as there are any; none at the end.

        Raises:
            TimeoutError: There are none in time.
        """
        if not self._poll.poll(_left_ms(self._until)):
            raise TimeoutError
        return os.read(self._descriptor, min(size, PART_BYTES))

    def rest(self, limit: int, *, line: bool = False) -> bytes | None:
        """Return what comes until the end, or until a line's; None for more than a limit.

        Raises:
            TimeoutError: The end is not there in time.
        """
        parts, size = [], 0
        while part := self.read(PART_BYTES):
            parts.append(part)
            size += len(part)
            if size > limit:
                return None
            if line and part.endswith(b"\n"):
                break
        return b"".join(parts)


class Child:
    """A process with pipes for what it is asked and answers; what it says on standard error is kept for a crash.

    Args:
        policy: What it may do.
        words: What it runs: `-m` and a module, or a script; then its arguments.
        python: The interpreter, of whatever environment.
        isolated: Leave out what the user has installed for themselves.
        environment: What it finds in its environment beside what every engine does.
        shared: Descriptors that it is given.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self, policy: Policy, *words: str, python: str = sys.executable, isolated: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}), shared: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(  # noqa: S603
                spawn.command(policy, *words, python=python, isolated=isolated), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self._stderr, pass_fds=shared, env=spawn.environment(**environment),
                start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError:
            self._stderr.close()
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self.stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def send(self, data: bytes, timeout_s: float) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: The child reads no more.
            TimeoutError: It does not read it in time.
        """
        until = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._stdin.fileno(), select.POLLOUT)
        rest = memoryview(data)
        while rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._stdin.fileno(), rest[:PART_BYTES]) :]
                continue
            if not poll.poll(_left_ms(until)):
                raise TimeoutError

    def end_requests(self) -> None:
        """Close what it is asked over: nothing more will come."""
        self._stdin.close()

    def reader(self, timeout_s: float) -> Reader:
        """Return what reads its next answer."""
        return Reader(self.stdout.fileno(), timeout_s)

    def status(self) -> int:
        """Return how it ended, negative for a signal; it is killed where it does not end."""
        try:
            return self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def said(self) -> list[str]:
        """Return the last lines that it wrote on standard error."""
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - STDERR_TAIL_BYTES))
        lines = self._stderr.read().decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def kill(self) -> None:
        """End it at once; what it said can still be read."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it at once, and let go of its pipes."""
        self.kill()
        self._stdin.close()
        self.stdout.close()
        self._stderr.close()


class Done(NamedTuple):
    """What a child that was asked once came to.

    Attributes:
        status: How it ended; negative for a signal.
        answer: What it answered; None if that was more than the limit, for which it was ended.
        said: Its last lines on standard error.
    """

    status: int
    answer: bytes | None
    said: list[str]


def ask_once(child: Child, request: bytes, *, timeout_s: float, limit: int) -> Done:
    """Send a process all it needs, and return all it answers before it ends; it is closed then.

    Args:
        child: The process.
        request: What it reads.
        timeout_s: Seconds for all of it.
        limit: Most bytes that it may answer.

    Raises:
        TimeoutError: It takes longer.
    """
    until = time.monotonic() + timeout_s
    try:
        with contextlib.suppress(BrokenPipeError):  # one that fails at once; its status says how
            child.send(request, timeout_s)
        child.end_requests()
        answer = child.reader(until - time.monotonic()).rest(limit)
        if answer is None:
            child.kill()
        return Done(child.status(), answer, child.said())
    finally:
        child.close()


def _left_ms(until: float) -> float:
    return max(0.0, until - time.monotonic()) * 1000
