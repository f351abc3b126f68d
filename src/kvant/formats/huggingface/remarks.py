"""What of a Hugging Face directory does not come along, or is computed otherwise by the engine: one sentence each."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.nextn import MTP_LAYERS
from kvant.formats.huggingface.architectures.pooling import module_remarks
from kvant.formats.huggingface.architectures.rope import rope_remarks
from kvant.formats.huggingface.config import Config, read_optional_json, shown
from kvant.formats.huggingface.entries import config_remarks, generation_remarks

CODE = "auto_map"
"""Entry of config.json that names Python code for transformers to load."""

GENERATION = "generation_config.json"


def model_remarks(directory: Path, raw: Mapping[str, Any], family: Family, config: Config) -> Iterator[str]:
    """Say what does not come along of a model's configuration, most serious first.

    Args:
        directory: The model directory.
        raw: Its config.json.
        family: Its family.
        config: Its configuration, completed.
    """
    if family.remark:
        yield f"{directory}: {family.remark}."
    yield from _code(raw, family, config)
    yield from _window(family, config)
    yield from rope_remarks(config, family.known_entries)
    yield from _heads(raw, config)
    yield from module_remarks(config, family.modules)
    yield from config_remarks(raw, family.known_entries, config.path)
    yield from _generation(directory / GENERATION)


def _heads(raw: Mapping[str, Any], config: Config) -> Iterator[str]:
    named, found = raw.get(MTP_LAYERS), config.get(MTP_LAYERS)
    if named and named != found and isinstance(found, int):
        yield (
            f"{config.path}: {MTP_LAYERS} is {shown(named)}, but the weights have {found} of these layers, which guess "
            f"further tokens: as many are written."
        )


def _code(raw: Mapping[str, Any], family: Family, config: Config) -> Iterator[str]:
    if raw.get(CODE):
        yield (
            f"{config.path}: {CODE} names Python code of the model's own ({shown(raw[CODE])}), and kvant runs none: it "
            f"is read as {family.classes[0]} of transformers. Compare its answers if its code computes something else."
        )


def _window(family: Family, config: Config) -> Iterator[str]:
    window = family.unseen_window(config)
    if window is not None and window < config.integer("max_position_embeddings"):
        yield (
            f"{config.path}: sliding_window is {window}, but llama.cpp's {family.architecture} attends to all tokens: "
            f"texts of up to {window} tokens get the same results, longer ones others, so context_length is {window}."
        )


def _generation(path: Path) -> Iterator[str]:
    try:
        yield from generation_remarks(read_optional_json(path), path)
    except FormatError as error:  # advice only, and published models carry broken ones
        yield f"{path}: nothing of it is read ({error})."
