"""ONNX Runtime's process: reads requests on standard input, answers on standard output, until its owner goes away.

As for llama.cpp (worker.py): graphs are hostile input for native code, and the peak memory is the model's own.
"""

import mmap
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kvant.runtime import messages, ort_messages
from kvant.runtime.answering import serve
from kvant.runtime.ort import OrtDecoder, dtype_of, guarded, open_session
from kvant.runtime.speed import measure, rss_bytes


class Worker:
    """Answers requests about one open model.

    Args:
        shared_fd: File of the memory shared with the owner.
    """

    def __init__(self, shared_fd: int) -> None:
        import onnxruntime

        self._shared_fd = shared_fd
        self._shared: mmap.mmap | None = None
        self._decoder: OrtDecoder | None = None
        self._session: onnxruntime.InferenceSession | None = None
        self._path = ""
        self._n_threads = 1
        self._rss_before = rss_bytes()

    def answer(self, request: ort_messages.Request) -> msgspec.Struct:
        """Do what is asked."""
        match request:
            case messages.Open():
                return self._open(request)
            case messages.Logits():
                return self._logits(request)
            case messages.Speed():
                assert self._decoder is not None, "open comes first"
                return measure(
                    self._decoder, n_threads=self._n_threads, n_prompt=request.n_prompt,
                    n_generate=request.n_generate, repeats=request.repeats, rss_before_bytes=self._rss_before,
                )  # fmt: skip
            case ort_messages.OpenGraph():
                return self._open_graph(request)
            case ort_messages.Run():
                return self._run(request)
        return _change(request)

    def _open(self, request: messages.Open) -> messages.Opened:
        self._decoder = None
        self._decoder = found = OrtDecoder(Path(request.path), n_threads=request.n_threads, spinning=request.spinning)
        self._n_threads = request.n_threads
        sizes = found.sizes
        return messages.Opened(
            n_vocab=found.n_vocab, add_bos=False, add_eos=False, bos=-1, n_params=sizes.n_params,
            tensor_bytes=sizes.tensor_bytes, n_ctx_train=found.layout.n_ctx_train, load_s=found.load_s,
        )  # fmt: skip

    def _logits(self, request: messages.Logits) -> messages.Wrote:
        assert self._decoder is not None, "open comes first"
        rows = self._decoder.logits(np.frombuffer(request.tokens, "<i4"), first=request.first)
        if self._shared is None or len(self._shared) < request.offset + rows.nbytes:  # its owner makes it longer
            self._shared = mmap.mmap(self._shared_fd, 0)
        room = np.frombuffer(self._shared, np.float32, count=rows.size, offset=request.offset)
        room.reshape(rows.shape)[:] = rows
        return messages.Wrote(len(rows))

    def _open_graph(self, request: ort_messages.OpenGraph) -> ort_messages.Ports:
        started = time.perf_counter()
        self._session = None
        self._session = found = open_session(Path(request.path), n_threads=request.n_threads)
        self._path = request.path
        return ort_messages.Ports(
            [_port(p) for p in found.get_inputs()], [_port(p) for p in found.get_outputs()],
            time.perf_counter() - started,
        )  # fmt: skip

    def _run(self, request: ort_messages.Run) -> ort_messages.Outputs:
        session = self._session
        assert session is not None, "open comes first"
        feeds, seconds, values = ort_messages.unpacked(request.feeds), [], []
        for _ in range(request.repeats):
            started = time.perf_counter()
            values = guarded(self._path, lambda: session.run(None, feeds))
            seconds.append(time.perf_counter() - started)
        names = [p.name for p in session.get_outputs()]
        arrays = {n: np.asarray(v) for n, v in zip(names, values, strict=True)}
        return ort_messages.Outputs(
            ort_messages.packed({n: a for n, a in arrays.items() if a.dtype.kind in "fiub"}), seconds
        )


def _port(port: Any) -> ort_messages.Port:
    return ort_messages.Port(
        port.name, dtype_of(port.type), tuple(d if isinstance(d, int) and d > 0 else -1 for d in port.shape)
    )


def _change(request: ort_messages.Prepare | ort_messages.Quantize) -> msgspec.Struct:
    """Requests that need onnxruntime's tools, which take seconds to import."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # else the tools import it: a second, for nothing here
    from kvant.runtime import ort_quantize

    if isinstance(request, ort_messages.Prepare):
        ort_quantize.prepare(request)
        return ort_messages.Done([])
    feeds = [ort_messages.unpacked(feed) for feed in request.feeds]
    ort_quantize.quantize(request.source, request.out, request.settings, feeds, request.ranges)
    made = ort_quantize.quantized_nodes(request.out, request.source)
    return ort_messages.Done([node for node in made if node not in request.settings.exclude])


if __name__ == "__main__":
    serve(Worker, ort_messages.Request, "Use a smaller model or shorter inputs.")
