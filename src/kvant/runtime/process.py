"""The engine in a process of its own, seen from its owner: the same calls, and a crash is an error."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np

from kvant.documents import JSON_ERRORS
from kvant.errors import EngineError, ValueRangeError
from kvant.formats.gguf.reader import files_of
from kvant.runtime import messages
from kvant.runtime.child import Child
from kvant.runtime.owner import Owner
from kvant.runtime.sandbox import spawn
from kvant.runtime.sandbox.policy import Policy

ReplyT = TypeVar("ReplyT")
SLOTS = 2


class EngineProcess(Owner[messages.Opened]):
    """llama.cpp in a child process; use it as a context manager. Leaving it kills the child.

    The child is started for the model that is opened and can read nothing else; another model gets a child of its own.

    Args:
        memory_limit_bytes: Address space the child may have; by default the machine's memory plus 64 GiB, since mapped
            files count too.
        timeout_s: Seconds that one request may take.
        reads: Files and directories that it may read beside: for several models in one child.
        writes: Directories that it may write in, and read.
    """

    MODULE: ClassVar[str] = "kvant.runtime.worker"
    """What runs in the child."""

    REPLIES: ClassVar[Any] = messages.Reply
    """What it may answer."""

    FILE_BYTES: ClassVar[int] = 64 << 20
    """Most bytes of a file it writes; its words on standard error are one."""

    def __init__(
        self, *, memory_limit_bytes: int | None = None, timeout_s: float = 900.0, reads: Sequence[Path] = (),
        writes: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        super().__init__(timeout_s)
        self._memory_limit_bytes = memory_limit_bytes or spawn.address_space_bytes()
        self._reads, self._writes = tuple(reads), tuple(writes)
        self._roots: tuple[Path, ...] = ()

    @staticmethod
    def files(path: Path) -> Sequence[Path]:
        """Return the files and directories that opening a path reads."""
        return files_of(path)

    def open(
        self, path: Path, *, n_ctx: int, n_threads: int, all_logits: bool = False, repack: bool = True,
        vocab_only: bool = False, n_seq: int = 1, spinning: bool | None = None, embeddings: bool = False,
        weightless: bool = False, ranking: bool = False, is_observed: bool = False,
    ) -> messages.Opened:  # fmt: skip
        """Load a model in place of the one that was open.

        Raises:
            EngineError: llama.cpp cannot load it, or crashed over it.
        """
        self._start(path)
        request = messages.Open(
            str(path), n_ctx, n_threads, all_logits, repack, vocab_only, n_seq, spinning, embeddings, weightless,
            ranking, is_observed,
        )  # fmt: skip
        self.opened = self._ask(request, messages.Opened)
        return self.opened

    def open_projector(self, path: Path) -> messages.Senses:
        """Have the engine load a projector but for its weights' values; nothing of it is kept.

        Raises:
            EngineError: llama.cpp cannot load it, or crashed over it.
        """
        self._start(path)
        return self._ask(messages.OpenProjector(str(path)), messages.Senses)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray:
        """Return token ids, int32 [n]; see `LlamaCpp.tokenize`."""
        reply = self._ask(messages.Tokenize(text, add_special, parse_special), messages.Tokens)
        return np.frombuffer(reply.ids, "<i4")

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits of the token after a text, float32 [n_vocab]; a start the context holds is not read again."""
        assert self.opened is not None, "open comes first"
        self._shared.reserve(self.opened.n_vocab * 4 * SLOTS)
        self._send(messages.Next(np.asarray(tokens, "<i4").tobytes()))
        row: np.ndarray = self._receive_rows(0, self.opened.n_vocab)[0]
        return row

    def extend(self, parts: Sequence[Sequence[int]]) -> np.ndarray:
        """Append tokens to sequences side by side; see `LlamaCpp.extend`."""
        assert self.opened is not None, "open comes first"
        grown = sum(map(bool, parts))
        self._shared.reserve(self.opened.n_vocab * 4 * max(grown, SLOTS))
        self._send(messages.Extend([np.asarray(part, "<i4").tobytes() for part in parts]))
        return self._receive_rows(0, self.opened.n_vocab)

    def embed(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the vector of a text, float32 [width]; see `LlamaCpp.embed`."""
        reply = self._ask(messages.Embed(np.asarray(tokens, "<i4").tobytes()), messages.Vector)
        return np.frombuffer(reply.values, "<f4")

    def rank(self, query: str, document: str) -> np.ndarray:
        """Return the scores of a pair, float32 [labels]; opened with `ranking`, see `LlamaCpp.pair_tokens`."""
        return np.frombuffer(self._ask(messages.Rank(query, document), messages.Vector).values, "<f4")

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
                self._shared.reserve(slot_bytes * SLOTS)
            offset = index % SLOTS * slot_bytes
            self._send(messages.Logits(window.astype("<i4").tobytes(), first, offset))
            waiting.append(offset)
            if len(waiting) == SLOTS:
                yield self._receive_rows(waiting.popleft(), n_vocab)
        while waiting:
            yield self._receive_rows(waiting.popleft(), n_vocab)

    def listen(self, tokens: np.ndarray) -> list[messages.Product]:
        """Run a text and return the weights that take part; the model was opened with `is_observed`, as for all below.

        Raises:
            EngineError: The engine does not show what it multiplies as it is known to.
        """
        return self._ask(messages.Listen(tokens.astype("<i4").tobytes()), messages.Heard).products

    def sum_up(self, weights: Sequence[messages.Sum]) -> None:
        """Sum up the inputs of these weights from now on, and nothing else; sums start at zero."""
        self._ask(messages.SumUp(list(weights)), messages.Noted)

    def observe(self, tokens: np.ndarray, weights: np.ndarray) -> None:
        """Run a text, int32 [n], whose tokens weigh so much in second moments, float32 [n]."""
        self._ask(messages.Observe(tokens.astype("<i4").tobytes(), weights.astype("<f4").tobytes()), messages.Noted)

    def moments(self, name: str, slot: int, columns: int) -> np.ndarray:
        """Return the sum of w x xᵀ of a weight's inputs, float32 [columns, columns]: its lower triangle, a view."""
        self._shared.reserve(columns * columns * 4)
        self._send(messages.Moments(name, slot))
        rows = self._receive_rows(0, columns)
        if len(rows) != columns:
            raise self._odd(f"{len(rows)} rows of {columns}")
        return rows

    def squares(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of x² of a weight's inputs, float64 [stack, columns], and their numbers, float64 [stack]."""
        found = self._ask(messages.Squares(name), messages.SquareSums)
        counts, sums = self._numbers(found.counts, "<f8", None), self._numbers(found.sums, "<f8", None)
        if not len(counts) or len(sums) % len(counts):
            raise self._odd(f"{len(sums)} sums of {len(counts)} matrices")
        return sums.reshape(len(counts), -1), counts

    def probe(self, tokens: np.ndarray, errors: Sequence[messages.WeightError]) -> tuple[np.ndarray, list[float]]:
        """Put errors on some weights' products; return what they do, see `messages.Answered`.

        Returns:
            KL divergence of every token's prediction, float32 [n], and the errors' energies.
        """
        found = self._ask(messages.Probe(tokens.astype("<i4").tobytes(), list(errors)), messages.Answered)
        if len(found.energies) != len(errors):
            raise self._odd(f"{len(found.energies)} energies of {len(errors)} errors")
        return self._numbers(found.divergence, "<f4", len(tokens)), found.energies

    def _numbers(self, data: bytes, kind: str, count: int | None) -> np.ndarray:
        """Return what an answer holds as so many finite numbers."""
        try:
            found = np.frombuffer(data, kind)
        except ValueError:
            raise self._odd(f"{len(data)} bytes of numbers") from None
        if count is not None and len(found) != count:
            raise self._odd(f"{len(found)} numbers in place of {count}")
        if not np.isfinite(found).all():
            raise EngineError(
                f"{self.path}: what the model computes of this text is infinite or no number, so it cannot be "
                "measured. Check its weights, or use another text."
            )
        return found

    def _odd(self, what: str) -> EngineError:
        return EngineError(f"{self.path}: the engine's process answers {what}. Check the file with: kvant inspect")

    def speed(self, *, n_prompt: int, n_generate: int, repeats: int) -> messages.Measured:
        """Measure tokens per second, peak memory and energy of the open model; see `speed.measure`."""
        return self._ask(messages.Speed(n_prompt, n_generate, repeats), messages.Measured)

    def _start(self, path: Path) -> None:
        """Have a child that may read a model; the one there is, if it may."""
        self.path = str(path)
        if self._child is not None and self._child.lives and spawn.covers(self._roots, path):
            return
        self._end()
        given = (*self._reads, *self._writes)
        own = () if spawn.covers(given, path) else tuple(self.files(path))
        policy = Policy(
            reads=(*map(str, (*self._reads, *own)), *spawn.POWER), writes=tuple(map(str, self._writes)),
            address_space_bytes=self._memory_limit_bytes, file_bytes=self.FILE_BYTES, parent=spawn.owner(),
        )  # fmt: skip
        shared = self._shared.fileno()
        temporary = {"TMPDIR": str(self._writes[0])} if self._writes else {}
        self._child = Child(policy, "-m", self.MODULE, str(shared), environment=temporary, shared=(shared,))
        self._roots = (*given, *own)

    def _receive_rows(self, offset: int, n_vocab: int) -> np.ndarray:
        return self._shared.rows(self._receive(messages.Wrote).rows, n_vocab, offset=offset)

    def _ask(self, request: msgspec.Struct, kind: type[ReplyT]) -> ReplyT:
        self._send(request)
        return self._receive(kind)

    def _send(self, request: msgspec.Struct) -> None:
        assert self._child is not None, "open comes first"
        try:
            self._child.send(messages.packed(request), self._timeout_s)
        except BrokenPipeError:
            raise self._crash() from None
        except TimeoutError:
            raise self._too_slow() from None

    def _receive(self, kind: type[ReplyT]) -> ReplyT:
        assert self._child is not None, "open comes first"
        try:
            body = messages.read_body(self._child.reader(self._timeout_s))
        except TimeoutError:
            raise self._too_slow() from None
        if body is None:
            raise self._crash()
        try:
            reply = msgspec.msgpack.decode(body, type=self.REPLIES)
        except JSON_ERRORS as error:
            raise EngineError(
                f"{self.path}: the engine's process answers what is no answer ({error}). Check the file with: "
                "kvant inspect"
            ) from None
        if isinstance(reply, messages.Failed):
            raise (ValueRangeError if reply.value_error else EngineError)(reply.message)
        if not isinstance(reply, kind):
            raise EngineError(
                f"{self.path}: the engine's process answers {type(reply).__name__} where {kind.__name__} was asked "
                "for. Check the file with: kvant inspect"
            )
        return reply

    def _too_slow(self) -> EngineError:
        """End a child that would give the answer to this request to the next one."""
        assert self._child is not None
        self._child.kill()
        return EngineError(f"{self.path}: no answer within {self._timeout_s:.0f} s. Use a smaller context or model.")

    def _crash(self) -> EngineError:
        """Return the error that says how the child ended and what it said last."""
        assert self._child is not None
        status = self._child.status()
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        said = " | ".join(self._child.said()[-3:]) or "it said nothing"
        return EngineError(f"{self.path}: the engine's process {how} ({said}). Check the file with: kvant inspect")
