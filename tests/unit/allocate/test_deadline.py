from dataclasses import replace

import pytest

from allocation_cases import many
from kvant.allocate.deadline import solve_within
from kvant.allocate.options import Option, resident_bytes, total_bytes, total_cost, total_seconds
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


COPYING = {
    name: [replace(o, copy_bytes=o.n_bytes if o.kind == "Q4_0" else 0) for o in kinds]
    for name, kinds in OPTIONS.items()
}
FREE_RESIDENT = resident_bytes(solve(COPYING, BUDGET).at(BUDGET).values())


def test_memory_that_suffices_changes_nothing() -> None:
    chosen = solve_within(COPYING, max_bytes=BUDGET, max_resident_bytes=FREE_RESIDENT)
    assert resident_bytes(chosen.values()) == FREE_RESIDENT
    assert total_cost(chosen.values()) == total_cost(FREE.values())


def test_memory_below_the_bytes_takes_their_place_exactly() -> None:
    room = int(0.9 * BUDGET)
    chosen = solve_within(COPYING, max_bytes=BUDGET, max_resident_bytes=room)
    counted = {n: [replace(o, n_bytes=o.n_bytes + o.copy_bytes, copy_bytes=0) for o in k] for n, k in COPYING.items()}
    assert total_cost(chosen.values()) == total_cost(solve(counted, room).at(room).values())
    assert resident_bytes(chosen.values()) <= room
    assert all(chosen[name] in COPYING[name] for name in COPYING)


@pytest.mark.parametrize("share", [0.98, 0.9])
def test_memory_between_bytes_and_what_is_free(share: float) -> None:
    room = int(BUDGET + share * (FREE_RESIDENT - BUDGET))
    chosen = solve_within(COPYING, max_bytes=BUDGET, max_resident_bytes=room).values()
    assert total_bytes(chosen) <= BUDGET
    assert resident_bytes(chosen) <= room
    # No choice that keeps both costs less: weak duality over prices of memory.
    bound = 0.0
    for exponent in range(-12, 13):
        price = total_cost(FREE.values()) / FREE_RESIDENT * 1.5**exponent
        priced = {n: [replace(o, cost=o.cost + price * o.resident_bytes) for o in k] for n, k in COPYING.items()}
        cost = total_cost(solve(priced, BUDGET).at(BUDGET).values())
        bound = max(bound, cost - price * room)
    assert bound <= total_cost(chosen) * (1 + 1e-9)
    assert total_cost(chosen) <= 1.05 * bound


def test_all_three_budgets_are_kept() -> None:
    room, seconds = int(BUDGET + 0.95 * (FREE_RESIDENT - BUDGET)), 0.97 * FREE_SECONDS
    chosen = solve_within(COPYING, max_bytes=BUDGET, max_seconds=seconds, max_resident_bytes=room).values()
    assert total_bytes(chosen) <= BUDGET
    assert total_seconds(chosen) <= seconds
    assert resident_bytes(chosen) <= room


def test_memory_that_cannot_suffice_is_refused() -> None:
    copied = Option(kind="Q4_0", n_bytes=20, cost=1, copy_bytes=20)
    options = {"a": [copied, Option(kind="Q5_0", n_bytes=30, cost=2)]}
    assert solve_within(options, max_bytes=30, max_resident_bytes=35)["a"].kind == "Q5_0"
    with pytest.raises(BudgetError, match="fewer than the 30 of the smallest"):
        solve_within(options, max_bytes=30, max_resident_bytes=29)
    with pytest.raises(BudgetError, match="35 bytes of memory for tensors are fewer than the 40"):
        solve_within({"a": [copied]}, max_bytes=30, max_resident_bytes=35)
