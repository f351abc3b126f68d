"""Exact multiple-choice knapsack: one option per tensor, the least sum of costs within a budget of bytes.

A dynamic programme over the bytes spent beyond the smallest choice, in units of their greatest common divisor: weight
matrices have so many rows in common that the divisor is thousands of bytes and the states are few. Tensors are added
one by one; a state keeps the least cost that reaches it and, per tensor, which option did. So one solve answers every
budget up to the largest.

Where the divisor is too small (a vocabulary of an odd length, say), sizes are rounded up to a unit that wastes as
little as possible: next to nothing if a few tensors are odd, and at most 0.02 % of the budget for a model of up to 400
tensors. `Solution.waste_bytes` is the bound. A choice never exceeds its budget.

Source: Dudzinski and Walukiewicz, "Exact methods for the knapsack problem and its generalizations", EJOR 28 (1987),
section 4; Kellerer, Pferschy and Pisinger, "Knapsack Problems" (2004), section 11.5.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.allocate.options import Option, total_bytes, undominated
from kvant.errors import BudgetError, PlanError, ValueRangeError
from kvant.quant.roles import file_order

# More states than this are not worth their time; the table holds a byte per tensor and state.
MAX_STATES = 1 << 21
MAX_TABLE_BYTES = 1 << 30
MAX_OPTIONS = 255
# States worked on at a time: what is added and compared stays in the second-level cache.
CHUNK_STATES = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A tensor in the programme: its options by rising bytes, units beyond the first, and what each is charged."""

    name: str
    options: tuple[Option, ...]
    units: tuple[int, ...]
    charges: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """The best choice for every budget up to one, from `solve`.

    Attributes:
        max_bytes: Largest budget it answers.
        least_bytes: Bytes of the smallest choice.
        unit_bytes: Bytes between states.
        waste_bytes: Most bytes of a budget that rounding sizes to whole units can leave unused; 0 if none was rounded.
        charges: Least cost (and charge for time) by units beyond the smallest choice, float64 [states]; infinite
            where no choice has just that many.
        tensors: The tensors in the order they were added.
        taken: Index of the option taken, per tensor uint8 [states reached so far].
    """

    max_bytes: int
    least_bytes: int
    unit_bytes: int
    waste_bytes: int
    charges: np.ndarray
    tensors: tuple[_Tensor, ...]
    taken: tuple[np.ndarray, ...]

    def at(self, budget: int) -> dict[str, Option]:
        """Return the best choice of at most `budget` bytes; of equally good ones one of the fewest bytes.

        Args:
            budget: Bytes of all tensors together, padding included.

        Returns:
            Option by tensor name, in the order in which files hold them.

        Raises:
            BudgetError: Even the smallest choice is larger.
            ValueRangeError: The budget is above `max_bytes`, and more could be had for it.
        """
        _check_budget(budget, self.least_bytes)
        if budget > self.max_bytes and len(self.charges) <= sum(tensor.units[-1] for tensor in self.tensors):
            raise ValueRangeError(f"budget: {budget} bytes is above the {self.max_bytes} solved for. Solve for more.")
        state = int(np.argmin(self.charges[: (budget - self.least_bytes) // self.unit_bytes + 1]))
        chosen = {}
        for tensor, taken in zip(reversed(self.tensors), reversed(self.taken), strict=True):
            index = int(taken[state])
            chosen[tensor.name] = tensor.options[index]
            state -= tensor.units[index]
        return {name: chosen[name] for name in file_order(chosen)}

    def curve(self) -> list[tuple[int, float]]:
        """Return bytes and cost of every choice that no other beats in both, by rising bytes and falling cost.

        Bytes are rounded up where sizes were (`waste_bytes`).
        """
        before = np.concatenate(([np.inf], np.minimum.accumulate(self.charges)[:-1]))
        states = np.flatnonzero(self.charges < before)
        return [(self.least_bytes + int(s) * self.unit_bytes, float(self.charges[s])) for s in states]

    def hull(self) -> list[tuple[int, float]]:
        """Return the corners of the curve's lower convex hull: the points that a price per byte can choose."""
        corners: list[tuple[int, float]] = []
        for point in self.curve():
            while len(corners) > 1 and _is_above(corners[-2], corners[-1], point):
                corners.pop()
            corners.append(point)
        return corners


def solve(
    options: Mapping[str, Sequence[Option]],
    max_bytes: int,
    *,
    nats_per_second: float = 0.0,
    max_states: int = MAX_STATES,
) -> Solution:
    """Find the choice of least cost for every budget up to one.

    Args:
        options: What every tensor may become, by name; a tensor with one option stays as it is. The answer does not
            depend on the order of either.
        max_bytes: Largest budget: bytes of all these tensors together, padding included.
        nats_per_second: Price of decode time, added to costs; above 0 the least cost is one of both.
        max_states: Sizes are rounded up to units so that there are no more states, but for one per tensor.

    Returns:
        The solution. For 200 tensors of 16 options and 400,000 states it takes seconds and 80 MB.

    Raises:
        BudgetError: Even the smallest choice is larger than `max_bytes`.
        PlanError: A tensor has no option, or more than 255.
    """
    reduced = {name: _reduced(name, options[name], nats_per_second) for name in sorted(options)}
    least = total_bytes(kinds[0] for kinds in reduced.values())
    _check_budget(max_bytes, least)
    unit = _unit_bytes(list(reduced.values()), max_bytes - least, max_states)
    tensors = [_in_units(name, kinds, unit, nats_per_second) for name, kinds in reduced.items()]
    # Small tensors first: states that cannot be reached yet cost nothing.
    tensors.sort(key=lambda tensor: (tensor.units[-1], tensor.name))
    limit = (max_bytes - least) // unit + 1
    charges, taken = np.zeros(1), []
    for tensor in tensors:
        charges, indices = _with_tensor(charges, tensor, limit)
        taken.append(indices)
    return Solution(
        max_bytes=max_bytes,
        least_bytes=least,
        unit_bytes=unit,
        waste_bytes=_waste([_extra_bytes(kinds) for kinds in reduced.values()], unit),
        charges=charges,
        tensors=tuple(tensors),
        taken=tuple(taken),
    )


def _reduced(name: str, options: Sequence[Option], nats_per_second: float) -> tuple[Option, ...]:
    kept = undominated(options, seconds_matter=nats_per_second > 0)
    if not 0 < len(kept) <= MAX_OPTIONS:
        raise PlanError(f"{name}: {len(kept)} options are not 1 to {MAX_OPTIONS}. Offer at least one type, and fewer.")
    return kept


def _check_budget(budget: int, least: int) -> None:
    if budget < least:
        raise BudgetError(
            f"budget: {budget} bytes for tensors are fewer than the {least} of the smallest choice. "
            f"Allow at least {least}, or offer types of fewer bits."
        )


def _extra_bytes(options: Sequence[Option]) -> np.ndarray:
    """Bytes of options beyond the smallest, int64 [options]."""
    return np.array([option.n_bytes - options[0].n_bytes for option in options], np.int64)


def _unit_bytes(options: Sequence[Sequence[Option]], room: int, max_states: int) -> int:
    """Choose the bytes between states: the common divisor, or what wastes least of those with few enough states."""
    extras = [_extra_bytes(kinds) for kinds in options]
    reach = min(room, sum(int(extra[-1]) for extra in extras))
    divisors = [int(np.gcd.reduce(extra)) for extra in extras]
    exact = math.gcd(*divisors) or 1
    states = max(1, min(max_states, MAX_TABLE_BYTES // max(1, len(options))))
    if reach // exact < states:
        return exact
    coarse = -(-(reach // states + 1) // exact) * exact
    units = {coarse, *(unit for unit in divisors if unit and reach // unit < states)}
    return min(units, key=lambda unit: (_waste(extras, unit), unit))


def _waste(extras: Sequence[np.ndarray], unit: int) -> int:
    """Most bytes that rounding up to units can add to a choice."""
    return sum(int((-extra % unit).max()) for extra in extras)


def _in_units(name: str, options: Sequence[Option], unit: int, nats_per_second: float) -> _Tensor:
    """Round sizes up to units; of options that come to the same one, or cost more in all, only the best stays."""
    kept: list[tuple[Option, int, float]] = []
    for option, extra in zip(options, _extra_bytes(options), strict=True):
        units, charge = -(-int(extra) // unit), option.cost + nats_per_second * option.seconds
        if kept and charge >= kept[-1][2]:
            continue
        if kept and units == kept[-1][1]:
            kept.pop()
        kept.append((option, units, charge))
    kinds, all_units, charges = zip(*kept, strict=True)
    return _Tensor(name=name, options=kinds, units=all_units, charges=charges)


def _with_tensor(charges: np.ndarray, tensor: _Tensor, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Add a tensor to the programme.

    Args:
        charges: Least charge by state before, float64 [states].
        tensor: The tensor.
        limit: Most states.

    Returns:
        Least charge by state after, float64, and the option taken, uint8; both [states reachable now].
    """
    n_states = min(len(charges) + tensor.units[-1], limit)
    least, taken = np.full(n_states, np.inf), np.zeros(n_states, np.uint8)
    sums, is_less, marks = np.empty(CHUNK_STATES), np.empty(CHUNK_STATES, np.bool_), np.empty(CHUNK_STATES, np.uint8)
    for start in range(0, n_states, CHUNK_STATES):
        for index, (units, charge) in enumerate(zip(tensor.units, tensor.charges, strict=True)):
            first, last = max(start, units), min(start + CHUNK_STATES, n_states, len(charges) + units)
            if first >= last:
                continue
            n = last - first
            np.add(charges[first - units : last - units], charge, out=sums[:n])
            np.less(sums[:n], least[first:last], out=is_less[:n])
            np.minimum(least[first:last], sums[:n], out=least[first:last])
            # A later index is a larger one, so the largest marked is the last that was better.
            np.multiply(is_less[:n].view(np.uint8), np.uint8(index), out=marks[:n])
            np.maximum(taken[first:last], marks[:n], out=taken[first:last])
    return least, taken


def _is_above(left: tuple[int, float], middle: tuple[int, float], right: tuple[int, float]) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    return (middle[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (middle[0] - left[0])
