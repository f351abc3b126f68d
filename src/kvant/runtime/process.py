"""The engine in a process of its own, seen from its owner: the same calls, and a crash is an error."""

import mmap
import os
import select
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, ClassVar, Self, TypeVar, cast

import msgspec
import numpy as np

from kvant.errors import EngineError, ValueRangeError
from kvant.runtime import messages

ReplyT = TypeVar("ReplyT")
STDERR_TAIL_BYTES = 2000
SLOTS = 2


class EngineProcess:
    """llama.cpp in a child process; use it as a context manager. Leaving it kills the child.

    Args:
        memory_limit_bytes: Address space the child may have; by default the machine's memory plus 64 GiB, since mapped
            files count too.
        timeout_s: Seconds that one request may take.
    """

    MODULE: ClassVar[str] = "kvant.runtime.worker"
    """What runs in the child."""

    REPLIES: ClassVar[Any] = messages.Reply
    """What it may answer."""

    def __init__(self, *, memory_limit_bytes: int | None = None, timeout_s: float = 900.0) -> None:
        self._timeout_s = timeout_s
        self._stderr = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115
        self._shared_file = _anonymous_file()
        self._shared: mmap.mmap | None = None
        self.path = ""
        self.opened: messages.Opened | None = None
        fd = self._shared_file.fileno()
        limit = memory_limit_bytes or _machine_bytes() + (64 << 30)
        self._child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", self.MODULE, str(fd), str(limit)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, pass_fds=(fd,),
        )  # fmt: skip

    def open(
        self, path: Path, *, n_ctx: int, n_threads: int, all_logits: bool = False, repack: bool = True,
        vocab_only: bool = False, n_seq: int = 1, spinning: bool | None = None,
    ) -> messages.Opened:  # fmt: skip
        """Load a model in place of the one that was open.

        Raises:
            EngineError: llama.cpp cannot load it, or crashed over it.
        """
        self.path = str(path)
        request = messages.Open(str(path), n_ctx, n_threads, all_logits, repack, vocab_only, n_seq, spinning)
        self.opened = self._ask(request, messages.Opened)
        return self.opened

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray:
        """Return token ids, int32 [n]; see `LlamaCpp.tokenize`."""
        reply = self._ask(messages.Tokenize(text, add_special, parse_special), messages.Tokens)
        return np.frombuffer(reply.ids, "<i4")

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits of the token after a text, float32 [n_vocab]; a start the context holds is not read again."""
        assert self.opened is not None, "open comes first"
        self._reserve(self.opened.n_vocab * 4 * SLOTS)
        self._send(messages.Next(np.asarray(tokens, "<i4").tobytes()))
        row: np.ndarray = self._receive_rows(0, self.opened.n_vocab)[0]
        return row

    def extend(self, parts: Sequence[Sequence[int]]) -> np.ndarray:
        """Append tokens to sequences side by side; see `LlamaCpp.extend`."""
        assert self.opened is not None, "open comes first"
        grown = sum(map(bool, parts))
        self._reserve(self.opened.n_vocab * 4 * max(grown, SLOTS))
        self._send(messages.Extend([np.asarray(part, "<i4").tobytes() for part in parts]))
        return self._receive_rows(0, self.opened.n_vocab)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes that tokens stand for; a special token stands for none."""
        return self._ask(messages.Pieces([int(i) for i in ids]), messages.Bytes).pieces

    def ends(self) -> frozenset[int]:
        """Return the tokens that end an answer."""
        return frozenset(np.frombuffer(self._ask(messages.Ends(), messages.Tokens).ids, "<i4").tolist())

    def logits(self, windows: Iterable[np.ndarray], *, first: int) -> Iterator[np.ndarray]:
        """Run windows one after the other; while a caller works on one, the engine runs the next.

        Args:
            windows: Token ids, int32 [n] each, all of the same length.
            first: Position of the first logits wanted of each.

        Yields:
            Logits, float32 [n - first, n_vocab]; the view is valid until the next one is asked for.
        """
        assert self.opened is not None, "open comes first"
        waiting: deque[int] = deque()
        n_vocab = self.opened.n_vocab
        slot_bytes = 0
        for index, window in enumerate(windows):
            if index == 0:
                slot_bytes = (len(window) - first) * n_vocab * 4
                self._reserve(slot_bytes * SLOTS)
            offset = index % SLOTS * slot_bytes
            self._send(messages.Logits(window.astype("<i4").tobytes(), first, offset))
            waiting.append(offset)
            if len(waiting) == SLOTS:
                yield self._receive_rows(waiting.popleft(), n_vocab)
        while waiting:
            yield self._receive_rows(waiting.popleft(), n_vocab)

    def speed(self, *, n_prompt: int, n_generate: int, repeats: int) -> messages.Measured:
        """Measure tokens per second, peak memory and energy of the open model."""
        return self._ask(messages.Speed(n_prompt, n_generate, repeats), messages.Measured)

    def close(self) -> None:
        """End the child at once."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._stderr, self._shared_file):
            if stream is not None:
                _close_quietly(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reserve(self, size: int) -> None:
        if self._shared is None or len(self._shared) < size:
            os.ftruncate(self._shared_file.fileno(), size)
            self._shared = mmap.mmap(self._shared_file.fileno(), size)

    def _receive_rows(self, offset: int, n_vocab: int) -> np.ndarray:
        rows = self._receive(messages.Wrote).rows
        assert self._shared is not None
        return np.frombuffer(self._shared, np.float32, count=rows * n_vocab, offset=offset).reshape(rows, n_vocab)

    def _ask(self, request: msgspec.Struct, kind: type[ReplyT]) -> ReplyT:
        self._send(request)
        return self._receive(kind)

    def _send(self, request: msgspec.Struct) -> None:
        assert self._child.stdin is not None
        try:
            messages.write(cast("BinaryIO", self._child.stdin), request)
        except BrokenPipeError:
            raise self._crash() from None

    def _receive(self, kind: type[ReplyT]) -> ReplyT:
        stdout = self._child.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], self._timeout_s)[0]:
            raise EngineError(f"{self.path}: no answer within {self._timeout_s:.0f} s. Use a smaller context or model.")
        body = messages.read_body(cast("BinaryIO", stdout))
        if body is None:
            raise self._crash()
        reply = msgspec.msgpack.decode(body, type=self.REPLIES)
        if isinstance(reply, messages.Failed):
            raise (ValueRangeError if reply.value_error else EngineError)(reply.message)
        assert isinstance(reply, kind), f"{reply} is not a {kind.__name__}"
        return reply

    def _crash(self) -> EngineError:
        """Return the error that says how the child ended and what it said last."""
        status = self._child.wait(timeout=10)
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - STDERR_TAIL_BYTES))
        lines = [line.strip() for line in self._stderr.read().decode("utf-8", "replace").splitlines() if line.strip()]
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        said = " | ".join(lines[-3:]) or "it said nothing"
        return EngineError(f"{self.path}: the engine's process {how} ({said}). Check the file with: kvant inspect")


def _close_quietly(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:  # unsent bytes to a child that is gone
        return


def _anonymous_file() -> BinaryIO:
    """Return a file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("kvant-logits"), "r+b")
    return cast("BinaryIO", tempfile.TemporaryFile())


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
