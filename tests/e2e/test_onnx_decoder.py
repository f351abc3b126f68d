"""Decoders as ONNX: quantized, transcoded and measured on the same scale as GGUF."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import FormatError, MissingDependencyError, OutputExistsError, UnsupportedFormatError
from kvant.evaluate.base import identity
from kvant.files import cache_dir
from kvant.formats.open import open_model
from onnx_decoders import export_tiny
from tiny_models import write_tiny_model

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_HOME", str(tmp_path / "home"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model("llama", tmp_path / "tiny")


def keep_export(source: Path, of: Path) -> None:
    """Put an export where `exported` finds it."""
    export_tiny(of, cache_dir("onnx") / identity(open_model(source).files)[:32])


def test_quantized_is_measured_like_gguf(tiny: Path, tmp_path: Path) -> None:
    from kvant.recipes.decoder.quantize import quantize_decoder
    from kvant.recipes.decoder.transcode import convert_decoder
    from kvant.recipes.evaluate import evaluate

    keep_export(tiny, tiny)
    convert_decoder(tiny, tmp_path / "f32")
    done = quantize_decoder(tiny, "int8", tmp_path / "int8", threads=1)
    assert done.size_bytes == sum((tmp_path / "int8" / n).stat().st_size for n in ("model.onnx", "model.onnx.data"))
    quantize_decoder(tiny, "int4", tmp_path / "int4", threads=1)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    found = evaluate(
        [tmp_path / n for n in ("f32", "int8", "int4")], against=tiny, text=text, context=64, chunks=4, threads=1,
        floors=False,
    )  # fmt: skip
    f32, int8, int4 = found.scores
    assert f32.name == "f32"
    assert f32.kld_mean < 1e-5
    assert f32.kld_mean < int8.kld_mean < int4.kld_mean < 0.5
    assert int4.tg_tok_s is not None
    assert int4.tg_tok_s > 0
    assert 9 < int8.bpw < 11  # 9.25, and tables of rotary angles


def test_types_and_sizes(tiny: Path, tmp_path: Path) -> None:
    from kvant.recipes.decoder.quantize import quantize_decoder

    keep_export(tiny, tiny)
    done = quantize_decoder(tiny, "MatMulNBits4_b64_sym", tmp_path / "out", threads=1)
    assert done.types == {"MatMulNBits4_b64_sym": 21}
    with pytest.raises(OutputExistsError):
        quantize_decoder(tiny, "int4", tmp_path / "out", threads=1)
    with pytest.raises(UnsupportedFormatError, match="MatMulNBits4_b32_sym"):
        quantize_decoder(tiny, "Q4_K_M", tmp_path / "other", threads=1)
    assert not (tmp_path / "other").exists()


def test_targets_reject_or_rewrite(tiny: Path, tmp_path: Path) -> None:
    from kvant.recipes.decoder.quantize import quantize_decoder

    keep_export(tiny, tiny)
    done = quantize_decoder(tiny, "int2", tmp_path / "cuda", target="CUDA", threads=1)
    assert set(done.types) == {"MatMulNBits4_b32", "MatMulNBits8_b32"}
    assert len(done.rewritten) == 20
    with pytest.raises(UnsupportedFormatError, match="CoreML"):
        quantize_decoder(tiny, "int4", tmp_path / "no", target="CoreML", threads=1)


def test_blocks_that_do_not_divide_rows_become_shorter_and_run(tmp_path: Path) -> None:
    """ONNX Runtime refuses the others."""
    tiny = write_tiny_model("llama", tmp_path / "odd", intermediate_size=320)
    from kvant.recipes.decoder.quantize import quantize_decoder
    from kvant.recipes.evaluate import evaluate

    keep_export(tiny, tiny)
    done = quantize_decoder(tiny, "MatMulNBits4_b256", tmp_path / "out", threads=1)
    assert done.rewritten
    assert "no whole blocks of 256" in done.rewritten[0]
    evaluate([tmp_path / "out"], against=tiny, chunks=1, threads=1, speed=False, floors=False)


def test_logits_under_another_name(tiny: Path, tmp_path: Path) -> None:
    import onnx

    from kvant.recipes.decoder.transcode import convert_decoder
    from kvant.recipes.evaluate import evaluate

    keep_export(tiny, tiny)
    out = tmp_path / "out"
    convert_decoder(tiny, out)
    model = onnx.load(out / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            node.output[i] = "scores" if name == "logits" else name
    model.graph.output[0].name = "scores"
    onnx.save(model, out / "model.onnx")
    with pytest.raises(FormatError, match="no output 'logits'"):
        evaluate([out], against=tiny, chunks=1, threads=1, floors=False)
    config = json.loads((out / "genai_config.json").read_text())
    config["model"]["decoder"]["outputs"] = {"logits": "scores"}
    (out / "genai_config.json").write_text(json.dumps(config))
    found = evaluate([out], against=tiny, chunks=1, threads=1, floors=False)
    assert found.scores[0].kld_mean < 1e-4


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_gguf_blocks_become_onnx_blocks_of_the_same_values(tiny: Path, tmp_path: Path, kind: str) -> None:
    from kvant.formats.huggingface.writer import write_huggingface
    from kvant.recipes.decoder.transcode import convert_decoder
    from kvant.recipes.quantize import quantize

    quantize(tiny, kind, tmp_path / "q.gguf", threads=1)
    model = open_model(tmp_path / "q.gguf")
    write_huggingface(model, tmp_path / "decoded", dtype="F32", threads=1)
    keep_export(tmp_path / "q.gguf", tmp_path / "decoded")
    done = convert_decoder(tmp_path / "q.gguf", tmp_path / "out")
    exact = [m for m in done.matrices if m.n_weights]
    assert len(exact) == (20 if kind == "Q4_0" else 21)  # the embedding of Q4_0 is Q6_K
    ids = {"input_ids": np.arange(1, 40)[None], "attention_mask": np.ones((1, 39), np.int64)}
    rows = []
    for folder in (tmp_path / "out", cache_dir("onnx") / identity(model.files)[:32]):
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        past = {i.name: np.zeros((1, 4, 0, 32), np.float32) for i in session.get_inputs() if "past" in i.name}
        rows.append(session.run(["logits"], ids | past)[0])
    assert np.abs(rows[0] - rows[1]).max() < 0.05 * np.abs(rows[1]).max()  # activations become int8 in the products


def test_without_the_builders_environment(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvant.recipes.decoder.quantize import quantize_decoder

    monkeypatch.delenv("KVANT_ONNX_PYTHON", raising=False)
    with pytest.raises(MissingDependencyError, match="KVANT_ONNX_PYTHON"):
        quantize_decoder(tiny, "int4", tmp_path / "out")
    monkeypatch.setenv("KVANT_ONNX_PYTHON", "/nonexistent/python")
    with pytest.raises(MissingDependencyError, match="cannot be run"):
        quantize_decoder(tiny, "int4", tmp_path / "out")


@pytest.mark.slow
def test_the_builder_itself_and_genai_loads_the_result(tiny: Path, tmp_path: Path) -> None:
    """Needs KVANT_ONNX_PYTHON: exports for real, quantizes, and lets onnxruntime-genai make tokens."""
    from kvant.recipes.decoder.quantize import quantize_decoder

    python = os.environ.get("KVANT_ONNX_PYTHON")
    if not python:
        pytest.skip("KVANT_ONNX_PYTHON is not set")
    quantize_decoder(tiny, "int4", tmp_path / "int4")
    script = (
        "import sys, onnxruntime_genai as og\n"
        "model = og.Model(sys.argv[1])\n"
        "params = og.GeneratorParams(model)\n"
        "params.set_search_options(max_length=12, do_sample=False)\n"
        "generator = og.Generator(model, params)\n"
        "generator.append_tokens([1, 5, 9])\n"
        "while not generator.is_done():\n"
        "    generator.generate_next_token()\n"
        "print(len(generator.get_sequence(0)))\n"
    )
    done = subprocess.run([python, "-c", script, str(tmp_path / "int4")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 3 < int(done.stdout) <= 12
