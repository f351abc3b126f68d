"""Mistral's tekken.json, as the tokenizer.json that says the same.

It lists tokens by rank: the 256 bytes, then what merging makes, in order; special tokens stand before them in the ids.
Merges are not written down: a token's are all its splits into two tokens, by their ranks.

Source: mistral_common `Tekkenizer` (`from_file`, `DEPRECATED_SPECIAL_TOKENS`); conversion/base.py `_set_vocab_mistral`,
gguf-py vocab.py `MistralVocab.extract_vocab_merges_from_model`.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from kvant.errors import FormatError
from kvant.formats.huggingface.tokenizer.pretokenizers import MAX_PATTERN_CHARACTERS
from kvant.formats.huggingface.tokenizer.vocabulary import MAX_TOKENS, check_text, splits

OLD_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
"""Special tokens, by rank, of files that list none: up to version 7."""

_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_CHARACTERS = {byte: chr(byte if byte in _PRINTABLE else 256 + _OTHERS.index(byte)) for byte in range(256)}
"""How byte-level tokenizers write each byte (GPT-2's `bytes_to_unicode`)."""


def as_tokenizer_json(tekken: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what tokenizer.json and tokenizer_config.json of the same tokenizer hold.

    Raises:
        FormatError: An entry is missing, malformed, or contradicts another.
        LimitError: More tokens than a tokenizer can have, or one too long.
    """
    config = tekken.get("config")
    if not isinstance(config, dict):
        raise FormatError("tekken.json: has no object named config. Download it again.")
    size, n_special = (_count(config, key) for key in ("default_vocab_size", "default_num_special_tokens"))
    pattern = config.get("pattern")
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARACTERS:
        raise FormatError(
            f"tekken.json: pattern is no text of at most {MAX_PATTERN_CHARACTERS} characters. Correct it."
        )
    special = _special(tekken.get("special_tokens"), n_special)
    ranks = {text: rank for rank, text in enumerate(_tokens(tekken.get("vocab"), size - n_special))}
    if len(ranks) != size - n_special:
        raise FormatError("tekken.json: two tokens of the vocabulary are the same. Download it again.")
    flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    document = {
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in enumerate(special)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, whole]},
        "decoder": whole,
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {text: rank + n_special for text, rank in ranks.items()},
            "merges": list(_merges(ranks)),
        },
    }
    return document, _roles(special)


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_TOKENS:
        raise FormatError(f"tekken.json: {key} is {str(value)[:40]}, not a number from 1 to {MAX_TOKENS}. Correct it.")
    return value


def _special(entries: Any, count: int) -> list[str]:
    """Return the texts of special tokens by id; those that nobody named are `<SPECIAL_{id}>`."""
    if entries is None:
        entries = [{"rank": rank, "token_str": text} for rank, text in enumerate(OLD_SPECIAL)]
    if not isinstance(entries, list) or len(entries) > count:
        raise FormatError(f"tekken.json: special_tokens is no list of at most {count} tokens. Download it again.")
    texts = [f"<SPECIAL_{number}>" for number in range(count)]
    for number, entry in enumerate(entries):
        text = entry.get("token_str") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text or entry.get("rank") != number:
            raise FormatError(f"tekken.json: special token {number} is {str(entry)[:80]}, not its rank and text.")
        check_text(text)
        texts[number] = text
    return texts


def _tokens(entries: Any, count: int) -> Iterator[str]:
    """Yield the first `count` tokens as byte-level text, by rank."""
    if not isinstance(entries, list) or not 256 <= count <= len(entries):
        held = len(entries) if isinstance(entries, list) else 0
        raise FormatError(
            f"tekken.json: its sizes leave {count} tokens for the vocabulary, which holds {held}; the 256 bytes are "
            "the fewest. Download it again."
        )
    for rank, entry in enumerate(entries[:count]):
        text = entry.get("token_bytes") if isinstance(entry, dict) else None
        try:
            data = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError):
            data = b""
        if not data or entry.get("rank") != rank or (rank < 256 and data != bytes([rank])):
            raise FormatError(
                f"tekken.json: token {rank} is {str(entry)[:80]}, not its rank and bytes. Download it again."
            )
        yield "".join(BYTE_CHARACTERS[byte] for byte in data)


def _merges(ranks: Mapping[str, int]) -> Iterator[list[str]]:
    for text, rank in ranks.items():
        if rank < 256:
            continue
        pairs = splits(text, ranks)
        if not pairs:
            raise FormatError(f"tekken.json: token {rank}, {text[:40]!r}, is made of no two tokens. Download it again.")
        yield from (list(pair) for pair in sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]])))


def _roles(special: list[str]) -> dict[str, Any]:
    named = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>" if "<pad>" in special else "</s>"}
    return {
        **{f"{role}_token": text for role, text in named.items() if text in special},
        "add_bos_token": "<s>" in special, "add_eos_token": False,
    }  # fmt: skip
