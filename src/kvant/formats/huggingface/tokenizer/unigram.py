"""Unigram: the most probable way to cut a text into tokens (XLM-RoBERTa, T5; `t5` in GGUF).

Source: conversion/bert.py `_xlmroberta_set_vocab`; llama-vocab.cpp `llm_tokenizer_ugm` (the longest match of the
charsmap, white space, scores) and `load` (how long a charsmap must be).
"""

import base64
import binascii
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kvant.errors import FormatError, LimitError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.files import TokenizerFiles, read_templates
from kvant.formats.huggingface.tokenizer.keys import around_remarks, template_keys, token_type_count, vocabulary_keys
from kvant.formats.huggingface.tokenizer.limits import flag_remarks, steps_of
from kvant.formats.huggingface.tokenizer.special import read_special_tokens, unnamed_roles
from kvant.formats.huggingface.tokenizer.vocabulary import (
    MAX_TOKENS,
    META,
    AddedToken,
    Vocabulary,
    check_distinct,
    check_text,
    read_added_tokens,
    vocabulary_size,
)
from kvant.metadata import TokenType, Value, ValueType, array, boolean, string

PAD_SCORE = -10000.0
MAX_CHARSMAP_BYTES = 16 << 20
"""Largest table of normalizations read; that of NFKC has 240 kB."""

_RUNS_OF_SPACES = ({"Regex": " {2,}"}, {"Regex": r"\s{2,}"})


def is_unigram(files: TokenizerFiles) -> bool:
    """Tell whether a tokenizer.json holds probabilities of tokens."""
    model = files.tokenizer.get("model")
    return isinstance(model, dict) and model.get("type") == "Unigram"


def unigram_keys(files: TokenizerFiles, config: Mapping[str, Any], remarks: list[str]) -> dict[str, Value]:
    """Describe a Unigram tokenizer under GGUF keys.

    Raises:
        FormatError: The vocabulary, its unknown token or the table of normalizations is damaged, or ids clash.
        LimitError: Too many tokens, or the table is larger than one can be.
        UnsupportedModelError: Text is normalized or cut otherwise than the engine does, or bytes have tokens.
    """
    charsmap, merges_spaces = read_normalizer(files.tokenizer)
    prefix, splits = read_spaces(files.tokenizer)
    added = read_added_tokens(files)
    vocabulary = unigram_vocabulary(files.tokenizer["model"], added, config)
    ids = {text: number for number, text in enumerate(vocabulary.tokens)}
    special = read_special_tokens(files, config, added, ids, len(ids), remarks)
    special.ids.setdefault("unk", files.tokenizer["model"]["unk_id"])
    for role in ("bos", "eos"):  # the engine adds EOS where a file does not say
        special.add.setdefault(role, False)
    merges = merges_spaces or splits
    remarks += [
        *_remarks(merges, splits, bool(charsmap)), *flag_remarks(added.values(), None),
        *unnamed_roles("t5", special, vocabulary), *around_remarks(files, special, vocabulary),
    ]  # fmt: skip
    keys = {
        "tokenizer.ggml.model": string("t5"),
        "tokenizer.ggml.pre": string("default"),
        **vocabulary_keys(vocabulary),
        "tokenizer.ggml.add_space_prefix": boolean(prefix),
        "tokenizer.ggml.token_type_count": token_type_count(config),
        "tokenizer.ggml.remove_extra_whitespaces": boolean(merges),
    }
    if charsmap:
        keys["tokenizer.ggml.precompiled_charsmap"] = array(ValueType.UINT8, np.frombuffer(charsmap, np.uint8))
    return {**keys, **special.metadata(), **template_keys(read_templates(files))}


def unigram_vocabulary(
    model: Mapping[str, Any], added: Mapping[int, AddedToken], config: Mapping[str, Any]
) -> Vocabulary:
    """Return tokens, log probabilities and types; ids that no token has become unused `[PAD{id}]` tokens.

    Raises:
        FormatError: An entry is no text with a number, the unknown token is none of them, or texts or ids clash.
        LimitError: Too many tokens, or one too long.
        UnsupportedModelError: Unknown characters are spelled in bytes, which the engine does not do for this kind.
    """
    base = list(_pieces(model.get("vocab")))
    unknown = model.get("unk_id")
    if not isinstance(unknown, int) or isinstance(unknown, bool) or not 0 <= unknown < len(base):
        raise FormatError(
            f"tokenizer.json: unk_id is {str(unknown)[:40]}, none of {len(base)} tokens. Download it again."
        )
    if model.get("byte_fallback"):
        raise UnsupportedModelError(
            "tokenizer.json: a Unigram tokenizer with byte_fallback is not supported: llama.cpp has no bytes for this "
            "kind. Take a model without it."
        )
    size = vocabulary_size(config, [len(base) - 1, *added])
    tokens = [text for text, _ in base] + [f"[PAD{number}]" for number in range(len(base), size)]
    scores = [score for _, score in base] + [PAD_SCORE] * (size - len(base))
    types = [int(TokenType.NORMAL)] * len(base) + [int(TokenType.UNUSED)] * (size - len(base))
    for number, token in added.items():
        if number < len(base) and token.content != tokens[number]:
            raise FormatError(
                f"tokenizer.json: added token {token.content[:40]!r} with id {number} clashes with the vocabulary."
            )
        scores[number] = scores[number] if number < len(base) else 0.0
        tokens[number] = token.content
        types[number] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    types[unknown] = int(TokenType.UNKNOWN)
    check_distinct(tokens)
    return Vocabulary(tokens, types, scores)


def _pieces(vocab: Any) -> Iterator[tuple[str, float]]:
    if not isinstance(vocab, list) or not vocab:
        raise FormatError("tokenizer.json: model.vocab is not a list of tokens with their scores. Download it again.")
    if len(vocab) > MAX_TOKENS:
        raise LimitError(f"tokenizer.json: {len(vocab)} tokens are more than the limit of {MAX_TOKENS}.")
    for number, entry in enumerate(vocab):
        text, score = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(text, str) or isinstance(score, bool) or not isinstance(score, int | float):
            raise FormatError(f"tokenizer.json: entry {number} of vocab is {str(entry)[:80]}, no token and score.")
        if not math.isfinite(score) or abs(score) > 3e38:
            raise FormatError(f"tokenizer.json: the score of token {number} is {score}, which float32 does not hold.")
        check_text(text)
        yield text, float(score)


def read_normalizer(tokenizer: Mapping[str, Any]) -> tuple[bytes, bool]:
    """Return the table of normalizations, empty if there is none, and whether runs of spaces become one.

    Raises:
        FormatError: The table is damaged.
        LimitError: It is larger than one can be.
        UnsupportedModelError: A normalizer that the engine does not have.
    """
    charsmap, merges = b"", False
    for step in steps_of(tokenizer.get("normalizer"), "normalizers"):
        kind = step.get("type")
        if kind == "Precompiled":
            charsmap = _charsmap(step.get("precompiled_charsmap"))
        elif kind == "Replace" and step.get("pattern") in _RUNS_OF_SPACES and step.get("content") in (" ", META):
            merges = True
        elif kind != "Strip":
            raise UnsupportedModelError(
                f"tokenizer.json: normalizer {str(kind)[:40]!r} of a Unigram tokenizer has no counterpart in the "
                "engine. Supported: Precompiled, Strip, and Replace of several spaces by one."
            )
    return charsmap, merges


def _charsmap(text: Any) -> bytes:
    """Decode a table: four bytes of length, a trie of so many bytes, then the replacements."""
    if text is None:
        return b""
    if not isinstance(text, str) or len(text) > MAX_CHARSMAP_BYTES * 4 // 3 + 4:
        raise LimitError(
            f"tokenizer.json: precompiled_charsmap is no text of at most {MAX_CHARSMAP_BYTES} bytes in base64. "
            "Download it again."
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"tokenizer.json: precompiled_charsmap is no base64 ({error}). Download it again.") from error
    if not data:
        return b""
    length = struct.unpack_from("<I", data)[0] if len(data) > 4 else 0
    if len(data) <= 4 or length % 4 or length + 4 >= len(data) or data[-1]:
        raise FormatError(
            f"tokenizer.json: precompiled_charsmap of {len(data)} bytes is damaged: its trie is to have {length}. "
            "Download it again."
        )
    return data


def read_spaces(tokenizer: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether a space is put before a text, and whether text is cut at white space, which drops runs of it.

    Raises:
        UnsupportedModelError: A pre-tokenizer that the engine does not have.
    """
    prefix, splits, marks = False, False, False
    for step in steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "WhitespaceSplit":
            splits = True
        elif kind == "Metaspace" and step.get("replacement", META) == META:
            marks = True
            stated = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            prefix = stated != "never"
        else:
            raise UnsupportedModelError(
                f"tokenizer.json: pre-tokenizer step {str(kind)[:40]!r} of a Unigram tokenizer has no counterpart in "
                "the engine. Supported: WhitespaceSplit, Metaspace."
            )
    if not marks:
        raise UnsupportedModelError(
            "tokenizer.json: spaces are not written as U+2581 (Metaspace), as the engine does. Such a tokenizer cannot "
            "be stored as GGUF."
        )
    return prefix, splits


def _remarks(merges: bool, splits: bool, maps: bool) -> Iterator[str]:
    if splits and not maps:
        yield (
            "tokenizer.json cuts text at white space of every kind, llama.cpp at spaces alone: such text gets other "
            "tokens."
        )
    if merges and not splits:
        yield "tokenizer.json keeps a space at the end of a text; llama.cpp drops it."
