import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.metadata import TokenType
from kvant.testing.published_tokenizers import write_published


def changed(directory: Path, change: Any) -> None:
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def types_of(keys: Any) -> dict[str, int]:
    tokens = list(keys["tokenizer.ggml.tokens"].value)
    return dict(zip(tokens, np.asarray(keys["tokenizer.ggml.token_type"].value).tolist(), strict=True))


def test_tokens_that_programs_look_for_stay_visible_and_marks_stay_marks(tmp_path: Path) -> None:
    config = write_published("gemma4", tmp_path)

    def add(document: Any) -> None:
        for text in ("\u2581\u2581", "<table>"):
            number = document["model"]["vocab"].setdefault(text, len(document["model"]["vocab"]))
            document["added_tokens"].append({"id": number, "content": text, "special": False})

    changed(tmp_path, add)
    found = types_of(tokenizer_metadata(tmp_path, {**config, "vocab_size": None}))

    assert found["<|channel>"] == TokenType.USER_DEFINED
    assert found["<|turn>"] == TokenType.CONTROL
    assert found["\u2581\u2581"] == TokenType.NORMAL
    assert found["<table>"] == TokenType.USER_DEFINED
    assert found["<0x0A>"] == TokenType.BYTE


def test_a_missing_byte_is_refused(tmp_path: Path) -> None:
    config = write_published("gemma4", tmp_path)

    def rename(document: Any) -> None:
        document["model"]["vocab"]["other"] = document["model"]["vocab"].pop("<0x41>")

    changed(tmp_path, rename)
    with pytest.raises(UnsupportedModelError, match="first <0x41>"):
        tokenizer_metadata(tmp_path, config)


def test_a_missing_bos_is_refused_because_the_engine_would_end(tmp_path: Path) -> None:
    config = write_published("gemma4", tmp_path)
    changed(tmp_path, lambda document: document.update(post_processor=None))
    (tmp_path / "tokenizer_config.json").write_text("{}")

    with pytest.raises(FormatError, match="names no bos_token"):
        tokenizer_metadata(tmp_path, config)


def test_tokens_across_line_ends_are_said(tmp_path: Path) -> None:
    config = write_published("gemma4", tmp_path)
    changed(tmp_path, lambda document: document["model"]["vocab"].update({"a\nb": config["vocab_size"]}))
    said: list[str] = []

    tokenizer_metadata(tmp_path, {**config, "vocab_size": None}, said)

    assert any("hold a line end beside other text (first 'a\\nb')" in remark for remark in said)
