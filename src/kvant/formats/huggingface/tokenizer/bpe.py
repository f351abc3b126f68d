"""Byte-level BPE: a text's bytes, written as printable characters, merged pair by pair (GPT-2, Llama 3, Qwen, ...)."""

from collections.abc import Mapping
from typing import Any

from kvant.errors import FormatError, LimitError
from kvant.formats.huggingface.tokenizer.vocabulary import (
    META,
    AddedToken,
    Vocabulary,
    base_tokens,
    check_distinct,
    looks_special,
    vocabulary_size,
)
from kvant.metadata import TokenType

MAX_MERGES = 1 << 22
SPACE = "\u0120"
"""How a space is written in byte-level tokens."""


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Tell whether a tokenizer.json writes bytes as printable characters."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        return False
    for part in ("pre_tokenizer", "decoder"):
        step = tokenizer.get(part)
        if not isinstance(step, dict):
            continue
        steps = step.get("pretokenizers") or step.get("decoders") or [step]
        if isinstance(steps, list) and any(isinstance(s, dict) and s.get("type") == "ByteLevel" for s in steps):
            return True
    return False


def byte_level_vocabulary(
    tokenizer: Mapping[str, Any], added: Mapping[int, AddedToken], config: Mapping[str, Any]
) -> Vocabulary:
    """Return the vocabulary of a byte-level tokenizer; ids that no token has become unused `[PAD{id}]` tokens.

    Raises:
        FormatError: Ids or texts clash, or lie outside the model's vocabulary.
        LimitError: Too many tokens.
    """
    by_id = base_tokens(tokenizer["model"].get("vocab"))
    texts = {text: number for number, text in by_id.items()}
    for number, token in added.items():
        if texts.get(token.content, number) != number or by_id.get(number, token.content) != token.content:
            raise FormatError(
                f"tokenizer.json: added token {token.content[:40]!r} with id {number} clashes with the vocabulary."
            )
    size = vocabulary_size(config, [*by_id, *added])
    tokens, types = [], []
    for number in range(size):
        token_added = added.get(number)
        if token_added is not None:
            text, kind = added_text(token_added)
        elif number in by_id:
            text, kind = by_id[number], TokenType.NORMAL
        else:
            text, kind = f"[PAD{number}]", TokenType.UNUSED
        tokens.append(text)
        types.append(int(kind))
    check_distinct(tokens)
    return Vocabulary(tokens, types)


def added_text(token: AddedToken) -> tuple[str, TokenType]:
    """Return the text and type the engine stores for an added token: spaces of a user-defined one are plain."""
    if token.special or looks_special(token.content):
        return token.content, TokenType.CONTROL
    return token.content.replace(META, " "), TokenType.USER_DEFINED


def read_merges(tokenizer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return merges by rank, from either spelling: `"a b"` or `["a", "b"]`.

    Raises:
        FormatError: An entry is not a pair, or names or makes a text that is not a token.
        LimitError: Too many.
    """
    entries = tokenizer["model"].get("merges")
    if not isinstance(entries, list):
        raise FormatError("tokenizer.json: model.merges is not a list.")
    if len(entries) > MAX_MERGES:
        raise LimitError(f"tokenizer.json: {len(entries)} merges are more than the limit of {MAX_MERGES}.")
    vocab = tokenizer["model"]["vocab"]
    merges = []
    for rank, entry in enumerate(entries):
        pair = tuple(entry.split(" ")) if isinstance(entry, str) else tuple(entry) if isinstance(entry, list) else ()
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise FormatError(f"tokenizer.json: merge {rank} is {str(entry)[:80]!r}, not a pair of tokens.")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise FormatError(
                f"tokenizer.json: merge {rank}, {left[:40]!r} with {right[:40]!r}, names or makes no token."
            )
        merges.append((left, right))
    return merges


def merge_strings(merges: list[tuple[str, str]]) -> list[str]:
    """Write merges as GGUF does, `"a b"`; a space inside a part is written as byte-level text writes it."""
    return [f"{left.replace(' ', SPACE)} {right.replace(' ', SPACE)}" for left, right in merges]
