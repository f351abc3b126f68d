"""Presets against llama.cpp's own quantizer: the type of every tensor of real model shapes.

The answers of `llama-quantize --dry-run` (b11434) are stored as facts; tools/preset_facts.py asks again. Whole files,
byte for byte, are compared in tests/parity/test_whole_files.py.
"""

import json
from pathlib import Path

import pytest

from kvant.errors import PlanError
from kvant.quant.plan import needs_importance
from kvant.quant.presets import PRESETS, plan_preset
from kvant.testing.model_shapes import SHAPES, packed, shape_model

FACTS = json.loads((Path(__file__).parent / "data" / "preset_types.json").read_text())["shapes"]


def test_facts_cover_every_preset_and_shape() -> None:
    assert set(FACTS) == set(SHAPES)
    for answers in FACTS.values():
        assert set(PRESETS) <= set(answers)


@pytest.mark.parametrize("has_importance", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_types_equal_upstream(name: str, has_importance: bool) -> None:
    model = shape_model(SHAPES[name])
    for preset in PRESETS:
        answers = FACTS[name]
        expected = answers.get(f"{preset}+imatrix", answers[preset]) if has_importance else answers[preset]
        if isinstance(expected, str):
            with pytest.raises(PlanError, match="nothing stands in for it"):
                plan_preset(model, preset, has_importance=has_importance)
        else:
            types = plan_preset(model, preset, has_importance=has_importance).types
            assert packed(types) == expected, preset


REFUSED = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "IQ3_XXS", "IQ3_XS"}


@pytest.mark.parametrize("preset", PRESETS)
def test_upstream_refuses_these_without_importance(preset: str) -> None:
    model = shape_model(SHAPES["tinyllama-1.1b"])
    assert bool(needs_importance(plan_preset(model, preset), model)) == (preset in REFUSED)
