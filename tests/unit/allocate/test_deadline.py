import pytest

from allocation_cases import many
from kvant.allocate.deadline import solve_within
from kvant.allocate.options import Option, total_bytes, total_cost, total_seconds
from kvant.allocate.solver import solve
from kvant.errors import BudgetError

OPTIONS = many(60)
BUDGET = 25_000_000
FREE = solve(OPTIONS, BUDGET).at(BUDGET)
FREE_SECONDS = total_seconds(FREE.values())


def lower_bound(max_seconds: float) -> float:
    """No choice within both budgets costs less: weak duality over many prices."""
    bounds = []
    for exponent in range(-30, 31):
        price = total_cost(FREE.values()) / FREE_SECONDS * 1.2**exponent
        chosen = solve(OPTIONS, BUDGET, nats_per_second=price).at(BUDGET).values()
        bounds.append(total_cost(chosen) + price * (total_seconds(chosen) - max_seconds))
    return max(bounds)


def test_time_that_suffices_changes_nothing() -> None:
    assert solve_within(OPTIONS, max_bytes=BUDGET, max_seconds=FREE_SECONDS) == FREE
    assert solve_within(OPTIONS, max_bytes=BUDGET) == FREE


@pytest.mark.parametrize("share", [0.97, 0.93, 0.9])
def test_less_time_costs_hardly_more_than_the_bound(share: float) -> None:
    chosen = solve_within(OPTIONS, max_bytes=BUDGET, max_seconds=share * FREE_SECONDS).values()
    assert total_seconds(chosen) <= share * FREE_SECONDS
    assert total_bytes(chosen) <= BUDGET
    bound = lower_bound(share * FREE_SECONDS)
    assert total_cost(FREE.values()) < bound <= total_cost(chosen) <= 1.02 * bound


def test_too_little_time_names_the_fastest_possible() -> None:
    fast = Option(kind="Q4_0", n_bytes=30, cost=2, seconds=0.25)
    slow = Option(kind="IQ4_XS", n_bytes=20, cost=1, seconds=1)
    options = {"a": [fast, slow], "b": [fast, slow]}
    with pytest.raises(BudgetError, match=r"0.4 s per token are fewer than the 0.5 s of the fastest"):
        solve_within(options, max_bytes=60, max_seconds=0.4)
    with pytest.raises(BudgetError, match=r"1 s per token are fewer than the 1.25 s .* at most 59 bytes"):
        solve_within(options, max_bytes=59, max_seconds=1)
    assert list(solve_within(options, max_bytes=60, max_seconds=0.5).values()) == [fast, fast]
    assert total_cost(solve_within(options, max_bytes=59, max_seconds=1.25).values()) == 3


def test_no_time_at_all() -> None:
    free = Option(kind="F16", n_bytes=30, cost=2)
    assert solve_within({"a": [free, Option(kind="Q4_0", n_bytes=20, cost=0, seconds=1)]}, max_bytes=30, max_seconds=0)


def test_a_choice_off_the_convex_part_is_found_by_exchanges() -> None:
    options = {
        "a": [Option(kind="Q4_0", n_bytes=1, cost=10, seconds=0), Option(kind="Q5_0", n_bytes=1, cost=7, seconds=5),
              Option(kind="Q8_0", n_bytes=1, cost=0, seconds=10)]
    }  # fmt: skip
    assert solve_within(options, max_bytes=1, max_seconds=9)["a"].kind == "Q5_0"
