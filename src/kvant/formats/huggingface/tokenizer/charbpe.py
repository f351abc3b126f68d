"""Ranked BPE over characters: SentencePiece's spelling of spaces and bytes, merged by rank (Gemma 4).

The engine's `gemma4` writes spaces as marks, cuts text at line ends alone, and merges by rank, so that merges trained
in any way are kept as they are; scores say nothing.

Source: llama-vocab.cpp (`gemma4`, `LLAMA_VOCAB_PRE_TYPE_GEMMA4`); conversion/gemma.py `Gemma4Model.set_vocab`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kvant.formats.huggingface.tokenizer.bpe import byte_level_vocabulary
from kvant.formats.huggingface.tokenizer.files import TokenizerFiles
from kvant.formats.huggingface.tokenizer.limits import check_model
from kvant.formats.huggingface.tokenizer.spm import ADDED_SCORE, BYTE_TOKEN, check_bytes, space_scheme
from kvant.formats.huggingface.tokenizer.vocabulary import META, AddedToken, Vocabulary
from kvant.metadata import TokenType

FAMILIES = frozenset({"gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"})
"""`model_type`s whose tokenizer the engine reads so."""

VISIBLE = frozenset({
    "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
})  # fmt: skip
"""Special tokens that stay in the text of an answer, where programs look for them; the list is upstream's."""


def is_ranked(files: TokenizerFiles, config: Mapping[str, Any]) -> bool:
    """Tell whether a tokenizer is Gemma 4's."""
    return config.get("model_type") in FAMILIES and bool(files.tokenizer)


def ranked_vocabulary(
    files: TokenizerFiles, added: Mapping[int, AddedToken], config: Mapping[str, Any], remarks: list[str]
) -> Vocabulary:
    """Return the vocabulary of a tokenizer that merges characters by rank.

    Raises:
        FormatError: Ids or texts clash, or lie outside the model's vocabulary.
        LimitError: Too many tokens.
        UnsupportedModelError: Spaces are not written as marks, or a byte has no token.
    """
    check_model(files.tokenizer["model"])
    scheme = space_scheme(files.tokenizer)
    vocabulary = byte_level_vocabulary(files.tokenizer, added, config)
    for number, text in enumerate(vocabulary.tokens):
        token = added.get(number)
        if BYTE_TOKEN.fullmatch(text):
            vocabulary.types[number] = int(TokenType.BYTE)
        elif token is not None and token.content in VISIBLE:
            vocabulary.types[number] = int(TokenType.USER_DEFINED)
        elif token is not None and set(token.content) == {META}:  # spaces are marks before the engine looks for tokens
            vocabulary.tokens[number], vocabulary.types[number] = token.content, int(TokenType.NORMAL)
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    check_bytes({text for text, kind in kinds if kind == TokenType.BYTE})
    vocabulary.scores = [ADDED_SCORE] * len(vocabulary.tokens)
    remarks += _remarks(scheme, vocabulary)
    return vocabulary


def _remarks(scheme: str | None, vocabulary: Vocabulary) -> Iterator[str]:
    if scheme not in (None, "never"):
        yield "tokenizer.json puts a space before a text; llama.cpp does not for this kind of tokenizer."
    across = [
        text
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind == TokenType.NORMAL and "\n" in text and text.strip("\n")
    ]
    if across:
        yield (
            f"{len(across)} tokens hold a line end beside other text (first {across[0][:40]!r}); llama.cpp cuts text "
            "at line ends and does not make them."
        )
