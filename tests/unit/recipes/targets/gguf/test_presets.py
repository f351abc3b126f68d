from pathlib import Path

import msgspec
import pytest

from kvant.devices.profiles import PROFILES
from kvant.errors import BudgetError, PlanError, ValueRangeError
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.recipes.advise import USE_CASES, advise, recommend
from kvant.recipes.targets.gguf.presets import DEFAULT_PRESETS, full_precision, make_candidates
from kvant.recipes.targets.gguf.write import predict_size
from kvant.testing.tiny_models import write_tiny_model

PHONE = PROFILES["phone-6gb"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(write_tiny_model("qwen2", tmp_path_factory.mktemp("tiny") / "m"))


def test_sizes_are_exactly_those_of_single_predictions(tiny: Model) -> None:
    candidates = make_candidates(tiny, PHONE, context=512)
    assert len(candidates) > 10
    for candidate in candidates:
        assert candidate.size_bytes == predict_size(tiny, candidate.plan)


def test_they_rise_in_size_and_no_two_have_equal_types(tiny: Model) -> None:
    candidates = make_candidates(tiny, PHONE, context=512)
    assert [c.size_bytes for c in candidates] == sorted(c.size_bytes for c in candidates)
    assert len({tuple(sorted(c.plan.types.items())) for c in candidates}) == len(candidates)


def test_presets_that_come_to_the_same_are_one(tmp_path: Path) -> None:
    # Rows of 64 fit no block of 256: K-quants and their fallbacks come together.
    model = open_model(
        write_tiny_model("llama", tmp_path / "m", hidden_size=64, intermediate_size=96, num_attention_heads=4)
    )
    candidates = make_candidates(model, PHONE, context=512)
    named = [name for c in candidates for name in (c.preset, *c.aliases)]
    assert sorted(named) == sorted(set(named))
    assert any(c.aliases for c in candidates)
    assert len(candidates) < len(named)


def test_those_that_need_importance_are_left_out_without_and_refused_if_asked_for(tiny: Model) -> None:
    found = {name for c in make_candidates(tiny, PHONE, context=512) for name in (c.preset, *c.aliases)}
    assert not found & {"IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "Q2_K_S"}
    assert {"Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K", "BF16"} <= found <= {*DEFAULT_PRESETS, "BF16"}
    with pytest.raises(PlanError, match=r"IQ2_XS: needs importance .* Pass --imatrix"):
        make_candidates(tiny, PHONE, context=512, presets=["iq2_xs"])


def test_asked_presets_alone(tiny: Model) -> None:
    assert {c.preset for c in make_candidates(tiny, PHONE, context=512, presets=["q8_0", "Q4_K_M"])} == {
        "Q8_0",
        "Q4_K_M",
    }


def test_full_precision_is_the_source_as_it_is(tiny: Model, tmp_path: Path) -> None:
    assert full_precision(tiny) == "BF16"
    assert full_precision(open_model(write_tiny_model("llama", tmp_path / "h", dtype="F32"))) == "F16"


def test_finer_presets_are_expected_to_lose_less(tiny: Model) -> None:
    losses = {c.preset: c.distortion for c in make_candidates(tiny, PHONE, context=512)}
    order = ["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]
    assert [losses[name] for name in order] == sorted(losses[name] for name in order)
    assert losses["BF16"] == 0.0


@pytest.mark.parametrize("use_case", USE_CASES)
def test_advice_for_every_use(tiny: Model, use_case: str) -> None:
    advice = advise(tiny.path, use_case=use_case)
    assert advice.pick in {row.preset for row in advice.rows}
    assert advice.reason.startswith(advice.pick)
    assert advice.device.name == USE_CASES[use_case].device


def test_a_tighter_bound_is_advised_more_bits(tiny: Model) -> None:
    rows = advise(tiny.path).rows
    klds = sorted(row.expected_loss for row in rows)
    near, far = recommend(rows, klds[3]), recommend(rows, klds[-1])
    assert near is not None
    assert far is not None
    assert near.size_bytes > far.size_bytes == rows[0].size_bytes
    closest = recommend(rows, -1.0)
    assert closest is not None
    assert closest.preset == "BF16"
    assert recommend([msgspec.structs.replace(row, obstacle="no") for row in rows], 1.0) is None


def test_advice_warns_of_fallbacks(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "m", hidden_size=64, intermediate_size=96, num_attention_heads=4)
    assert advise(source).warnings[0].startswith("Rows of ")


def test_advice_refuses(tiny: Model) -> None:
    with pytest.raises(ValueRangeError, match=r"'spaceship' is not known\. Use one of mobile"):
        advise(tiny.path, use_case="spaceship")
    with pytest.raises(BudgetError, match="microcontroller"):
        advise(tiny.path, device="microcontroller")
    with pytest.raises(BudgetError, match=r"phone-4gb: the smallest variant, .* shorter --context"):
        advise(tiny.path, device="phone-4gb", context=10_000_000)
