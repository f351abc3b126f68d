"""Decoders as ONNX: quantized, transcoded and measured on the same scale as GGUF."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import (
    EngineError,
    FormatError,
    MissingDependencyError,
    OutputExistsError,
    UnsupportedFormatError,
    UnsupportedModelError,
    ValueRangeError,
)
from kvant.evaluate.base import identity
from kvant.files import cache_dir
from kvant.formats.imatrix import write_imatrix
from kvant.formats.onnx.decoder import read_decoder
from kvant.formats.onnx.weights import Weight, canonical
from kvant.formats.open import open_model
from kvant.kernels import decode
from kvant.progress import Silent
from kvant.quant.importance import Entry, Importance
from kvant.recipes.targets.onnx.rows import Rows
from kvant.tensors import Tensor
from kvant.testing.onnx_decoders import export_tiny
from kvant.testing.tiny_models import N_VOCAB, write_tiny_model

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
    from kvant.recipes.measure.evaluate import evaluate
    from kvant.recipes.targets.onnx.transcode import convert_decoder
    from kvant.recipes.targets.onnx.write import quantize_decoder

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
    from kvant.recipes.targets.onnx.write import quantize_decoder

    keep_export(tiny, tiny)
    done = quantize_decoder(tiny, "MatMulNBits4_b64_sym", tmp_path / "out", threads=1)
    assert done.types == {"MatMulNBits4_b64_sym": 21}
    with pytest.raises(OutputExistsError):
        quantize_decoder(tiny, "int4", tmp_path / "out", threads=1)
    with pytest.raises(UnsupportedFormatError, match="MatMulNBits4_b32_sym"):
        quantize_decoder(tiny, "Q4_K_M", tmp_path / "other", threads=1)
    assert not (tmp_path / "other").exists()


def values(tensor: Tensor) -> np.ndarray:
    return decode(tensor.read_bytes(0, tensor.shape[0]), tensor.block_type, tensor.shape[1])


def test_importance_is_used_and_noted(tiny: Path, tmp_path: Path) -> None:
    from kvant.recipes.measure.evaluate import evaluate

    keep_export(tiny, tiny)
    rng = np.random.default_rng(1)
    entries = {
        name: Entry(sums=rng.random((1, t.shape[1])).astype(np.float32) ** 6, counts=np.ones(1, np.float32))
        for name, t in open_model(tiny).tensors.items()
        if len(t.shape) == 2 and "token_embd" not in name
    }
    imatrix = tmp_path / "imatrix.gguf"
    write_imatrix(imatrix, Importance(entries=entries, datasets=("words.txt",), n_chunks=1, chunk_size=64))
    words = ["quantize", str(tiny), "--imatrix", str(imatrix), "-t"]
    done = CliRunner().invoke(app, [*words, "int4", "--to", "onnx", "-o", str(tmp_path / "onnx"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_fitted"] == 20
    assert read_decoder(tmp_path / "onnx").notes["quantize.imatrix.dataset"] == "words.txt"
    done = CliRunner().invoke(app, [*words, "4bit", "--to", "mlx", "-o", str(tmp_path / "mlx")])
    assert done.exit_code == 0, done.output
    CliRunner().invoke(app, ["quantize", str(tiny), "-t", "4bit", "--to", "mlx", "-o", str(tmp_path / "plain")])
    models = [open_model(tmp_path / name) for name in ("mlx", "plain")]
    (tmp_path / "words.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    for name in ("onnx", "mlx"):
        with pytest.raises(ValueRangeError, match=r"calibrated on words\.txt"):
            evaluate([tmp_path / name], against=tiny, text=tmp_path / "words.txt")
    original = open_model(tiny)
    for name, entry in entries.items():
        x, *found = (values(model.tensors[name]) for model in (original, *models))
        weighed, plain = (float(((rows - x) ** 2 @ entry.sums[0]).sum()) for rows in found)
        assert weighed < plain, name


def test_targets_reject_or_rewrite(tiny: Path, tmp_path: Path) -> None:
    from kvant.recipes.targets.onnx.write import quantize_decoder

    keep_export(tiny, tiny)
    done = quantize_decoder(tiny, "int2", tmp_path / "cuda", target="CUDA", threads=1)
    assert set(done.types) == {"MatMulNBits4_b32", "MatMulNBits8_b32"}
    assert len(done.rewritten) == 20
    with pytest.raises(UnsupportedFormatError, match="CoreML"):
        quantize_decoder(tiny, "int4", tmp_path / "no", target="CoreML", threads=1)


def test_blocks_that_do_not_divide_rows_become_shorter_and_run(tmp_path: Path) -> None:
    """ONNX Runtime refuses the others."""
    tiny = write_tiny_model("llama", tmp_path / "odd", intermediate_size=320)
    from kvant.recipes.measure.evaluate import evaluate
    from kvant.recipes.targets.onnx.write import quantize_decoder

    keep_export(tiny, tiny)
    done = quantize_decoder(tiny, "MatMulNBits4_b256", tmp_path / "out", threads=1)
    assert done.rewritten
    assert "no whole blocks of 256" in done.rewritten[0]
    evaluate([tmp_path / "out"], against=tiny, chunks=1, threads=1, speed=False, floors=False)


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 60_000])
def test_a_layout_for_browsers_holds_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    from kvant.recipes.targets.onnx import browser
    from kvant.recipes.targets.onnx.write import quantize_decoder

    tiny = write_tiny_model("llama", tmp_path / "source")
    monkeypatch.setattr(browser, "MAX_CHUNK_BYTES", chunk_bytes)
    keep_export(tiny, tiny)
    genai = cache_dir("onnx") / identity(open_model(tiny).files)[:32]
    (genai / "chat_template.jinja").write_text("{{ messages }}")
    quantize_decoder(tiny, "int4", tmp_path / "genai", threads=1)
    done = quantize_decoder(tiny, "int4", tmp_path / "web", threads=1, layout="transformers.js")
    assert done.size_bytes == sum(Path(file).stat().st_size for file in done.files)
    config = json.loads((tmp_path / "web" / "config.json").read_text())
    settings = config["transformers.js_config"]
    assert settings == {"dtype": "q4", "use_external_data_format": {"model_q4.onnx": len(done.files) - 1}}
    assert (len(done.files) > 3) == (chunk_bytes < 1 << 20)
    names = ["model_q4.onnx_data"] + [f"model_q4.onnx_data_{i}" for i in range(1, len(done.files) - 1)]
    assert [Path(file).name for file in done.files[1:]] == names
    assert json.loads((tmp_path / "web" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
    assert not (tmp_path / "web" / "genai_config.json").exists()
    logits = []
    for file in (tmp_path / "genai" / "model.onnx", tmp_path / "web" / "onnx" / "model_q4.onnx"):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        past, ids = np.zeros((1, 4, 0, 32), np.float32), np.ones((1, 5), np.int64)
        feeds = {port.name: past if port.name.startswith("past") else ids for port in session.get_inputs()}
        logits.append(session.run(["logits"], feeds)[0])
    assert np.array_equal(*logits)
    assert all(port.shape[1] == 4 and port.shape[3] == 32 for port in session.get_inputs() if "past" in port.name)
    quantize_decoder(tiny, "int8", tmp_path / "web", threads=1, layout="transformers.js", overwrite=True)
    assert (tmp_path / "web" / "onnx" / "model_quantized.onnx").is_file()


def test_float16_halves_scales_and_keeps_quality(tiny: Path, tmp_path: Path) -> None:
    import onnx

    from kvant.recipes.measure.evaluate import evaluate
    from kvant.recipes.targets.onnx.write import quantize_decoder

    keep_export(tiny, tiny)
    whole = quantize_decoder(tiny, "int8", tmp_path / "f32", threads=1)
    half = quantize_decoder(tiny, "int8", tmp_path / "f16", threads=1, dtype="F16")
    assert half.size_bytes < 0.95 * whole.size_bytes
    found = evaluate([tmp_path / "f32", tmp_path / "f16"], against=tiny, chunks=1, threads=1, floors=False)
    one, other = (score.kld_mean for score in found.scores)
    assert abs(one - other) < 0.1 * one + 1e-4
    graph = onnx.load(tmp_path / "f16" / "model.onnx", load_external_data=False).graph
    kinds = {t.data_type for t in graph.initializer} | {p.type.tensor_type.elem_type for p in graph.output}
    assert onnx.TensorProto.FLOAT not in kinds
    assert onnx.TensorProto.FLOAT16 in kinds
    done = quantize_decoder(tiny, "int4", tmp_path / "web", threads=1, dtype="F16", layout="transformers.js")
    assert Path(done.files[0]).name == "model_q4f16.onnx"
    with pytest.raises(UnsupportedFormatError, match="q8f16"):
        quantize_decoder(tiny, "int8", tmp_path / "no", threads=1, dtype="F16", layout="transformers.js")
    assert not (tmp_path / "no").exists()


def test_what_float16_cannot_hold_is_refused() -> None:
    from kvant.formats.onnx.halves import as_half

    with pytest.raises(ValueRangeError, match="beyond float16"):
        as_half("x", lambda: np.full(3, 1e6, np.float32))()
    assert as_half("x", lambda: np.arange(3))().dtype == np.int64


def test_logits_under_another_name(tiny: Path, tmp_path: Path) -> None:
    import onnx

    from kvant.recipes.measure.evaluate import evaluate
    from kvant.recipes.targets.onnx.transcode import convert_decoder

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
    from kvant.recipes.targets.gguf.write import quantize
    from kvant.recipes.targets.onnx.transcode import convert_decoder

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
    from kvant.recipes.targets.onnx.write import quantize_decoder

    monkeypatch.delenv("KVANT_ONNX_PYTHON", raising=False)
    with pytest.raises(MissingDependencyError, match="KVANT_ONNX_PYTHON"):
        quantize_decoder(tiny, "int4", tmp_path / "out")
    monkeypatch.setenv("KVANT_ONNX_PYTHON", "/nonexistent/python")
    with pytest.raises(MissingDependencyError, match="cannot be run"):
        quantize_decoder(tiny, "int4", tmp_path / "out")


@pytest.fixture
def exporters_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporters that the tests' own environment has."""
    monkeypatch.setenv("KVANT_ONNX_PYTHON", sys.executable)


class Heard(Silent):
    """Keeps what people are told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        """Keep."""
        self.said.append(message)


GENERATE = """
import sys, onnxruntime_genai as og
model = og.Model(sys.argv[1])
params = og.GeneratorParams(model)
params.set_search_options(max_length=12, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens([1, 5, 9])
while not generator.is_done():
    generator.generate_next_token()
print(len(generator.get_sequence(0)))
"""


def store_head(source: Path, *, is_equal: bool) -> None:
    """Store the head of a model that says it has none of its own."""
    weights = load_file(source / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    other = np.random.default_rng(3).standard_normal(embedding.shape).astype(np.float32) / 16
    save_file(weights | {"lm_head.weight": embedding.copy() if is_equal else other}, source / "model.safetensors")


def check_logits(graph: Path, source: Path) -> None:
    """Compare an export's logits with those of transformers, which takes the head that is stored."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    ids = np.arange(1, 40)[None]
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    past = {i.name: np.zeros((1, 4, 0, 32), np.float32) for i in session.get_inputs() if "past" in i.name}
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(39)[None]}
    asked = {i.name for i in session.get_inputs()}
    (ours,) = session.run(["logits"], {k: v for k, v in feeds.items() if k in asked} | past)
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)(torch.tensor(ids)).logits
    assert np.abs(ours - theirs.detach().numpy()).max() < 1e-3


@pytest.mark.usefixtures("exporters_here")
@pytest.mark.parametrize(
    ("ffn", "exporter", "head"),
    [
        (768, "onnxruntime-genai's builder", "tied"),
        # The builder takes a product as long as the vocabulary for the head; the check sees it.
        (N_VOCAB, "mobius", "equal"),
        pytest.param(768, "onnxruntime-genai's builder", "other", marks=pytest.mark.slow),
        pytest.param(N_VOCAB, "mobius", "other", marks=pytest.mark.slow),
    ],
)
def test_a_real_export_is_right_and_genai_loads_what_is_made_of_it(
    tmp_path: Path, ffn: int, exporter: str, head: str
) -> None:
    from kvant.recipes.measure.evaluate import evaluate
    from kvant.recipes.targets.onnx.write import quantize_decoder

    source = write_tiny_model("llama", tmp_path / "source", intermediate_size=ffn, dtype="F32")
    if head != "tied":
        store_head(source, is_equal=head == "equal")
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 4]}')
    heard = Heard()
    made = quantize_decoder(source, "int8", tmp_path / "int8", threads=1, progress=heard)
    assert sum(made.types.values()) == 4 * 5 + (2 if head == "other" else 1)  # what is tied is stored once
    assert any("lm_head.weight" in remark for remark in made.remarks) == (head != "tied")
    if head == "other":
        check_logits(cache_dir("onnx") / identity(open_model(source).files)[:32] / "model.onnx", source)
    assert [line for line in heard.said if "Exporting" in line][-1].endswith(f"{exporter}, once.")
    found = evaluate([tmp_path / "int8"], against=source, chunks=1, threads=1, speed=False, floors=False)
    assert found.scores[0].kld_mean < 0.01
    config = json.loads((tmp_path / "int8" / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [2, 4]
    assert (tmp_path / "int8" / "tokenizer.json").is_file()
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, str(tmp_path / "int8")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 3 < int(done.stdout) <= 12


@pytest.mark.usefixtures("exporters_here")
def test_an_export_that_predicts_otherwise_is_refused(tmp_path: Path) -> None:
    """The builder 0.18 does not know Gemma 3 of transformers 5; mobius 0.1 forgets its activation and its windows."""
    from kvant.recipes.targets.onnx.write import quantize_decoder

    source = write_tiny_model("gemma3", tmp_path / "source")
    with pytest.raises(EngineError, match=r"builder fails .* mobius makes predicts other tokens .* Stay with GGUF"):
        quantize_decoder(source, "int4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(cache_dir("onnx").iterdir())


def test_parts_of_fused_tensors(tmp_path: Path) -> None:
    """Phi-3 has q, k and v in one tensor, and gate and up in another; exporters keep, split or join them."""
    model = open_model(write_tiny_model("phi3", tmp_path / "source"))
    rows = Rows(tensors={}, path=tmp_path, model=model)

    def parts(tensor: str, n_rows: int) -> list[tuple[str, int, int, int]]:
        weight = Weight(
            name=tensor, rows=n_rows, columns=256, is_transposed=True, product="x", lookup=None,
            names=canonical(tensor),
        )  # fmt: skip
        return [(part.name, part.first, part.start, part.stop) for part in rows.parts(weight)]

    qkv = "__".join(f"model.layers.1.self_attn.{n}_proj.weight" for n in "qkv") + "__axis_0__concat_t"
    assert parts(qkv, 512) == [("blk.1.attn_qkv.weight", 0, 0, 512)]
    assert parts("model.layers.1.attn.qkv_proj.MatMul.weight", 512) == [("blk.1.attn_qkv.weight", 0, 0, 512)]
    both = "blk.3.ffn_up.weight"
    assert parts("model.layers.3.mlp.gate_up_proj.weight_t", 1024) == [(both, 0, 0, 1024)]
    assert parts("model.layers.3.mlp.gate_proj.MatMul.weight", 512) == [(both, 0, 0, 512)]
    assert parts("model.layers.3.mlp.up_proj.MatMul.weight", 512) == [(both, 512, 0, 512)]
    assert parts("lm_head.weight_t", 512) == [("output.weight", 0, 0, 512)]
    assert parts("model.layers.3.mlp.router.weight_t", 512) == []
    with pytest.raises(UnsupportedModelError, match="rows"):
        parts("model.layers.1.attn.o_proj.MatMul.weight", 128)


def test_float16_reaches_graphs_inside_nodes() -> None:
    """LongRoPE's angles are constants in the branches of an If."""
    from onnx import TensorProto, checker, helper, numpy_helper

    from kvant.formats.onnx.halves import halve

    def branch(name: str, number: float) -> object:
        value = numpy_helper.from_array(np.full(3, number, np.float32), "c")
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])
        return helper.make_graph([helper.make_node("Constant", [], [name], value=value)], name, [], [out])

    choose = helper.make_node("If", ["long"], ["y"], then_branch=branch("a", 0.5), else_branch=branch("b", 2))
    condition = helper.make_tensor_value_info("long", TensorProto.BOOL, [])
    graph = helper.make_graph([choose], "g", [condition], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    halve(model)
    checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"long": np.array(True)})
    assert y.dtype == np.float16
    assert (y == 0.5).all()
