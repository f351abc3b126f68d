"""Which format a path holds, told from its first bytes, never from its name."""

import re
from pathlib import Path
from typing import Literal

from kvant.errors import FormatError, UnsupportedFormatError
from kvant.files import check_path_name, is_text
from kvant.formats.lookalikes import what_is

FormatName = Literal["gguf", "huggingface"]
_GGUF_MAGIC = b"GGUF"
_GIVE = "Give a GGUF file or a Hugging Face directory."
_ADDRESS = re.compile(r"(?:https?|s3|gs|oci):/|(?:hf|ollama|store):|(?:hf\.co|huggingface\.co)/")


def is_gguf(path: Path) -> bool:
    """Say whether a path is a file that begins as GGUF does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC


def sniff(path: Path) -> FormatName:
    """Tell a model's format.

    Raises:
        FormatError: There is nothing at `path`, or it is empty.
        UnsupportedFormatError: It is no format read here; the message says what it is instead, where that is known.
        KvantError: Its name is not text.
    """
    path = Path(path)
    check_path_name(path)
    if path.is_dir():
        if (path / "config.json").is_file():
            return "huggingface"
        raise UnsupportedFormatError(f"{path}: {what_is(path) or f'holds no config.json. {_GIVE}'}")
    if not path.is_file():
        raise FormatError(_nothing_at(path))
    if is_gguf(path):
        return "gguf"
    with path.open("rb") as file:
        start = file.read(len(_GGUF_MAGIC))
    kind = UnsupportedFormatError if start else FormatError
    raise kind(f"{path}: {what_is(path) or f'starts with {start!r}, no format read here. {_GIVE}'}")


def _nothing_at(path: Path) -> str:
    """Say that there is nothing, and how to get it if it names something on the net."""
    text = path.as_posix()
    if text.startswith("store:"):
        return f"{path}: is a name in the store, not a path. Give the file that `kvant show {text[6:]}` names."
    if _ADDRESS.match(text):
        name = re.sub(r"^(?:https?:/+)?(?:huggingface\.co|hf\.co)/", "hf:", text)
        name = name if name.startswith(("hf:", "ollama:")) else "hf:ORG/NAME"
        return (
            f"{path}: is an address, not a path. Download the model first, e.g. `kvant pull {name}`, and give its path."
        )
    unfinished = sorted(path.parent.glob(path.name + ".*"))[:1] if path.parent.is_dir() and path.name else []
    hint = f" There is {unfinished[0]}." if unfinished else ""
    return f"{path}: there is no such file or directory.{hint} {_GIVE}"


def member(directory: Path, name: str) -> Path:
    """Return the path of a model directory's own file, or refuse a name or link that leads out of it.

    A symbolic link is followed where it ends inside the directory, or, for a snapshot of the Hugging Face cache
    (`models--*/snapshots/<revision>/`), inside the `blobs` directory of the same model. Anything else could read any
    file of the machine into a model that is passed on.

    Raises:
        FormatError: `name` is more than a plain file name, the file is absent, or a link leads outside.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\:\0") or not is_text(name):
        raise FormatError(
            f"{directory}: names {name[:80]!r}, which is not a plain file name. Download the model again."
        )
    path = directory / name
    try:
        real, home = path.resolve(strict=True), directory.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise FormatError(f"{path}: is missing or a link to nothing. Put it beside the others.") from error
    inside = [home]
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        inside.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in inside) or not real.is_file():
        raise FormatError(f"{path}: is not a file of this directory but leads to {real}. Copy the file into it.")
    return path
