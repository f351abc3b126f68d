"""What follows the states of an embedding model: the pooling, dense layers, and what is left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, KvantError, UnsupportedModelError
from kvant.formats.huggingface.architectures.embedding_gemma import dense_layers
from kvant.formats.huggingface.architectures.pooling import POOLED, module_remarks, pooling
from kvant.formats.huggingface.config import Config
from kvant.testing.tiny_models import write_safetensors


def model(directory: Path, *modules: tuple[str, str], **folders: dict[str, Any]) -> Config:
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": path} for path, kind in modules]
    (directory / "modules.json").write_text(json.dumps(listed))
    for name, entries in folders.items():
        (directory / name.lstrip("_")).mkdir()
        (directory / name.lstrip("_") / "config.json").write_text(json.dumps(entries))
    return Config(values={}, path=directory / "config.json")


@pytest.mark.parametrize(
    ("entries", "kind"),
    [({"pooling_mode_mean_tokens": True}, 1), ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
     ({"pooling_mode_lasttoken": True}, 3), ({"pooling_mode": "lasttoken"}, 3)],
)  # fmt: skip
def test_the_pooling_is_read(entries: dict[str, Any], kind: int, tmp_path: Path) -> None:
    config = model(tmp_path, ("", "Transformer"), ("1_Pooling", "Pooling"), _1_Pooling=entries)
    assert pooling(config)["pooling_type"].value == kind


def test_a_model_without_modules_has_no_pooling(tmp_path: Path) -> None:
    assert pooling(Config(values={}, path=tmp_path / "config.json")) == {}


def test_a_pooling_that_the_engine_lacks_is_refused(tmp_path: Path) -> None:
    config = model(tmp_path, ("1_Pooling", "Pooling"), _1_Pooling={"pooling_mode_max_tokens": True})
    with pytest.raises(UnsupportedModelError, match="none of mean, cls, lasttoken"):
        pooling(config)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/b"])
def test_a_module_elsewhere_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no folder beside it"):
        pooling(model(tmp_path, (path, "Pooling")))


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", "[", '"x"'])
def test_modules_that_are_no_list_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(FormatError):
        pooling(Config(values={}, path=tmp_path / "config.json"))


def test_steps_that_are_left_out_are_said(tmp_path: Path) -> None:
    config = model(tmp_path, ("", "Transformer"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"))
    assert [*module_remarks(config, POOLED | {"Dense"})] == []
    assert "its Dense is not in what is made" in next(module_remarks(config, POOLED))


def test_a_dense_layer_with_a_bias_or_an_activation_is_refused(tmp_path: Path) -> None:
    config = model(tmp_path, ("2_Dense", "Dense"), _2_Dense={"activation_function": "torch.nn.modules.activation.Tanh"})
    write_safetensors(tmp_path / "2_Dense" / "model.safetensors", {"linear.weight": np.ones((3, 2))}, "F32")
    with pytest.raises(KvantError, match="without biases and activations"):
        dense_layers(config)
