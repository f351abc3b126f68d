"""Directories of quantized weights: decoded to what they stand for, carried over where a block type holds them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from family_cases import table, write_checkpoint
from kvant.errors import FormatError, UnsupportedFormatError, UnsupportedModelError
from kvant.formats.huggingface.reader import read_huggingface
from kvant.formats.open import format_name, open_model
from kvant.kernels import decode
from kvant.model import Model
from kvant.recipes.convert.convert import convert
from kvant.tensors import n_rows
from kvant.testing.tiny_models import write_tiny_model
from quantized_files import KINDS, Parts, Saved, quantize_files, read, stack_as_gpt_oss, write

UNMOVED = {
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.v_proj": "attn_v",
}

HELD = {
    "gptq-sym": "Q4_0", "gptq-asym": "Q5_0", "awq": "Q5_0", "pack-int4-g32": "Q4_0", "pack-int8-g128": "Q8_0",
    "int8": "Q8_0", "fp8-block": "F32", "fp8-block-power": "BF16", "mxfp4": "MXFP4", "nvfp4": "F32",
    "nvfp4-power": "BF16", "bnb-nf4": "F32", "bnb-int8": "F32", "qat": "Q4_0",
}  # fmt: skip
"""The smallest type that holds each kind."""


def tiny(directory: Path, kind: str) -> dict[str, np.ndarray]:
    write_tiny_model("llama", directory, num_hidden_layers=1, intermediate_size=256)
    return quantize_files(directory, kind)


def values(model: Model, name: str) -> np.ndarray:
    tensor = model.tensors[name]
    return decode(tensor.read_bytes(0, n_rows(tensor)), tensor.block_type, tensor.shape[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_the_format_says(kind: str, tmp_path: Path) -> None:
    written = tiny(tmp_path / "m", kind)
    model = read_huggingface(tmp_path / "m")
    for theirs, ours in UNMOVED.items():
        assert np.array_equal(values(model, f"blk.0.{ours}.weight"), written[f"model.layers.0.{theirs}.weight"]), theirs
    assert format_name(model) == "huggingface"
    assert model.is_base
    assert (len(model.stored) == 7) == (kind != "qat")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_proven_and_equal(kind: str, tmp_path: Path) -> None:
    tiny(tmp_path / "m", kind)
    result = convert(tmp_path / "m", tmp_path / "out.gguf", to="gguf", type="keep")
    written = open_model(tmp_path / "out.gguf")
    matrices = [one for one in result.tensors if one.name.startswith("blk.") and "norm" not in one.name]
    assert {one.stored for one in matrices} == {HELD[kind]}
    assert all(one.n_exact_blocks == one.n_blocks for one in result.tensors)
    source = read_huggingface(tmp_path / "m")
    for one in result.tensors:
        if kind == "qat" and one.stored == "Q4_0":  # bfloat16 rounded what the codes stand for
            continue
        assert np.array_equal(values(written, one.name), values(source, one.name)), one.name
    if HELD[kind] in ("F32", "BF16"):
        assert any("in no block type" in remark and "is the smallest float" in remark for remark in result.remarks)


def test_experts_are_stacked_with_their_blocks(tmp_path: Path) -> None:
    write_checkpoint({**table("qwen3moe"), "dtype": "BF16"}, tmp_path / "m")
    quantize_files(tmp_path / "m", "mxfp4")
    result = convert(tmp_path / "m", tmp_path / "out.gguf", to="gguf", type="keep")
    experts = [one for one in result.tensors if "_exps" in one.name]
    assert {(one.source, one.stored) for one in experts} == {("MXFP4", "MXFP4")}
    assert all(one.n_exact_blocks == one.n_blocks for one in experts)


UPSTREAM = "64e2e9766c26fe09"
"""Of the MXFP4 tensors that upstream's converter (llama-cpp-python 0.3.36) makes of the tiny gpt-oss written here."""


def test_gpt_oss_as_published_becomes_the_blocks_of_upstream(tmp_path: Path) -> None:
    write_checkpoint(table("gpt_oss"), tmp_path / "m")
    stack_as_gpt_oss(tmp_path / "m")
    result = convert(tmp_path / "m", tmp_path / "out.gguf", to="gguf", type="keep")
    assert all(one.n_exact_blocks == one.n_blocks for one in result.tensors)
    found, written = hashlib.sha256(), open_model(tmp_path / "out.gguf")
    for name in sorted(written.tensors):
        tensor = written.tensors[name]
        if tensor.block_type.name == "MXFP4":
            found.update(f"{name} {list(tensor.shape)}".encode() + tensor.read_bytes(0, n_rows(tensor)).tobytes())
    assert found.hexdigest()[:16] == UPSTREAM
    assert written.is_base


def change(directory: Path, how: Callable[[Parts], Any]) -> None:
    tensors: Parts = {}
    raw = (directory / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for name, e in json.loads(raw[8 : 8 + length]).items():
        width = {"F32": 4, "I32": 4, "I64": 8, "BF16": 2, "F16": 2}.get(e["dtype"], 1)
        data = np.frombuffer(raw[8 + length :][slice(*e["data_offsets"])], f"u{width}")
        tensors[name] = Saved(e["dtype"], data.reshape(e["shape"]))
    how(tensors)
    write(directory / "model.safetensors", tensors)


def cut(suffix: str) -> Callable[[Parts], None]:
    """Take the last row from the first tensor of a suffix."""

    def how(tensors: Parts) -> None:
        name = next(name for name in tensors if name.endswith(suffix))
        found = tensors[name]
        assert isinstance(found, Saved)
        tensors[name] = Saved(found.dtype, found.bits[:-1])

    return how


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("gptq-sym", ".qzeros"), ("gptq-sym", ".g_idx"), ("awq", ".qweight"), ("pack-int4-g32", ".weight_packed"),
        ("pack-int4-g32", ".weight_scale"), ("fp8-block", ".weight_scale_inv"), ("mxfp4", ".weight_scale"),
        ("nvfp4", ".weight_scale"), ("bnb-nf4", ".absmax"), ("bnb-nf4", "proj.weight"), ("bnb-int8", ".SCB"),
        ("bnb-nf4", "__nf4"), ("pack-int4-g32", ".weight_shape"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_by_name(kind: str, suffix: str, tmp_path: Path) -> None:
    tiny(tmp_path / "m", kind)
    change(tmp_path / "m", cut(suffix))
    with pytest.raises(FormatError, match=r"_proj.*(Download|Correct)"):
        read_huggingface(tmp_path / "m")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    tiny(tmp_path / "m", "gptq-sym")
    change(tmp_path / "m", lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(".scales")])
    with pytest.raises(UnsupportedModelError, match="GPTQ already"):
        read_huggingface(tmp_path / "m")


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("gptq-sym", ".scales"), ("gptq-asym", ".qzeros"), ("awq", ".scales"), ("awq", ".qweight"),
        ("pack-int4-g32", ".weight_scale"), ("int8", ".weight_scale"), ("fp8-block", ".weight_scale_inv"),
        ("mxfp4", ".weight_scale"), ("nvfp4", ".weight_scale"), ("bnb-nf4", ".absmax"), ("bnb-int8", ".SCB"),
    ],
)  # fmt: skip
def test_a_part_that_one_matrix_lacks_is_missed(kind: str, suffix: str, tmp_path: Path) -> None:
    tiny(tmp_path / "m", kind)
    change(tmp_path / "m", lambda tensors: tensors.pop(next(name for name in tensors if name.endswith(suffix))))
    with pytest.raises((FormatError, UnsupportedModelError, UnsupportedFormatError), match=r"model\.layers\.0"):
        read_huggingface(tmp_path / "m")


def test_a_group_that_is_not_there_is_refused(tmp_path: Path) -> None:
    def how(tensors: Parts) -> None:
        name = next(name for name in tensors if name.endswith(".g_idx"))
        tensors[name] = np.full(256, 7, np.int32)

    tiny(tmp_path / "m", "gptq-sym")
    change(tmp_path / "m", how)
    with pytest.raises(FormatError, match=r"g_idx.*numbers of 2 groups"):
        read_huggingface(tmp_path / "m")


def test_scales_of_activations_are_left_out_with_a_word(tmp_path: Path) -> None:
    def how(tensors: Parts) -> None:
        tensors["model.layers.0.mlp.up_proj.input_scale"] = np.ones(1, np.float32)

    tiny(tmp_path / "m", "fp8-block")
    change(tmp_path / "m", how)
    assert any("scales of activations" in remark for remark in read_huggingface(tmp_path / "m").remarks)


def test_memory_is_bounded_by_rows(tmp_path: Path) -> None:
    """What is read of a layer is as much as was asked for, whatever its layout."""
    tiny(tmp_path / "m", "gptq-sym")
    tensor = read_huggingface(tmp_path / "m").tensors["blk.0.ffn_down.weight"]
    whole = tensor.read_bytes(0, n_rows(tensor))
    for start, stop in ((0, 1), (5, 6), (7, 19), (255, 256), (4, 4)):
        assert np.array_equal(tensor.read_bytes(start, stop), whole[start:stop])


def test_the_reader_of_these_tests_reads_its_own_files(tmp_path: Path) -> None:
    write_tiny_model("llama", tmp_path / "m", num_hidden_layers=1)
    assert read(tmp_path / "m/model.safetensors")["model.norm.weight"].dtype == "BF16"


def said(directory: Path, **entries: Any) -> Path:
    """Change what a directory's config.json says of how it is quantized."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": config["quantization_config"] | entries}))
    return directory


@pytest.mark.parametrize(
    ("kind", "entries", "words"),
    [
        ("gptq-sym", {"bits": 8}, r"qweight \[.*are of 4 bits, but .* says 8 bits"),
        ("gptq-sym", {"group_size": 64}, r"2 groups in rows of 256, but .* says groups of 64 "),
        ("awq", {"bits": 3}, "of 4 bits, but .* says 3 bits"),
        ("awq", {"group_size": -1}, r"2 groups in rows of 256, but .* says groups of -1 \(-1: whole rows\)"),
        ("pack-int4-g32", {"config_groups": {"group_0": {"weights": {"num_bits": 8, "group_size": 32}}}}, "of 4 bits"),
        ("pack-int8-g128", {"config_groups": {"group_0": {"weights": {"group_size": 64}}}}, "groups of 64"),
        ("int8", {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, "of 8 bits, but .* says 4 bits"),
        ("nvfp4", {"group_size": 32}, "16 groups in rows of 256, but .* says groups of 32"),
        ("mxfp4", {"config_groups": {"group_0": {"weights": {"group_size": 16}}}}, "8 groups in rows of 256"),
    ],
)
def test_shapes_that_contradict_the_configuration(
    kind: str, entries: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tiny(tmp_path / "m", kind)
    with pytest.raises(FormatError, match=rf"model\.layers\.0\..*{words}"):
        read_huggingface(said(tmp_path / "m", **entries))


def test_what_is_said_anew_of_some_layers_or_of_activations_contradicts_nothing(tmp_path: Path) -> None:
    tiny(tmp_path / "m", "gptq-sym")
    read_huggingface(said(tmp_path / "m", bits=8, dynamic={"+:.*layers.*": {"bits": 4, "group_size": 128}}))
    tiny(tmp_path / "n", "pack-int4-g32")
    weights = {"num_bits": 4, "group_size": 32}
    group = {"weights": weights, "input_activations": {"num_bits": 8, "group_size": 16}}
    read_huggingface(said(tmp_path / "n", config_groups={"group_0": group}))
