"""WordPiece: words of letters, cut into the longest tokens from the left (BERT, `bert` in GGUF).

A tokenizer.json marks what continues a word ("##ing"), GGUF what begins one ("▁walk"). The engine lowers case, strips
accents and cuts off punctuation and Chinese characters as BERT does.

Source: conversion/bert.py `BertModel.set_vocab`; gguf-py vocab.py `SpecialVocab._parse_normalizer`; llama-vocab.cpp
`llm_tokenizer_wpm_session`, and `tokenize`, which ends the process where a class token or a separator is not named.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.bpe import byte_level_vocabulary
from kvant.formats.huggingface.tokenizer.files import TokenizerFiles, read_templates
from kvant.formats.huggingface.tokenizer.keys import around_remarks, template_keys, token_type_count, vocabulary_keys
from kvant.formats.huggingface.tokenizer.limits import flag_remarks, steps_of
from kvant.formats.huggingface.tokenizer.special import SpecialTokens, read_special_tokens
from kvant.formats.huggingface.tokenizer.vocabulary import META, Vocabulary, check_distinct, read_added_tokens
from kvant.metadata import TokenType, Value, boolean, string

NORMALIZED_BY = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize", "never_split")
"""Entries of tokenizer_config.json that say again what the normalizer of tokenizer.json says."""

CONTINUES = "##"
PRE = "bert-bge"
"""`tokenizer.ggml.pre`: upstream's name for one of the vocabularies it knows; the engine reads none for this kind."""

MAX_WORD = 100
"""Characters of a word beyond which `tokenizers` takes it for unknown, unless its file says otherwise."""


def is_wordpiece(files: TokenizerFiles) -> bool:
    """Tell whether a tokenizer.json is BERT's."""
    model = files.tokenizer.get("model")
    return isinstance(model, dict) and model.get("type") == "WordPiece"


def wordpiece_keys(files: TokenizerFiles, config: Mapping[str, Any], remarks: list[str]) -> dict[str, Value]:
    """Describe a WordPiece tokenizer under GGUF keys.

    Raises:
        FormatError: Ids or texts clash, or no class token, separator or unknown token is named.
        LimitError: Too many tokens.
        UnsupportedModelError: Text is normalized or cut otherwise than the engine does.
    """
    normalizer = read_normalizer(files.tokenizer)
    check_steps(files.tokenizer)
    added = read_added_tokens(files)
    vocabulary = wordpiece_vocabulary(byte_level_vocabulary(files.tokenizer, added, config))
    vocab = files.tokenizer["model"]["vocab"]
    special = read_special_tokens(files, config, added, vocab, len(vocabulary.tokens), remarks)
    _check_roles(special, files)
    remarks += [
        *_remarks(files.tokenizer), *flag_remarks(added.values(), None), *around_remarks(files, special, vocabulary)
    ]  # fmt: skip
    return {
        "tokenizer.ggml.token_type_count": token_type_count(config),
        "tokenizer.ggml.model": string("bert"),
        "tokenizer.ggml.pre": string(PRE),
        **vocabulary_keys(vocabulary),
        **special.metadata(),
        **template_keys(read_templates(files)),
        **{f"tokenizer.ggml.normalizer.{name}": boolean(value) for name, value in normalizer.items()},
    }


def wordpiece_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """Mark what begins a word instead of what continues one; special tokens stay as they are.

    Raises:
        FormatError: Two tokens have one text then.
    """
    special = (TokenType.CONTROL, TokenType.USER_DEFINED)

    def phantom(text: str, kind: int) -> str:
        if kind in special:
            return text
        return text.removeprefix(CONTINUES) if text.startswith(CONTINUES) else META + text

    tokens = [phantom(text, kind) for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)]
    check_distinct(tokens)
    return Vocabulary(tokens, vocabulary.types)


def read_normalizer(tokenizer: Mapping[str, Any]) -> dict[str, bool]:
    """Return which of `lowercase` and `strip_accents` a tokenizer.json states.

    Raises:
        UnsupportedModelError: A normalizer that the engine does not have.
    """
    found: dict[str, bool] = {}
    for step in steps_of(tokenizer.get("normalizer"), "normalizers"):
        kind = step.get("type")
        if kind == "BertNormalizer":
            found |= {key: step[key] for key in ("lowercase", "strip_accents") if isinstance(step.get(key), bool)}
        elif kind in ("Lowercase", "StripAccents"):
            found["lowercase" if kind == "Lowercase" else "strip_accents"] = True
        elif kind not in ("NFD", "NFC"):
            raise UnsupportedModelError(
                f"tokenizer.json: normalizer {str(kind)[:40]!r} of a WordPiece tokenizer has no counterpart in the "
                "engine. Supported: BertNormalizer, Lowercase, StripAccents, NFD."
            )
    return found


def check_steps(tokenizer: Mapping[str, Any]) -> None:
    """Refuse words that are cut otherwise than BERT's.

    Raises:
        UnsupportedModelError: Another pre-tokenizer, or another mark of what continues a word.
    """
    kinds = [step.get("type") for step in steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    if kinds != ["BertPreTokenizer"]:
        raise UnsupportedModelError(
            f"tokenizer.json: pre-tokenizer {str(kinds)[:80]} of a WordPiece tokenizer has no counterpart in the "
            "engine. Supported: BertPreTokenizer."
        )
    prefix = tokenizer["model"].get("continuing_subword_prefix", CONTINUES)
    if prefix != CONTINUES:
        raise UnsupportedModelError(
            f"tokenizer.json: continuing_subword_prefix is {str(prefix)[:40]!r}, where the engine's WordPiece knows "
            f"{CONTINUES!r}. Such a tokenizer cannot be stored as GGUF."
        )


def _check_roles(special: SpecialTokens, files: TokenizerFiles) -> None:
    missing = [name for role, name in (("bos", "cls_token"), ("sep", "sep_token"), ("unk", "unk_token"))
               if role not in special.ids]  # fmt: skip
    if missing:
        raise FormatError(
            f"{files.directory}: names no {' and no '.join(missing)}, without which llama.cpp ends on the first text. "
            "Name it in tokenizer_config.json."
        )


def _remarks(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    normalizer = read_normalizer(tokenizer)
    if normalizer.get("strip_accents", normalizer.get("lowercase", False)):
        yield (
            "llama.cpp strips accents otherwise than tokenizer.json: of Korean syllables it keeps the first letter "
            "alone, and it drops vowel signs of Indic scripts; such text gets other tokens."
        )
    bert = next(
        (s for s in steps_of(tokenizer.get("normalizer"), "normalizers") if s.get("type") == "BertNormalizer"), {}
    )
    if bert.get("handle_chinese_chars") is False:
        yield "tokenizer.json leaves Chinese characters together (handle_chinese_chars false); llama.cpp cuts them."
    if bert.get("clean_text") is False:
        yield "tokenizer.json keeps control characters (clean_text false); llama.cpp drops them."
    longest = tokenizer["model"].get("max_input_chars_per_word", MAX_WORD)
    yield f"tokenizer.json takes words of over {str(longest)[:20]} characters for unknown; llama.cpp reads them."
