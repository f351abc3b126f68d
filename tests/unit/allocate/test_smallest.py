from dataclasses import replace

import pytest

from allocation_cases import decoder
from kvant.allocate.correct import Measurement, role_group
from kvant.allocate.options import picked, total_bytes, total_cost
from kvant.allocate.smallest import smallest
from kvant.allocate.solver import solve
from kvant.errors import BudgetError, ValueRangeError

OPTIONS = decoder(layers=4)
MOST = total_bytes(max(kinds, key=lambda o: o.n_bytes) for kinds in OPTIONS.values())
LEAST = total_bytes(min(kinds, key=lambda o: o.n_bytes) for kinds in OPTIONS.values())
SOLUTION = solve(OPTIONS, MOST)
MIDDLE = LEAST + (MOST - LEAST) // 4
BOUND = total_cost(SOLUTION.at(MIDDLE).values())


def world(types: dict[str, str], embedding: float = 1.0) -> float:
    """What a model loses whose embedding is more sensitive than predicted."""
    return sum(
        picked(kinds, types[name]).cost * (embedding if role_group(name) == "embedding" else 1)
        for name, kinds in OPTIONS.items()
    )


def test_a_true_prediction_is_met_at_once() -> None:
    found = smallest(OPTIONS, BOUND * 1.0001, world, max_bytes=MOST, runs=4)
    assert found is not None
    assert found.best.kld <= BOUND * 1.0001
    assert found.best.n_bytes <= MIDDLE
    assert found.stopped == "promising"


@pytest.mark.parametrize("embedding", [0.3, 2.0, 4.0])
def test_a_wrong_prediction_is_corrected(embedding: float) -> None:
    factors = {name: embedding if role_group(name) == "embedding" else 1.0 for name in OPTIONS}
    real = {name: [replace(o, cost=o.cost * factors[name]) for o in kinds] for name, kinds in OPTIONS.items()}
    possible = next(size for size, cost in solve(real, MOST).curve() if cost <= BOUND)
    found = smallest(OPTIONS, BOUND, lambda types: world(types, embedding), max_bytes=MOST, runs=6)
    assert found is not None
    assert found.best.kld <= BOUND
    assert possible <= found.best.n_bytes <= 1.01 * possible
    assert len({tuple(step.types.items()) for step in found.steps}) == len(found.steps) <= 6


def test_only_smaller_plans_than_known_ones_are_sought() -> None:
    best = {name: option.kind for name, option in SOLUTION.at(MIDDLE).items()}
    known = [Measurement(types=best, kld=world(best))]
    assert smallest(OPTIONS, BOUND * 1.0001, world, max_bytes=MOST, runs=3, known=known) is None
    coarse = {name: option.kind for name, option in SOLUTION.at(MOST).items()}
    found = smallest(
        OPTIONS, BOUND, world, max_bytes=MOST, runs=3, known=[Measurement(types=coarse, kld=world(coarse))]
    )
    assert found is not None
    assert found.best.n_bytes <= MIDDLE


def test_a_bound_out_of_reach_measures_the_finest_once() -> None:
    found = smallest(OPTIONS, BOUND, world, max_bytes=LEAST + (MIDDLE - LEAST) // 2, runs=5)
    assert found is not None
    assert len(found.steps) == 1
    assert found.best.kld > BOUND


def test_other_budgets_are_kept() -> None:
    free = SOLUTION.at(MIDDLE)
    seconds = 0.97 * sum(option.seconds for option in free.values())
    found = smallest(OPTIONS, 1.5 * BOUND, world, max_bytes=MOST, runs=2, max_seconds=seconds)
    assert found is not None
    for step in found.steps:
        assert sum(picked(kinds, step.types[name]).seconds for name, kinds in OPTIONS.items()) <= seconds
    assert found.best.kld <= 1.5 * BOUND


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ValueRangeError, match="need above 0"):
        smallest(OPTIONS, 0.0, world, max_bytes=MOST)
    with pytest.raises(ValueRangeError, match="need above 0"):
        smallest(OPTIONS, BOUND, world, max_bytes=MOST, runs=11)
    with pytest.raises(BudgetError):
        smallest(OPTIONS, BOUND, world, max_bytes=LEAST - 1)
