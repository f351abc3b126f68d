"""MLX directories written and read: what config.json says, shards, and directories that lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, KvantError, OutputExistsError, PlanError, UnsupportedFormatError
from kvant.formats.mlx.schemes import Scheme, named_grouping, read_scheme, scheme
from kvant.formats.open import open_model
from kvant.kernels import decode
from kvant.kernels.mlx import Grouping, dequantize, quantize
from kvant.recipes.evaluate import f32_file
from kvant.recipes.inspect import inspect
from kvant.recipes.mlx import to_mlx
from kvant.recipes.quantize import quantize as to_gguf
from kvant.tensors import Tensor, n_rows, row_length
from tiny_models import write_tiny_model

SHAPES = {"model.embed_tokens": (64, 256), "lm_head": (64, 256)} | {
    f"model.layers.{i}.{part}": (64, 256)
    for i in range(8)
    for part in ("self_attn.v_proj", "mlp.down_proj", "mlp.up_proj")
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("llama") / "little-llama")


def floats(tensor: Tensor) -> np.ndarray:
    return decode(tensor.read_bytes(0, n_rows(tensor)), tensor.block_type, row_length(tensor))


def test_names_of_types() -> None:
    assert named_grouping("4bit") == Grouping(mode="affine", bits=4, group_size=64)
    assert named_grouping("3bit-g32") == Grouping(mode="affine", bits=3, group_size=32)
    assert named_grouping("MXFP4").mode == "mxfp4"
    for name in ("7bit", "4bit-g16", "Q4_K_M", ""):
        with pytest.raises(UnsupportedFormatError):
            named_grouping(name)


def test_recipes_give_more_bits_to_the_same_layers_as_mlx_lm() -> None:
    found = scheme("mixed_3_6", SHAPES)
    high = {path for path, grouping in found.layers.items() if grouping.bits == 6}
    chosen = {0, 3, 6, 7}  # first and last eighth, and every third between
    assert high == {"lm_head"} | {
        f"model.layers.{i}.{p}" for i in chosen for p in ("self_attn.v_proj", "mlp.down_proj")
    }
    assert found.entries()["bits"] == 4
    assert len(found.entries()) == 3 + len(SHAPES)


def test_layers_that_no_group_divides_stay_floats() -> None:
    assert set(scheme("4bit", {"a": (4, 96), "b": (4, 128)}).layers) == {"b"}
    with pytest.raises(UnsupportedFormatError, match="fit no layer"):
        scheme("4bit", {"a": (4, 96)})


def test_what_is_written_is_read_as_the_same_weights(llama: Path, tmp_path: Path) -> None:
    result = to_mlx(llama, tmp_path / "out", type="4bit-g32")
    source, found = open_model(llama), open_model(tmp_path / "out")
    assert found.quantized_types == ["4bit-g32"]
    whole = inspect(tmp_path / "out")
    assert (whole.format, whole.tensor_bytes) == ("mlx", found.tensor_bytes)
    assert found.tensor_bytes < result.size_bytes < found.tensor_bytes + 20_000
    assert {share.name for share in whole.by_type} == {"4bit-g32", "F32"}
    assert set(found.tensors) == set(source.tensors)
    grouping = named_grouping("4bit-g32")
    for name in ("token_embd.weight", "blk.0.ffn_down.weight"):
        x = floats(source.tensors[name])
        kind = source.tensors[name].block_type
        assert np.array_equal(floats(found.tensors[name]), dequantize(quantize(x, grouping, kind), grouping, kind))
    assert result.types == {"4bit-g32": len([t for t in source.tensors.values() if len(t.shape) == 2])}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"} == config["quantization_config"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_parameters"] == source.n_weights


def test_shards_and_an_output_that_exists(llama: Path, tmp_path: Path) -> None:
    whole = to_mlx(llama, tmp_path / "whole", type="8bit-g32")
    result = to_mlx(llama, tmp_path / "out", type="8bit-g32", max_file_bytes=whole.size_bytes // 3)
    assert len(result.files) > 2
    found, one = open_model(tmp_path / "out"), open_model(tmp_path / "whole")
    assert all(np.array_equal(floats(found.tensors[n]), floats(one.tensors[n])) for n in one.tensors)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        to_mlx(llama, tmp_path / "out", type="8bit-g32")
    to_mlx(llama, tmp_path / "out", type="mxfp4", overwrite=True)
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_a_quantized_model_is_no_source_and_no_base(llama: Path, tmp_path: Path) -> None:
    to_mlx(llama, tmp_path / "out", type="4bit-g32")
    with pytest.raises(PlanError, match="4bit-g32 already"):
        to_mlx(tmp_path / "out", tmp_path / "twice", type="4bit-g32")
    with pytest.raises(PlanError, match="4bit-g32 already"):
        to_gguf(tmp_path / "out", "Q8_0", tmp_path / "twice.gguf")
    with pytest.raises(FormatError, match="no full-precision base"):
        f32_file(tmp_path / "out")
    assert not (tmp_path / "twice").exists()


def test_from_a_gguf(llama: Path, tmp_path: Path) -> None:
    to_gguf(llama, "F16", tmp_path / "a.gguf")
    to_mlx(tmp_path / "a.gguf", tmp_path / "out", type="4bit-g32")
    to_mlx(llama, tmp_path / "direct", type="4bit-g32", dtype="F16")
    ours, theirs = (open_model(tmp_path / name) for name in ("out", "direct"))
    assert all(np.array_equal(floats(ours.tensors[n]), floats(theirs.tensors[n])) for n in theirs.tensors)
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_options_that_do_not_go_together(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--calibrate"):
        to_mlx(llama, tmp_path / "out", type="4bit-g32", max_size_bytes=1000)
    with pytest.raises(UnsupportedFormatError, match="Use F16"):
        to_mlx(llama, tmp_path / "out", type="4bit-g32", calibrate="bundled", dtype="BF16")
    with pytest.raises(UnsupportedFormatError, match="F8"):
        to_mlx(llama, tmp_path / "out", type="4bit-g32", dtype="F8")


@pytest.mark.parametrize(
    "entry",
    [3, [], {}, {"bits": "4"}, {"bits": 4}, {"bits": 7, "group_size": 32}, {"bits": 4, "group_size": 0},
     {"bits": 4, "group_size": 32, "mode": "x"}, {"bits": 1 << 70, "group_size": 32}],
    ids=str,
)  # fmt: skip
def test_a_quantization_that_cannot_be_read(entry: Any) -> None:
    with pytest.raises(KvantError):
        read_scheme({"quantization": entry}, ["a"], "config.json")


@pytest.mark.parametrize("change", [{"bits": 2}, {"group_size": 64}, {"bits": 8}, {"mode": "mxfp4"}])
def test_parts_that_do_not_fit_one_another(llama: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    to_mlx(llama, tmp_path / "out", type="4bit-g32")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    wrong = {**config["quantization"], **change}
    path.write_text(json.dumps(config | {"quantization": wrong, "quantization_config": wrong}))
    with pytest.raises(KvantError):
        open_model(tmp_path / "out")


def test_a_scheme_names_what_differs() -> None:
    usual, other = named_grouping("4bit"), named_grouping("6bit-g32")
    entries = Scheme(usual=usual, layers={"a": usual, "b": other}).entries()
    assert entries == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "b": {"group_size": 32, "bits": 6, "mode": "affine"},
    }
