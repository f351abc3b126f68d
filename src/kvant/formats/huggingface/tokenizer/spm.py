"""SentencePiece-style BPE: characters merged by score, spaces written as a mark, unknown characters as bytes.

The engine merges whichever two neighbours make the token of the highest score. A tokenizer.json has ranked merges
instead. The two agree when the merges are all splits of every token into two tokens, ordered by token, which is how
transformers derives them from a SentencePiece model: then a token's score is minus the place of its merges. That the
merges are so is checked; a tokenizer trained otherwise is refused rather than converted to another one.

(Upstream's converter gives every token of a tokenizer.json the score -1000, which makes the engine merge from the left
without regard to rank: other ids than the model was trained on.)
"""

import re
from collections.abc import Mapping
from typing import Any

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.bpe import added_text, read_merges
from kvant.formats.huggingface.tokenizer.files import TokenizerFiles
from kvant.formats.huggingface.tokenizer.limits import sentencepiece_model_remarks, sentencepiece_remarks
from kvant.formats.huggingface.tokenizer.padding import PAD_SCORE
from kvant.formats.huggingface.tokenizer.sentencepiece import read_sentencepiece
from kvant.formats.huggingface.tokenizer.vocabulary import (
    META,
    AddedToken,
    Vocabulary,
    base_tokens,
    beyond_remarks,
    beyond_vocabulary,
    check_distinct,
    splits,
    vocabulary_size,
)
from kvant.metadata import TokenType

ADDED_SCORE = -1000.0
"""Score that upstream's converter gives to added tokens, which are never made by merging."""

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_STEPS = {"normalizers": "normalizer", "pretokenizers": "pre_tokenizer"}


def is_sentencepiece_style(files: TokenizerFiles) -> bool:
    """Tell whether a tokenizer is SentencePiece's own or a tokenizer.json that imitates one."""
    model = files.tokenizer.get("model")
    if not isinstance(model, dict):
        return files.sentencepiece is not None
    return model.get("type") == "BPE" and bool(model.get("byte_fallback", False))


def sentencepiece_vocabulary(
    files: TokenizerFiles, added: Mapping[int, AddedToken], config: Mapping[str, Any], remarks: list[str] | None = None
) -> tuple[Vocabulary, str]:
    """Return the vocabulary of a SentencePiece-style tokenizer, and where it puts spaces, see `space_scheme`.

    tokenizer.model is preferred, for its own scores; tokenizer.json does without. `remarks` is told what the engine
    does otherwise.

    Raises:
        FormatError: A file is damaged, or ids or texts clash.
        UnsupportedModelError: Not BPE, or the engine would merge or normalize otherwise.
    """
    remarks = [] if remarks is None else remarks
    if files.sentencepiece is not None:
        model = read_sentencepiece(files.sentencepiece)
        base = dict(enumerate((p.text, p.score, p.type) for p in model.pieces))
        scheme = "prepend" if model.add_dummy_prefix else "never"
        said = list(sentencepiece_model_remarks(has_charsmap=model.has_charsmap, strips_spaces=model.strips_spaces))
        if files.tokenizer:  # which is what transformers uses, where there is one
            scheme, said = space_scheme(files.tokenizer, strict=False) or scheme, []
        remarks += said
    else:
        base, scheme = _from_json(files.tokenizer, added), space_scheme(files.tokenizer) or "never"
    check_bytes({text for text, _, kind in base.values() if kind == TokenType.BYTE})
    beyond = beyond_vocabulary(config, added)
    remarks += beyond_remarks(beyond)
    added = {number: token for number, token in added.items() if number not in beyond}
    size = vocabulary_size(config, [*base, *added])
    entries = [base.get(number, (f"[PAD{number}]", PAD_SCORE, TokenType.UNUSED)) for number in range(size)]
    for number, token in added.items():
        if entries[number][2] not in (TokenType.UNKNOWN, TokenType.BYTE):
            text, kind = added_text(token)
            entries[number] = (text, ADDED_SCORE, kind)
    tokens, scores, types = [e[0] for e in entries], [e[1] for e in entries], [int(e[2]) for e in entries]
    check_distinct(tokens)
    if files.tokenizer:
        remarks += sentencepiece_remarks(files.tokenizer, tokens)
    return Vocabulary(tokens, types, scores), scheme


def space_scheme(tokenizer: Mapping[str, Any], *, strict: bool = True) -> str | None:
    """Tell where a tokenizer.json puts spaces of its own, checking that spaces are marked as in the engine.

    Returns:
        `prepend`: before a text and after special tokens, as the engine does. `always`: likewise, but no second one.
        `first`: before a text alone. `never`. None if it is not strict and cannot be told.

    Raises:
        UnsupportedModelError: `strict`, and a normalizer or pre-tokenizer has no counterpart in the engine.
    """
    scheme, marks = "never", False
    for step in [*_steps(tokenizer, "normalizers"), *_steps(tokenizer, "pretokenizers")]:
        kind = step.get("type")
        pattern = step.get("pattern")
        if kind == "Prepend" and step.get("prepend") == META:
            scheme = "prepend"
        elif kind == "Replace" and pattern == {"String": " "} and step.get("content") == META:
            marks = True
        elif kind == "Metaspace" and step.get("replacement") == META:
            marks = True
            stated = str(step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never"))
            scheme = stated if scheme == "never" else scheme
        elif kind != "Split" or pattern != {"String": " "} or not marks:
            if not strict:
                return None
            raise UnsupportedModelError(
                f"tokenizer.json: step {kind!r} of a SentencePiece-style tokenizer has no counterpart in the engine."
                " Supported: Prepend and Replace of spaces, Metaspace. Keep tokenizer.model beside it if there is one."
            )
    if not marks and strict:
        raise UnsupportedModelError(
            "tokenizer.json: spaces are not written as U+2581, as the engine does. Keep "
            "tokenizer.model beside it if there is one, or take a model with a SentencePiece or byte-level tokenizer."
        )
    return scheme if marks else None


def check_bytes(texts: set[str]) -> None:
    """Refuse a vocabulary in which bytes have no token: the engine ends on a character that it cannot spell.

    Raises:
        UnsupportedModelError: One of the 256 is missing.
    """
    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in texts]
    if missing:
        raise UnsupportedModelError(
            f"tokenizer: {len(missing)} of the 256 byte tokens are missing, first {missing[0]}: the engine has no "
            "other way to write an unknown character. Supported: SentencePiece models with byte fallback."
        )


def _steps(tokenizer: Mapping[str, Any], plural: str) -> list[Mapping[str, Any]]:
    part = tokenizer.get(_STEPS[plural])
    if part is None:
        return []
    steps = part.get(plural, [part]) if isinstance(part, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise FormatError(
            f"tokenizer.json: {_STEPS[plural]} is not an object or a sequence of objects. Download it again."
        )
    return steps


def _from_json(tokenizer: Mapping[str, Any], added: Mapping[int, AddedToken]) -> dict[int, tuple[str, float, int]]:
    """Return text, score and type by id, with scores that make the engine merge as the ranked merges do."""
    by_id = base_tokens(tokenizer["model"].get("vocab"))
    unknown = tokenizer["model"].get("unk_token")
    merges = read_merges(tokenizer)
    normal = {text for number, text in by_id.items() if number not in added}
    _check_merges(merges, normal)
    place: dict[str, int] = {}
    for left, right in merges:
        if left + right in normal:
            place.setdefault(left + right, len(place))
    base: dict[int, tuple[str, float, int]] = {}
    unmerged = len(place)
    for number, text in sorted(by_id.items()):
        if text == unknown:
            base[number] = (text, 0.0, TokenType.UNKNOWN)
        elif BYTE_TOKEN.fullmatch(text):
            base[number] = (text, 0.0, TokenType.BYTE)
        elif number in added:
            base[number] = (text, ADDED_SCORE, TokenType.NORMAL)
        else:
            unmerged += text not in place
            base[number] = (text, -float(place.get(text, unmerged - 1)), TokenType.NORMAL)
    return base


def _check_merges(merges: list[tuple[str, str]], texts: set[str]) -> None:
    """Refuse merges that are not all splits of every token, together and in the order of tokens.

    Raises:
        LimitError: A token is longer than any real one.
        UnsupportedModelError: The engine, which goes by tokens, would merge otherwise.
    """
    pairs = set(merges)
    missing = [pair for text in texts for pair in splits(text, texts) if pair not in pairs]
    if missing:
        left, right = missing[0]
        raise UnsupportedModelError(
            f"tokenizer.json: {len(missing)} splits of tokens are no merges ({left!r} with {right!r}, ...), so that the"
            " engine would merge what the tokenizer does not. Supported: merges made from a SentencePiece model."
        )
