import math
from pathlib import Path

import numpy as np
import pytest

from kvant.calibrate.rotary import cos_sin, rotary_rates
from kvant.formats.open import open_model
from kvant.testing.tiny_models import write_tiny_model


def test_cosines_and_sines_are_rounded_from_float64() -> None:
    angles = np.concatenate([np.linspace(0, 10, 5001), np.arange(0, 131072, 997) * 0.7310585786300049])
    for found, exact in zip(cos_sin(angles), (np.cos(angles), np.sin(angles)), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, rtol=7e-8, atol=1e-11)


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2"])
def test_rates_are_powers_of_the_base(family: str, tmp_path: Path) -> None:
    model = open_model(write_tiny_model(family, tmp_path))
    base = float(str(model.get(f"{model.architecture}.rope.freq_base")))
    rates = rotary_rates(model, 32)
    assert rates[0] == 1
    if family != "llama3":  # which divides each by a factor of its own
        np.testing.assert_allclose(rates, [math.pow(base, -2 * i / 32) for i in range(16)], rtol=1e-15)
    assert np.all(np.diff(rates) < 0)
