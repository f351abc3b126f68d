import doctest
from typing import Any

import pytest

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer import pretokenizers
from kvant.formats.huggingface.tokenizer.pretokenizers import canonical, identify, split_patterns
from kvant.formats.huggingface.tokenizer.words import ALIASES, DIGITS, PRE_TOKENIZERS, by_name
from kvant.testing.tiny_tokenizers import LLAMA3_PATTERN, QWEN2_PATTERN

BYTES_ONLY = {"type": "ByteLevel", "use_regex": False}


def tokenizer(*steps: dict[str, Any], ignore_merges: bool = False, normalizer: Any = None) -> dict[str, Any]:
    pre = {"type": "Sequence", "pretokenizers": [*steps, BYTES_ONLY]}
    return {"model": {"ignore_merges": ignore_merges}, "pre_tokenizer": pre, "normalizer": normalizer}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(pretokenizers).failed == 0


@pytest.mark.parametrize(
    "spelling",
    [
        LLAMA3_PATTERN,
        LLAMA3_PATTERN.replace(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
        ),
        LLAMA3_PATTERN.replace(r"[^\r\n\p{L}\p{N}]?", r"[^\p{N}\p{L}\n\r]?+"),
        LLAMA3_PATTERN.replace(r"\r", "\r").replace(r"\n", "\n"),
        LLAMA3_PATTERN.removesuffix(r"|\s+"),
    ],
)
def test_equivalent_spellings_are_the_same_pre_tokenizer(spelling: str) -> None:
    assert identify(tokenizer(split(spelling), ignore_merges=True)).name == "llama-bpe"


def test_removed_and_inverted_is_isolated() -> None:
    assert identify(tokenizer(split(QWEN2_PATTERN, "Removed", True), normalizer={"type": "NFC"})).name == "qwen2"


def test_merging_and_cleaning_choose_among_equal_patterns() -> None:
    digits, gpt2 = {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}
    starcoder_like = {"model": {}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, gpt2]}}

    assert identify(tokenizer(split(LLAMA3_PATTERN))).name == "dbrx"
    assert identify(starcoder_like).name == "smollm"
    assert identify(starcoder_like, cleans_spaces=True).name == "refact"


def test_every_row_is_found_by_its_own_patterns() -> None:
    for row in PRE_TOKENIZERS:
        found = identify(
            tokenizer(*map(split, row.patterns), ignore_merges=row.ignore_merges), cleans_spaces=row.cleans_spaces,
            family=next(iter(row.families), None),
        )  # fmt: skip
        assert found == row
        assert by_name(row.name) == row


def test_aliases_name_known_rows() -> None:
    assert by_name("kanana2").name == "gpt-4o"
    assert set(ALIASES) <= {row.name for row in PRE_TOKENIZERS}
    names = [row.name for row in PRE_TOKENIZERS] + [name for others in ALIASES.values() for name in others]
    assert len(names) == len(set(names))


def test_a_family_has_the_name_that_upstream_gives_it_and_another_model_the_common_one() -> None:
    gpt4o = tokenizer(split(by_name("gpt-4o").patterns[0]))

    assert identify(gpt4o, family="llama4_text").name == "llama4"
    assert identify(gpt4o, family="gpt_oss").name == "gpt-4o"
    assert identify(tokenizer(split(LLAMA3_PATTERN), ignore_merges=True), family="glm4_moe").name == "glm4"
    assert not by_name("glm4").adds_bos
    assert by_name("glm4").acts_like(by_name("llama-bpe"))
    assert not by_name("glm4").acts_like(by_name("dbrx"))


def test_punctuation_and_runs_of_digits_are_steps() -> None:
    falcon = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "ByteLevel"},
            {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]"),
        ],
    }  # fmt: skip
    assert split_patterns(falcon)[2] == DIGITS
    assert identify({"model": {}, "pre_tokenizer": falcon}).name == "falcon"
    with pytest.raises(UnsupportedModelError, match="'Punctuation'"):
        split_patterns({"type": "Punctuation", "behavior": "Removed"})


def test_character_classes_are_sorted_whatever_they_hold() -> None:
    assert canonical(r"[^\]z\p{Lu}a-c]") == canonical(r"[^a-c\]\p{Lu}z]")


def test_unknown_pattern_is_shown_with_the_supported_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"\\\\w\+.*Supported: gpt-2.*llama-bpe"):
        identify(tokenizer(split(r"\w+")))


def test_unknown_step_behavior_name_or_normalizer_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="'Whitespace'"):
        split_patterns({"type": "Whitespace"})
    with pytest.raises(UnsupportedModelError, match="MergedWithNext"):
        split_patterns(split("a", "MergedWithNext"))
    with pytest.raises(UnsupportedModelError, match="'NFKC'"):
        identify(tokenizer(split(LLAMA3_PATTERN), normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}]}))
    with pytest.raises(UnsupportedModelError, match="'kimi-k2'"):
        by_name("kimi-k2")


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        [],
        {"type": "Sequence", "pretokenizers": 3},
        {"type": "Sequence", "pretokenizers": ["x"]},
        {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 65},
        {"type": "Split", "behavior": "Isolated"},
        {"type": "Split", "pattern": {"Regex": 3}, "behavior": "Isolated"},
        {"type": "Split", "pattern": {"Regex": "a" * 9000}, "behavior": "Isolated"},
    ],
)
def test_malformed_pre_tokenizer(pre_tokenizer: Any) -> None:
    with pytest.raises(FormatError):
        split_patterns(pre_tokenizer)
