"""A budget of decode time beside the budget of bytes.

Time gets a price: the exact programme runs on cost + price * seconds, and bisection finds the lowest price at which its
choice is fast enough (Lagrangian relaxation). Prices reach only the convex part of what is possible, so single
exchanges that still keep both budgets follow.

Source: Everett, "Generalized Lagrange multiplier method for solving problems of optimum allocation of resources",
Operations Research 11 (1963).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kvant.allocate.options import Option, total_bytes, total_cost, total_seconds
from kvant.allocate.solver import MAX_STATES, solve
from kvant.errors import BudgetError
from kvant.quant.roles import file_order

Choice = dict[str, Option]
Options = Mapping[str, Sequence[Option]]

# The price is first sought with few states, then, around what was found, with all of them.
COARSE_STATES, COARSE_ROUNDS, FINE_ROUNDS = 1 << 13, 16, 5
FINE_BRACKET = 1.2
# Room for the rounding of sums.
SLACK = 1e-12


def solve_within(options: Options, *, max_bytes: int, max_seconds: float | None = None) -> Choice:
    """Find the choice of least cost within a budget of bytes and one of decode time.

    Args:
        options: What every tensor may become, by name.
        max_bytes: Budget: bytes of all these tensors together, padding included.
        max_seconds: Budget: sum of their `seconds`; None for any.

    Returns:
        Option by tensor name, in file order. Exact without a budget of time, or if the best choice is fast enough
        anyway; otherwise the best that prices of time and single exchanges find.

    Raises:
        BudgetError: The smallest choice is too large, or the fastest that is small enough too slow.
        PlanError: A tensor has no option.
    """
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
    exchanged = [_exchanged(choice, options, max_bytes, max_seconds) for choice in found]
    return min(exchanged, key=lambda choice: (total_cost(choice.values()), total_bytes(choice.values())))


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

    low, high = 0.0, _typical_price(options)
    while not is_fast(high, COARSE_STATES) and high < 1e30:
        low, high = high, 4 * high
    for states, rounds in ((COARSE_STATES, COARSE_ROUNDS), (MAX_STATES, FINE_ROUNDS)):
        for _ in range(rounds):
            middle = (low + high) / 2
            low, high = (low, middle) if is_fast(middle, states) else (middle, high)
        low, high = low / FINE_BRACKET, high * FINE_BRACKET
    return fast[-2 * FINE_ROUNDS :]


def _typical_price(options: Options) -> float:
    """A price at which costs and times weigh the same, in nats per second."""
    cost = sum(max(option.cost for option in kinds) for kinds in options.values())
    seconds = sum(max(option.seconds for option in kinds) for kinds in options.values())
    return cost / seconds if cost and seconds else 1.0


def _exchanged(choice: Choice, options: Options, max_bytes: int, max_seconds: float) -> Choice:
    """Exchange one option at a time for one of less cost, the largest gain first, as long as both budgets are kept."""
    every = [(name, option) for name in file_order(options) for option in options[name]]
    sizes = np.array([option.n_bytes for _, option in every], np.int64)
    costs, times = (np.array([getattr(option, what) for _, option in every]) for what in ("cost", "seconds"))
    chosen = dict(choice)
    while True:
        now = [chosen[name] for name, _ in every]
        room, time_left = max_bytes - total_bytes(chosen.values()), max_seconds * (1 + SLACK) - _seconds(chosen)
        gains = np.array([option.cost for option in now]) - costs
        fits = sizes - np.array([option.n_bytes for option in now]) <= room
        fits &= times - np.array([option.seconds for option in now]) <= time_left
        gains[~fits] = 0
        best = int(np.argmax(gains)) if len(gains) else 0
        if not len(gains) or gains[best] <= 0:
            return chosen
        chosen[every[best][0]] = every[best][1]
