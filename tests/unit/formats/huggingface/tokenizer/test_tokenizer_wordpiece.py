import json
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FormatError, KvantError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.formats.huggingface.tokenizer.vocabulary import Vocabulary
from kvant.formats.huggingface.tokenizer.wordpiece import check_steps, read_normalizer, wordpiece_vocabulary
from kvant.metadata import TokenType
from kvant.testing.published_tokenizers import write_published

BERT = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None}


def change(directory: Path, name: str, **entries: Any) -> None:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_what_begins_a_word_is_marked_instead_of_what_continues_one() -> None:
    control, normal, defined = (int(t) for t in (TokenType.CONTROL, TokenType.NORMAL, TokenType.USER_DEFINED))

    found = wordpiece_vocabulary(Vocabulary(["[CLS]", "walk", "##ing", "new"], [control, normal, normal, defined]))

    assert found.tokens == ["[CLS]", "\u2581walk", "ing", "new"]
    with pytest.raises(FormatError, match="both"):
        wordpiece_vocabulary(Vocabulary(["##[CLS]", "[CLS]"], [normal, control]))


def test_normalizers_are_read_as_upstream_reads_them() -> None:
    steps = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]}

    assert read_normalizer({"normalizer": BERT}) == {"lowercase": True}
    assert read_normalizer({"normalizer": steps}) == {"lowercase": True, "strip_accents": True}
    assert read_normalizer({"normalizer": None}) == {}
    with pytest.raises(UnsupportedModelError, match=r"'NFKC'.*Supported: BertNormalizer"):
        read_normalizer({"normalizer": {"type": "NFKC"}})


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}, "model": {}}, "Whitespace.*Supported: BertPreTokenizer"),
        ({"pre_tokenizer": None, "model": {}}, "BertPreTokenizer"),
        ({"pre_tokenizer": {"type": "BertPreTokenizer"}, "model": {"continuing_subword_prefix": "_"}}, "'_'.*'##'"),
    ],
)
def test_words_cut_otherwise_are_refused(tokenizer: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        check_steps(tokenizer)


def test_a_missing_class_token_is_refused_because_the_engine_would_end(tmp_path: Path) -> None:
    config = write_published("bert", tmp_path)
    change(tmp_path, "tokenizer_config.json", cls_token=None, sep_token=None)
    change(tmp_path, "tokenizer.json", post_processor=None)

    with pytest.raises(FormatError, match=r"no cls_token and no sep_token.*Name it in tokenizer_config.json"):
        tokenizer_metadata(tmp_path, config)


def test_what_the_engine_reads_otherwise_is_said_and_repeated_entries_are_not(tmp_path: Path) -> None:
    config = write_published("bert", tmp_path)
    change(tmp_path, "tokenizer.json", normalizer={**BERT, "clean_text": False, "handle_chinese_chars": False})
    said: list[str] = []

    tokenizer_metadata(tmp_path, config, said)

    assert [word in " ".join(said) for word in ("Korean", "clean_text", "handle_chinese_chars", "over 100")] == [
        True
    ] * 4
    assert not any("do_lower_case" in remark for remark in said)


@pytest.mark.parametrize("vocab", [[], {"a": -1}, {"a": 1 << 40}, {"a": 0, "b": 0}, "x"])
def test_damaged_vocabularies(vocab: Any, tmp_path: Path) -> None:
    config = write_published("bert", tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    change(tmp_path, "tokenizer.json", model={**model, "vocab": vocab})

    with pytest.raises(KvantError):
        tokenizer_metadata(tmp_path, config)
