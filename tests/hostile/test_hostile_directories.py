"""Model directories whose JSON files are made to break a reader: through the door that every command uses."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import hostile_cases as cases
import raw_files as raw
from kvant.errors import KvantError
from kvant.formats.open import open_model
from kvant.testing.tiny_models import write_tiny_model

HUGE_INTEGERS: list[Any] = [0, -1, 1 << 31, 1 << 64, 1e300, "4", None, [], {}, True, 2.5]
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def directory(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def refused(path: Path) -> str:
    """Open a model that must be refused, and return the message."""
    with pytest.raises(KvantError) as caught:
        open_model(path)
    message = str(caught.value)
    assert len(message) < 1500
    return message


@pytest.mark.parametrize("name", list(cases.JSON))
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
def test_broken_json(directory: Path, file: str, name: str) -> None:
    (directory / file).write_bytes(cases.JSON[name])
    refused(directory)


@pytest.mark.parametrize("key", NEEDED)
@pytest.mark.parametrize("value", HUGE_INTEGERS, ids=repr)
def test_senseless_sizes(directory: Path, key: str, value: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {key: value}))
    refused(directory)


@pytest.mark.parametrize("name", list(cases.SAFETENSORS))
def test_broken_weights(directory: Path, name: str) -> None:
    (directory / "model.safetensors").write_bytes(cases.SAFETENSORS[name])
    refused(directory)


def test_code_of_the_model_is_never_run(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},
        "model_type": "evil",
        "architectures": ["Evil"],
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "modeling_evil.py").write_text("raise SystemExit('ran')")
    refused(directory)
    assert "modeling_evil" not in sys.modules


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    assert "pickles" in refused(directory)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/hostname", "a/../../secret.safetensors"])
def test_shards_outside_the_directory(directory: Path, name: str) -> None:
    (directory / "model.safetensors").rename(directory.parent / "secret.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(directory)


def test_an_index_that_holds_a_bomb(directory: Path) -> None:
    path = directory / "model.safetensors.index.json"
    path.write_bytes(b'{"weight_map":{' + b",".join(b'"%d":"a"' % i for i in range(2_100_000)) + b"}}")
    refused(directory)
    path.write_bytes(b'{"a":"' + b"x" * (1 << 25) + b'"}')
    refused(directory)


def test_a_weight_of_another_shape(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(
        raw.safetensors({"model.embed_tokens.weight": raw.entry("F32", [2, 2], 0, 16)}, bytes(16))
    )
    refused(directory)
