"""Have the engine open a GGUF before it is written: what it cannot load is refused, and nothing of it is kept.

A file is named by its header: hyperparameters, tokenizer, names, types and shapes of tensors. A hollow one, the header
and a hole for the weights, takes no time to write, and the engine checks all of it without reading a weight.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvant.errors import EngineError, UnsupportedModelError
from kvant.files import cache_dir, disk_errors
from kvant.formats.gguf.kinds import CLIP, MODEL, kind_of
from kvant.formats.gguf.layout import TensorInfo, file_layout
from kvant.metadata import Value
from kvant.model import Model
from kvant.runtime.process import EngineProcess
from kvant.tensors import Tensor


def is_checked(model: Model) -> bool:
    """Whether the engine is asked: of language models, where a file with a hole takes no room."""
    return kind_of(model) == MODEL and sys.platform != "win32"


def check_loads(metadata: Mapping[str, Value], tensors: Sequence[Tensor | TensorInfo], out: Path, source: Path) -> None:
    """Refuse a file that the engine would not load.

    Args:
        metadata: What the file will hold.
        tensors: Names, shapes and types of its tensors; their values are not read.
        out: Its name, for the message.
        source: What it is made of, for the message.

    Raises:
        UnsupportedModelError: The engine does not load it.
    """
    layout = file_layout(dict(metadata), [TensorInfo(t.name, t.shape, t.block_type) for t in tensors])
    with tempfile.TemporaryDirectory(dir=cache_dir("check"), ignore_cleanup_errors=True) as directory:
        hollow = Path(directory) / "model.gguf"
        with disk_errors(hollow), hollow.open("wb") as file:
            file.write(layout.header)
            file.truncate(layout.total_bytes)
        try:
            with EngineProcess() as engine:
                if metadata["general.architecture"].value == CLIP:
                    engine.open_projector(hollow)
                else:
                    engine.open(hollow, n_ctx=8, n_threads=1, weightless=True)
        except EngineError as error:
            reason = str(error).removeprefix(f"{hollow}: ").partition(" Check ")[0]
            raise UnsupportedModelError(f"{out}: was not written: {reason} {_remedy(source)}") from error


def _remedy(source: Path) -> str:
    if source.is_dir():
        return (
            "The checkpoint lacks what the engine needs, or holds what it does not read. Report it with the model's "
            "config.json."
        )
    return (
        f"{source} lacks what the engine needs, or holds what it does not read. Make it again by a converter of the "
        "engine's version: kvant convert DIRECTORY."
    )
