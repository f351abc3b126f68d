"""The main job across formats on a tiny random model: one front, the best of each format written."""

import json
import shlex
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import MissingDependencyError, OutputExistsError, ValueRangeError
from kvant.evaluate.base import identity
from kvant.files import cache_dir
from kvant.formats.imatrix import write_imatrix
from kvant.formats.onnx.decoder import read_decoder
from kvant.formats.open import open_model
from kvant.quant.importance import Entry, Importance
from kvant.recipes.goal import Budget
from kvant.recipes.measure.evaluate import evaluate
from kvant.recipes.optimize.pipeline import optimize
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.schema import read_recipe
from kvant.recipes.report.report import Report
from kvant.testing.onnx_decoders import export_tiny
from kvant.testing.tiny_models import write_tiny_model

pytest.importorskip("mlx_lm", reason="there is no wheel of mlx for this system")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests of this module."""
    return tmp_path_factory.mktemp("shared-home")


@pytest.fixture(autouse=True)
def own_home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the empty home that every test gets by the shared one."""
    monkeypatch.setenv("KVANT_HOME", str(shared_home))
    monkeypatch.delenv("KVANT_ONNX_PYTHON", raising=False)
    return shared_home


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def exported(tiny: Path, shared_home: Path) -> None:
    """Put an export of the model into the cache, as the exporters' environment would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVANT_HOME", str(shared_home))
        export_tiny(tiny, cache_dir("onnx") / identity(open_model(tiny).files)[:32])


def request(tiny: Path, out: Path, **changes: object) -> Request:
    asked = Request(
        source=tiny, calibrate="none", out=out, formats=("gguf", "mlx"), presets=("Q8_0", "Q4_0"), chunks=1, threads=1,
        budget=Budget(max_size_bytes=2_000_000_000),
    )  # fmt: skip
    return msgspec.structs.replace(asked, **changes)


@pytest.fixture(scope="module")
def found(tiny: Path, shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVANT_HOME", str(shared_home))
        return optimize(request(tiny, tmp_path_factory.mktemp("found")))


def test_one_front_and_the_best_of_every_format(found: Report) -> None:
    by_format = {name: [v for v in found.variants if v.format == name] for name in ("gguf", "mlx")}
    assert [v.preset for v in by_format["mlx"]] == ["mlx 6bit", "mlx 8bit"]
    assert all(v.format_title == "MLX in mlx-lm" for v in by_format["mlx"])
    for name, variants in by_format.items():
        (pick,) = [v for v in variants if v.is_pick]
        (written,) = [f for f in found.formats if f.format == name]
        assert pick.score.loss == written.kld_mean == min(v.score.loss for v in variants)
        assert written.tg_tok_s is not None
        assert written.memory_bytes is not None
    smallest_loss = min(found.variants, key=lambda v: v.score.loss)
    assert smallest_loss.on_front
    assert [f.format for f in found.formats if f.is_best] == [smallest_loss.format]
    for v in found.variants:
        beaten = any(w.size_bytes <= v.size_bytes and w.score.loss < v.score.loss for w in found.variants)
        assert v.on_front == (not beaten), v.preset
    assert sum(v.is_pick for v in found.variants) == 2


def test_what_is_written_is_what_was_measured(found: Report, tiny: Path) -> None:
    (written,) = [f for f in found.formats if f.format == "mlx"]
    assert open_model(Path(written.path)).quantized_types == [f"{written.type}-g64"]
    table = evaluate([Path(written.path)], against=tiny, chunks=1, threads=1, speed=False, floors=False)
    # In mlx-lm itself; `optimize` measured the decoded weights in llama.cpp.
    assert table.scores[0].kld_mean == pytest.approx(written.kld_mean, rel=0.02)
    assert table.scores[0].size_bytes == written.size_bytes


def test_the_page_the_recipe_and_the_commands_know_of_formats(found: Report) -> None:
    directory = Path(found.path).parent
    page = (directory / "report.html").read_text()
    assert "The best of every format" in page
    assert page.count("format-mlx") > 2
    assert read_recipe(directory / "recipe.yaml").formats == ("gguf", "mlx")
    assert any("--formats gguf,mlx" in command for command in found.commands)
    assert any("--to mlx" in command for command in found.commands)


def test_a_second_run_measures_nothing_and_other_content_is_not_replaced(
    found: Report, tiny: Path, tmp_path: Path
) -> None:
    again = optimize(request(tiny, tmp_path / "out"))
    assert [v.score for v in again.variants] == [v.score for v in found.variants]
    (written,) = [f for f in again.formats if f.format == "mlx"]
    note = Path(written.path) / "note.txt"
    note.write_text("mine")
    optimize(request(tiny, tmp_path / "out"))
    assert note.read_text() == "mine"
    config = Path(written.path) / "config.json"
    config.unlink()
    config.write_text("{}")
    with pytest.raises(OutputExistsError, match=r"holds note\.txt, which would be lost"):
        optimize(request(tiny, tmp_path / "out", overwrite=True))
    assert note.read_text() == "mine"
    note.unlink()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        optimize(request(tiny, tmp_path / "out"))
    optimize(request(tiny, tmp_path / "out", overwrite=True))
    assert json.loads(config.read_text())["quantization"]


def test_the_smallest_that_is_close_enough(found: Report, tiny: Path, tmp_path: Path) -> None:
    bound = max(v.score.loss for v in found.variants if v.format == "mlx") * 1.01
    report = optimize(request(tiny, tmp_path / "out", budget=Budget(max_kld=bound), presets=("F16", "Q8_0")))
    (written,) = [f for f in report.formats if f.format == "mlx"]
    sizes = [v.size_bytes for v in report.variants if v.format == "mlx" and v.score.loss <= bound]
    assert written.size_bytes == min(sizes)


def test_limits_hold_for_what_was_measured_before_them(found: Report, tiny: Path, tmp_path: Path) -> None:
    sizes = sorted(v.size_bytes for v in found.variants if v.format == "mlx")
    budget = Budget(max_size_bytes=sizes[-1] - 1)
    report = optimize(request(tiny, tmp_path / "size", budget=budget, presets=("Q4_0",)))
    assert all(v.size_bytes < sizes[-1] for v in report.variants)
    memory = {v.preset: v.memory_bytes for v in found.variants}
    assert min(m for name, m in memory.items() if name.startswith("mlx")) > memory["Q8_0"]
    budget = Budget(max_ram_bytes=memory["Q8_0"])
    report = optimize(request(tiny, tmp_path / "memory", budget=budget))
    assert [f.format for f in report.formats] == ["gguf"]
    (reason,) = report.left_out
    assert reason.startswith("mlx: max-ram: mlx ")
    assert "max-ram: mlx " in (tmp_path / "memory" / "report.html").read_text()


def repeated(report: Report, part: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the command of a report that makes a variant again, in a directory; return what it writes."""
    (line,) = [line for line in report.commands if part in line]
    place.mkdir()
    monkeypatch.chdir(place)
    run = CliRunner().invoke(app, shlex.split(line)[1:])
    assert run.exit_code == 0, run.output
    (made,) = place.iterdir()
    return made


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Line {i} of {i * i} and some words about rivers, mills and bread.\n" for i in range(90)))
    return path


@pytest.mark.usefixtures("exported")
def test_a_size_is_kept_by_mixes_which_are_refined_and_rebuilt(
    tiny: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX and ONNX have what GGUF has: a ladder of mixes, refinement, a lock that makes the same bytes again."""
    limit = sum(t.shape[0] * t.shape[-1] for t in open_model(tiny).tensors.values()) * 3 // 4
    asked = request(
        tiny, tmp_path / "out", formats=("gguf", "mlx", "onnx"), presets=("Q4_0",), calibrate=str(book), refinements=1,
        budget=Budget(max_size_bytes=limit),
    )  # fmt: skip
    report = optimize(asked)
    assert all(v.size_bytes <= limit for v in report.variants)
    for written in report.formats:
        mixes = [v for v in report.variants if v.format == written.format and "kvant-" in v.preset]
        assert len(mixes) > 1, written.format
        assert written.type.startswith("kvant-")
        assert max(v.size_bytes for v in mixes) > 0.95 * limit
        place = Path(written.path)
        weights = (
            [f for f in place.iterdir() if f.suffix in (".safetensors", ".onnx", ".data")] if place.is_dir() else []
        )
        assert sum(f.stat().st_size for f in weights or [place]) == written.size_bytes
    others = [Path(f.path) for f in report.formats if f.format != "gguf"]
    assert open_model(others[0]).get("kvant.calibration.name")
    for made in others:
        (line,) = [line for line in report.commands if "rebuild" in line and f"{made.name}.lock.json" in line]
        place = tmp_path / "again" / made.name
        place.mkdir(parents=True)
        monkeypatch.chdir(place)
        run = CliRunner().invoke(app, shlex.split(line)[1:])
        assert run.exit_code == 0, run.output
        assert contents(place / made.name) == contents(made)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, by its path within."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def write_importance(tiny: Path, path: Path) -> Path:
    """Write an importance file for the layers of a model, as if measured on words.txt."""
    layers = [t for name, t in open_model(tiny).tensors.items() if name.startswith("blk.") and len(t.shape) > 1]
    sums = np.random.default_rng(7).uniform(0.001, 9, 4096).astype(np.float32)
    entries = {t.name: Entry(sums=sums[None, : t.shape[-1]], counts=np.array([10.0])) for t in layers}
    write_imatrix(path, Importance(entries=entries, datasets=("words.txt",), n_chunks=10))
    return path


@pytest.mark.usefixtures("exported")
def test_three_formats_on_one_front_and_an_importance_file_serves_all(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imatrix = write_importance(tiny, tmp_path / "i.gguf")
    asked = request(tiny, tmp_path / "out", formats=("gguf", "mlx", "onnx"), imatrix=imatrix)
    report = optimize(asked)
    assert report.remarks[-1] == "i.gguf: mlx and onnx are encoded with it."
    assert sum("--imatrix" in line for line in report.commands) == 4  # the search, and one for every format
    (mlx,) = [Path(f.path) for f in report.formats if f.format == "mlx"]
    assert open_model(mlx).get("kvant.calibration.name") == "words.txt"
    assert {v.format for v in report.variants} == {"gguf", "mlx", "onnx"}
    (written,) = [f for f in report.formats if f.format == "onnx"]
    assert written.type == "int8"
    assert read_decoder(Path(written.path)).notes["quantize.imatrix.dataset"] == "words.txt"
    table = evaluate([Path(written.path)], against=tiny, chunks=1, threads=1, speed=False, floors=False)
    assert table.scores[0].kld_mean == pytest.approx(written.kld_mean, rel=1e-4)
    assert "format-onnx" in (tmp_path / "out" / "report.html").read_text()
    again = repeated(report, "--to onnx", tmp_path / "again", monkeypatch)
    for name in ("model.onnx", "model.onnx.data"):
        assert (again / name).read_bytes() == (Path(written.path) / name).read_bytes()


def test_what_one_engine_cannot_do_costs_nobody_elses_results(tmp_path: Path) -> None:
    """An export that onnxruntime-genai left half done."""
    other = write_tiny_model("llama", tmp_path / "other", seed=5)
    export = export_tiny(other, cache_dir("onnx") / identity(open_model(other).files)[:32])
    graph = onnx.load(export / "model.onnx", load_external_data=False)
    graph.graph.node[-1].op_type = "MatMulOfAnother"
    onnx.save(graph, export / "model.onnx")
    report = optimize(request(other, tmp_path / "out", formats=("gguf", "onnx")))
    assert (tmp_path / "out" / report.file).is_file()
    assert len(report.left_out) == 1
    assert "onnx: " in report.left_out[0]


def test_weights_beyond_float16_cost_the_onnx_variant_alone(tmp_path: Path) -> None:
    other = write_tiny_model("llama", tmp_path / "other", seed=6, dtype="F32")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= np.float32(1e5)
    weights["model.embed_tokens.weight"] *= np.float32(1e-5)  # the head is tied to it
    save_file(weights, other / "model.safetensors")
    export_tiny(other, cache_dir("onnx") / identity(open_model(other).files)[:32])
    report = optimize(request(other, tmp_path / "out", formats=("gguf", "onnx")))
    assert (tmp_path / "out" / report.file).is_file()
    assert "beyond float16" in report.left_out[0]


def test_formats_that_cannot_be_had_are_refused_at_once(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueRangeError, match="tflite"):
        optimize(request(tiny, tmp_path / "out", formats=("gguf", "tflite")))
    other = write_tiny_model("qwen2", tmp_path / "other")
    with pytest.raises(MissingDependencyError, match="KVANT_ONNX_PYTHON"):
        optimize(request(other, tmp_path / "out", formats=("gguf", "onnx")))
    assert not (tmp_path / "out").exists()


def test_the_command(tiny: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(
        app,
        ["optimize", str(tiny), "--calibrate", "none", "--max-size", "2GB",
         "--formats", "gguf,mlx", "--candidates", "Q8_0,Q4_0", "--chunks",
         "1", "--threads", "1", "-o", str(tmp_path / "out")],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "the best of all formats" in run.output
    assert not list(cache_dir("formats").glob("*.gguf"))
