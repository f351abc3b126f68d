"""Whether a directory's model sees or hears, and who writes its projector: kvant if it has the kind, or upstream."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kvant.formats.huggingface.architectures.upstream_table import PROJECTORS
from kvant.formats.huggingface.config import read_optional_json
from kvant.formats.huggingface.projectors.reader import eyes_of
from kvant.formats.safetensors.reader import read_sharded
from kvant.recipes.convert.upstream import NATIVE, UPSTREAM, Way
from kvant.tensors import Tensor

_SENSES = re.compile("vision|visual|audio|image|projector|sam_model|resampler|connector|mel_")
_WHOLE = frozenset({"mlp1", "vit", "thinker"})
"""In a part of a name, or all of it: what only a model's eyes and ears have, in classes that have them."""


def eyes_way(directory: Path, asked: Way = "auto") -> Literal["native", "upstream"] | None:
    """Return who writes the projector of a directory's model; None where it has none, or nobody writes it.

    Args:
        directory: The model's; what is no directory has none.
        asked: Whom the user wants.
    """
    if not (directory / "config.json").is_file() or not tower(directory):
        return None
    if asked != UPSTREAM and eyes_of(directory) is not None:
        return "native"
    if asked != NATIVE and projector_class(read_optional_json(directory / "config.json")) in PROJECTORS:
        return "upstream"
    return None


def projector_class(config: Mapping[str, Any]) -> str:
    """Return the class that upstream's converter takes a projector for; empty if config.json names none.

    Source: llama-cpp-python 0.3.36, `conversion/base.py`, `get_model_architecture`.
    """
    vision = config.get("vision_config")
    inner = vision.get("architectures") if isinstance(vision, dict) else None
    names = inner if inner is not None else config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def tower(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of a directory that are its model's eyes and ears, by their names."""
    return {name: tensor for name, tensor in read_sharded(directory).items() if _senses(name)}


def _senses(name: str) -> bool:
    return any(part in _WHOLE or _SENSES.search(part) for part in name.split(".")[:-1])


def tells_of_eyes(directory: Path) -> bool:
    """Whether config.json says that a model sees or hears."""
    config = read_optional_json(directory / "config.json")
    return any(isinstance(config.get(part), dict) for part in ("vision_config", "audio_config"))
