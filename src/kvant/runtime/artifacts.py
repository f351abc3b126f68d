"""Artifacts: files of a model and the engine that runs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvant.formats.onnx.decoder import is_decoder, read_decoder
from kvant.formats.open import open_model
from kvant.metadata import Value, ValueType
from kvant.runtime.engine import Engine
from kvant.runtime.mlx import MLXProcess
from kvant.runtime.ort_process import OrtProcess
from kvant.runtime.process import EngineProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedVariant:
    """A variant whose files were checked.

    Attributes:
        path: As it was given.
        entry: What its engine opens.
        files: Files that hold its weights.
        metadata: Of these, for what it was calibrated on.
        engine: Starts what runs it.
    """

    path: Path
    entry: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, Value]
    engine: Callable[[], Engine]


def open_variant(path: Path) -> OpenedVariant:
    """Check a variant of any format and say what runs it.

    Raises:
        FormatError: It is damaged, or no format that is run here.
    """
    path = Path(path)
    if is_decoder(path):
        found = read_decoder(path)
        texts = {key: Value(ValueType.STRING, text) for key, text in found.notes.items()}
        return OpenedVariant(path=path, entry=path, files=found.files, metadata=texts, engine=OrtProcess)
    model = open_model(path)
    files = tuple(file for file in model.files if file.suffix in (".gguf", ".safetensors"))
    is_directory = model.path.is_dir()
    return OpenedVariant(
        path=model.path, entry=model.path if is_directory else model.files[0], files=files, metadata=model.metadata,
        engine=MLXProcess if is_directory else EngineProcess,
    )  # fmt: skip
