"""Budgets of decode time and memory beside the budget of bytes.

Time gets a price: the exact programme runs on cost + price * seconds, and bisection finds the lowest price at which its
choice is fast enough (Lagrangian relaxation). Prices reach only the convex part of what is possible, so single
exchanges that still keep both budgets follow.

Memory is bytes, with the types that the engine copies counted twice. A limit on it that is the tighter one takes the
place of the limit on bytes, exactly: what keeps it keeps the other. Otherwise it gets a price as time does.

Source: Everett, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources",
Operations Research 11 (1963).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from kvant.allocate.options import Option, picked, resident_bytes, total_bytes, total_cost, total_seconds
from kvant.allocate.solver import MAX_STATES, solve
from kvant.errors import BudgetError
from kvant.quant.roles import file_order

Choice = dict[str, Option]
Options = Mapping[str, Sequence[Option]]

# The price is first sought with few states, then, around what was found, with all of them.
COARSE_STATES, COARSE_ROUNDS, FINE_ROUNDS = 1 << 13, 16, 5
FINE_BRACKET = 1.2
# Prices above this are beyond all that costs and amounts can be; rounds of bisecting that of memory.
HIGHEST_PRICE, MEMORY_ROUNDS = 1e30, 12
# Room for the rounding of sums.
SLACK = 1e-12


def solve_within(
    options: Options, *, max_bytes: int, max_seconds: float | None = None, max_resident_bytes: int | None = None
) -> Choice:
    """Find the choice of least cost within budgets of bytes, decode time and memory.

    Args:
        options: What every tensor may become, by name.
        max_bytes: Budget: bytes of all these tensors together, padding included.
        max_seconds: Budget: sum of their `seconds`; None for any.
        max_resident_bytes: Budget: bytes and copies of them together; None for any.

    Returns:
        Option by tensor name, in file order. Exact if bytes or memory alone bind; otherwise the best that prices and
        single exchanges find.

    Raises:
        BudgetError: No choice was found that keeps the budgets. There is none, unless a budget of memory above that of
            bytes is among them.
        PlanError: A tensor has no option.
    """
    if max_resident_bytes is None:
        return _within_time(options, max_bytes, max_seconds)
    if max_resident_bytes <= max_bytes:
        counted = _repriced(options, lambda o: replace(o, n_bytes=o.resident_bytes))
        return _originals(_within_time(counted, max_resident_bytes, max_seconds), options)
    return _within_memory(options, max_bytes, max_seconds, max_resident_bytes)


def _within_memory(options: Options, max_bytes: int, max_seconds: float | None, max_resident: int) -> Choice:
    """Keep a budget of memory above that of bytes: bisect the price of a byte in memory; raise it if time asks."""

    def at(nats_per_byte: float, seconds: float | None) -> Choice:
        priced = _repriced(options, lambda o: replace(o, cost=o.cost + nats_per_byte * o.resident_bytes))
        return _originals(_within_time(priced, max_bytes, seconds), options)

    def fits(choice: Choice) -> bool:
        return resident_bytes(choice.values()) <= max_resident

    found = at(0.0, max_seconds)
    if fits(found):
        return found
    low, high = 0.0, _typical_price(options, "resident_bytes")
    while not fits(at(high, None)) and high < HIGHEST_PRICE:
        low, high = high, 8 * high
    for _ in range(MEMORY_ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(at(middle, None)) else (middle, high)
    growth = 2.0
    while not fits(found := at(high, max_seconds)):
        high, growth = high * growth, 2 * growth
        if high > HIGHEST_PRICE:
            least = resident_bytes(found.values())
            raise BudgetError(
                f"budget: {max_resident} bytes of memory for tensors are fewer than the {least} of the choice that "
                f"takes least and keeps the other limits. Allow more memory, or lift another limit."
            )
    return _exchanged(found, options, max_bytes, max_seconds, max_resident)


def _repriced(options: Options, change: Callable[[Option], Option]) -> dict[str, list[Option]]:
    return {name: [change(option) for option in kinds] for name, kinds in options.items()}


def _originals(choice: Choice, options: Options) -> Choice:
    """Return the options that a choice of changed ones stands for."""
    return {name: picked(options[name], option.kind) for name, option in choice.items()}


def _rank(choice: Choice) -> tuple[float, int]:
    return total_cost(choice.values()), total_bytes(choice.values())


def _within_time(options: Options, max_bytes: int, max_seconds: float | None) -> Choice:
    best = solve(options, max_bytes).at(max_bytes)
    if max_seconds is None or _seconds(best) <= max_seconds * (1 + SLACK):
        return best
    fastest = _fastest(options, max_bytes)
    if _seconds(fastest) > max_seconds * (1 + SLACK):
        raise BudgetError(
            f"budget: {max_seconds:.6g} s per token are fewer than the {_seconds(fastest):.6g} s of the fastest choice "
            f"of at most {max_bytes} bytes. Ask for fewer tokens per second, or allow more bytes."
        )
    found = [fastest, *_by_price(options, max_bytes, max_seconds)]
    return min((_exchanged(choice, options, max_bytes, max_seconds) for choice in found), key=_rank)


def _seconds(choice: Choice) -> float:
    return total_seconds(choice.values())


def _fastest(options: Options, max_bytes: int) -> Choice:
    """The choice of least time within a budget of bytes; of equally fast ones nearly the least cost."""
    swapped = {
        name: [replace(option, cost=option.seconds, seconds=option.cost) for option in kinds]
        for name, kinds in options.items()
    }
    chosen = solve(swapped, max_bytes).at(max_bytes)
    return {name: replace(option, cost=option.seconds, seconds=option.cost) for name, option in chosen.items()}


def _by_price(options: Options, max_bytes: int, max_seconds: float) -> list[Choice]:
    """Bisect the price of time; return the choices met that are fast enough."""
    fast: list[Choice] = []

    def is_fast(price: float, states: int) -> bool:
        choice = solve(options, max_bytes, nats_per_second=price, max_states=states).at(max_bytes)
        if _seconds(choice) > max_seconds * (1 + SLACK):
            return False
        fast.append(choice)
        return True

    low, high = 0.0, _typical_price(options, "seconds")
    while not is_fast(high, COARSE_STATES) and high < HIGHEST_PRICE:
        low, high = high, 4 * high
    for states, rounds in ((COARSE_STATES, COARSE_ROUNDS), (MAX_STATES, FINE_ROUNDS)):
        for _ in range(rounds):
            middle = (low + high) / 2
            low, high = (low, middle) if is_fast(middle, states) else (middle, high)
        low, high = low / FINE_BRACKET, high * FINE_BRACKET
    return fast[-2 * FINE_ROUNDS :]


def _typical_price(options: Options, what: str) -> float:
    """A price at which costs and amounts of `seconds` or `resident_bytes` weigh the same, in nats per unit."""
    cost = sum(max(option.cost for option in kinds) for kinds in options.values())
    amount = sum(max(getattr(option, what) for option in kinds) for kinds in options.values())
    return float(cost / amount) if cost and amount else 1.0


def _sort_key(option: Option) -> tuple[float, ...]:
    """Whatever order options are given in, of exchanges that gain the same one is the first."""
    return option.cost, option.n_bytes, option.seconds, option.copy_bytes


def _exchanged(
    choice: Choice, options: Options, max_bytes: int, max_seconds: float | None, max_resident: int | None = None
) -> Choice:
    """Exchange one option at a time for one of less cost, the largest gain first, as long as all budgets are kept."""
    every = [(name, option) for name in file_order(options) for option in sorted(options[name], key=_sort_key)]
    limits = [
        (np.array([option.n_bytes for _, option in every], np.int64), max_bytes),
        (np.array([option.seconds for _, option in every]), (max_seconds or 0.0) * (1 + SLACK)),
        (np.array([option.resident_bytes for _, option in every], np.int64), max_resident or 0),
    ]
    limits = [
        pair for pair, asked in zip(limits, (max_bytes, max_seconds, max_resident), strict=True) if asked is not None
    ]
    costs = np.array([option.cost for _, option in every])
    places: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(every):
        places.setdefault(name, []).append(index)
    now = np.empty(len(every), np.int64)
    for name, option in choice.items():
        now[places[name]] = next(i for i in places[name] if every[i][1] is option or every[i][1] == option)
    chosen = dict(choice)
    while True:
        gains = costs[now] - costs
        for amounts, limit in limits:
            used = sum(amounts[now[indices[0]]] for indices in places.values())
            gains[amounts - amounts[now] > limit - used] = 0
        best = int(np.argmax(gains)) if len(gains) else 0
        if not len(gains) or gains[best] <= 0:
            return chosen
        name, option = every[best]
        chosen[name] = option
        now[places[name]] = best
