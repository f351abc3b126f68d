import json
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.tokenizer import tokenizer_metadata
from kvant.formats.huggingface.tokenizer_spm import adds_space_prefix
from tiny_tokenizers import write_tokenizer

MARK = "\u2581"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, REPLACE]}, None, True),
        (REPLACE, None, False),
        (None, {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first"}, True),
        (None, {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always"}, True),
        (None, {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "never"}, False),
        (None, {"type": "Metaspace", "replacement": MARK, "add_prefix_space": False}, False),
        (None, {"type": "Metaspace", "replacement": MARK}, True),
    ],
)
def test_space_prefix(normalizer: Any, pre_tokenizer: Any, prefix: bool) -> None:
    assert adds_space_prefix({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}) is prefix


@pytest.mark.parametrize(
    "normalizer",
    [None, {"type": "Precompiled"}, {"type": "Sequence", "normalizers": [REPLACE, {"type": "NFKC"}]}],
)
def test_spaces_the_engine_would_treat_otherwise(normalizer: Any) -> None:
    with pytest.raises(UnsupportedModelError):
        adds_space_prefix({"normalizer": normalizer, "pre_tokenizer": None})


def test_merges_that_scores_cannot_express_are_refused(tmp_path: Path) -> None:
    write_tokenizer("llama2-spm", tmp_path, 600)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    dropped = document["model"]["merges"].pop(3)
    path.write_text(json.dumps(document))

    with pytest.raises(UnsupportedModelError, match=f"1 splits of tokens are no merges .'{dropped[0]}' with"):
        tokenizer_metadata(tmp_path, {})


def test_padding_and_added_tokens_have_upstreams_scores(tmp_path: Path) -> None:
    write_tokenizer("phi3", tmp_path, 600)

    keys = tokenizer_metadata(tmp_path, {"vocab_size": 603, "model_type": "phi3"})

    scores, types = keys["tokenizer.ggml.scores"].value, keys["tokenizer.ggml.token_type"].value
    assert list(scores)[595:] == [-1000.0] * 5 + [-10000.0] * 3  # type: ignore[arg-type]
    assert list(types)[595:] == [3] * 5 + [5] * 3  # type: ignore[arg-type]
