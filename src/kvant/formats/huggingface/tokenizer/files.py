"""The files a Hugging Face tokenizer is made of, read with limits. Nothing in them is trusted."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import FormatError, LimitError
from kvant.formats.base import member
from kvant.formats.lookalikes import check_pointer

MAX_FILE_BYTES = 256 << 20
MAX_TEMPLATE_BYTES = 1 << 20
MAX_TEMPLATES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """Parsed files of one tokenizer.

    Attributes:
        directory: Where they lie.
        tokenizer: tokenizer.json; empty if absent.
        config: tokenizer_config.json; empty if absent.
        generation: generation_config.json; empty if absent.
        sentencepiece: Path of tokenizer.model, or None.
        is_tekken: Whether `tokenizer` and what `config` leaves out were made of Mistral's tekken.json.
    """

    directory: Path
    tokenizer: Mapping[str, Any]
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    sentencepiece: Path | None
    is_tekken: bool = False


def find(directory: Path, name: str) -> Path | None:
    """Return the path of a file if the directory has it.

    Raises:
        FormatError: It is a link that leads out of the directory, or to nothing.
    """
    return member(directory, name) if os.path.lexists(directory / name) else None


def read_object(directory: Path, name: str) -> dict[str, Any]:
    """Read a JSON file whose top level is an object; an absent file is an empty object.

    Raises:
        FormatError: Not JSON, or not an object.
        LimitError: Over MAX_FILE_BYTES.
    """
    path = find(directory, name)
    if path is None:
        return {}
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise LimitError(
            f"{path}: {size} bytes are more than the limit of {MAX_FILE_BYTES} for a tokenizer file. Download it again."
        )
    try:
        value = msgspec.json.decode(path.read_bytes())
    except JSON_ERRORS as error:
        check_pointer(path, path.read_bytes())
        raise FormatError(f"{path}: is not valid JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: holds a {type(value).__name__} where an object belongs. Download it again.")
    return value


def read_templates(files: TokenizerFiles) -> dict[str, str]:
    """Return a model's chat templates by name; the main one is `default`.

    chat_template.jinja wins over the string or list in tokenizer_config.json, as in transformers.

    Raises:
        FormatError: A template is not text.
        LimitError: Too many templates, or one too long.
    """
    templates: dict[str, str] = {}
    jinja, folder = find(files.directory, "chat_template.jinja"), files.directory / "additional_chat_templates"
    if jinja is not None:
        templates["default"] = _read_template(jinja)
        found = [] if folder.is_symlink() else sorted(path.name for path in folder.glob("*.jinja"))
        for name in found[:MAX_TEMPLATES]:
            templates[name.removesuffix(".jinja")] = _read_template(member(folder, name))
        return templates
    value = files.config.get("chat_template")
    if value is None:
        value = read_object(files.directory, "chat_template.json").get("chat_template")
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):
        templates = {str(entry["name"]): str(entry["template"]) for entry in value if _is_named_template(entry)}
    elif value is not None:
        raise FormatError(
            f"{files.directory}: chat_template is a {type(value).__name__}, not a text or a list of named ones. "
            f"Correct it in tokenizer_config.json or chat_template.json, or remove it."
        )
    if len(templates) > MAX_TEMPLATES or any(len(t) > MAX_TEMPLATE_BYTES for t in templates.values()):
        raise LimitError(
            f"{files.directory}: over {MAX_TEMPLATES} chat templates or one over {MAX_TEMPLATE_BYTES} bytes. "
            "Leave out those that are not needed."
        )
    return templates


def _is_named_template(entry: Any) -> bool:
    if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
        return True
    raise FormatError(
        "tokenizer_config.json: an entry of chat_template has no name and template. Give each both, or take it out."
    )


def _read_template(path: Path) -> str:
    if path.stat().st_size > MAX_TEMPLATE_BYTES:
        raise LimitError(
            f"{path}: is over the limit of {MAX_TEMPLATE_BYTES} bytes for a chat template. Take a shorter one."
        )
    data = path.read_bytes()
    check_pointer(path, data)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 ({error}). Save it as UTF-8.") from error
