"""Mixes under a bound on KLD, in memory and at a speed, on a tiny random model; one cache for all of it."""

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from kvant.errors import BudgetError
from kvant.files import cache_dir
from kvant.recipes.goal import Budget
from kvant.recipes.optimize.pipeline import optimize
from kvant.recipes.optimize.request import Request
from kvant.recipes.report.report import Report
from kvant.runtime import decodetime
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests of this module."""
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
def ladder(tiny: Path, shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Every rung of the ladder, measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVANT_HOME", str(shared_home))
        out = tmp_path_factory.mktemp("ladder")
        return optimize(request(tiny, out, Budget(max_size_bytes=2_000_000_000), measure_all=True, refinements=0))


def request(tiny: Path, out: Path, budget: Budget, **changes: object) -> Request:
    asked = Request(
        source=tiny, out=out, presets=("Q4_0",), chunks=1, threads=1, calibrate="bundled", calibrate_windows=3,
        budget=budget,
    )  # fmt: skip
    return msgspec.structs.replace(asked, **changes)


def test_a_bound_on_kld_is_met_by_a_smaller_mix_than_the_ladders(tiny: Path, ladder: Report, tmp_path: Path) -> None:
    fitted = [v for v in ladder.variants if v.preset.startswith("kvant-")]
    # The widest step: between its ends are mixes that a tiny model's noise does not hide.
    small, large = max(pairwise(fitted), key=lambda pair: pair[0].score.loss / pair[1].score.loss)
    assert small.score.loss > large.score.loss
    bound = (small.score.loss * large.score.loss) ** 0.5
    report = optimize(request(tiny, tmp_path / "out", Budget(max_kld=bound), refinements=4))
    pick = next(v for v in report.variants if v.is_pick)
    assert pick.score.loss <= bound
    assert pick.size_bytes < large.size_bytes
    assert pick.preset not in {v.preset for v in ladder.variants}
    sizes, klds = zip(*((point.size_bytes, point.kld) for point in report.curve), strict=True)
    assert list(sizes) == sorted(set(sizes))
    assert list(klds) == sorted(klds, reverse=True)
    assert sizes[0] <= fitted[0].size_bytes < fitted[-1].size_bytes <= sizes[-1]


def test_memory_is_a_budget_of_the_mixes(tiny: Path, ladder: Report, tmp_path: Path) -> None:
    rung = max(ladder.variants, key=lambda v: v.ram.repacked_bytes if v.ram and v.preset.startswith("kvant-") else 0)
    assert rung.ram is not None
    assert rung.ram.repacked_bytes > 0
    ram = rung.ram.total_bytes - rung.ram.repacked_bytes // 2
    budget = Budget(max_size_bytes=rung.size_bytes, max_ram_bytes=ram)
    report = optimize(request(tiny, tmp_path / "out", budget, refinements=1))
    pick = next(v for v in report.variants if v.is_pick)
    assert pick.preset.startswith("kvant-")
    assert pick.memory_bytes is not None
    assert pick.memory_bytes <= ram
    assert pick.size_bytes <= rung.size_bytes
    assert pick.score.loss < max(v.score.loss for v in ladder.variants)


def test_a_speed_is_kept_by_types_that_were_timed_here(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decodetime, "DEFAULT_EFFORT", decodetime.Effort(layers=1, rounds=1, round_s=0.02))
    fast = Budget(max_size_bytes=2_000_000, min_speed_tok_s=1.0)
    report = optimize(request(tiny, tmp_path / "out", fast, refinements=0))
    assert report.pick.startswith("kvant-")
    assert all(
        v.score.speed_tok_s and v.score.speed_tok_s >= 1 and (v.predicted_tok_s or 0) > 1 for v in report.variants
    )
    timed = {path: path.stat().st_mtime_ns for path in cache_dir("decode").glob("*.json")}
    assert timed
    with pytest.raises(BudgetError, match="fastest is predicted at"):
        optimize(request(tiny, tmp_path / "no", Budget(min_speed_tok_s=1e7)))
    assert {path: path.stat().st_mtime_ns for path in cache_dir("decode").glob("*.json")} == timed


def test_another_device_is_promised_what_its_prediction_allows(tiny: Path, ladder: Report, tmp_path: Path) -> None:
    """The phone decodes what no engine here can time: mixes are planned by its rates."""
    sizes = [v.size_bytes for v in ladder.variants if v.preset.startswith("kvant-")]
    # Of 25 GB/s and four slow cores the largest rung could make fewer tokens than the third.
    reached = 0.4 * 4 * 5.5e9 / sizes[3]
    budget = Budget(device="phone-4gb", min_speed_tok_s=reached)
    report = optimize(request(tiny, tmp_path / "out", budget, refinements=0))
    fitted = [v for v in report.variants if v.preset.startswith("kvant-")]
    assert fitted
    assert all((v.predicted_tok_s or 0) >= reached for v in fitted)
    assert max(v.size_bytes for v in fitted) < sizes[-1]
