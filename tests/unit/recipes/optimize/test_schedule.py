from pathlib import Path

import msgspec
import pytest

from kvant.calibrate.parts import Part
from kvant.calibrate.survey import Survey
from kvant.errors import BudgetError, KvantError, ValueRangeError
from kvant.formats.open import open_model
from kvant.kernels import fitting
from kvant.recipes.measure.calibration import read_text
from kvant.recipes.measure.rounding import SWEEPS
from kvant.recipes.optimize.clock import Clock
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.schedule import EFFORTS, Effort, Rounding, Schedule, check_room, schedule_of
from kvant.testing.tiny_models import write_tiny_model

MOST = EFFORTS[-1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama", num_hidden_layers=1)


def part(name: str, columns: int = 1000) -> Part:
    return Part(name=name, role="linear", columns=columns, rows=10, stack=1, input=name, leader=name)


def schedule(*, kept: frozenset[int] = frozenset(), ram_bytes: int = 100_000_000) -> Schedule:
    parts = tuple(part(f"blk.{i}.ffn_up.weight") for i in range(10))
    return Schedule(
        survey=Survey(parts=parts, token_s=0.001, products_s=1e9, window_tokens=512),
        shapes=((3000, 1024),) * 10,
        rounding=Rounding(weight_s={SWEEPS: (1e-7, 1e-7), fitting.SWEEPS: (2e-7, 2e-7)}, cube_s=1e-10),
        measured_tokens=4096, ram_bytes=ram_bytes, windows=64, kept_windows=kept,
    )  # fmt: skip


def test_more_text_and_more_refinements_take_longer() -> None:
    seconds = [schedule().seconds(effort) for effort in EFFORTS]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) == len(seconds)


def test_memory_for_few_sums_has_the_text_read_more_often() -> None:
    tight = schedule(ram_bytes=8_000_000)  # two matrices of 4 MB at a time
    assert tight.survey.n_passes(tight.ram_bytes) == 5
    read = 64 * 512 * 0.001
    more = tight.steps(MOST)[0].seconds - schedule().steps(MOST)[0].seconds
    assert more == pytest.approx(4 * read)
    assert "the text is read 5 times" in tight.in_words(MOST)
    assert "the text is read" not in schedule().in_words(MOST)


def test_a_time_is_filled_and_never_exceeded() -> None:
    made = schedule()
    for effort in EFFORTS:
        assert made.fit(made.seconds(effort), MOST) == effort
    assert made.fit(made.seconds(EFFORTS[3]) - 0.01, MOST) == EFFORTS[2]
    for asked in (
        Effort(windows=16, refinements=0, variants=3), Effort(windows=2, refinements=0, variants=3),
        Effort(windows=200, refinements=9, variants=6),
    ):  # fmt: skip
        assert made.fit(1e9, asked) == asked
    with pytest.raises(BudgetError, match=r"takes about .* --calibrate none"):
        made.fit(1.0, MOST)


def test_statistics_that_are_kept_take_no_time() -> None:
    fresh, kept = schedule(), schedule(kept=frozenset({64}))
    read, tried = (step.seconds for step in fresh.steps(MOST)[:2])
    assert fresh.seconds(MOST) - kept.seconds(MOST) == pytest.approx(read + tried)
    assert "reading" not in kept.in_words(MOST)


def test_a_clock_has_room_for_what_ends_in_time() -> None:
    clock = Clock(limit_s=100.0)
    assert clock.rooms(4) == 4  # nothing is known yet
    clock.start -= 70
    clock.each_s += [8.0, 12.0]
    assert clock.rooms(4) == 2
    clock.start -= 25
    assert clock.rooms(4) == 0
    clock.limit_s = None
    assert clock.rooms(4) == 4


def test_what_was_left_out_is_said() -> None:
    clock = Clock(limit_s=60.0, predicted_s=50.0, left_out=["less text", "no mixes refined"])
    assert clock.in_words()[0] == "For --time 1 min: less text, no mixes refined."
    assert clock.in_words()[1].endswith("; 50 s were predicted.")
    assert Clock().in_words() == []


def test_the_engine_is_asked_what_takes_part(tiny: Path) -> None:
    found = schedule_of(Request(source=tiny, calibrate_windows=4), open_model(tiny))
    assert found is not None
    assert {p.name for p in found.survey.parts} >= {"blk.0.attn_q.weight", "blk.0.ffn_down.weight"}
    assert found.survey.token_s > 0
    assert found.survey.products_s > 0
    assert all(step.seconds >= 0 for step in found.steps(EFFORTS[0]))


@pytest.mark.parametrize("asked", [0, 4, 500])
def test_the_text_has_what_it_has_however_much_is_asked_for(tiny: Path, asked: int) -> None:
    model = open_model(tiny)
    there = len(read_text(model, "bundled", windows=0)[2].tokens)
    assert 64 < there < 500
    schedule = schedule_of(Request(source=tiny, calibrate_windows=asked), model)
    assert schedule is not None
    assert schedule.windows == (asked if asked == 4 else there)
    assert schedule.in_words(Effort(windows=schedule.windows, refinements=0, variants=1)).startswith("About ")


def test_without_calibration_nothing_is_predicted_and_of_gradients_no_time_is_taken(tiny: Path) -> None:
    model = open_model(tiny)
    assert schedule_of(Request(source=tiny, calibrate="none"), model) is None
    assert schedule_of(Request(source=tiny, statistics="gradients"), model) is None
    for limit, option in (({"time_s": 60.0}, "--time"), ({"calibrate_ram_bytes": 1 << 30}, "--calibrate-ram")):
        with pytest.raises(ValueRangeError, match=f"^{option}: is not for --statistics gradients: "):
            schedule_of(msgspec.structs.replace(Request(source=tiny, statistics="gradients"), **limit), model)


def test_what_the_disk_cannot_hold_is_not_begun(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(KvantError, match=r"free, and what calibration measures takes .*KVANT_HOME"):
        check_room(tmp_path, 1 << 60)
