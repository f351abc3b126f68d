"""Directories as onnxruntime-genai reads them, run in ONNX Runtime."""

from pathlib import Path

from kvant.formats.onnx.decoder import is_decoder, keep_session_options, read_decoder
from kvant.metadata import string
from kvant.runtime.engine import Engine
from kvant.runtime.engines.base import Artifact, EngineSpec
from kvant.runtime.tokenizers import Questions, Spoken, by_worker


def _open(path: Path) -> Artifact:
    found = read_decoder(path)
    notes = {key: string(text) for key, text in found.notes.items()}
    return Artifact(path=path, entry=path, files=found.files, metadata=notes, engine=ENGINE)


def _process() -> Engine:
    from kvant.runtime.ort_process import OrtProcess

    return OrtProcess()


def _speaks(artifact: Artifact, questions: Questions) -> Spoken:
    return by_worker("genai", artifact.entry, questions.texts, questions.conversations)


ENGINE = EngineSpec(
    name="onnx", format="ONNX", title="ONNX Runtime", finds=is_decoder, open=_open, process=_process, speaks=_speaks,
    spins=True, keep_setting=keep_session_options,
)  # fmt: skip
