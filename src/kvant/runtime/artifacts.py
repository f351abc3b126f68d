"""Artifacts: files of a model and the engine that runs them. What runs what is decided here and nowhere else."""

from pathlib import Path

from kvant.errors import UnsupportedFormatError
from kvant.files import check_path_name
from kvant.formats.base import sniff
from kvant.plugins import Registry
from kvant.runtime.engines.base import Artifact, EngineSpec

ENGINES: Registry[EngineSpec] = Registry("kvant.engines", "engines")


def engine_of(path: Path) -> EngineSpec:
    """Return what runs the files at a path, told quickly; they may be damaged.

    Raises:
        FormatError: There is nothing, or nothing that an engine runs; the message says what it is instead.
        KvantError: Its name is not text, or kvant is not installed whole.
    """
    path = Path(path)
    check_path_name(path)
    for engine in sorted(ENGINES, key=lambda engine: engine.order):
        if engine.finds(path):
            return engine
    found = sniff(path)  # says what it is instead
    raise UnsupportedFormatError(f"{path}: no engine here runs the format {found}. Convert it with: kvant convert")


def open_artifact(path: Path | Artifact) -> Artifact:
    """Check files of any format that an engine runs; what is open already is returned as it is.

    Raises:
        FormatError: They are damaged, or no format that is run here.
    """
    return path if isinstance(path, Artifact) else engine_of(path).open(Path(path))
