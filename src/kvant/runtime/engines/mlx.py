"""Directories run in mlx-lm: MLX's own, quantized or not, which look like any Hugging Face directory."""

from pathlib import Path

from kvant.formats.open import open_model
from kvant.runtime.engine import Engine
from kvant.runtime.engines.base import Artifact, EngineSpec, SpeedRuns
from kvant.runtime.tokenizers import Questions, Spoken, by_worker

LAST = 100
"""Other engines' directories may hold a config.json, too."""


def _finds(path: Path) -> bool:
    return (path / "config.json").is_file()


def _open(path: Path) -> Artifact:
    model = open_model(path)
    files = tuple(file for file in model.files if file.suffix == ".safetensors")
    return Artifact(path=model.path, entry=model.path, files=files, metadata=model.metadata, engine=ENGINE, model=model)


def _process() -> Engine:
    from kvant.runtime.mlx import MLXProcess

    return MLXProcess()


def _speaks(artifact: Artifact, questions: Questions) -> Spoken:
    return by_worker("mlx", artifact.entry, questions.texts, questions.conversations)


ENGINE = EngineSpec(
    name="mlx", format="MLX", title="mlx-lm", finds=_finds, open=_open, process=_process, speaks=_speaks,
    # MLX is slow on processors: more would take minutes.
    speed=SpeedRuns(n_prompt=64, n_generate=16, repeats=1), takes_threads=False, order=LAST,
)  # fmt: skip
