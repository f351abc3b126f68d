"""Tokenizers of every family: the same ids through the engine as through `tokenizers`, the same keys as upstream's.

What upstream's converter writes is kept in tests/golden/tokenizers.json; test_upstream_vocabularies.py makes it again.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvant.evaluate.odd_texts import TEXTS
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.testing.published_tokenizers import PUBLISHED, write_published
from tokenizing import differing_texts, has_case_or_marks_beyond_ascii, plain, random_texts, shortened, trained

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers.json"

COMPOSES = (
    "qwen35", "qwen3moe", "qwen3-embedding", "cohere2", "gpt-neox", "bailingmoe", "stablelm2", "tiny-aya",
    "exaone-moe", "modernbert", "mpt",
)  # fmt: skip
ENGINE_DIFFERS = {
    **{kind: {"decomposed"} for kind in COMPOSES},  # NFC: the engine has no normalizer
    "gpt-oss": {"marks"},  # the engine's expression leaves combining marks out of words
    "llama4": {"marks"},
    "minimax-m2": {"marks"},
    "bert": {
        "emoji",
        "cjk",
        "marks",
        "odd spaces",
        "long words",
    },  # see `accents_differ`
    "bert-cased": {"odd spaces", "long words"},  # U+0085 is a control, long words are read
    "xlm-roberta": {"marks of spaces"},  # a literal mark is a space
}


def is_decomposed(text: str) -> bool:
    return not unicodedata.is_normalized("NFC", text)


def never(text: str) -> bool:
    del text
    return False


def accents_differ(text: str) -> bool:
    """Whether text holds Hangul, kept by its first letter, or marks that take room, which are dropped."""
    return any(unicodedata.category(c) in {"Mc", "Me"} or "\uac00" <= c <= "\ud7a3" for c in text)


MAY_DIFFER: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(COMPOSES, is_decomposed),
    "gpt-oss": has_case_or_marks_beyond_ascii,
    "llama4": has_case_or_marks_beyond_ascii,
    "minimax-m2": has_case_or_marks_beyond_ascii,
    "granite-embedding": has_case_or_marks_beyond_ascii,
    "bert": lambda text: accents_differ(text) or "\x85" in text or "\u2581" in text,
    "bert-cased": lambda text: "\x85" in text or "\u2581" in text,
    "xlm-roberta": lambda text: "\u2581" in text,
    "deepseek-llm": lambda text: "\u3000" in text,
    "tiny-aya": lambda text: is_decomposed(text) or re.search(r"\s\s\d", text) is not None,
}

KEYS_DIFFER = {
    "falcon-h1": {
        "tokenizer.ggml.add_bos_token": "upstream leaves it to the engine, which adds BOS for this name; the tokenizer "
        "adds none, and kvant's file says so",
    },
}
"""Keys whose values are not upstream's, with the reason."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_engine_and_tokenizers_agree(kind: str, tmp_path: Path) -> None:
    config = write_published(kind, tmp_path)
    may_differ = MAY_DIFFER.get(kind, never)

    differing = differing_texts(tmp_path, config, [*TEXTS.values(), *random_texts(100, seed=7)], tmp_path)

    assert {title for title, text in TEXTS.items() if text in differing} == ENGINE_DIFFERS.get(kind, set())
    assert {text for text in differing if not may_differ(text) and text not in TEXTS.values()} == set()


@pytest.mark.parametrize("kind", PUBLISHED)
def test_keys_are_upstreams(kind: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[kind]
    config = write_published(kind, tmp_path)
    if trained(tmp_path) != golden["trained"]:
        pytest.skip("this version of tokenizers trains another vocabulary than the golden file is of")

    keys = {key: shortened(int(v.type), plain(v)) for key, v in tokenizer_metadata(tmp_path, config).items()}

    theirs: dict[str, Any] = golden["keys"]
    differing = {key for key in keys | theirs if keys.get(key) != theirs.get(key)}
    assert differing == set(KEYS_DIFFER.get(kind, {}))
