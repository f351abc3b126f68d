"""Checkpoints as training tools save them: read through with a remark, or refused by what the weights are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kvant.errors import KvantError, UnsupportedFormatError, UnsupportedModelError, ValueRangeError
from kvant.formats.huggingface.reader import read_huggingface
from kvant.tensors import n_rows
from kvant.testing.tiny_models import write_tiny_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PROJECTION = "model.layers.0.mlp.down_proj"
Change = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("plain"), dtype="F32")


@pytest.fixture
def copied(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "model"))


def change(directory: Path, how: Change) -> None:
    save_file(how(load_file(directory / WEIGHTS)), directory / WEIGHTS)


def configure(directory: Path, **entries: Any) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **entries}))


def assert_same(directory: Path, plain: Path) -> None:
    found, wanted = read_huggingface(directory).tensors, read_huggingface(plain).tensors
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert np.array_equal(found[name].read_bytes(0, n_rows(tensor)), tensor.read_bytes(0, n_rows(tensor))), name


@pytest.mark.parametrize(
    ("prefix", "whose"),
    [("base_model.model.", "PEFT"), ("_orig_mod.", "torch.compile"), ("module._orig_mod.", "DistributedDataParallel")],
)
def test_prefixes_of_wrappers_are_read_through(prefix: str, whose: str, copied: Path, plain: Path) -> None:
    change(copied, lambda weights: {prefix + name: array for name, array in weights.items()})
    assert any(whose in remark for remark in read_huggingface(copied).remarks)
    assert_same(copied, plain)


def test_wrappers_around_layers_are_read_through(copied: Path, plain: Path) -> None:
    change(copied, lambda w: {n.replace("mlp.", "mlp._checkpoint_wrapped_module."): a for n, a in w.items()})
    assert_same(copied, plain)


def test_a_value_head_is_left_out_with_a_word(copied: Path, plain: Path) -> None:
    change(copied, lambda weights: weights | {"v_head.summary.weight": np.ones((1, 256), np.float32)})
    model = read_huggingface(copied)
    assert "v_head.summary.weight is a value head" in model.remarks[0]
    assert model.is_mended
    assert_same(copied, plain)


def test_float64_is_read_as_float32(copied: Path, plain: Path) -> None:
    change(copied, lambda weights: {name: array.astype(np.float64) for name, array in weights.items()})
    assert "are F64 and are read as F32" in read_huggingface(copied).remarks[0]
    assert_same(copied, plain)


def test_float64_beyond_float32_is_named(copied: Path) -> None:
    def grow(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wide = {name: array.astype(np.float64) for name, array in weights.items()}
        wide[f"{PROJECTION}.weight"][3, 5] = -1e300
        return wide

    change(copied, grow)
    tensor = read_huggingface(copied).tensors["blk.0.ffn_down.weight"]
    with pytest.raises(ValueRangeError, match=r"down_proj.weight: row 3, column 5 is -1e\+300"):
        tensor.read_bytes(0, 8)


@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        (".SCB", "bitsandbytes 8-bit"), (".weight.absmax", "bitsandbytes 4-bit"),
        (".g_idx", "GPTQ"), (".qweight", "AWQ"),
        (".weight_packed", "compressed-tensors"), (".weight_scale_inv", "FP8"), (".weight_scale_2", "NVFP4"),
        (".W_q", "HQQ"), (".scales", "MLX"), (".codebooks", "AQLM"), (".weight._scale", "Quanto"),
    ],
)  # fmt: skip
def test_quantized_weights_are_named_by_their_tensors(suffix: str, method: str, copied: Path) -> None:
    change(copied, lambda weights: weights | {PROJECTION + suffix: np.ones(4, np.float32)})
    with pytest.raises(UnsupportedModelError, match=rf"weights are {method}.* already \(.*{suffix}"):
        read_huggingface(copied)


def test_dequantize_is_advised_where_transformers_can(copied: Path) -> None:
    change(copied, lambda weights: weights | {f"{PROJECTION}.SCB": np.ones(4, np.float32)})
    configure(copied, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(UnsupportedModelError, match=r"quantization_config in config.json\).*dequantize\(\)"):
        read_huggingface(copied)


@pytest.mark.parametrize(
    ("file", "entries", "words"),
    [
        ("", {"quant_method": "bitsandbytes"}, "bitsandbytes.*every weight is F32.*remove quantization_config from"),
        ("quantize_config.json", {"bits": 4}, r"4 bits.*every weight is F32.*delete quantize_config.json"),
        ("hf_quant_config.json", {"quant_algo": "FP8"}, "FP8.*every weight is F32.*delete hf_quant_config.json"),
    ],
)
def test_a_left_over_entry_is_told_from_quantized_weights(
    file: str, entries: dict[str, Any], words: str, copied: Path, plain: Path
) -> None:
    before = (copied / CONFIG).read_bytes()
    if file:
        (copied / file).write_text(json.dumps(entries))
    else:
        configure(copied, quantization_config=entries)
    with pytest.raises(UnsupportedModelError, match=words):
        read_huggingface(copied)
    (copied / CONFIG).write_bytes(before)  # the advice followed
    (copied / (file or "none")).unlink(missing_ok=True)
    assert_same(copied, plain)


def adapter(directory: Path, name: str = "adapter_model.safetensors") -> None:
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((4, 256), np.float32)}
    save_file(lora, directory / name)


def test_an_adapter_beside_its_base_is_not_passed_over(copied: Path, plain: Path) -> None:
    adapter(copied)
    with pytest.raises(UnsupportedFormatError, match="beside the model's weights lies a LoRA adapter for org/base"):
        read_huggingface(copied)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (copied / name).unlink()
    assert_same(copied, plain)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapters.safetensors"])
def test_an_adapter_with_a_configuration_is_no_model(name: str, copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    adapter(copied, name)
    with pytest.raises(UnsupportedFormatError, match=r"is a LoRA adapter.* for org/base"):
        read_huggingface(copied)


def test_adapter_tensors_among_the_weights_are_an_adapter(copied: Path) -> None:
    change(copied, lambda w: w | {f"{PROJECTION}.lora_A.default.weight": np.ones((4, 512), np.float32)})
    with pytest.raises(UnsupportedFormatError, match=r"weights are a LoRA adapter .*kvant convert BASE --lora DIR"):
        read_huggingface(copied)


def test_one_file_goes_before_an_index_that_names_others(copied: Path, plain: Path) -> None:
    (copied / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})
    )
    model = read_huggingface(copied)
    assert "names 1 other files (first model-00001-of-00002.safetensors)" in model.remarks[0]
    assert_same(copied, plain)


@pytest.mark.parametrize("number", [-1, 512])
def test_a_pad_token_outside_the_vocabulary_is_left_out_with_a_word(number: int, copied: Path) -> None:
    configure(copied, pad_token_id=number)
    model = read_huggingface(copied)
    assert model.get("tokenizer.ggml.padding_token_id") is None
    assert model.remarks == (f"pad_token_id {number} is none of the 512 tokens: written without a pad token.",)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("vocab.json", "merges.txt"), r"vocab.json and merges.txt are there.*save_pretrained\('"),
        (("spiece.model",), "spiece.model is there"),
        (("qwen.tiktoken",), "qwen.tiktoken is there"),
        ((), "Copy the tokenizer there"),
    ],
)
def test_a_tokenizer_of_another_kind_is_named(files: tuple[str, ...], words: str, copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    for name in files:
        (copied / name).write_text("{}")
    with pytest.raises(KvantError, match=words):
        read_huggingface(copied)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("BertForQuestionAnswering", "is an encoder.*kvant quantize model.onnx"),
        ("DistilBertModel", "Upstream's converter makes a GGUF of it"),
    ],
)
def test_encoders_are_sent_to_who_makes_something_of_them(name: str, words: str, copied: Path) -> None:
    configure(copied, architectures=[name])
    with pytest.raises(UnsupportedModelError, match=words):
        read_huggingface(copied)


@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin"])
def test_what_training_leaves_is_not_taken_for_weights(name: str, copied: Path) -> None:
    (copied / WEIGHTS).rename(copied / "model.safetensors.incomplete")
    (copied / name).write_bytes(b"x")
    with pytest.raises(KvantError, match=r"holds no safetensors file, but model.safetensors.incomplete. Finish"):
        read_huggingface(copied)
