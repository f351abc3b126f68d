"""Projectors in the store: tags of a model's name that begin with `mmproj`, by which all its other tags see or hear."""

import dataclasses
import re
from pathlib import Path

from kvant.hub.manifest import ModelSettings
from kvant.hub.names import DEFAULT_TAG, ModelName
from kvant.hub.store import Store, StoredModel
from kvant.progress import SILENT, Progress

TAG = "mmproj"
MAX_OWN = 60
"""Characters of a model's own tag in its projector's, which must fit a tag."""

_TYPE = re.compile(r"(?:^|[-_.])((?:I?Q|TQ|BF|F|MXFP)\d\w{0,16})(?=[-_.]|$)", re.IGNORECASE)


def projector_type(file: str) -> str:
    """Return the type that a projector's file says in its name, as it spells it; empty if it says none."""
    found = _TYPE.findall(file.rpartition("/")[2].removesuffix(".gguf"))
    return found[-1] if found else ""


def tag_of(file: str, tag: str) -> str:
    """Return the tag that a projector's file gets beside a model's: `mmproj-F16`, or `mmproj` where no type is named.

    Beside a tag that names no type, as of `qwen3-vl:4b`, it bears that tag, too: other tags are other models then.
    """
    is_plain = tag == DEFAULT_TAG or (projector_type(tag) and not _TYPE.sub("", tag).strip("-_."))
    parts = (TAG, "" if is_plain else tag[:MAX_OWN], projector_type(file))
    return "-".join(filter(None, parts))


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
    own = dataclasses.replace(name, tag=tag_of(file.name, name.tag), digest=None)
    kept = store.import_file(file, own, ModelSettings(source=source), progress=progress, move=move)
    progress.say(f"The projector is kept as {own}: every tag of the name sees or hears by it.")
    return kept
