import json
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.formats.huggingface.tokenizer.spm import space_scheme
from kvant.testing.tiny_tokenizers import write_tokenizer

MARK = "\u2581"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "scheme"),
    [
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, REPLACE]}, None, "prepend"),
        (REPLACE, None, "never"),
        (None, {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first"}, "first"),
        (None, {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always"}, "always"),
        (None, {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "never"}, "never"),
        (None, {"type": "Metaspace", "replacement": MARK, "add_prefix_space": False}, "never"),
        (None, {"type": "Metaspace", "replacement": MARK}, "always"),
    ],
)
def test_where_spaces_are_put(normalizer: Any, pre_tokenizer: Any, scheme: str) -> None:
    assert space_scheme({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}) == scheme


@pytest.mark.parametrize(
    "normalizer",
    [None, {"type": "Precompiled"}, {"type": "Sequence", "normalizers": [REPLACE, {"type": "NFKC"}]}],
)
def test_spaces_the_engine_would_treat_otherwise(normalizer: Any) -> None:
    with pytest.raises(UnsupportedModelError):
        space_scheme({"normalizer": normalizer, "pre_tokenizer": None})


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
