from pathlib import Path

import pytest

from kvant.allocate.options import Option
from kvant.devices.detect import detect
from kvant.devices.profiles import PROFILES, profile_of
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.quant.presets import plan_preset
from kvant.recipes.goal import Budget
from kvant.recipes.targets.gguf.options import on_device
from kvant.recipes.targets.gguf.pace import (
    DEADLINE_SHARE,
    Pace,
    deadline_of,
    measured_weight_seconds,
    pace_for,
    paced,
    predicted_pace,
)
from kvant.recipes.targets.gguf.presets import make_candidates
from kvant.recipes.targets.limits import Limits, limits_of
from kvant.runtime.decodetime import Effort
from kvant.tensors import n_weights
from kvant.testing.tiny_models import write_tiny_model

pytestmark = pytest.mark.heavy

QUICK = Effort(hidden=256, feed_forward=256, layers=1, rounds=1, round_s=0.01)
PHONE = PROFILES["phone-6gb"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "m"))


def test_seconds_add_up_and_leave_a_deadline(tiny: Model) -> None:
    plan = plan_preset(tiny, "Q8_0")
    pace = Pace(weight_s={"Q8_0": 1e-9, "F32": 5e-9}, overhead_s=0.01)
    touched = [t for t in tiny.tensors.values() if len(t.shape) > 1]
    if "output.weight" in tiny.tensors:
        touched = [t for t in touched if t.name != "token_embd.weight"]
    products = 1e-9 * sum(map(n_weights, touched))
    assert pace.token_seconds(tiny, plan.types) == pytest.approx(0.01 + products)
    assert pace.speed(tiny, plan.types) == pytest.approx(1 / (0.01 + products))
    assert pace.deadline(20) == pytest.approx(DEADLINE_SHARE * 0.05 - 0.01)
    assert pace.shifted(0.02).deadline(20) == pytest.approx(DEADLINE_SHARE * 0.05 - 0.03)
    assert pace.deadline(1000) == 0


def test_a_device_elsewhere_is_never_promised_more_than_its_own_prediction(tiny: Model) -> None:
    pace = predicted_pace(PHONE)
    candidates = make_candidates(tiny, PHONE, context=512)
    assert paced(candidates, tiny, pace) == candidates
    for candidate in candidates:
        assert pace.speed(tiny, candidate.plan.types) <= candidate.speed_tok_s * 1.01


def test_here_it_is_measured_once(tiny: Model, own_home: Path) -> None:
    machine = detect(measure=False)
    here = profile_of(machine)
    pace = pace_for(tiny, here, machine, ["Q4_0"], threads=1, effort=QUICK)
    assert pace.is_measured
    assert {"Q4_0", "Q8_0"} <= set(pace.weight_s)
    assert pace.overhead_s >= 0
    files = {p: p.stat().st_mtime_ns for p in own_home.rglob("decode/*")}
    assert pace_for(tiny, here, machine, ["Q4_0"], threads=1, effort=QUICK) == pace
    assert {p: p.stat().st_mtime_ns for p in own_home.rglob("decode/*")} == files
    more = measured_weight_seconds(machine, ["Q4_1"], threads=1, effort=QUICK)
    assert more["Q4_0"] == pace.weight_s["Q4_0"]
    assert "Q4_1" in more
    assert not list(own_home.rglob("variants/*.gguf"))


def test_limits_are_what_is_left_for_the_file(tiny: Model) -> None:
    pace = Pace(weight_s={}, overhead_s=0.001)
    asked = Budget(max_size_bytes=10**6, max_ram_bytes=10**8, min_speed_tok_s=100.0)
    limits = limits_of(asked, PHONE, tiny, 512, max_seconds=deadline_of(pace, asked))
    assert limits.max_file_bytes == 10**6
    (candidate, *_) = make_candidates(tiny, PHONE, context=512, presets=["Q8_0"])
    besides = candidate.ram.total_bytes - candidate.ram.weights_bytes - candidate.ram.repacked_bytes
    assert limits.max_resident_bytes == 10**8 - besides
    assert limits.max_seconds == pytest.approx(DEADLINE_SHARE / 100 - 0.001)
    assert limits_of(Budget(), PHONE, tiny, 512) == Limits()
    named = limits_of(Budget(device="phone-6gb", max_ram_bytes=10**12), PHONE, tiny, 512)
    assert named.max_resident_bytes == PHONE.usable_bytes - besides


def test_options_know_the_copies_and_seconds_of_a_device(tiny: Model) -> None:
    name = "blk.0.ffn_up.weight"
    options = {name: [Option(kind=kind, n_bytes=100, cost=1.0) for kind in ("Q4_0", "Q8_0")]}
    pace = predicted_pace(PHONE)
    for device, copied in ((PROFILES["laptop-8gb"], {"Q4_0"}), (PHONE, {"Q4_0", "Q8_0"})):
        found = on_device(options, tiny, device, pace)[name]
        assert {o.kind for o in found if o.copy_bytes} == copied
        assert all(o.seconds == pace.seconds(tiny, name, o.kind) > 0 for o in found)
    assert all(o.seconds == 0 for o in on_device(options, tiny, PHONE, None)[name])
