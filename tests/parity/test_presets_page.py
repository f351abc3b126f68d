"""The table of docs/explanation/presets.md against the plans it speaks of."""

from pathlib import Path

import pytest

from kvant.dtypes import block_type
from kvant.errors import PlanError
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.quant.presets import PRESETS, Preset, plan_preset
from kvant.recipes.targets.gguf.write import predict_size

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "explanation" / "presets.md"


def row(model: Model, preset: Preset) -> str:
    asked = block_type(preset.base).bpw
    try:
        plan = plan_preset(model, preset.name)
    except PlanError:
        return f"| `{preset.name}` | {asked:.2f} | refused | | | |"
    counts = {name: n for name, n in plan.counts().items() if name != "F32" or preset.name == "F32"}
    types = ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
    size = predict_size(model, plan) / 1e6
    return f"| `{preset.name}` | {asked:.2f} | {plan.bpw(model):.2f} | {size:.1f} | {len(plan.fallbacks)} | {types} |"


@pytest.mark.model
def test_the_table_of_the_reference_model_is_true(reference_model: Path) -> None:
    model = open_model(reference_model)
    page = PAGE.read_text(encoding="utf-8")
    assert [found for found in (row(model, preset) for preset in PRESETS.values()) if found not in page] == []
