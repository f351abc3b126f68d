"""The front matter of a model card (README.md): the little YAML that model cards use, read without a YAML library.

Read are `key: text`, `key: [a, b]` and lists of `- text`. Nested objects (benchmark tables) are passed over.
"""

import re
from pathlib import Path
from typing import Any

from kvant.formats.base import member

MAX_CARD_BYTES = 1 << 20
"""Front matter is at the top; what lies beyond is not read."""

_ENTRY = re.compile(r"([A-Za-z_][\w-]*)\s*:(?:\s++(.*))?")
_ITEM = re.compile(r"\s*-\s++(.*)")
_BLOCKS = ("|", ">", "|-", ">-")
"""Marks of a text that goes on below; such texts are passed over."""

_NESTED = re.compile(r"[\w-]+\s*:(\s|$)")


def read_card(path: Path) -> dict[str, Any]:
    """Read the front matter of a model card: texts and lists of texts; empty if there is none.

    Raises:
        FormatError: It is a link that leads out of its directory.
    """
    if not path.is_file():
        return {}
    member(path.parent, path.name)
    with path.open("rb") as file:
        lines = file.read(MAX_CARD_BYTES).decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    found: dict[str, Any] = {}
    key = ""
    for line in lines[1 : lines.index("---", 1)]:
        entry, item = _ENTRY.fullmatch(line), _ITEM.fullmatch(line)
        if entry:
            key, text = entry[1], _uncommented(entry[2] or "")
            found[key] = _value(text) if text else []
        elif item and isinstance(found.get(key), list):
            text = _uncommented(item[1])
            if not _NESTED.match(text):
                found[key].append(_text(text))
    return {key: value for key, value in found.items() if value not in ("", [], *_BLOCKS)}


def _value(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return [_text(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    return _text(text)


def _text(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _uncommented(text: str) -> str:
    text = text.strip()
    return text if text[:1] in ("'", '"') else re.split(r"\s#", text, maxsplit=1)[0].rstrip()
