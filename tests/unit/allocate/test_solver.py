import numpy as np
import pytest

from allocation_cases import many
from kvant.allocate import solver
from kvant.allocate.options import Option, total_bytes, total_cost
from kvant.allocate.solver import MAX_STATES, solve
from kvant.errors import BudgetError, PlanError, ValueRangeError

SMALL, LARGE = Option(kind="Q4_0", n_bytes=18, cost=4), Option(kind="Q8_0", n_bytes=34, cost=1)


def test_a_model_without_tensors_has_one_choice() -> None:
    solution = solve({}, 0)
    assert solution.at(0) == {}
    assert solution.curve() == [(0, 0.0)]


def test_one_option_leaves_no_choice() -> None:
    solution = solve({"a": [SMALL], "b": [LARGE]}, 100)
    assert solution.at(100) == {"a": SMALL, "b": LARGE}
    assert solution.hull() == [(52, 5.0)]


def test_a_type_that_no_tensor_can_afford_is_left_out() -> None:
    assert solve({"a": [SMALL, LARGE]}, 33).at(33) == {"a": SMALL}
    assert solve({"a": [SMALL, LARGE]}, 34).at(34) == {"a": LARGE}


def test_tensors_come_back_in_file_order() -> None:
    names = ["blk.10.attn_q.weight", "blk.2.attn_q.weight", "token_embd.weight"]
    assert list(solve({name: [SMALL] for name in names}, 100).at(100)) == [names[2], names[1], names[0]]


def test_budgets_above_the_largest_solved_need_another_solve() -> None:
    solution = solve({"a": [SMALL, LARGE], "b": [SMALL, LARGE]}, 60)
    with pytest.raises(ValueRangeError, match="61 bytes is above the 60"):
        solution.at(61)


def test_any_budget_is_answered_once_the_largest_choice_fits() -> None:
    assert solve({"a": [SMALL, LARGE]}, 34).at(10**12) == {"a": LARGE}


def test_a_tensor_without_options_is_named() -> None:
    with pytest.raises(PlanError, match=r"blk.0: 0 options"):
        solve({"blk.0": []}, 10)


def test_more_options_than_a_byte_counts_are_refused() -> None:
    with pytest.raises(PlanError, match="256 options"):
        solve({"a": [Option(kind="Q4_0", n_bytes=i, cost=300 - i) for i in range(256)]}, 10**6)
    assert solve({"a": [Option(kind="Q4_0", n_bytes=i, cost=300 - i) for i in range(255)]}, 254).at(254)["a"].cost == 46


def test_too_small_a_budget_names_the_smallest_possible() -> None:
    with pytest.raises(BudgetError, match=r"35 bytes .* the 36 of the smallest choice. Allow at least 36"):
        solve({"a": [SMALL, LARGE], "b": [SMALL]}, 35)


def test_states_are_multiples_of_the_common_divisor() -> None:
    options = many(30)
    solution = solve(options, 20_000_000)
    assert solution.unit_bytes % 6912 == 0
    assert solution.waste_bytes == 0


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    options = many(20)
    whole = solve(options, 12_000_000)
    monkeypatch.setattr(solver, "CHUNK_STATES", 7)
    pieces = solve(options, 12_000_000)
    assert len(whole.charges) > 100
    assert np.array_equal(whole.charges, pieces.charges)
    assert all(np.array_equal(a, b) for a, b in zip(whole.taken, pieces.taken, strict=True))


def test_what_a_price_per_byte_chooses_is_best_at_its_size() -> None:
    options = many(60)
    solution = solve(options, total_bytes(kinds[-1] for kinds in options.values()))
    hull = solution.hull()
    for price in (1e-10, 1e-9, 1e-8):
        chosen = [min(kinds, key=lambda o: (o.cost + price * o.n_bytes, o.n_bytes)) for kinds in options.values()]
        best = total_cost(solution.at(total_bytes(chosen)).values())
        assert best == pytest.approx(total_cost(chosen), rel=1e-12)
        assert any(size == total_bytes(chosen) and cost == pytest.approx(best, rel=1e-12) for size, cost in hull)


def test_one_odd_tensor_costs_only_its_own_rounding() -> None:
    options = many(60)
    options["token_embd.weight"] = [SMALL, Option(kind="Q8_0", n_bytes=7_000_001, cost=0)]
    solution = solve(options, 60_000_000, max_states=20_000)
    assert solution.unit_bytes % 6912 == 0
    assert 0 < solution.waste_bytes < solution.unit_bytes


def test_odd_tensors_waste_at_most_a_five_thousandth() -> None:
    # A tenth of 400 tensors with a tenth of the states.
    rng = np.random.default_rng(1)
    options = {
        f"blk.{i}": [Option(kind="Q4_0", n_bytes=int(n), cost=1 / n) for n in rng.integers(400_000, 5_000_000, 4)]
        for i in range(40)
    }  # fmt: skip
    budget = total_bytes(max(kinds, key=lambda o: o.n_bytes) for kinds in options.values()) // 2
    found = solve(options, budget, max_states=MAX_STATES // 10)
    assert 0 < found.waste_bytes / budget < 0.0002
    chosen = found.at(budget).values()
    assert total_bytes(chosen) <= budget
    less = solve(options, int(0.9998 * budget)).at(int(0.9998 * budget))
    assert total_cost(chosen) <= total_cost(less.values())
