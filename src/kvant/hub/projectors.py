"""Projectors in the store: tags of a model's name that begin with `mmproj`, by which all its other tags see or hear."""

import dataclasses
import re
from pathlib import Path

from kvant.hub.manifest import ModelSettings
from kvant.hub.names import ModelName
from kvant.hub.store import Store, StoredModel
from kvant.progress import SILENT, Progress

TAG = "mmproj"
_TYPE = re.compile(r"(?:^|[-_.])((?:I?Q|TQ|BF|F|MXFP)\d\w*)(?=[-_.]|$)", re.IGNORECASE)


def projector_type(file: str) -> str:
    """Return the type that a projector's file says in its name, as it spells it; empty if it says none."""
    found = _TYPE.findall(file.rpartition("/")[2].removesuffix(".gguf"))
    return found[-1] if found else ""


def tag_of(file: str) -> str:
    """Return the tag that a projector's file gets: `mmproj-F16`, or `mmproj` where its name tells no type."""
    kind = projector_type(file)
    return f"{TAG}-{kind}" if kind else TAG


def keep_projector(
    store: Store, file: Path, name: ModelName, *, source: str | None, move: bool = False, progress: Progress = SILENT
) -> StoredModel:
    """Keep a projector's file as a tag of its model's name, where `run` and `serve` find it.

    Args:
        store: Where to.
        file: It.
        name: The model's.
        source: Where it is from.
        move: Take the file away.
        progress: Told of it.
    """
    own = dataclasses.replace(name, tag=tag_of(file.name), digest=None)
    kept = store.import_file(file, own, ModelSettings(source=source), progress=progress, move=move)
    progress.say(f"The projector is kept as {own}: every tag of the name sees or hears by it.")
    return kept
