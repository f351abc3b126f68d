import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, KvantError, LimitError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.formats.huggingface.tokenizer.unigram import read_normalizer, read_spaces, unigram_vocabulary
from kvant.formats.huggingface.tokenizer.vocabulary import AddedToken
from kvant.metadata import TokenType, ValueType
from kvant.testing.published_tokenizers import CHARSMAP, write_published

METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
MODEL = {"unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5], ["<mask>", 0.0]]}


def precompiled(data: bytes) -> dict[str, Any]:
    text = base64.b64encode(data).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}


def test_ids_without_a_token_are_padding_and_added_tokens_beyond_the_vocabulary_keep_their_text() -> None:
    added = {2: AddedToken(2, "<mask>", True), 4: AddedToken(4, "word", False)}

    found = unigram_vocabulary(MODEL, added, {"vocab_size": 6})

    assert found.tokens == ["<unk>", "a", "<mask>", "[PAD3]", "word", "[PAD5]"]
    kinds = ("UNKNOWN", "NORMAL", "CONTROL", "UNUSED", "USER_DEFINED", "UNUSED")
    assert found.types == [int(TokenType[name]) for name in kinds]
    assert found.scores == [0.0, -1.5, 0.0, -10000.0, 0.0, -10000.0]


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ({**MODEL, "vocab": {}}, FormatError, "not a list"),
        ({**MODEL, "vocab": [["a"]]}, FormatError, "entry 0"),
        ({**MODEL, "vocab": [["a", "b"]]}, FormatError, "entry 0"),
        ({**MODEL, "vocab": [["a", True]]}, FormatError, "entry 0"),
        ({**MODEL, "vocab": [["a", 1e39]]}, FormatError, "score of token 0"),
        ({**MODEL, "vocab": [["a", 0], ["a", 0]]}, FormatError, "both 'a'"),
        ({**MODEL, "unk_id": 3}, FormatError, "unk_id is 3"),
        ({**MODEL, "unk_id": None}, FormatError, "unk_id is None"),
        ({**MODEL, "byte_fallback": True}, UnsupportedModelError, "byte_fallback"),
    ],
)
def test_damaged_vocabularies(model: dict[str, Any], kind: type[KvantError], words: str) -> None:
    with pytest.raises(kind, match=words):
        unigram_vocabulary(model, {}, {})


def test_an_added_token_that_clashes_is_refused() -> None:
    with pytest.raises(FormatError, match="'x' with id 1 clashes"):
        unigram_vocabulary(MODEL, {1: AddedToken(1, "x", True)}, {})


@pytest.mark.parametrize(
    "data",
    [b"\0", b"\0\0\0\0", struct.pack("<I", 1 << 31) + b"\0" * 8, struct.pack("<I", 8) + b"\0" * 8,
     struct.pack("<I", 3) + b"\0" * 8, struct.pack("<I", 4) + b"\0\0\0\0x"],
)  # fmt: skip
def test_a_damaged_table_is_refused_before_the_engine_reads_it(data: bytes) -> None:
    with pytest.raises(FormatError, match="precompiled_charsmap"):
        read_normalizer(precompiled(data))


def test_tables_and_runs_of_spaces() -> None:
    runs = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    whole = {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}

    assert read_normalizer({"normalizer": {"type": "Sequence", "normalizers": [whole, runs]}}) == (
        base64.b64decode(CHARSMAP), True,
    )  # fmt: skip
    assert read_normalizer({"normalizer": None}) == (b"", False)
    with pytest.raises(FormatError, match="no base64"):
        read_normalizer({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}})
    with pytest.raises(LimitError):
        read_normalizer({"normalizer": {"type": "Precompiled", "precompiled_charsmap": 3}})
    with pytest.raises(UnsupportedModelError, match="'Lowercase'"):
        read_normalizer({"normalizer": {"type": "Lowercase"}})


def test_where_spaces_are_put() -> None:
    both = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]}

    assert read_spaces({"pre_tokenizer": both}) == (True, True)
    assert read_spaces({"pre_tokenizer": {**METASPACE, "prepend_scheme": "never"}}) == (False, False)
    with pytest.raises(UnsupportedModelError, match="'Digits'"):
        read_spaces({"pre_tokenizer": {"type": "Digits"}})
    with pytest.raises(UnsupportedModelError, match=r"U\+2581"):
        read_spaces({"pre_tokenizer": {"type": "WhitespaceSplit"}})


def test_tokens_that_are_not_named_are_not_added(tmp_path: Path) -> None:
    config = write_published("xlm-roberta", tmp_path)
    for name, entries in (
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer_config.json", {"add_bos_token": True, "bos_token": None, "cls_token": None}),
    ):
        path = tmp_path / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    said: list[str] = []

    keys = tokenizer_metadata(tmp_path, config, said)

    assert keys["tokenizer.ggml.add_bos_token"].value is False
    assert keys["tokenizer.ggml.add_eos_token"].value is False
    assert "add_bos_token is true, but no bos token is named: none is added." in said


def test_the_table_is_stored_as_it_is(tmp_path: Path) -> None:
    config = write_published("xlm-roberta", tmp_path)

    keys = tokenizer_metadata(tmp_path, config)

    table = keys["tokenizer.ggml.precompiled_charsmap"]
    assert table.item_type is ValueType.UINT8
    assert np.asarray(table.value).tobytes() == base64.b64decode(CHARSMAP)


def test_a_table_missing_is_said_where_white_space_depends_on_it(tmp_path: Path) -> None:
    config = write_published("xlm-roberta", tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": None}))
    said: list[str] = []

    keys = tokenizer_metadata(tmp_path, config, said)

    assert "tokenizer.ggml.precompiled_charsmap" not in keys
    assert any("white space of every kind" in remark for remark in said)
