import pytest

from kvant.errors import UnsupportedFormatError
from kvant.runtime.decodetime import Effort, measure_weight_seconds, weight_seconds

QUICK = Effort(hidden=256, feed_forward=512, layers=2, rounds=1, round_s=0.02)


def test_what_a_token_takes_beside_the_products_is_subtracted() -> None:
    weights = {"bare": 2_000_000, "Q8_0": 80_000_000, "Q4_0": 80_000_000}
    costs = {"bare": 50e-12, "Q8_0": 50e-12, "Q4_0": 36e-12}
    fastest = {name: 0.0004 + costs[name] * n for name, n in weights.items()}
    found = weight_seconds(fastest, weights)
    assert found == {"Q8_0": pytest.approx(50e-12), "Q4_0": pytest.approx(36e-12)}


def test_noise_never_makes_a_cost_negative() -> None:
    assert weight_seconds({"bare": 2.0, "Q4_0": 1.0}, {"bare": 1, "Q4_0": 100}) == {"Q4_0": 0.0}


def test_every_kind_of_type_runs_in_the_engine() -> None:
    found = measure_weight_seconds(["Q4_0", "q4_k", "IQ4_XS", "F16", "Q4_0"], threads=1, effort=QUICK)
    assert list(found) == ["Q4_0", "Q4_K", "IQ4_XS", "F16"]
    assert all(0 <= seconds < 1e-6 for seconds in found.values())


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnsupportedFormatError):
        measure_weight_seconds(["Q9_9"], threads=1, effort=QUICK)
