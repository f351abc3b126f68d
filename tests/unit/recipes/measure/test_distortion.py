import numpy as np
import pytest

from kvant.evaluate.loss import DISTANCE, KLD
from kvant.kernels import decode, encode
from kvant.quant.plan import IMPOSSIBLE_WITHOUT_IMPORTANCE
from kvant.recipes.measure.distortion import DISTORTION, expected_kld, expected_loss, type_distortion

N = 1024
GIVEN = [
    (name, has_importance)
    for name, figures in DISTORTION.items()
    for has_importance in (False, True)
    if figures[has_importance] is not None and name not in ("F32", "F16")
]


@pytest.mark.parametrize(("name", "has_importance"), GIVEN)
def test_the_table_is_what_the_kernels_do(name: str, has_importance: bool) -> None:
    weights = np.random.default_rng(2).standard_normal((48, N)).astype(np.float32)
    importance = np.ones(N, np.float32) if has_importance else None
    decoded = decode(encode(weights, name, importance=importance), name, N)
    relative = float(np.square(weights - decoded).sum() / np.square(weights).sum())
    assert relative == pytest.approx(DISTORTION[name][has_importance], rel=0.05)


def test_types_that_need_importance_have_no_figure_without() -> None:
    assert {name for name, (plain, _) in DISTORTION.items() if plain is None} == IMPOSSIBLE_WITHOUT_IMPORTANCE


def test_full_precision_costs_nothing_and_quantizing_rounds_activations() -> None:
    assert type_distortion("F32", has_importance=False) == 0.0
    assert type_distortion("Q8_0", has_importance=False) > DISTORTION["Q8_0"][0]  # type: ignore[operator]


def test_smaller_models_suffer_more() -> None:
    assert expected_kld(0.01, 10**10) == expected_kld(0.01, 2 * 10**9) == pytest.approx(0.06)
    assert expected_kld(0.01, 135_000_000) == pytest.approx(0.411, rel=0.01)


def test_what_is_expected_of_vectors_is_near_what_models_showed() -> None:
    # Q4_K_M of all-MiniLM-L6-v2, and of SmolLM2-135M with the mean of its states: distortion and measured distance
    for distortion, measured in ((0.0012, 0.00966), (0.00167, 0.00422)):
        assert 1 / 3 < expected_loss(DISTANCE, distortion, 22_700_000) / measured < 3


def test_bands_rise() -> None:
    words = [KLD.band(kld) for kld in (0.0, 0.01, 0.05, 0.1, 0.3, 2.0)]
    assert len(set(words)) == 6
    assert words[0] == "as good as the original"
    assert [DISTANCE.band(d) for d in (0.0, 0.002, 0.01, 0.03, 0.1, 1.0)] == words
