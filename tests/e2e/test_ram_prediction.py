"""Predicted memory against the resident set of the real engine, on the reference model."""

from pathlib import Path

import pytest

from kvant.devices.memory import predict_ram, repacked_bytes
from kvant.dtypes import block_type
from kvant.formats.open import open_model
from kvant.quant.presets import plan_preset
from kvant.recipes.targets.gguf.write import quantize
from kvant.runtime.process import EngineProcess

TOLERANCE = 0.10


@pytest.mark.model
@pytest.mark.parametrize(("preset", "context"), [("Q8_0", 512), ("Q4_0", 1024)])
def test_memory_is_predicted_within_a_tenth(reference_model: Path, tmp_path: Path, preset: str, context: int) -> None:
    model = open_model(reference_model)
    plan = plan_preset(model, preset)
    path = tmp_path / "variant.gguf"
    size = quantize(model, plan, path).size_bytes
    types = {name: block_type(kind) for name, kind in plan.types.items()}
    copies = repacked_bytes(types, {name: tensor.shape for name, tensor in model.tensors.items()})
    predicted = predict_ram(model, size, context, repacked=copies).total_bytes
    with EngineProcess() as engine:
        engine.open(path, n_ctx=context, n_threads=2)
        measured = engine.speed(n_prompt=context - 8, n_generate=4, repeats=1).rss_bytes
    assert predicted == pytest.approx(measured, rel=TOLERANCE), f"{preset} at {context}"
