r"""Pre-tokenizers: how a byte-level tokenizer cuts text into words, and the name the engine has for each way.

GGUF stores a name (`tokenizer.ggml.pre`), a Hugging Face tokenizer the regular expressions themselves. Here a tokenizer
is recognised by what it does: its pipeline is reduced to a list of canonical steps, which `words` maps to the name.
A fine-tune with other added tokens or merges therefore converts like its base model.

Canonical form of a pattern: control characters spelled `\r \n \t`, the members of a character class sorted, English
contractions written `<c>` (as typed) or `<C>` (any case), possessive quantifiers greedy (for these patterns they match
the same), `x{1}` as `x`, and no final `|\s+` (what no alternative matches becomes a piece of its own anyway).
"""

import re
from collections.abc import Mapping
from typing import Any

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.words import (
    CONTRACTIONS,
    DIGIT,
    DIGITS,
    GPT2,
    PRE_TOKENIZERS,
    PUNCTUATION,
    PreTokenizer,
)

MAX_PATTERN_CHARACTERS = 4096
MAX_STEPS = 16


def identify(tokenizer: Mapping[str, Any], *, cleans_spaces: bool = False, family: object = None) -> PreTokenizer:
    """Find the engine's pre-tokenizer that cuts text as a byte-level tokenizer.json does.

    Where several names stand for the same patterns, upstream's for the family is taken, else the one that also merges
    and cleans as the tokenizer does.

    Args:
        tokenizer: Parsed tokenizer.json.
        family: config.json's `model_type`.
        cleans_spaces: tokenizer_config.json's `clean_up_tokenization_spaces`.

    Raises:
        FormatError: The pre-tokenizer is not of the form `tokenizers` writes.
        UnsupportedModelError: The engine has no such pre-tokenizer; the message shows the patterns found.
    """
    check_normalizer(tokenizer.get("normalizer"))
    found = tuple(canonical(p) for p in split_patterns(tokenizer.get("pre_tokenizer")))
    candidates = [p for p in PRE_TOKENIZERS if tuple(canonical(x) for x in p.patterns) == found]
    if not candidates:
        known = "; ".join(f"{p.name} ({p.example})" for p in PRE_TOKENIZERS)
        raise UnsupportedModelError(
            f"tokenizer.json: the pre-tokenizer {list(found)} is none that the engine has. Supported: {known}."
        )
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    named = [p for p in candidates if family in p.families]
    candidates = named or [p for p in candidates if not p.families]
    return max(candidates, key=lambda p: (p.ignore_merges == ignore_merges, p.cleans_spaces == cleans_spaces))


def check_normalizer(normalizer: Any) -> None:
    """Refuse a normalizer that changes text the engine would leave as it is, but for composing accents (NFC).

    Raises:
        UnsupportedModelError: Any normalizer but NFC.
    """
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    for step in steps if isinstance(steps, list) else [None]:
        kind = step.get("type") if isinstance(step, dict) else step
        if kind != "NFC":
            raise UnsupportedModelError(
                f"tokenizer.json: normalizer {kind!r} has no counterpart in the engine. Supported: none, or NFC."
            )


def split_patterns(pre_tokenizer: Any) -> list[str]:
    """Reduce a pre-tokenizer to the regular expressions it splits by, in order.

    Raises:
        FormatError: Not of the form `tokenizers` writes.
        UnsupportedModelError: A step that no pre-tokenizer of the engine does.
    """
    steps = _flatten(pre_tokenizer)
    patterns: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel":
            if step.get("use_regex", True):
                patterns.append(GPT2)
        elif kind == "Digits":
            patterns.append(DIGIT if step.get("individual_digits", False) else DIGITS)
        elif kind == "Punctuation" and step.get("behavior") in ("Contiguous", "Isolated"):
            patterns.append(f"[{PUNCTUATION}]" + ("+" if step["behavior"] == "Contiguous" else ""))
        elif kind == "Split":
            patterns.append(_split_pattern(step))
        else:
            raise UnsupportedModelError(
                f"tokenizer.json: pre-tokenizer step {kind!r} has no counterpart in the engine."
                " Supported steps: Split, Digits, Punctuation, ByteLevel."
            )
    return patterns


def canonical(pattern: str) -> str:
    r"""Spell a pattern in its canonical form, so that equivalent spellings compare equal (see the module).

    >>> canonical("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\n\\r\\p{N}\\p{L}]?+\\p{L}+|\\s+")
    '<C>|[^\\n\\p{L}\\p{N}\\r]?\\p{L}+'
    """
    text = pattern.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
    for spelled in (CONTRACTIONS, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"):
        text = text.replace(spelled, "<C>")
    text = text.replace("'(?i:[sdmt]|ll|ve|re)", "<C>").replace("'(?:[sdmt]|ll|ve|re)", "<c>")
    text = text.replace("'s|'t|'re|'ve|'m|'ll|'d", "<c>").replace("(?:<c>)", "<c>")
    text = _sort_classes(text)
    text = re.sub(r"([?+*])\+", r"\1", text).replace("{1}", "")
    return text.removesuffix(r"|\s+").removesuffix(r"|\s")


_PART = re.compile(r"\\.|[\[\]]|[^\\\[\]]+|\\$", re.DOTALL)
_MEMBER = re.compile(r"\\p\{\w+\}|(?:\\.|[^\\])-(?:\\.|[^\\])|\\.|.", re.DOTALL)


def _sort_classes(pattern: str) -> str:
    """Sort the members of every character class, in one pass over the pattern."""
    out: list[str] = []
    opened = -1
    for part in _PART.findall(pattern):
        if part == "[" and opened < 0:
            opened = len(out)
        out.append(part)
        if part == "]" and opened >= 0:
            out[opened:] = [_sorted_class("".join(out[opened:]))]
            opened = -1
    return "".join(out)


def _sorted_class(text: str) -> str:
    start = 2 if text.startswith("[^") else 1
    return text[:start] + "".join(sorted(set(_MEMBER.findall(text[start:-1])))) + "]"


def _flatten(pre_tokenizer: Any) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    if not isinstance(pre_tokenizer, dict):
        raise FormatError(f"tokenizer.json: pre_tokenizer is a {type(pre_tokenizer).__name__}, not an object.")
    if pre_tokenizer.get("type") != "Sequence":
        return [pre_tokenizer]
    steps = pre_tokenizer.get("pretokenizers")
    if not isinstance(steps, list) or len(steps) > MAX_STEPS or not all(isinstance(s, dict) for s in steps):
        raise FormatError(f"tokenizer.json: pretokenizers is not a list of at most {MAX_STEPS} objects.")
    return steps


def _split_pattern(step: Mapping[str, Any]) -> str:
    """Return the pattern of a Split step whose matches, and what lies between them, become pieces."""
    pattern = step.get("pattern")
    if not isinstance(pattern, dict) or len(pattern) != 1:
        raise FormatError("tokenizer.json: a Split step has no pattern.")
    ((kind, text),) = pattern.items()
    if kind not in ("Regex", "String") or not isinstance(text, str) or len(text) > MAX_PATTERN_CHARACTERS:
        raise FormatError(
            f"tokenizer.json: a Split pattern of kind {kind!r} or over {MAX_PATTERN_CHARACTERS} characters."
        )
    how = (step.get("behavior"), bool(step.get("invert", False)))
    if how not in (("Isolated", False), ("Removed", True)):
        raise UnsupportedModelError(
            f"tokenizer.json: Split with behavior {how[0]!r}, invert {how[1]} has no counterpart in the engine."
            " Supported: Isolated, or Removed with invert."
        )
    return text if kind == "Regex" else re.escape(text)
