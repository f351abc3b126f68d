"""A vocabulary: token texts, their types and scores, by id."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from kvant.errors import FormatError, LimitError
from kvant.formats.huggingface.tokenizer.files import TokenizerFiles, read_object

MAX_TOKENS = 1 << 20
MAX_TOKEN_CHARACTERS = 1 << 16
MAX_PIECE_CHARACTERS = 512
"""Longest SentencePiece-style token all of whose splits are looked at; real ones have a tenth of that."""

META = "\u2581"
"""The mark that SentencePiece writes for a space."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token matched in the text before the tokenizer proper sees it.

    Attributes:
        id: Its id.
        content: Its text.
        special: Whether it is left out when tokens become text.
        normalized: Whether text and token are compared after the normalizer.
        lstrip: Whether it swallows the white space before it.
        rstrip: Whether it swallows the white space after it.
        single_word: Whether it matches whole words alone.
    """

    id: int
    content: str
    special: bool
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(slots=True)
class Vocabulary:
    """Tokens by id.

    Attributes:
        tokens: Texts as the engine stores them; no two alike.
        types: A TokenType each.
        scores: A float each for SentencePiece-style vocabularies, else None.
    """

    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None


def read_added_tokens(files: TokenizerFiles) -> dict[int, AddedToken]:
    """Return added tokens by id, from tokenizer.json, then tokenizer_config.json, then added_tokens.json.

    Raises:
        FormatError: An entry has no usable id or content, or two entries disagree.
        LimitError: Too many.
    """
    found: dict[int, AddedToken] = {}
    entries = files.tokenizer.get("added_tokens") or []
    if not isinstance(entries, list):
        raise FormatError("tokenizer.json: added_tokens is not a list.")
    for entry in entries:
        token = _added_token(entry, entry.get("id") if isinstance(entry, dict) else None)
        known = found.setdefault(token.id, token)
        if known.content != token.content:
            raise FormatError(
                f"tokenizer.json: added tokens {known.content!r} and {token.content!r} share id {token.id}."
            )
    decoder = files.config.get("added_tokens_decoder") or {}
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        token = _added_token(entry, int(key) if key.isascii() and key.isdigit() and len(key) < 10 else None)
        if found.get(token.id, token).content == token.content:
            found.setdefault(token.id, token)
    for content, number in read_object(files.directory, "added_tokens.json").items():
        token = _added_token({"content": content}, number)
        found.setdefault(token.id, token)
    if len(found) > MAX_TOKENS:
        raise LimitError(f"added tokens: {len(found)} are more than the limit of {MAX_TOKENS}.")
    return found


def _added_token(entry: Any, number: Any) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not is_id(number) or not isinstance(content, str):
        raise FormatError(f"added token {str(entry)[:200]}: has no content, or no id from 0 to {MAX_TOKENS - 1}.")
    check_text(content)
    names = ("special", "normalized", "lstrip", "rstrip", "single_word")
    return AddedToken(number, content, **{name: bool(entry.get(name, False)) for name in names})


def is_id(value: Any) -> TypeGuard[int]:
    """Tell whether a value from a file can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS


def check_text(text: str) -> None:
    """Refuse a token text longer than any real token.

    Raises:
        LimitError: Over MAX_TOKEN_CHARACTERS.
    """
    if len(text) > MAX_TOKEN_CHARACTERS:
        raise LimitError(f"token {text[:40]!r}...: {len(text)} characters exceed the limit of {MAX_TOKEN_CHARACTERS}.")


def splits(text: str, tokens: Container[str]) -> list[tuple[str, str]]:
    """Return the ways to split a token into two tokens.

    Raises:
        LimitError: Over MAX_PIECE_CHARACTERS.
    """
    if len(text) > MAX_PIECE_CHARACTERS:
        raise LimitError(f"token {text[:40]!r}...: {len(text)} characters exceed the limit of {MAX_PIECE_CHARACTERS}.")
    return [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in tokens and text[i:] in tokens]


def looks_special(text: str) -> bool:
    """Tell whether an added token that is not marked special is a control token all the same.

    Some models leave the mark out (Command-R, DeepSeek-Coder, Gemma); the list of spellings is upstream's, a fact of
    its converter (`does_token_look_special`).
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def base_tokens(vocab: Any) -> dict[int, str]:
    """Turn a tokenizer.json vocabulary around: text by id.

    Raises:
        FormatError: Not an object of text to id, or two texts share an id.
        LimitError: Too many tokens, or one too long.
    """
    if not isinstance(vocab, dict):
        raise FormatError("tokenizer.json: model.vocab is not an object of token to id.")
    if len(vocab) > MAX_TOKENS:
        raise LimitError(f"tokenizer.json: {len(vocab)} tokens are more than the limit of {MAX_TOKENS}.")
    by_id: dict[int, str] = {}
    for text, number in vocab.items():
        if not is_id(number):
            raise FormatError(
                f"tokenizer.json: token {text[:40]!r} has id {number!r}, not one from 0 to {MAX_TOKENS - 1}."
            )
        check_text(text)
        if by_id.setdefault(number, text) != text:
            raise FormatError(f"tokenizer.json: tokens {by_id[number][:40]!r} and {text[:40]!r} share id {number}.")
    return by_id


def vocabulary_size(config: Mapping[str, Any], ids: Iterable[int]) -> int:
    """Return how many tokens the model has: config.json's vocab_size, or one past the highest id.

    Raises:
        FormatError: A token's id lies outside the model's vocabulary, or there is no token at all.
    """
    highest = max(ids, default=-1)
    stated = _stated_size(config)
    size = highest + 1 if stated is None else stated
    if not isinstance(size, int) or not 0 < size <= MAX_TOKENS:
        raise FormatError(f"config.json: vocab_size {size!r} is not a number from 1 to {MAX_TOKENS}.")
    if highest >= size:
        raise FormatError(
            f"tokenizer: id {highest} lies outside the model's vocab_size {size}. Resize the model's embeddings to its"
            " tokenizer, or remove the tokens it does not know."
        )
    return size


def _stated_size(config: Mapping[str, Any]) -> Any:
    stated = config.get("vocab_size")
    if stated is None and isinstance(config.get("text_config"), dict):
        stated = config["text_config"].get("vocab_size")
    return stated


def beyond_vocabulary(config: Mapping[str, Any], added: Mapping[int, AddedToken]) -> dict[int, AddedToken]:
    """Return the added tokens whose ids lie outside the model's vocabulary: those of another size of the same model.

    Gemma 3's small models have the picture token of the large ones in their tokenizer, and no row for it.
    """
    size = _stated_size(config)
    if not isinstance(size, int) or isinstance(size, bool):
        return {}
    return {number: token for number, token in added.items() if number >= size}


def beyond_remarks(beyond: Mapping[int, AddedToken]) -> list[str]:
    """Say which added tokens are left out because the model has no row for them."""
    if not beyond:
        return []
    first = min(beyond)
    return [
        f"{len(beyond)} added tokens (first {beyond[first].content[:40]!r}, id {first}) lie outside the model's "
        "vocab_size and are left out: the model has no row for them."
    ]


def check_distinct(tokens: list[str]) -> None:
    """Refuse a vocabulary in which two ids have the same text: the engine aborts on one.

    Raises:
        FormatError: Two ids share a text.
    """
    seen: dict[str, int] = {}
    for number, text in enumerate(tokens):
        other = seen.setdefault(text, number)
        if other != number:
            raise FormatError(f"tokenizer: ids {other} and {number} are both {text[:40]!r}; a text must have one id.")
