"""A model that was quantized and decoded again is told from the original, in either format and float type."""

from pathlib import Path

import pytest

from kvant.formats.open import open_model
from kvant.quant.presets import plan_preset
from kvant.recipes.convert.convert import convert
from kvant.recipes.inspect.inspect import inspect
from kvant.recipes.targets.gguf.write import quantize
from kvant.testing.tiny_models import write_tiny_model


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_the_original_gives_no_alarm(tmp_path: Path, dtype: str) -> None:
    source = write_tiny_model("llama", tmp_path / "hf", dtype=dtype)
    convert(source, tmp_path / "m.gguf", to="gguf", type=dtype)
    assert inspect(source).warnings == inspect(tmp_path / "m.gguf").warnings == ()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize(("preset", "bits"), [("Q4_0", {4}), ("Q4_K_S", {4}), ("Q6_K", {6, 7, 8}), ("Q8_0", {8})])
def test_the_decoded_one_does(tmp_path: Path, preset: str, bits: set[int], dtype: str) -> None:
    model = open_model(write_tiny_model("llama", tmp_path / "hf"))
    quantize(model, plan_preset(model, preset), tmp_path / "small.gguf")
    convert(tmp_path / "small.gguf", tmp_path / "back", to="hf", type=dtype)
    (sentence,) = inspect(tmp_path / "back").warnings
    assert any(f"the {dtype} weights lie on a grid of about {n} bits" in sentence for n in bits)
