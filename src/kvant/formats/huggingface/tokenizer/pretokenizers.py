r"""Pre-tokenizers: how a byte-level tokenizer cuts text into words, and the name the engine has for each way.

GGUF stores a name (`tokenizer.ggml.pre`), a Hugging Face tokenizer the regular expressions themselves. Here a tokenizer
is recognised by what it does: its pipeline is reduced to a list of canonical steps, which a table maps to the name.
A fine-tune with other added tokens or merges therefore converts like its base model.

Canonical form of a pattern: control characters spelled `\r \n \t`, the members of a character class sorted, English
contractions written `<c>` (as typed) or `<C>` (any case), possessive quantifiers greedy (for these patterns they match
the same), `x{1}` as `x`, and no final `|\s+` (what no alternative matches becomes a piece of its own anyway).

Source: llama-vocab.cpp `llm_tokenizer_bpe` (which regular expressions a name stands for) and `load` (which names also
take a word that is a token whole, `ignore_merges`); published tokenizer.json files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvant.errors import FormatError, UnsupportedModelError

MAX_PATTERN_CHARACTERS = 4096
MAX_STEPS = 16

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD_HEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{_WORD_HEAD}{_UPPER}*{_LOWER}+|{_WORD_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}{_SLASH_TAIL}"
GPT4O = (
    rf"{_WORD_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}{_SLASH_TAIL}"
)
DEEPSEEK3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK_AND_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
DIGIT = r"\p{N}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """One way to cut text into words.

    Attributes:
        name: The engine's name for it, `tokenizer.ggml.pre`.
        patterns: Regular expressions applied one after the other, each to the pieces of the one before.
        ignore_merges: Whether the engine takes a word that is in the vocabulary whole, without merging.
        adds_bos: Whether the engine starts a text with BOS unless the file says otherwise.
        cleans_spaces: Whether the engine drops spaces before punctuation when it turns tokens into text.
        caveat: Where the engine's own expression cuts otherwise, in a sentence; empty if it does not.
        normalizer: Normalizer that published tokenizers have beside it; the engine itself has none.
        example: A published model that has it.
    """

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    cleans_spaces: bool = False
    caveat: str = ""
    normalizer: str | None = None
    example: str


_BEYOND_ASCII = (
    "llama.cpp's {} cuts words with combining marks or with case beyond ASCII otherwise than tokenizer.json: such "
    "words may get other tokens."
)

PRE_TOKENIZERS: Sequence[PreTokenizer] = (
    PreTokenizer(name="gpt-2", patterns=(GPT2,), cleans_spaces=True, example="GPT-2, Phi-2, OLMo"),
    PreTokenizer(name="smollm", patterns=(DIGIT, GPT2), example="SmolLM2"),
    PreTokenizer(name="refact", patterns=(DIGIT, GPT2), cleans_spaces=True, example="Granite 3, StarCoder2"),
    PreTokenizer(
        name="llama-bpe",
        patterns=(LLAMA3,),
        ignore_merges=True,
        adds_bos=True,
        cleans_spaces=True,
        example="Llama 3, SmolLM3",
    ),
    PreTokenizer(name="dbrx", patterns=(LLAMA3,), cleans_spaces=True, example="DBRX"),
    PreTokenizer(name="qwen2", patterns=(QWEN2,), normalizer="NFC", example="Qwen2, Qwen2.5, Qwen3"),
    PreTokenizer(name="qwen35", patterns=(QWEN35,), normalizer="NFC", example="Qwen3.5"),
    PreTokenizer(
        name="tekken",
        patterns=(TEKKEN,),
        ignore_merges=True,
        adds_bos=True,
        example="Mistral Nemo",
        caveat=_BEYOND_ASCII.format("tekken"),
    ),
    PreTokenizer(
        name="gpt-4o", patterns=(GPT4O,), caveat=_BEYOND_ASCII.format("gpt-4o"), example="Phi-4-mini, Llama 4"
    ),
    PreTokenizer(name="deepseek-v3", patterns=(r"\p{N}{1,3}", CJK_AND_KANA, DEEPSEEK3_WORDS), example="DeepSeek-V3"),
)

ALIASES: Mapping[str, Sequence[str]] = {
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "glm4", "glm5"),
    "dbrx": ("smaug-bpe", "chatglm-bpe"),
    "refact": ("starcoder", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "smollm": ("command-r",),
    "gpt-2": ("phi-2", "gigachat", "a.x-4.0", "mellum", "modern-bert", "mpt", "olmo", "jais", "exaone4", "trillion"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez", "grok-2"),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
}
"""Other names that files carry for the same patterns."""


def by_name(name: str) -> PreTokenizer:
    """Return the pre-tokenizer that a GGUF file names.

    Raises:
        UnsupportedModelError: Its patterns are not in the table.
    """
    wanted = next((known for known, others in ALIASES.items() if name in others), name)
    for pre in PRE_TOKENIZERS:
        if pre.name == wanted:
            return pre
    names = sorted([p.name for p in PRE_TOKENIZERS] + [alias for others in ALIASES.values() for alias in others])
    raise UnsupportedModelError(
        f"tokenizer.ggml.pre: {name!r} is not a pre-tokenizer that can be written as tokenizer.json."
        f" Supported: {', '.join(names)}."
    )


def identify(tokenizer: Mapping[str, Any], *, cleans_spaces: bool = False) -> PreTokenizer:
    """Find the engine's pre-tokenizer that cuts text as a byte-level tokenizer.json does.

    Where several names stand for the same patterns, the one that also merges and cleans as the tokenizer does is taken.

    Args:
        tokenizer: Parsed tokenizer.json.
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
            patterns.append(DIGIT if step.get("individual_digits", False) else r"\p{N}+")
        elif kind == "Split":
            patterns.append(_split_pattern(step))
        else:
            raise UnsupportedModelError(
                f"tokenizer.json: pre-tokenizer step {kind!r} has no counterpart in the engine."
                " Supported steps: Split, Digits, ByteLevel."
            )
    return patterns


def canonical(pattern: str) -> str:
    r"""Spell a pattern in its canonical form, so that equivalent spellings compare equal (see the module).

    >>> canonical("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\n\\r\\p{N}\\p{L}]?+\\p{L}+|\\s+")
    '<C>|[^\\n\\p{L}\\p{N}\\r]?\\p{L}+'
    """
    text = pattern.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
    for spelled in (_CONTRACTIONS, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"):
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
