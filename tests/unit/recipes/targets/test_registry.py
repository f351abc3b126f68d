"""Formats by entry point: the built-in ones, and one that another distribution adds."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import BudgetError, KvantError, PlanError, ValueRangeError
from kvant.formats.open import open_model
from kvant.recipes.goal import Budget
from kvant.recipes.optimize.pipeline import optimize
from kvant.recipes.optimize.request import Request
from kvant.recipes.rebuild.rebuild import rebuild
from kvant.recipes.targets.registry import TARGETS, find_target, targets_of
from kvant.testing.tiny_models import write_tiny_model

TWIN = """
import msgspec

from kvant.recipes.targets.gguf.target import GGUF, GGUFWorkshop


class Twin(GGUF):
    name, title, points = "twin", "Twins in llama.cpp", 1

    def label(self, preset):
        return f"twin {preset}"

    def output_name(self, model, preset):
        return f"{model}-twin-{preset}.gguf"

    def open(self, material):
        return Bench(material)


class Bench(GGUFWorkshop):
    def presets(self, names=()):
        return [msgspec.structs.replace(c, name=f"twin {c.preset}") for c in super().presets(names or ("Q8_0",))]
"""


@pytest.fixture
def twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a distribution with a format of its own."""
    place = tmp_path / "site"
    (place / "twin_format-1.0.dist-info").mkdir(parents=True)
    (place / "twin_format.py").write_text(TWIN)
    (place / "twin_format-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: twin-format\nVersion: 1.0\n"
    )
    entries = "[kvant.targets]\ntwin = twin_format:Twin\nbroken = twin_format:Absent\n"
    (place / "twin_format-1.0.dist-info" / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(place))
    TARGETS.look_again()
    yield
    monkeypatch.undo()
    TARGETS.look_again()
    sys.modules.pop("twin_format", None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama", num_hidden_layers=1)


def test_the_built_in_formats_come_by_the_same_door() -> None:
    assert {"gguf", "mlx", "onnx"} <= set(TARGETS.names)
    assert [find_target(name).name for name in ("gguf", "mlx", "onnx")] == ["gguf", "mlx", "onnx"]


@pytest.mark.usefixtures("twin")
def test_another_distributions_format_is_searched_and_rebuilt(tiny: Path, tmp_path: Path) -> None:
    report = optimize(
        Request(
            source=tiny, calibrate="none", out=tmp_path / "out", formats=("gguf", "twin"), presets=("Q4_0",), chunks=1,
            threads=1,
            budget=Budget(max_size_bytes=2_000_000_000),
        )
    )  # fmt: skip
    assert [f.format for f in report.formats] == ["gguf", "twin"]
    assert {v.preset for v in report.variants} == {"Q4_0", "twin Q4_0"}
    made = tmp_path / "out" / "little-llama-twin-Q4_0.gguf"
    assert made.is_file()
    assert "Twins in llama.cpp" in (tmp_path / "out" / "report.html").read_text()
    lock = made.with_name("little-llama-twin-Q4_0.lock.json")
    assert json.loads(lock.read_text())["target"] == "twin"
    again = rebuild(lock, tiny, out=tmp_path / "again.gguf")
    assert Path(again.path).read_bytes() == made.read_bytes()
    alone = Request(source=tiny, calibrate="none", out=tmp_path / "alone", formats=("twin",), chunks=1, threads=1)
    assert optimize(alone).file == "little-llama-twin-Q8_0.gguf"


@pytest.mark.usefixtures("twin")
def test_what_cannot_be_had_is_refused_at_once(tiny: Path) -> None:
    model = open_model(tiny)
    with pytest.raises(ValueRangeError, match=r"'tflite' is none of .*gguf, mlx, onnx, twin"):
        targets_of(("gguf", "tflite"), model)
    with pytest.raises(ValueRangeError, match="each once"):
        targets_of(("gguf", "gguf"), model)
    with pytest.raises(ValueRangeError, match="name one or more"):
        targets_of((), model)
    with pytest.raises(KvantError, match=r"broken of twin-format \(twin_format:Absent\) cannot be loaded"):
        targets_of(("broken",), model)
    with pytest.raises(PlanError, match="'Q9_9' is no preset of gguf, twin"):
        targets_of(("gguf", "twin"), model, ("Q4_0", "Q9_9"))


@pytest.mark.usefixtures("twin")
def test_one_format_that_cannot_keep_the_budget_is_left_out_alone(tiny: Path, tmp_path: Path) -> None:
    small = Request(
        source=tiny, calibrate="none", out=tmp_path / "out", formats=("twin",), budget=Budget(max_size_bytes=10_000)
    )
    with pytest.raises(BudgetError, match="no variant of this model keeps it"):
        optimize(small)


@pytest.mark.usefixtures("twin")
def test_quantize_writes_a_preset_of_another_distributions_format(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["quantize", str(tiny), "--to", "twin", "-t", "Q4_0", "--threads", "1"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    assert (tmp_path / "little-llama-twin-Q4_0.gguf").is_file()
    for more, said in (([], "exists already"), (["--resume"], "--resume is for gguf")):
        run = CliRunner().invoke(app, [*words, *more])
        assert run.exit_code > 0
        assert said in " ".join(run.output.split())
    run = CliRunner().invoke(app, ["quantize", str(tiny), "--to", "tflite", "-t", "Q4_0"])
    assert run.exit_code == 2
