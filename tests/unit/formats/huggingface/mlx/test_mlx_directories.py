"""MLX directories written and read: what config.json says, shards, and directories that lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.dtypes import F16, block_type
from kvant.errors import FormatError, KvantError, OutputExistsError, PlanError, UnsupportedFormatError, ValueRangeError
from kvant.formats.huggingface.mlx.schemes import Scheme, named_grouping, read_scheme, scheme
from kvant.formats.open import open_model
from kvant.kernels import decode, encode
from kvant.kernels.mlx import Grouping, dequantize, quantize
from kvant.kernels.mlx_blocks import SAME_VALUES, block_holding, from_blocks, to_blocks
from kvant.quant.plan import Plan
from kvant.recipes.convert.convert import convert
from kvant.recipes.inspect.inspect import inspect
from kvant.recipes.measure.base import f32_file
from kvant.recipes.targets.gguf.write import quantize as to_gguf
from kvant.recipes.targets.mlx.write import to_mlx
from kvant.tensors import Tensor, n_rows, row_length
from kvant.testing.tiny_models import write_tiny_model

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


def blocks_of(model: Path, kind: str, path: Path, *, embedding: str | None = None) -> None:
    """Write a GGUF with all matrices in one type, the embedding in another if asked."""
    source = open_model(model)
    types = {name: kind if len(t.shape) > 1 else "F32" for name, t in source.tensors.items()}
    types["token_embd.weight"] = embedding or kind
    to_gguf(source, Plan(preset=kind, file_type=0, types=types), path)


EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")


@pytest.mark.parametrize("kind", EXACT)
def test_blocks_move_to_mlx_and_back_without_loss(kind: str) -> None:
    random = np.random.default_rng(0)
    rows = encode(random.standard_normal((8, 128)).astype(np.float32), kind, threads=1)
    source = block_type(kind)
    moved, grouping = from_blocks(rows, source), SAME_VALUES[kind]
    floats = [None if part is None else decode(part, F16, 4) for part in (moved.scales, moved.biases)]
    assert np.array_equal(dequantize(moved, grouping), decode(rows, source, 128))
    if kind == "MXFP4":
        floats = [np.empty(0), None]
    assert floats[0] is not None
    found = block_holding(floats[0], floats[1], grouping)
    assert found == source
    assert np.array_equal(to_blocks(moved, grouping, F16, source), rows)


@pytest.mark.parametrize("kind", EXACT)
def test_a_gguf_kept_as_mlx_and_back(kind: str, llama: Path, tmp_path: Path) -> None:
    blocks_of(llama, kind, tmp_path / "a.gguf")
    there = convert(tmp_path / "a.gguf", tmp_path / "mlx", to="mlx", type="keep")
    back = convert(tmp_path / "mlx", tmp_path / "b.gguf", to="gguf", type="keep")
    a, b = open_model(tmp_path / "a.gguf"), open_model(tmp_path / "b.gguf")
    matrices = {name for name, tensor in a.tensors.items() if tensor.block_type.is_quantized}
    assert matrices
    for name in matrices:
        assert b.tensors[name].block_type == a.tensors[name].block_type
        assert np.array_equal(b.tensors[name].read_bytes(0, 4), a.tensors[name].read_bytes(0, 4))
    for result in (there, back):
        assert sum(kept.n_tensors for kept in result.compared) == len(a.tensors)
        moved = [kept for kept in result.compared if kind in (kept.source, kept.stored)]
        assert all(kept.n_exact == kept.n_tensors and kept.largest_error == 0 for kept in moved)


def test_groups_of_64_and_few_bits_become_blocks(llama: Path, tmp_path: Path) -> None:
    for type_, stored in (("4bit-g32", "Q4_1"), ("3bit-g32", "Q4_1"), ("5bit-g32", "Q5_1"), ("8bit-g32", "F16")):
        to_mlx(llama, tmp_path / type_, type=type_, dtype="F16")
        result = convert(tmp_path / type_, tmp_path / f"{type_}.gguf", to="gguf", type="keep")
        (found,) = [kept for kept in result.compared if kept.source == type_]
        assert found.stored == stored
        assert (found.largest_error == 0) == (stored != "F16")


def test_what_mlx_cannot_hold_is_decoded_and_its_error_told(llama: Path, tmp_path: Path) -> None:
    blocks_of(llama, "Q4_0", tmp_path / "a.gguf", embedding="Q6_K")
    result = convert(tmp_path / "a.gguf", tmp_path / "mlx", to="mlx", type="keep")
    assert {kept.source: kept.stored for kept in result.compared}["Q4_0"] == "4bit-g32"
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}


def test_decoding_says_what_it_loses(llama: Path, tmp_path: Path) -> None:
    blocks_of(llama, "Q4_K", tmp_path / "a.gguf")
    lossless = convert(tmp_path / "a.gguf", tmp_path / "f32.gguf", to="gguf", type="F32")
    assert lossless.compared == ()
    for to in ("hf", "mlx"):
        result = convert(tmp_path / "a.gguf", tmp_path / to, to=to, type="BF16")
        lost = {part.source: part for part in result.compared}
        assert lost["Q4_K"].stored == "BF16"
        assert 0 < lost["Q4_K"].largest_error < 1e-2
        assert sum(part.n_tensors for part in result.compared) == result.n_tensors
    assert convert(llama, tmp_path / "floats", to="mlx", type="F16").compared == ()


def test_keeping_where_there_is_nothing_to_keep(llama: Path, tmp_path: Path) -> None:
    for to in ("gguf", "mlx", "hf"):
        with pytest.raises(UnsupportedFormatError, match="floats alone"):
            convert(llama, tmp_path / "out", to=to, type="keep")
    blocks_of(llama, "Q4_0", tmp_path / "a.gguf")
    with pytest.raises(UnsupportedFormatError, match="Q4_0"):
        convert(tmp_path / "a.gguf", tmp_path / "out", to="hf", type="keep")
    assert not (tmp_path / "out").exists()


def test_a_bias_beyond_float16_is_refused() -> None:
    rows = np.zeros((1, 34), np.uint8)
    rows[0, :2] = np.frombuffer(np.float16(600).tobytes(), np.uint8)
    with pytest.raises(ValueRangeError, match="beyond float16"):
        from_blocks(rows, block_type("Q8_0"))


def test_the_command_writes_mlx(llama: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["convert", str(llama), "--to", "mlx", "-t", "F16", "-o", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "mlx"}
    blocks_of(llama, "Q4_0", tmp_path / "a.gguf")
    run = CliRunner().invoke(
        app, ["convert", str(tmp_path / "a.gguf"), "--to", "mlx", "-t", "keep", "-o", str(tmp_path / "kept")]
    )
    assert run.exit_code == 0, run.output
    assert "bit-exact" in run.output
