"""Take a model's name apart: `SmolLM2-135M-Instruct-v0.2` is basename, size, finetune and version.

The rules are the GGUF naming convention's, read backwards, as upstream's converter applies them to directory names.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md "GGUF Naming Convention".
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_VERSION = re.compile(r"(?:v|iter)?\d+(?:\.\d+)*", re.IGNORECASE)
_ENCODING = re.compile(r"i?q\d(?:_\w)*|b?fp?(?:16|32)", re.IGNORECASE)
_SIZE = re.compile(r"(?:(?:A|\d+x)?\d+(?:[._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_NO_TITLE = re.compile(r"v\d+(?:\.\d+)*|\d.*")
_MULTIPLES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """The parts of a model's name; None where it has no such part."""

    name: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def parse_name(identifier: str, n_weights: int) -> ModelName:
    """Take apart `organization/Base-size-finetune-version`.

    Args:
        identifier: A model id or directory name; one with spaces is taken as a name as it is.
        n_weights: The model's weights: a part such as `128k` that is far from it is no size.
    """
    if " " in identifier:
        return ModelName(name=identifier)
    organization, slash, full = identifier.partition("/")
    if not slash:
        organization, full = "", identifier
    parts = [_Part(text) for text in full.split("-") if text]
    for index, part in enumerate(parts):
        _label(part, n_weights, first=index == 0)
    if any(char.isdecimal() for part in parts if "size" in part.kinds for char in part.text):
        for part in parts:
            if "size" in part.kinds and part.text.isalpha():
                part.kinds.discard("size")
    _find_basename(parts)
    basename, finetune = _join(parts, "basename"), _join(parts, "finetune")
    version = "-".join(p.text for p in parts if "version" in p.kinds and "basename" not in p.kinds) or None
    sizes = dict.fromkeys(part.text for part in parts if "size" in part.kinds)
    size = "-".join(sizes) or None
    if size is None and finetune is None and version is None:
        basename = None
    return ModelName(
        name=full, organization=None if organization.startswith(".") else organization or None, basename=basename,
        finetune=finetune, version=version, size_label=size,
    )  # fmt: skip


def directory_identifier(directory: Path) -> str:
    """Return a model directory's name; `organization/name` where it is a snapshot in Hugging Face's cache."""
    path = Path(os.path.abspath(directory))  # noqa: PTH100 - a link keeps the name that the user gave it
    cache = path.parent.parent.name
    if path.parent.name == "snapshots" and cache.startswith("models--"):
        return cache.removeprefix("models--").replace("--", "/", 1)
    return path.name


def title(identifier: str) -> str:
    """Spell a name for people: hyphens become spaces, lower-case words get a capital, versions stay."""
    words = identifier.strip().replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _NO_TITLE.fullmatch(word) else word for word in words)


def size_label(n_weights: int) -> str:
    """Spell a number of weights with two digits or more: `135M`, `1.5B`, `3.1B`."""
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n_weights > scale or suffix == "K":
            scaled = n_weights * (1 / scale)
            digits = len(str(round(scaled)).lstrip("0"))
            return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"
    raise AssertionError(n_weights)


@dataclass(slots=True)
class _Part:
    text: str
    kinds: set[str]

    def __init__(self, text: str) -> None:
        self.text, self.kinds = text, set()


def _label(part: _Part, n_weights: int, *, first: bool) -> None:
    if _VERSION.fullmatch(part.text):
        part.kinds.add("version")
    elif _ENCODING.fullmatch(part.text):
        part.kinds.add("encoding")
        part.text = part.text.upper()
    elif not first and _SIZE.fullmatch(part.text):
        part.text = _normal_size(part.text)
        if n_weights and _is_far(part.text, n_weights):
            part.kinds.add("finetune")
            part.text = part.text[:-1] + part.text[-1].lower()
        else:
            part.kinds.add("size")
    elif not first and _FINETUNE.fullmatch(part.text):
        part.kinds.add("finetune")


def _normal_size(text: str) -> str:
    text = text.replace("_", ".")
    if text[-1].isdecimal():  # 7b1 is 7.1B
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    return text[:-1] + text[-1].upper() if len(text) > 1 and text[-2].isdecimal() and text[-1] in "kmbt" else text


def _is_far(text: str, n_weights: int) -> bool:
    try:
        weights = float(text[:-1]) * _MULTIPLES.get(text[-1], 1)
    except ValueError:
        return False
    return abs(weights - n_weights) > 7 * n_weights // 8


def _find_basename(parts: list[_Part]) -> None:
    at_start = True
    for part in parts:
        if at_start and ("version" in part.kinds or (not part.kinds and part.text[0].isalpha())):
            part.kinds.add("basename")
            continue
        at_start = False
        if not part.kinds:
            part.kinds.add("finetune")
    for part in reversed(parts):
        if "basename" not in part.kinds or len(part.kinds) == 1:
            break
        part.kinds.discard("basename")


def _join(parts: list[_Part], kind: str) -> str | None:
    return "-".join(part.text for part in parts if kind in part.kinds) or None
