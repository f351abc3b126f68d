"""ONNX Runtime in a process of its own, seen from its owner."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kvant.formats.onnx.reader import data_files, read_onnx
from kvant.runtime import ort_messages
from kvant.runtime.ort_messages import Settings, packed, unpacked
from kvant.runtime.process import EngineProcess

Feed = Mapping[str, np.ndarray]
"""Named inputs of one run."""


class OrtProcess(EngineProcess):
    """ONNX Runtime in a child process; use it as a context manager. Leaving it kills the child.

    For a decoder directory `open`, `logits` and `speed` are as llama.cpp's; other models are opened with `open_graph`.
    Files must have been checked with `formats.onnx.reader.read_onnx` before.
    """

    MODULE: ClassVar[str] = "kvant.runtime.ort_worker"
    REPLIES: ClassVar[Any] = ort_messages.Reply
    FILE_BYTES: ClassVar[int] = 16 << 30

    @staticmethod
    def files(path: Path) -> Sequence[Path]:
        """Return a decoder's directory, or a graph with the files of its weights."""
        return (path,) if path.is_dir() else data_files(read_onnx(path), path)

    def open_graph(self, path: Path, *, n_threads: int) -> ort_messages.Ports:
        """Load a model of any kind.

        Raises:
            EngineError: ONNX Runtime cannot load it.
        """
        self._start(path)
        return self._ask(ort_messages.OpenGraph(str(path), n_threads), ort_messages.Ports)

    def run(self, feed: Feed, *, repeats: int = 1) -> tuple[dict[str, np.ndarray], list[float]]:
        """Run the open model; return its outputs by name and the seconds of every run."""
        reply = self._ask(ort_messages.Run(packed(dict(feed)), repeats), ort_messages.Outputs)
        return unpacked(reply.arrays), reply.seconds

    def prepare(self, source: Path, out: Path, step: str) -> None:
        """Do one step of preparation; see `ort_quantize.prepare`."""
        self._start(source)
        self._ask(ort_messages.Prepare(str(source), str(out), step), ort_messages.Done)  # type: ignore[arg-type]

    def quantize(self, source: Path, out: Path, settings: Settings, feeds: Sequence[Feed], ranges: Path) -> list[str]:
        """Write a model with int8 operators; return the nodes that are. See `ort_quantize.quantize`."""
        self._start(source)
        sent = [packed(dict(feed)) for feed in feeds] if settings.kind == "static" and not ranges.exists() else []
        request = ort_messages.Quantize(str(source), str(out), settings, sent, str(ranges))
        return self._ask(request, ort_messages.Done).nodes
