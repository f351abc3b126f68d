"""The engine's process: reads requests on standard input, answers on standard output, until its owner goes away.

Model files are hostile input for native code. Here a crash takes nothing with it, the process is confined before this
is imported (sandbox/), and the peak memory measured is the model's own.
"""

import mmap
from pathlib import Path

import msgspec
import numpy as np

from kvant.runtime import capi, clip, messages
from kvant.runtime.answering import serve
from kvant.runtime.llamacpp import LlamaCpp
from kvant.runtime.observed import OBSERVED, Observed
from kvant.runtime.speed import measure, rss_bytes


class Worker:
    """Answers requests about one open model.

    Args:
        shared_fd: File of the memory shared with the owner, or -1.
    """

    def __init__(self, shared_fd: int) -> None:
        self._shared_fd = shared_fd
        self._shared: mmap.mmap | None = None
        self._model: LlamaCpp | None = None
        self._observed: Observed | None = None
        self._n_threads = 1
        capi.load()
        self._rss_before = rss_bytes()

    def answer(self, request: messages.Request) -> messages.Reply:
        """Do what is asked."""
        if isinstance(request, messages.Open):
            return self._open(request)
        if isinstance(request, messages.OpenProjector):
            return messages.Senses(*clip.check(Path(request.path)))
        assert self._model is not None, "open comes first"
        if isinstance(request, messages.Tokenize):
            ids = self._model.tokenize(
                request.text, add_special=request.add_special, parse_special=request.parse_special
            )
            return messages.Tokens(ids.astype("<i4").tobytes())
        if isinstance(request, messages.Logits):
            return self._logits(self._model, request)
        if isinstance(request, messages.Next):
            return self._write(self._model.next_logits(np.frombuffer(request.tokens, "<i4"))[None], 0)
        if isinstance(request, messages.Extend):
            return self._write(self._model.extend([np.frombuffer(part, "<i4") for part in request.parts]), 0)
        if isinstance(request, messages.Embed):
            return messages.Vector(self._model.embed(np.frombuffer(request.tokens, "<i4")).astype("<f4").tobytes())
        if isinstance(request, messages.Rank):
            scores = self._model.embed(self._model.pair_tokens(request.query, request.document))
            return messages.Vector(scores.astype("<f4").tobytes())
        if isinstance(request, messages.Pieces):
            return messages.Bytes([self._model.token_bytes(token) for token in request.ids])
        if isinstance(request, messages.Ends):
            return messages.Tokens(np.array(sorted(self._model.eos_ids), "<i4").tobytes())
        if isinstance(request, OBSERVED):
            assert self._observed is not None, "open it with is_observed"
            return self._observed.answer(self._model, request, self._write)
        return measure(
            self._model, n_threads=self._n_threads, n_prompt=request.n_prompt, n_generate=request.n_generate,
            repeats=request.repeats, rss_before_bytes=self._rss_before,
        )  # fmt: skip

    def _open(self, request: messages.Open) -> messages.Opened:
        if self._model is not None:
            self._model.close()
        options = msgspec.structs.asdict(request)
        del options["spinning"]
        self._observed = Observed(request.n_threads) if options.pop("is_observed") else None
        observer = self._observed.observer if self._observed else None
        self._model = model = LlamaCpp(options.pop("path"), observer=observer, **options)
        self._n_threads = request.n_threads
        return messages.Opened(**{name: getattr(model, name) for name in messages.Opened.__struct_fields__})

    def _logits(self, model: LlamaCpp, request: messages.Logits) -> messages.Wrote:
        return self._write(model.logits(np.frombuffer(request.tokens, "<i4"), first=request.first), request.offset)

    def _write(self, rows: np.ndarray, offset: int) -> messages.Wrote:
        """Put rows of logits into the shared memory."""
        if self._shared is None or len(self._shared) < offset + rows.nbytes:  # its owner makes it longer
            self._shared = mmap.mmap(self._shared_fd, 0)
        room = np.frombuffer(self._shared, np.float32, count=rows.size, offset=offset)
        room.reshape(rows.shape)[:] = rows
        return messages.Wrote(len(rows))


if __name__ == "__main__":
    serve(Worker, messages.Request, "Use a smaller context or model.")
