import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from kvant.errors import FormatError, KvantError, UnsupportedModelError
from kvant.evaluate.odd_texts import TEXTS
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.formats.huggingface.tokenizer.reader import write_tokenizer as write_back
from kvant.metadata import Value, ValueType, array, string
from kvant.model import Model
from kvant.testing.published_tokenizers import PUBLISHED, write_published
from kvant.testing.tiny_tokenizers import KINDS, write_tokenizer

# Flags that GGUF does not keep: Metaspace's "only the first word", Phi-3's tokens that swallow spaces, Gemma's marks.
LOST = {"gemma3": {"marks of spaces"}}
START = {"mistral-spm": "[INST]"}
"""What texts begin with: a space before the first word of a text alone is not written."""


def model(metadata: dict[str, Value]) -> Model:
    return Model(metadata={"general.name": string("Phi-3"), **metadata}, tensors={}, path=Path("x.gguf"), files=())


def plain(metadata: dict[str, Value]) -> dict[str, Any]:
    return {k: v.value.tolist() if isinstance(v.value, np.ndarray) else v.value for k, v in metadata.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    write_tokenizer(kind, source, 900)
    config = {"vocab_size": 905, "model_type": "llama"}
    metadata = tokenizer_metadata(source, config)

    write_back(model(metadata), target)

    assert plain(tokenizer_metadata(target, config)) == plain(metadata)
    before, after = (Tokenizer.from_file(str(d / "tokenizer.json")) for d in (source, target))
    texts = {title: START.get(kind, "") + text for title, text in TEXTS.items()}
    differing = {title for title, text in texts.items() if before.encode(text).ids != after.encode(text).ids}
    assert differing == LOST.get(kind, set())
    for text in texts.values():
        ids = before.encode(text).ids
        # Where no space is put before a text, none is taken from it either.
        assert after.decode(ids).removeprefix(" " * (kind in START)) == before.decode(ids)


COMPOSES = {"bailingmoe", "stablelm2", "exaone-moe"}
"""Pipelines that compose accents before the name's other tokenizers, which do not."""


@pytest.mark.parametrize("kind", [k for k, p in PUBLISHED.items() if "type" not in p.model])
def test_published_pipelines_come_back(kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    config = write_published(kind, source)

    write_back(model(tokenizer_metadata(source, config)), target)

    before, after = (Tokenizer.from_file(str(d / "tokenizer.json")) for d in (source, target))
    differing = {title for title, text in TEXTS.items() if before.encode(text).ids != after.encode(text).ids}
    assert differing == ({"decomposed"} if kind in COMPOSES else set())


def test_configuration_names_the_special_tokens(tmp_path: Path) -> None:
    write_tokenizer("llama3", tmp_path, 600)
    metadata = tokenizer_metadata(tmp_path, {})
    (tmp_path / "tokenizer_config.json").unlink()

    write_back(model({**metadata, "tokenizer.chat_templates": array(ValueType.STRING, ["rag", "../x"])}), tmp_path)

    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|begin_of_text|>", "<|eot_id|>")
    assert config["added_tokens_decoder"]["593"]["special"] is True
    assert (tmp_path / "chat_template.jinja").read_text() == metadata["tokenizer.chat_template"].value
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["bos_token"] == "<|begin_of_text|>"


def test_named_templates_stay_in_their_folder(tmp_path: Path) -> None:
    write_tokenizer("smollm", tmp_path, 600)
    metadata = tokenizer_metadata(tmp_path, {})
    for name in ("rag", "../../escape", "a/b"):
        metadata[f"tokenizer.chat_template.{name}"] = string("T")
    metadata["tokenizer.chat_templates"] = array(ValueType.STRING, ["rag", "../../escape", "a/b"])

    write_back(model(metadata), tmp_path)

    assert [p.name for p in (tmp_path / "additional_chat_templates").iterdir()] == ["rag.jinja"]


def broken(key: str, value: Any) -> dict[str, Value]:
    good = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, ["<unk>", "a", "b", "ab"]),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, np.zeros(4, np.float32)),
        "tokenizer.ggml.token_type": array(ValueType.INT32, np.array([2, 1, 1, 1], np.int32)),
    }
    if value is None:
        return {k: v for k, v in good.items() if not k.endswith(key)}
    return {**good, f"tokenizer.ggml.{key}": value}


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("tokens", None, FormatError),
        ("tokens", array(ValueType.INT32, np.zeros(4, np.int32)), FormatError),
        ("scores", None, FormatError),
        ("token_type", array(ValueType.INT32, np.zeros(3, np.int32)), FormatError),
        ("model", string("bert"), UnsupportedModelError),
        ("model", None, UnsupportedModelError),
        ("tokens", array(ValueType.STRING, ["<unk>", "a", "b", "c" * 600]), FormatError),
        ("tokens", array(ValueType.STRING, ["<unk>", "a", "b", "c" * 70000]), FormatError),
    ],
)
def test_metadata_that_contradicts_itself(key: str, value: Any, error: type[KvantError], tmp_path: Path) -> None:
    with pytest.raises(error):
        write_back(model(broken(key, value)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("merge", ["a", "a c", " a", "", "a b c"])
def test_merge_that_makes_no_token(merge: str, tmp_path: Path) -> None:
    metadata = {
        **broken("model", string("gpt2")),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.merges": array(ValueType.STRING, [merge]),
    }
    with pytest.raises(FormatError, match="names or makes no token"):
        write_back(model(metadata), tmp_path)
