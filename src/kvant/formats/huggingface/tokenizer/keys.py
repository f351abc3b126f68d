"""Metadata keys that tokenizers of every kind have: tokens, chat templates; what is said of tokens around a text."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kvant.formats.huggingface.tokenizer.files import TokenizerFiles
from kvant.formats.huggingface.tokenizer.limits import added_around
from kvant.formats.huggingface.tokenizer.special import SpecialTokens
from kvant.formats.huggingface.tokenizer.vocabulary import Vocabulary, is_id
from kvant.metadata import Value, ValueType, array, string, u32


def token_type_count(config: Mapping[str, Any]) -> Value:
    """Return how many kinds of text an encoder tells apart: config.json's `type_vocab_size`, or one."""
    count = config.get("type_vocab_size")
    return u32(count if isinstance(count, int) and 0 < count < 1 << 16 else 1)


def vocabulary_keys(vocabulary: Vocabulary) -> dict[str, Value]:
    """Return the keys of tokens, scores where there are any, and types."""
    keys = {"tokenizer.ggml.tokens": array(ValueType.STRING, vocabulary.tokens)}
    if vocabulary.scores is not None:
        keys["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, np.asarray(vocabulary.scores, "<f4"))
    keys["tokenizer.ggml.token_type"] = array(ValueType.INT32, np.asarray(vocabulary.types, "<i4"))
    return keys


def suppressed_keys(files: TokenizerFiles, size: int, remarks: list[str]) -> dict[str, Value]:
    """Return the key of tokens that are never to be written, from generation_config.json; the engine heeds it.

    Args:
        files: The tokenizer's files.
        size: Tokens in the vocabulary.
        remarks: Is told of what is no token's id.
    """
    listed = files.generation.get("suppress_tokens")
    listed = [] if listed is None else listed if isinstance(listed, list) else [listed]
    found = [number for number in listed if is_id(number) and number < size]
    if len(found) < len(listed):
        wrong = len(listed) - len(found)
        remarks.append(
            f"generation_config.json: {wrong} of the {len(listed)} suppress_tokens are no token's id: left out."
        )
    return {"tokenizer.ggml.suppress_tokens": array(ValueType.INT32, np.asarray(found, "<i4"))} if found else {}


def template_keys(templates: Mapping[str, str]) -> dict[str, Value]:
    """Return the keys of chat templates: named ones, their list, and the default."""
    named = {_template_name(name): text for name, text in templates.items() if name != "default"}
    keys = {f"tokenizer.chat_template.{name}": string(text) for name, text in named.items() if name}
    if keys:
        keys["tokenizer.chat_templates"] = array(ValueType.STRING, [name for name in named if name])
    if "default" in templates:
        keys["tokenizer.chat_template"] = string(templates["default"])
    return keys


def _template_name(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def around_remarks(files: TokenizerFiles, special: SpecialTokens, vocabulary: Vocabulary) -> Iterator[str]:
    """Say which tokens tokenizer.json puts around a text that the engine does not."""
    names = {role: vocabulary.tokens[number] for role, number in special.ids.items()}
    return added_around(files.tokenizer.get("post_processor"), special.add, names)
