"""`general.*` metadata of a model directory: sampling advice, names, licence and lineage, as upstream writes them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvant.errors import FormatError
from kvant.formats.huggingface.card import read_card
from kvant.formats.huggingface.config import read_optional_json
from kvant.formats.huggingface.naming import directory_identifier, parse_name, size_label, title
from kvant.metadata import Value, ValueType, array, string, u32

SAMPLING: tuple[tuple[str, tuple[str, ...], ValueType], ...] = (
    ("top_k", ("top_k",), ValueType.INT32),
    ("top_p", ("top_p",), ValueType.FLOAT32),
    ("min_p", ("min_p",), ValueType.FLOAT32),
    ("temp", ("temperature",), ValueType.FLOAT32),
    ("penalty_repeat", ("penalty_repeat", "repetition_penalty"), ValueType.FLOAT32),
)
"""`general.sampling.*`: key, entries of generation_config.json in order of preference, type."""

MAX_ADVICE = 1 << 31
"""Sampling advice beyond it is none, and fits neither of its types."""

NAMES = ("name", "author", "version", "organization", "finetune", "basename", "description", "size_label")
"""Texts of the model card that become `general.*`, in upstream's order; each may be written `model_<name>`."""

_HUB_URL = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)")


def general_metadata(
    directory: Path, config: Mapping[str, Any], n_weights: int, *, known_as: str = ""
) -> dict[str, Value]:
    """Collect the `general.*` keys that come from files and names.

    Names come from the model card, then from `_name_or_path` in config.json, then from the directory's name.

    Args:
        directory: The model directory.
        config: Its config.json.
        n_weights: Weights in all tensors, for the size label.
        known_as: Name to take in place of the directory's.
    """
    known_as = known_as or directory_identifier(directory)
    card = read_card(directory / "README.md")
    return {
        **_sampling(directory),
        **_names(known_as, config, card, n_weights),
        **_licence(card),
        **_lineage(card, "base_model", ("base_model", "base_models", "base_model_sources"), n_weights),
        **_lineage(card, "dataset", ("datasets", "dataset", "dataset_sources"), n_weights),
        **_lists(card),
    }


def _sampling(directory: Path) -> dict[str, Value]:
    try:
        advice = read_optional_json(directory / "generation_config.json")
    except FormatError:  # advice only, and published models carry broken ones
        return {}
    found = {}
    for key, sources, kind in SAMPLING:
        value = next((advice[source] for source in sources if advice.get(source) is not None), None)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_ADVICE:
            number = int(value) if kind == ValueType.INT32 else float(value)
            found[f"general.sampling.{key}"] = Value(kind, number)
    return found


def _names(known_as: str, config: Mapping[str, Any], card: Mapping[str, Any], n_weights: int) -> dict[str, Value]:
    found: dict[str, str] = {}
    for key in NAMES:
        value = card.get(key, card.get(f"model_{key}"))
        if isinstance(value, str):
            found[key] = value
    for key, entry in (("author", "model_creator"), ("basename", "model_type")):
        if key not in found and isinstance(card.get(entry), str):
            found[key] = card[entry]
    for identifier in (config.get("_name_or_path"), known_as):
        if not isinstance(identifier, str) or not identifier or identifier.count("/") > 1:
            continue
        parts = parse_name(identifier, n_weights)
        for key in ("organization", "basename", "finetune", "version", "size_label"):
            value = getattr(parts, key)
            if value is not None:
                found.setdefault(key, title(value) if key == "organization" else value)
        if parts.name:
            found.setdefault("name", title(parts.name))
    found.setdefault("name", known_as)
    if n_weights:
        found.setdefault("size_label", size_label(n_weights))
    # A lone surrogate is valid JSON, but no text.
    return {f"general.{k}": string(found[k].encode("utf-8", "replace").decode()) for k in NAMES if k in found}


def _licence(card: Mapping[str, Any]) -> dict[str, Value]:
    found = {}
    for key, entry in (("license", "license"), ("license.name", "license_name"), ("license.link", "license_link")):
        value = card.get(entry)
        if isinstance(value, list):
            value = ",".join(str(item) for item in value)
        if isinstance(value, str) and value:
            found[f"general.{key}"] = string(value)
    for key in ("url", "doi", "uuid", "repo_url"):
        value = card.get(key, card.get(f"model_{key}"))
        if isinstance(value, str):
            found[f"general.source.{key}"] = string(value)
    return found


def _lineage(card: Mapping[str, Any], kind: str, entries: tuple[str, ...], n_weights: int) -> dict[str, Value]:
    value = next((card[entry] for entry in entries if entry in card), None)
    sources = [value] if isinstance(value, str) else value
    if not isinstance(sources, list):
        return {}
    sources = [source for source in sources if isinstance(source, str)]
    found = {f"general.{kind}.count": u32(len(sources))}
    for index, source in enumerate(sources):
        for key, text in _source(source, n_weights).items():
            found[f"general.{kind}.{index}.{key}"] = string(text)
    return found


def _source(source: str, n_weights: int) -> dict[str, str]:
    is_url = source.startswith(("http://", "https://", "ssh://"))
    match = _HUB_URL.fullmatch(source)
    if is_url and not match:
        return {"repo_url": source}
    parts = parse_name(match[1] if match else source, n_weights)
    found = {"name": title(parts.name)}
    if parts.version is not None:
        found["version"] = parts.version
    if parts.organization is not None:
        found["organization"] = title(parts.organization)
        found["repo_url"] = source if is_url else f"https://huggingface.co/{parts.organization}/{parts.name}"
    return found


def _lists(card: Mapping[str, Any]) -> dict[str, Value]:
    found = {}
    for key, entries in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        items: list[str] = []
        for entry in entries:
            value = card.get(entry)
            items += (
                [value] if isinstance(value, str) else [str(item) for item in value] if isinstance(value, list) else []
            )
        if items:
            found[f"general.{key}"] = array(ValueType.STRING, items)
    return found
