"""Which format a path holds, told from its first bytes, never from its name."""

from pathlib import Path
from typing import Literal

from kvant.errors import FormatError, UnsupportedFormatError

FormatName = Literal["gguf", "huggingface"]
_GGUF_MAGIC = b"GGUF"
_GIVE = "Give a GGUF file or a Hugging Face directory."
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip files and bare pickles


def sniff(path: Path) -> FormatName:
    """Tell a model's format.

    Raises:
        FormatError: There is nothing at `path`, or it is empty.
        UnsupportedFormatError: It is no format read here.
    """
    path = Path(path)
    if path.is_dir():
        return _sniff_directory(path)
    if not path.is_file():
        raise FormatError(f"{path}: there is no such file or directory. {_GIVE}")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(_GGUF_MAGIC):
        return "gguf"
    if not start:
        raise FormatError(f"{path}: is empty. Download or convert it again.")
    if start.startswith(_PICKLES):
        raise UnsupportedFormatError(
            f"{path}: is a pickle, which can run code when it is opened. Use the model's .safetensors files."
        )
    if start[8:9] == b"{" or path.name == "config.json":
        raise UnsupportedFormatError(f"{path}: is one file of a model. Give the directory it is in: {path.parent}.")
    raise UnsupportedFormatError(f"{path}: starts with {start[:4]!r}, no format read here. {_GIVE}")


def _sniff_directory(path: Path) -> FormatName:
    if (path / "config.json").is_file():
        return "huggingface"
    found = sorted(p.name for p in path.glob("*.gguf"))[:3]
    if found:
        raise UnsupportedFormatError(f"{path}: is a directory of GGUF files. Give one of them, e.g. {path / found[0]}.")
    raise UnsupportedFormatError(f"{path}: holds no config.json. {_GIVE}")


def member(directory: Path, name: str) -> Path:
    """Return the path of a model directory's own file, or refuse a name or link that leads out of it.

    A symbolic link is followed where it ends inside the directory, or, for a snapshot of the Hugging Face cache
    (`models--*/snapshots/<revision>/`), inside the `blobs` directory of the same model. Anything else could read any
    file of the machine into a model that is passed on.

    Raises:
        FormatError: `name` is more than a plain file name, the file is absent, or a link leads outside.
    """
    if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
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
