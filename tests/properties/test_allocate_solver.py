"""The allocator against brute force on instances small enough for it: exact, within budget, the same in any order."""

import itertools
import random
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from kvant.allocate.deadline import solve_within
from kvant.allocate.options import Option, stored_bytes, total_bytes, total_cost, total_seconds, undominated
from kvant.allocate.solver import solve
from kvant.dtypes import BLOCK_TYPES, block_type
from kvant.errors import BudgetError
from kvant.formats.gguf.layout import TensorInfo, file_layout
from kvant.metadata import u32

KINDS = [name for name, kind in BLOCK_TYPES.items() if kind.is_quantized]
Options = dict[str, list[Option]]


def instances(max_unit: int = 1) -> st.SearchStrategy[Options]:
    """Up to five tensors of up to four options; costs and times are eighths, so that their sums are exact."""
    eighths = st.integers(0, 40).map(lambda n: n / 8)
    option = st.builds(
        Option, kind=st.sampled_from(KINDS), n_bytes=st.integers(0, 30), cost=eighths, seconds=eighths
    )  # fmt: skip
    tensors = st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=5)

    def scaled(lists: list[list[Option]], unit: int) -> Options:
        return {
            f"blk.{i}.ffn_up.weight": [
                Option(kind=o.kind, n_bytes=o.n_bytes * unit, cost=o.cost, seconds=o.seconds) for o in kinds
            ]
            for i, kinds in enumerate(lists)
        }

    return st.builds(scaled, tensors, st.integers(1, max_unit))


def every_choice(options: Options) -> list[tuple[int, float, float]]:
    """Bytes, cost and seconds of all choices."""
    return [
        (total_bytes(c), total_cost(c), total_seconds(c)) for c in itertools.product(*options.values())
    ]  # fmt: skip


def shuffled(options: Options, rng: random.Random) -> Options:
    names = list(options)
    rng.shuffle(names)
    return {name: rng.sample(options[name], len(options[name])) for name in names}


def undominated_points(choices: Sequence[tuple[int, float, float]]) -> list[tuple[int, float]]:
    points = sorted({(size, cost) for size, cost, _ in choices})
    return [p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)]


@given(options=instances(max_unit=7))
@settings(max_examples=60, deadline=None)
def test_every_budget_gets_the_best_choice_of_the_fewest_bytes(options: Options) -> None:
    choices = every_choice(options)
    largest = max(size for size, _, _ in choices)
    solution = solve(options, largest)
    for budget in sorted({size + step for size, _, _ in choices for step in (-1, 0, 1)}):
        within = [(cost, size) for size, cost, _ in choices if size <= budget]
        if not within:
            with pytest.raises(BudgetError):
                solution.at(budget)
            continue
        chosen = solution.at(budget)
        assert (total_cost(chosen.values()), total_bytes(chosen.values())) == min(within)
        assert all(chosen[name] in options[name] for name in options)
        assert len(chosen) == len(options)


@given(options=instances())
@settings(max_examples=60, deadline=None)
def test_the_curve_is_every_undominated_point(options: Options) -> None:
    choices = every_choice(options)
    assert solve(options, max(size for size, _, _ in choices)).curve() == undominated_points(choices)


@given(options=instances(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_curve_falls_and_its_hull_is_convex_and_below(options: Options, data: st.DataObject) -> None:
    choices = every_choice(options)
    sizes = sorted(size for size, _, _ in choices)
    solution = solve(options, data.draw(st.sampled_from(sizes)))
    curve, hull = solution.curve(), solution.hull()
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(curve))
    assert set(hull) <= set(curve)
    assert (hull[0], hull[-1]) == (curve[0], curve[-1])
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(hull)]
    assert slopes == sorted(slopes)
    for size, cost in curve:
        for a, b in itertools.pairwise(hull):
            if a[0] <= size <= b[0]:
                assert cost >= a[1] + (b[1] - a[1]) * (size - a[0]) / (b[0] - a[0]) - 1e-9


@given(options=instances(), rng=st.randoms(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_order_does_not_matter(options: Options, rng: random.Random, data: st.DataObject) -> None:
    choices = every_choice(options)
    size, _, seconds = data.draw(st.sampled_from(choices))
    other = shuffled(options, rng)
    chosen = solve(options, size).at(size)
    assert solve(other, size).at(size) == chosen
    assert list(solve(other, size).at(size)) == list(chosen)
    timed = solve_within(options, max_bytes=size, max_seconds=seconds)
    assert solve_within(other, max_bytes=size, max_seconds=seconds) == timed


@given(options=instances(max_unit=1000), states=st.integers(1, 40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_rounded_sizes_keep_the_budget_and_lose_no_more_than_they_say(
    options: Options, states: int, data: st.DataObject
) -> None:
    choices = every_choice(options)
    budget = data.draw(st.sampled_from(choices))[0]
    solution = solve(options, budget, max_states=states)
    chosen = solution.at(budget)
    assert len(solution.charges) <= states + len(options)
    assert total_bytes(chosen.values()) <= budget
    within = [cost for size, cost, _ in choices if size <= budget - solution.waste_bytes]
    assert total_cost(chosen.values()) <= min(within, default=float("inf"))


@given(options=instances(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_both_budgets_are_kept_if_any_choice_keeps_them(options: Options, data: st.DataObject) -> None:
    choices = every_choice(options)
    max_bytes = data.draw(st.sampled_from(choices))[0]
    max_seconds = data.draw(st.sampled_from(choices))[2]
    within = [cost for size, cost, seconds in choices if size <= max_bytes and seconds <= max_seconds]
    if not within:
        with pytest.raises(BudgetError, match="of the fastest choice"):
            solve_within(options, max_bytes=max_bytes, max_seconds=max_seconds)
        return
    chosen = solve_within(options, max_bytes=max_bytes, max_seconds=max_seconds).values()
    assert total_bytes(chosen) <= max_bytes
    assert total_seconds(chosen) <= max_seconds
    assert total_cost(chosen) >= min(within)


@given(options=instances(), price=st.integers(0, 16).map(lambda n: n / 4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_price_of_time_is_part_of_the_cost(options: Options, price: float, data: st.DataObject) -> None:
    choices = every_choice(options)
    budget = data.draw(st.sampled_from(choices))[0]
    chosen = solve(options, budget, nats_per_second=price).at(budget).values()
    best = min(cost + price * seconds for size, cost, seconds in choices if size <= budget)
    assert total_cost(chosen) + price * total_seconds(chosen) == best


@given(options=instances())
def test_only_beaten_options_are_dropped(options: Options) -> None:
    for kinds in options.values():
        kept = undominated(kinds)
        for option in kinds:
            rivals = [o for o in kept if o.n_bytes <= option.n_bytes and o.cost <= option.cost]
            assert any(o.seconds <= option.seconds for o in rivals)
        for a, b in itertools.permutations(kept, 2):
            assert a.n_bytes > b.n_bytes or a.cost > b.cost or a.seconds > b.seconds


@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(KINDS), min_size=6, max_size=6),
    alignment=st.sampled_from([1, 8, 32, 64, 4096]),
)
def test_bytes_of_tensors_add_up_to_the_file(rows: list[int], kinds: list[str], alignment: int) -> None:
    named = [(f"blk.{i}.ffn_up.weight", (n, 256), kind) for i, (n, kind) in enumerate(zip(rows, kinds, strict=False))]
    infos = [TensorInfo(name, shape, block_type(kind)) for name, shape, kind in named]
    layout = file_layout({"general.alignment": u32(alignment)}, infos)
    stored = sum(stored_bytes(name, shape, kind, alignment) for name, shape, kind in named)
    assert stored == layout.total_bytes - len(layout.header)


@given(options=instances())
@settings(max_examples=30, deadline=None)
def test_a_budget_below_the_smallest_choice_is_refused(options: Options) -> None:
    least = min(size for size, _, _ in every_choice(options))
    assume(least > 0)
    with pytest.raises(BudgetError, match=f"the {least} of the smallest choice"):
        solve(options, least - 1)
