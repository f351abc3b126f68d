"""`kvant convert`, both ways, for every family: identical weights back, files that the engine runs, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import quantize as gguf_quantize
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.formats.safetensors.reader import read_sharded
from kvant.recipes.convert.convert import Format, convert, default_output
from kvant.runtime.llamacpp import LlamaCpp
from kvant.tensors import LazyTensor, n_rows
from kvant.testing.tiny_models import FAMILIES, write_safetensors, write_tiny_model

TOKENS = np.random.default_rng(5).integers(4, 500, 24).astype(np.int32)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def raw(tensor: LazyTensor) -> bytes:
    return tensor.read_bytes(0, n_rows(tensor)).tobytes()


def engine_logits(path: Path) -> np.ndarray:
    with LlamaCpp(path, n_ctx=32, n_threads=1, all_logits=True) as engine:
        return engine.logits(TOKENS).copy()


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_bit_identical_and_runs(family: str, tmp_path: Path) -> None:
    source = write_tiny_model(family, tmp_path / "source")
    convert(source, tmp_path / "model.gguf", to="gguf", type="F32")
    convert(tmp_path / "model.gguf", tmp_path / "back", to="hf", type="BF16")
    before, after = read_sharded(source), read_sharded(tmp_path / "back")
    assert {name: (t.shape, raw(t)) for name, t in before.items()} == {
        name: (t.shape, raw(t)) for name, t in after.items()
    }
    logits = engine_logits(tmp_path / "model.gguf")
    assert logits.shape == (len(TOKENS), 512)
    assert np.isfinite(logits).all()
    convert(tmp_path / "back", tmp_path / "again.gguf", to="gguf", type="F32")
    assert np.array_equal(engine_logits(tmp_path / "again.gguf"), logits)


@pytest.mark.parametrize(("name", "kind", "file_type"), [("F16", 1, 1), ("BF16", 30, 32), ("Q8_0", 8, 7)])
def test_matrices_are_encoded_as_the_official_package_does(
    name: str, kind: int, file_type: int, tmp_path: Path
) -> None:
    source = write_tiny_model("qwen2", tmp_path / "source")
    for type_, out in (("F32", "full.gguf"), (name, "small.gguf")):
        convert(source, tmp_path / out, to="gguf", type=type_)
    full = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "full.gguf").tensors}
    reader = GGUFReader(tmp_path / "small.gguf")
    assert reader.fields["general.file_type"].contents() == file_type
    for tensor in reader.tensors:
        wanted = kind if full[tensor.name].ndim == 2 else 0
        assert tensor.tensor_type == wanted, tensor.name
        expected = gguf_quantize(full[tensor.name], GGMLQuantizationType(wanted))
        assert np.asarray(tensor.data).tobytes() == expected.tobytes(), tensor.name


def test_rows_that_fit_no_block_fall_back_and_are_listed(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "source", intermediate_size=272)
    result = run(source, "-t", "q8_0", "-o", tmp_path / "a.gguf", "--json")
    document = json.loads(result.stdout)
    assert [f["tensor"] for f in document["fallbacks"]] == [f"blk.{layer}.ffn_down.weight" for layer in range(4)]
    assert document["fallbacks"][0] == {
        "tensor": "blk.0.ffn_down.weight", "wanted": "Q8_0", "used": "F16", "row_length": 272,
    }  # fmt: skip
    text = run(source, "-t", "q8_0", "-o", tmp_path / "b.gguf")
    assert "rows of 272 do not fit Q8_0" in text.stdout


def test_the_output_is_named_after_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_model("llama", tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert run("tiny").exit_code == 0
    assert (tmp_path / "tiny-F16.gguf").is_file()
    assert run("tiny-F16.gguf", "--to", "hf", "-t", "bf16").exit_code == 0
    assert (tmp_path / "tiny-hf" / "config.json").is_file()


@pytest.mark.parametrize(
    ("source", "to", "kind", "expected"),
    [
        ("a/smol.gguf", "gguf", "bf16", "smol-BF16.gguf"),
        ("smol-F16.gguf", "gguf", "Q8_0", "smol-Q8_0.gguf"),
        ("smol-00001-of-00003.gguf", "gguf", "F32", "smol-F32.gguf"),
        ("smol-F16-00001-of-00003.gguf", "hf", "F32", "smol-hf"),
    ],
)
def test_default_names(source: str, to: Format, kind: str, expected: str) -> None:
    assert default_output(Path(source), to, kind) == Path(expected)


def test_an_output_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "source")
    for target in ("gguf", "hf"):
        out = tmp_path / f"out.{target}"
        arguments = (source, "--to", target, "-t", "F16", "-o", out)
        assert run(*arguments).exit_code == 0
        again = run(*arguments)
        assert again.exit_code == 1
        assert "--overwrite" in again.stderr
        assert run(*arguments, "--overwrite").exit_code == 0


def test_replacing_a_directory_leaves_nothing_of_the_old_model(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "source")
    out = tmp_path / "out"
    convert(source, out, to="hf", type="F32", max_file_bytes=3_000_000)
    assert len(list(out.glob("*.safetensors"))) > 1
    convert(source, out, to="hf", type="F16", overwrite=True)
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"


@pytest.mark.parametrize("target", ["gguf", "hf"])
def test_large_outputs_are_split_and_read_back(target: str, tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "source")
    result = run(source, "--to", target, "-t", "BF16", "-o", tmp_path / "out", "--max-file-size", "2MB", "--json")
    files = [Path(path) for path in json.loads(result.stdout)["files"]]
    assert len(files) > 1
    assert all(path.stat().st_size <= 2_010_000 for path in files)
    whole = files[0] if target == "gguf" else tmp_path / "out"
    convert(whole, tmp_path / "back", to="hf", type="BF16")
    before, after = read_sharded(source), read_sharded(tmp_path / "back")
    assert {name: raw(t) for name, t in before.items()} == {name: raw(t) for name, t in after.items()}


def test_a_quantized_gguf_decodes_to_what_its_blocks_say(tmp_path: Path) -> None:
    source = write_tiny_model("qwen2", tmp_path / "source")
    convert(source, tmp_path / "q8.gguf", to="gguf", type="Q8_0")
    convert(tmp_path / "q8.gguf", tmp_path / "decoded", to="hf", type="F32")
    decoded = read_sharded(tmp_path / "decoded")["model.layers.0.mlp.up_proj.weight"]
    blocks = next(t for t in GGUFReader(tmp_path / "q8.gguf").tensors if t.name == "blk.0.ffn_up.weight")
    packed = np.asarray(blocks.data).reshape(-1, 34)
    scales = packed[:, :2].copy().view(np.float16).astype(np.float32)
    assert raw(decoded) == (packed[:, 2:].view(np.int8) * scales).tobytes()


def test_a_weight_beyond_f16_stops_the_conversion_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "source")
    tensors = {}
    for name, tensor in read_sharded(source).items():
        bits = np.frombuffer(raw(tensor), np.uint16).astype(np.uint32) << 16
        tensors[name] = bits.view(np.float32).reshape(tensor.shape).copy()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 70000.0
    write_safetensors(source / "model.safetensors", tensors, "BF16")
    result = run(source, "-t", "F16", "-o", tmp_path / "out.gguf")
    assert result.exit_code == 1
    assert "blk.1.ffn_up.weight: row 3, column 5: 70144" in result.stderr
    assert not list(tmp_path.glob("out*"))
    assert run(source, "-t", "BF16", "-o", tmp_path / "out.gguf").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("-t", "Q4_K"), 1, "kvant quantize"),
        (("--to", "hf", "-t", "Q8_0"), 1, "Q8_0"),
        (("--to", "tflite"), 2, "tflite"),
        (("--max-file-size", "lots"), 1, "lots"),
        (("--max-file-size", "1kB"), 1, "token_embd.weight"),
    ],
)
def test_wrong_requests_are_refused(arguments: tuple[str, ...], status: int, words: str, tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "source")
    result = run(source, "-o", tmp_path / "out.gguf", *arguments)
    assert result.exit_code == status
    assert words in result.stderr
    assert not list(tmp_path.glob("out*"))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"not a model at all")
    for path in (tmp_path / "junk.gguf", tmp_path / "absent", tmp_path):
        result = run(path, "-o", tmp_path / "out.gguf")
        assert result.exit_code == 1
        assert result.stderr.startswith("kvant: ")
