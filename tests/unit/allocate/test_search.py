import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from allocation_cases import decoder
from kvant.allocate.correct import Measurement, role_group
from kvant.allocate.options import total_bytes
from kvant.allocate.search import Found, search
from kvant.allocate.solver import solve
from kvant.errors import BudgetError, ValueRangeError

OPTIONS = decoder(layers=4)
LEAST = total_bytes(min(kinds, key=lambda o: o.n_bytes) for kinds in OPTIONS.values())
BUDGET = int(LEAST * 1.2)
Measure = Callable[[dict[str, str]], float]


def world(factors: dict[str, float], *, bend: float = 0.0, noise: float = 0.0) -> Measure:
    """A model whose real losses differ from the predicted ones by factors, an interaction and noise."""
    rng = np.random.default_rng(7)

    def measure(types: dict[str, str]) -> float:
        costs = [
            o.cost * factors.get(role_group(name), 1) * factors.get(o.kind, 1)
            for name, kinds in OPTIONS.items()
            for o in kinds
            if o.kind == types[name]
        ]
        return sum(costs) * (1 + bend * sum(costs)) * math.exp(noise * rng.normal())

    return measure


def distinct(found: Found) -> int:
    return len({tuple(sorted(step.types.items())) for step in found.steps})


def test_a_true_model_is_believed_after_one_run() -> None:
    found = search(OPTIONS, BUDGET, world({}), runs=1)
    assert found.stopped == "runs"
    assert found.best.why == "optimum"
    assert found.best.types == {name: o.kind for name, o in solve(OPTIONS, BUDGET).at(BUDGET).items()}
    assert found.best.predicted == pytest.approx(found.best.kld)
    assert found.best.n_bytes <= BUDGET


@pytest.mark.parametrize(
    "factors", [{"embedding": 3.0}, {"embedding": 0.3, "Q5_1": 1.5}, {"attention": 2.0, "Q4_1": 1.4}, {"ffn": 0.5}]
)
def test_a_wrong_model_is_corrected(factors: dict[str, float]) -> None:
    measure = world(factors, bend=0.2)
    first = search(OPTIONS, BUDGET, measure, runs=1).best.kld
    found = search(OPTIONS, BUDGET, measure)
    # The best that is possible: the solver with the real factors.
    real = {
        name: [
            replace(o, cost=o.cost * factors.get(role_group(name), 1) * factors.get(o.kind, 1))
            for o in kinds
        ]
        for name, kinds in OPTIONS.items()
    }  # fmt: skip
    possible = measure({name: o.kind for name, o in solve(real, BUDGET).at(BUDGET).items()})
    assert possible < first
    assert possible * (1 - 1e-12) <= found.best.kld
    assert math.log(found.best.kld / possible) <= 0.35 * math.log(first / possible) + 0.01


@pytest.mark.parametrize("runs", [1, 2, 5, 10])
def test_runs_are_kept_and_no_plan_is_measured_twice(runs: int) -> None:
    asked: list[dict[str, str]] = []

    def measure(types: dict[str, str]) -> float:
        asked.append(types)
        return world({"embedding": 2.0}, noise=0.02)(types)

    found = search(OPTIONS, BUDGET, measure, runs=runs)
    assert len(asked) == len(found.steps) <= runs
    assert distinct(found) == len(found.steps)
    assert [step.types for step in found.steps] == asked
    assert all(step.n_bytes <= BUDGET for step in found.steps)
    assert found.best.kld == min(step.kld for step in found.steps)


def test_nothing_promising_ends_the_search() -> None:
    found = search(OPTIONS, BUDGET, world({}), noise=0.5)
    assert found.stopped == "promising"
    assert len(found.steps) == 1


def test_neighbours_say_which_factor_was_moved() -> None:
    found = search(OPTIONS, BUDGET, world({}), runs=4)
    assert found.steps[0].why == "optimum"
    assert all(step.why == "optimum" or step.why.startswith("neighbour: ") for step in found.steps)
    assert any(step.why.startswith("neighbour: ") for step in found.steps)


def test_a_budget_that_everything_fits_needs_one_run() -> None:
    largest = total_bytes(max(kinds, key=lambda o: o.n_bytes) for kinds in OPTIONS.values())
    found = search(OPTIONS, largest, world({}))
    assert len(found.steps) == 1


def test_what_is_known_teaches_but_does_not_win() -> None:
    measure = world({"embedding": 3.0})
    pairs = (("Q4_0", "Q4_0"), ("Q4_0", "Q8_0"), ("Q8_0", "Q4_0"))
    plans = [{name: a if "token_embd" in name else b for name in OPTIONS} for a, b in pairs]
    known = [Measurement(types=plan, kld=measure(plan)) for plan in plans]
    taught, untaught = (search(OPTIONS, BUDGET, measure, runs=1, known=k) for k in (known, []))
    assert taught.best.kld < untaught.best.kld
    assert len(taught.steps) == 1


def test_time_is_a_budget_too() -> None:
    free = solve(OPTIONS, BUDGET).at(BUDGET)
    limit = 0.97 * sum(o.seconds for o in free.values())
    found = search(OPTIONS, BUDGET, world({"embedding": 2.0}), runs=3, max_seconds=limit)
    for step in found.steps:
        assert sum(o.seconds for name, kinds in OPTIONS.items() for o in kinds if o.kind == step.types[name]) <= limit


def test_the_same_search_comes_out_the_same() -> None:
    other = {name: OPTIONS[name][::-1] for name in reversed(OPTIONS)}
    a, b = (search(options, BUDGET, world({"embedding": 2.0}), runs=4) for options in (OPTIONS, other))
    assert [step.types for step in a.steps] == [step.types for step in b.steps]


@pytest.mark.parametrize("runs", [0, 11])
def test_runs_out_of_range_are_refused(runs: int) -> None:
    with pytest.raises(ValueRangeError, match="is not 1 to 10"):
        search(OPTIONS, BUDGET, world({}), runs=runs)


def test_an_impossible_budget_is_refused_before_anything_is_measured() -> None:
    def never(types: dict[str, str]) -> float:
        raise AssertionError(types)

    with pytest.raises(BudgetError):
        search(OPTIONS, LEAST - 1, never)


def test_a_measurement_that_is_none_is_refused() -> None:
    with pytest.raises(ValueRangeError):
        search(OPTIONS, BUDGET, lambda _: math.nan)
