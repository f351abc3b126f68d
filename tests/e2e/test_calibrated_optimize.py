"""The main job with calibration, on a tiny random model: statistics, allocation, fitting and the engine, all real."""

import functools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvant.errors import BudgetError, FormatError, ValueRangeError
from kvant.files import cache_dir, sha256_file
from kvant.formats.open import open_model
from kvant.quant.plan import Plan
from kvant.recipes.convert.convert import convert
from kvant.recipes.goal import Budget
from kvant.recipes.measure.calibration import calibrate, calibration_text
from kvant.recipes.measure.evaluate import evaluate
from kvant.recipes.measure.rounding import predicted_kld, sample_rows
from kvant.recipes.optimize.pipeline import optimize
from kvant.recipes.optimize.request import Request
from kvant.recipes.targets.gguf.options import rounding_options
from kvant.recipes.targets.gguf.write import predict_size, quantize
from kvant.recipes.targets.mlx.write import to_mlx
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests of this module: statistics of the same text are measured once."""
    return tmp_path_factory.mktemp("shared-home")


@pytest.fixture(autouse=True)
def own_home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the empty home that every test gets by the shared one."""
    monkeypatch.setenv("KVANT_HOME", str(shared_home))
    return shared_home


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny") / "little-llama"
    return write_tiny_model("llama", place, num_hidden_layers=2, intermediate_size=256)


@pytest.fixture(scope="module")
def ladder(tiny: Path, shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Sizes of all mixes of the ladder, each of which was measured, ascending."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVANT_HOME", str(shared_home))
        report = optimize(request(tiny, tmp_path_factory.mktemp("ladder"), measure_all=True, refinements=0))
        return sorted(v.size_bytes for v in report.variants if v.preset.startswith("kvant-"))


def request(tiny: Path, out: Path, **changes: object) -> Request:
    asked = Request(
        source=tiny, out=out, presets=("Q8_0", "Q4_K_M", "Q4_0"), chunks=1, threads=1,
        calibrate="bundled", calibrate_windows=3, budget=Budget(max_size_bytes=2_000_000_000),
    )  # fmt: skip
    return msgspec.structs.replace(asked, **changes)


def test_a_fitted_variant_keeps_the_budget_and_says_what_it_was_calibrated_on(
    tiny: Path, ladder: list[int], tmp_path: Path
) -> None:
    assert len(ladder) > 3
    limit = ladder[2] + 5
    report = optimize(request(tiny, tmp_path / "out", budget=Budget(max_size_bytes=limit), overwrite=True))
    assert all(v.size_bytes <= limit for v in report.variants)
    wanted = [v for v in report.variants if v.preset.startswith("kvant-")]
    assert wanted
    assert max(v.size_bytes for v in wanted) <= limit

    model = open_model(tiny)
    calibration = calibrate(model, "bundled", windows=3)
    options = rounding_options(model, calibration, threads=1)
    types = {name: kinds[0].kind for name, kinds in options.items()}
    assert predicted_kld(options, types) > 0
    plan = Plan(preset="custom", file_type=0, types={n: types.get(n, "F32") for n in model.tensors})
    predicted = predict_size(model, plan, None, calibration.curvatures)
    files = [tmp_path / f"{threads}.gguf" for threads in (1, 3)]
    for threads, file in zip((1, 3), files, strict=True):
        done = quantize(model, plan, file, curvatures=calibration.curvatures, threads=threads)
        assert done.size_bytes == predicted
    assert sha256_file(files[0]) == sha256_file(files[1])
    written = open_model(files[0])
    assert written.get("kvant.calibration.sha256") == calibration.text.sha256
    assert written.get("kvant.calibration.statistics.sha256") == calibration.curvatures.sha256


def test_mlx_layers_under_hessians_and_for_a_size(tiny: Path, tmp_path: Path) -> None:
    plain = to_mlx(tiny, tmp_path / "plain", type="4bit-g32", dtype="F16")
    asked = functools.partial(to_mlx, tiny, type="4bit-g32", calibrate="bundled", calibrate_windows=3)
    fitted = asked(out=tmp_path / "fitted", threads=1)
    again = asked(out=tmp_path / "again", threads=3)
    assert sha256_file(Path(fitted.files[0])) == sha256_file(Path(again.files[0]))
    mixed = asked(out=tmp_path / "mixed", max_size_bytes=plain.size_bytes)
    assert len(mixed.types) > 1
    assert plain.size_bytes - 30_000 < mixed.size_bytes <= plain.size_bytes
    files = []
    for result in (plain, fitted, mixed):
        files.append(tmp_path / f"{Path(result.path).name}.gguf")
        convert(result.path, files[-1], to="gguf", type="F32")
    first, second, third = (
        s.kld_mean for s in evaluate(files, against=tiny, chunks=1, speed=False, floors=False).scores
    )
    assert second < 0.8 * first
    assert third < 0.8 * first
    with pytest.raises(BudgetError, match="2 bits"):
        asked(out=tmp_path / "small", max_size_bytes=1000)
    with pytest.raises(ValueRangeError, match="calibrated on"):
        evaluate([tmp_path / "fitted"], against=tiny, text=_calibration_text(tmp_path), chunks=1)


def _calibration_text(directory: Path) -> Path:
    path = directory / "calibration.txt"
    path.write_bytes(calibration_text("bundled").text.encode())
    return path


def test_statistics_and_weighed_types_are_kept(tiny: Path) -> None:
    model = open_model(tiny)
    found = calibrate(model, "bundled", windows=3)
    costs = rounding_options(model, found, threads=1)
    stamps = {path: path.stat().st_mtime_ns for path in found.directory.iterdir() if path.suffix != ".sha256"}
    again = calibrate(model, "bundled", windows=3)
    assert again.directory == found.directory
    assert rounding_options(model, again, threads=1) == costs
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert found.directory.is_relative_to(cache_dir("statistics"))


def test_finer_types_are_predicted_to_cost_less(tiny: Path) -> None:
    model = open_model(tiny)
    options = rounding_options(model, calibrate(model, "bundled", windows=3), threads=1)
    for kinds in options.values():
        cost = {option.kind: option.cost for option in kinds}
        assert cost["Q8_0"] < cost["Q5_1"] < cost["Q4_1"]
        assert all(option.n_bytes % 32 == 0 for option in kinds)


def test_text_that_is_measured_on_is_refused_for_calibration(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("A line of a book that is long enough to be cut into windows.\n" * 400)
    with pytest.raises(ValueRangeError, match="calibrated on"):
        optimize(request(tiny, tmp_path / "out", calibrate=str(text), text=text))
    with pytest.raises(FormatError, match="no such file"):
        optimize(request(tiny, tmp_path / "out", calibrate=str(tmp_path / "absent.txt")))


def test_sampled_rows_are_the_tensors_own(tiny: Path) -> None:
    tensor = open_model(tiny).tensors["token_embd.weight"]
    rows = sample_rows(tensor, count=5)
    assert rows.shape == (5, tensor.shape[-1])
    np.testing.assert_array_equal(rows[0], sample_rows(tensor, count=tensor.shape[0])[0])


def test_predictions_are_corrected_by_what_was_measured(tiny: Path, ladder: list[int], tmp_path: Path) -> None:
    limit = (ladder[2] + ladder[3]) // 2
    budget = Budget(max_size_bytes=limit)
    before = optimize(request(tiny, tmp_path / "before", budget=budget, refinements=0))
    after = optimize(request(tiny, tmp_path / "after", budget=budget, refinements=3))
    known = {v.preset for v in before.variants}
    new = [v for v in after.variants if v.preset not in known]
    assert 1 <= len(new) <= 3
    assert len({v.preset for v in after.variants}) == len(after.variants) == len(known) + len(new)
    assert all(v.preset.startswith("kvant-") and v.size_bytes <= limit for v in new)


def test_a_model_can_write_its_own_calibration_text(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvant.recipes.measure.calibration.WINDOW_TOKENS", 64)
    model = open_model(tiny)
    found = calibrate(model, "self", windows=3)
    assert found.text.label == "kvant:self:seed-1"
    assert [part.domain for part in found.text.parts] == ["chat", "plain"]
    types = {name: "Q4_0" if name.startswith("blk.0.ffn") else "F32" for name in model.tensors}
    plan = Plan(preset="custom", file_type=0, types={**types, "blk.0.ffn_norm.weight": "F32"})
    quantize(model, plan, tmp_path / "out.gguf", curvatures=found.curvatures)
    assert open_model(tmp_path / "out.gguf").get("kvant.calibration.sha256") == found.text.sha256
