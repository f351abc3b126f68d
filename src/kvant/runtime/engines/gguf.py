"""GGUF files run in llama.cpp."""

from pathlib import Path

from kvant.formats.base import is_gguf
from kvant.formats.open import open_model
from kvant.runtime.engine import Engine
from kvant.runtime.engines.base import Artifact, EngineSpec
from kvant.runtime.tokenizers import Questions, Spoken, by_llama


def _open(path: Path) -> Artifact:
    model = open_model(path)
    return Artifact(
        path=path, entry=model.files[0], files=model.files, metadata=model.metadata, engine=ENGINE, model=model
    )


def _process() -> Engine:
    from kvant.runtime.process import EngineProcess

    return EngineProcess()


def _speaks(artifact: Artifact, questions: Questions) -> Spoken:
    return by_llama(artifact.entry, questions)


ENGINE = EngineSpec(
    name="gguf", format="GGUF", title="llama.cpp", finds=is_gguf, open=_open, process=_process, speaks=_speaks,
    is_served=True,
)  # fmt: skip
