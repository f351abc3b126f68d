import dataclasses
from pathlib import Path

import pytest

from kvant.allocate.options import allowed_types, stored_bytes
from kvant.allocate.plan import file_type, plan_choice
from kvant.dtypes import BLOCK_TYPES
from kvant.errors import PlanError
from kvant.quant.presets import PRESETS
from kvant.quant.roles import file_order
from kvant.recipes.targets.gguf.write import predict_size
from kvant.testing.model_shapes import SHAPES, shape_model

MODEL = shape_model(SHAPES["smollm2-135m"])
MATRICES = [name for name, tensor in MODEL.tensors.items() if allowed_types(name, tensor.shape, ("Q4_1",))]


def test_tensors_that_are_not_chosen_stay_as_they_are() -> None:
    plan = plan_choice(MODEL, dict.fromkeys(MATRICES, "Q4_1"))
    assert {plan.types[name] for name in MATRICES} == {"Q4_1"}
    assert {kind for name, kind in plan.types.items() if name not in MATRICES} == {"F32"}
    assert list(plan.types) == file_order(MODEL.tensors)
    assert (plan.preset, plan.file_type, plan.has_importance, plan.predicted_bytes) == ("custom", 3, True, None)


def test_the_size_is_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.touch()
    model = dataclasses.replace(MODEL, path=source)
    plan = plan_choice(model, dict.fromkeys(MATRICES, "Q5_1"), preset="kvant", size=lambda p: predict_size(model, p))
    assert plan.preset == "kvant"
    assert plan.predicted_bytes == predict_size(model, plan)


def test_files_of_two_choices_differ_by_the_bytes_of_their_tensors() -> None:
    """So a budget for the file is one for the tensors, once one plan's file is known."""
    sizes = []
    for kind in ("Q4_1", "Q8_0"):
        plan = plan_choice(MODEL, dict.fromkeys(MATRICES, kind), size=lambda p: predict_size(MODEL, p))
        sizes.append((plan.predicted_bytes or 0) - sum(stored_bytes(n, MODEL.tensors[n].shape, kind) for n in MATRICES))
    assert sizes[0] == sizes[1]


def test_unknown_tensors_and_types_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PlanError, match=r"blk.99.attn_q.weight: .* no such tensor"):
        plan_choice(MODEL, {"blk.99.attn_q.weight": "Q4_1"})
    with pytest.raises(PlanError, match=r"row length 576 is not a multiple of the Q4_K block size"):
        plan_choice(MODEL, {"blk.0.attn_q.weight": "Q4_K"})


@pytest.mark.parametrize(
    ("kinds", "preset"),
    [
        (["Q4_1", "Q4_1", "Q8_0"], "Q4_1"),
        (["Q4_K", "Q6_K", "Q4_K"], "Q4_K_M"),
        (["Q3_K"], "Q3_K_M"),
        (["IQ2_XS"], "IQ2_XS"),
        (["IQ2_S"], "IQ2_M"),
        (["Q8_0", "Q4_0"], "Q4_0"),
        (["NVFP4"], "F16"),
        ([], "F16"),
    ],
)
def test_the_file_type_is_that_of_the_most_common_type(kinds: list[str], preset: str) -> None:
    assert file_type({str(i): kind for i, kind in enumerate(kinds)}) == PRESETS[preset].file_type


@pytest.mark.parametrize("kind", list(BLOCK_TYPES))
def test_every_type_has_a_file_type_of_its_own_or_f16(kind: str) -> None:
    bases = {preset.file_type: preset.base for preset in PRESETS.values()}
    assert bases[file_type({"a": kind})] in (kind, "F16")
