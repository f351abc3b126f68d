"""Model directories written: the configuration of the original, whole or not at all, and what cannot be written."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, KvantError, LimitError, OutputExistsError, UnsupportedModelError, ValueRangeError
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.huggingface.directory import shard
from kvant.formats.huggingface.reader import read_huggingface
from kvant.formats.huggingface.writer import write_huggingface
from kvant.metadata import string
from kvant.model import Model
from kvant.tensors import LazyTensor
from kvant.testing.tiny_models import FAMILIES, write_tiny_model

UNWRITTEN = {"no_rope_layers", "attention_bias", "sliding_window_pattern"}
"""Entries that say what transformers assumes anyway."""


def through_gguf(source: Path, scratch: Path) -> Model:
    """The model of a directory after a stay in GGUF, which keeps no files of the directory."""
    model = read_huggingface(source)
    write_gguf(scratch / "stay.gguf", model.metadata, list(model.tensors.values()))
    return read_gguf(scratch / "stay.gguf")


def config_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "config.json").read_text()))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return read_huggingface(write_tiny_model("llama", tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mistral"}))
def test_the_configuration_comes_back(family: str, tmp_path: Path) -> None:
    source = write_tiny_model(family, tmp_path / "source")
    write_huggingface(through_gguf(source, tmp_path), tmp_path / "out")
    before, after = config_of(source), config_of(tmp_path / "out")
    if family == "gemma3":
        before.pop("hidden_act")  # Gemma's is hidden_activation
    if family == "phi3":
        before["max_position_embeddings"] = before["sliding_window"]  # the engine has no window
    assert {key: after.get(key) for key in before.keys() - UNWRITTEN} == {
        key: value for key, value in before.items() if key not in UNWRITTEN
    }


def test_mistral_comes_back_from_gguf_as_llama(tmp_path: Path) -> None:
    source = write_tiny_model("mistral", tmp_path / "source")
    write_huggingface(through_gguf(source, tmp_path), tmp_path / "out")
    after = config_of(tmp_path / "out")
    assert (after["architectures"], after["head_dim"], after["model_type"]) == (["LlamaForCausalLM"], 64, "llama")


def test_a_directory_keeps_its_own_words(tmp_path: Path) -> None:
    source = write_tiny_model("mistral", tmp_path / "source", sliding_window=32, attention_sinks=4)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["lstrip"] = True
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))

    write_huggingface(read_huggingface(source), tmp_path / "out", dtype="F32")

    after = config_of(tmp_path / "out")
    assert (after["architectures"], after["sliding_window"], after["attention_sinks"]) == (
        ["MistralForCausalLM"],
        32,
        4,
    )
    assert after["torch_dtype"] == "float32"
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == tokenizer
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").exists()


def test_biases_that_one_entry_asks_for_together_are_there_together(tmp_path: Path) -> None:
    model = through_gguf(write_tiny_model("llama", tmp_path / "source", attention_bias=True), tmp_path)
    some = {name: tensor for name, tensor in model.tensors.items() if not name.endswith("attn_output.bias")}

    write_huggingface(dataclasses.replace(model, tensors=some), tmp_path / "out")

    back = read_huggingface(tmp_path / "out")
    assert set(back.tensors) == set(model.tensors)
    assert not back.tensors["blk.0.attn_output.bias"].read_bytes(0, 1).any()


def test_biases_are_named_in_the_configuration(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "source", attention_bias=True)
    write_huggingface(read_huggingface(source), tmp_path / "out")
    assert config_of(tmp_path / "out")["attention_bias"] is True


def broken(tensor: LazyTensor) -> LazyTensor:
    def read(_start: int, _stop: int) -> np.ndarray:
        raise ValueRangeError(f"{tensor.name}: made to fail.")

    return dataclasses.replace(tensor, read=read)


def test_a_failure_leaves_nothing_and_the_old_model_whole(llama: Model, tmp_path: Path) -> None:
    name = "blk.3.ffn_up.weight"
    tensor = llama.tensors[name]
    assert isinstance(tensor, LazyTensor)
    bad = dataclasses.replace(llama, tensors={**llama.tensors, name: broken(tensor)})
    with pytest.raises(ValueRangeError):
        write_huggingface(bad, tmp_path / "new")
    assert not list(tmp_path.iterdir())
    write_huggingface(llama, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    with pytest.raises(ValueRangeError):
        write_huggingface(bad, tmp_path / "old", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_model_may_be_written_over_its_own_directory(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "model")
    before = (source / "model.safetensors").read_bytes()
    (source / "NOTES.txt").write_text("kept")
    write_huggingface(read_huggingface(source), source, overwrite=True)
    model = read_huggingface(source)
    assert len(before) - (source / "model.safetensors").stat().st_size < 4096
    assert model.n_weights == 2_492_672
    assert (source / "NOTES.txt").read_text() == "kept"


def test_outputs_that_are_in_the_way(llama: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="is a file"):
        write_huggingface(llama, tmp_path / "file", overwrite=True)
    with pytest.raises(KvantError, match="absent: is not a directory"):
        write_huggingface(llama, tmp_path / "absent" / "out")
    (tmp_path / "empty").mkdir()
    write_huggingface(llama, tmp_path / "empty")
    with pytest.raises(OutputExistsError, match="holds a model already"):
        write_huggingface(llama, tmp_path / "empty")


def test_other_architectures_and_tensors_are_refused(llama: Model, tmp_path: Path) -> None:
    other = dataclasses.replace(llama, metadata={**llama.metadata, "general.architecture": string("mamba")})
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*llama"):
        write_huggingface(other, tmp_path / "out")
    odd = dataclasses.replace(
        llama, tensors={**llama.tensors, "blk.0.ffn_gate_exps.weight": llama.tensors["output_norm.weight"]}
    )
    with pytest.raises(UnsupportedModelError, match="ffn_gate_exps"):
        write_huggingface(odd, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.2.attn_v.weight", "output_norm.weight"])
def test_a_gguf_without_a_tensor_or_of_another_shape_is_refused(name: str, llama: Model, tmp_path: Path) -> None:
    less = dataclasses.replace(llama, tensors={key: t for key, t in llama.tensors.items() if key != name})
    with pytest.raises(FormatError, match=r"missing|token_embd\.weight"):
        write_huggingface(less, tmp_path / "out")
    tensor = llama.tensors[name]
    assert isinstance(tensor, LazyTensor)
    other = dataclasses.replace(tensor, shape=(3, *tensor.shape[1:-1], 5))
    odd = dataclasses.replace(llama, tensors={**llama.tensors, name: other})
    with pytest.raises(FormatError, match=name):
        write_huggingface(odd, tmp_path / "out")


def test_shards_keep_order_and_limit(llama: Model) -> None:
    tensors = [tensor for tensor in llama.tensors.values() if isinstance(tensor, LazyTensor)]
    groups = shard(tensors, 600_000)
    assert [tensor for group in groups for tensor in group] == tensors
    assert len(groups) > 3
    with pytest.raises(LimitError, match="token_embd"):
        shard(tensors, 100_000)
