"""Correct predicted costs by what whole plans were measured to lose.

Costs are predicted one tensor at a time and added up. What that misses is shared: heads are more sensitive than the
prediction says, or one block type's errors are. So a cost gets three factors,

    cost(tensor, type) * scale * factor(role of the tensor) * factor(type)

and few measurements fit them: with theta the logarithms of the factors, the fit minimises

    sum over plans ((log measured - log predicted(theta)) / noise)^2 + sum over groups (theta / prior spread)^2

a ridge toward factors of 1, which logarithms keep positive. The curvature at the minimum says how sure each factor is:
the next plan worth measuring is one whose prediction rests on an unsure factor.

Source: MacKay, "Information Theory, Inference, and Learning Algorithms" (2003), chapter 27 (Laplace's method) and 28.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvant.allocate.options import Option, picked
from kvant.errors import PlanError, ValueRangeError
from kvant.quant.roles import Role, role_of

# Prior spreads of the logarithms: predictions are right within a factor of e in all, of a role within about 1.5, of a
# block type within about 1.2.
SCALE_SPREAD, ROLE_SPREAD, TYPE_SPREAD = 1.0, 0.4, 0.2
# Relative error of a measured KLD against the best that such factors can say.
DEFAULT_NOISE = 0.01
MAX_STEPS, MAX_HALVINGS, DONE = 100, 40, 1e-10
SCALE = "scale"

_GROUPS = {
    Role.EMBEDDING: "embedding", Role.OUTPUT: "head", Role.OTHER: "other",
    **dict.fromkeys((Role.ATTENTION_Q, Role.ATTENTION_K, Role.ATTENTION_V, Role.ATTENTION_OUTPUT), "attention"),
    **dict.fromkeys((Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN), "ffn"),
}  # fmt: skip

Options = Mapping[str, Sequence[Option]]
Types = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a whole plan was measured to lose.

    Attributes:
        types: Block type by tensor name.
        kld: Mean KL divergence from the full-precision model, nats per token.
    """

    types: Types
    kld: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Belief:
    """Factors of predicted costs, and how sure they are.

    Attributes:
        groups: `scale`, then roles, then block types.
        log_factors: Logarithm of each group's factor, float64 [groups].
        covariance: Of the logarithms, float64 [groups, groups].
        options: The options whose costs the factors multiply.
        floor: KLD that no plan goes below.
    """

    groups: tuple[str, ...]
    log_factors: np.ndarray
    covariance: np.ndarray
    options: Options
    floor: float

    def factors(self) -> dict[str, float]:
        """Factor by group."""
        return dict(zip(self.groups, np.exp(self.log_factors).tolist(), strict=True))

    def spreads(self) -> dict[str, float]:
        """Standard deviation of each factor's logarithm, by group."""
        return dict(zip(self.groups, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))

    def corrected(self) -> dict[str, tuple[Option, ...]]:
        """Return the options with corrected costs."""
        factors = self.factors()
        return {
            name: tuple(
                replace(o, cost=o.cost * factors[SCALE] * factors[role_group(name)] * factors[o.kind]) for o in kinds
            )
            for name, kinds in self.options.items()
        }

    def predict(self, types: Types) -> float:
        """Return the mean KLD to expect of a plan, nats per token."""
        return float(_forecast(_group_costs(types, self.options, self.groups), self.log_factors, self.floor)[0])

    def shares(self, types: Types) -> np.ndarray:
        """How much of a plan's predicted KLD rests on each group, float64 [groups]: d log predicted / d log factor."""
        return _forecast(_group_costs(types, self.options, self.groups), self.log_factors, self.floor)[1]

    def shifted(self, group: str, spreads: float) -> "Belief":
        """Return the belief if one group's factor were that many standard deviations larger."""
        moved = self.log_factors.copy()
        moved[self.groups.index(group)] += spreads * self.spreads()[group]
        return replace(self, log_factors=moved)


def role_group(name: str) -> str:
    """Return the group of roles that a tensor belongs to: embedding, head, attention, ffn or other."""
    return _GROUPS[role_of(name)]


def correct(
    options: Options,
    measurements: Sequence[Measurement] = (),
    *,
    floor: float = 0.0,
    noise: float = DEFAULT_NOISE,
) -> Belief:
    """Fit the factors of predicted costs to measurements of whole plans.

    Args:
        options: What every tensor may become, with predicted costs.
        measurements: Plans of these options and what they lose; none leaves every factor at 1. Those that lose nothing,
            measured or predicted, are passed over.
        floor: KLD of a file that loses nothing, e.g. the engine's own rounding of activations; nats per token.
        noise: Relative standard deviation of measurements.

    Returns:
        The factors; the same whatever order the options are in.

    Raises:
        PlanError: A measured plan is not one of these options.
        ValueRangeError: A measured KLD or the floor is not a number from 0 up, or the noise not above 0.
    """
    if not (math.isfinite(floor) and floor >= 0 and math.isfinite(noise) and noise > 0):
        raise ValueRangeError(f"correction: floor {floor} or noise {noise} is out of range. Use 0 and {DEFAULT_NOISE}.")
    groups = _groups(options)
    tables, logs = [], []
    for measurement in measurements:
        table = _group_costs(measurement.types, options, groups)
        if not (math.isfinite(measurement.kld) and measurement.kld >= 0):
            raise ValueRangeError(f"measured KLD: {measurement.kld} is not a number from 0 up. Check the measurement.")
        if measurement.kld and any(cost for _, cost in table):  # a loss of nothing says nothing about factors
            tables.append(table)
            logs.append(math.log(measurement.kld))
    prior = np.diag([_prior_spread(group) ** -2.0 for group in groups])
    theta, precision = _fit(tables, np.array(logs), prior, floor, noise)
    return Belief(
        groups=groups, log_factors=theta, covariance=np.linalg.inv(precision), options=dict(options), floor=floor
    )


def _prior_spread(group: str) -> float:
    if group == SCALE:
        return SCALE_SPREAD
    return ROLE_SPREAD if group in _GROUPS.values() else TYPE_SPREAD


_Table = list[tuple[tuple[int, int, int], float]]


def _groups(options: Options) -> tuple[str, ...]:
    roles = sorted({role_group(name) for name in options})
    return (SCALE, *roles, *sorted({option.kind for kinds in options.values() for option in kinds}))


def _group_costs(types: Types, options: Options, groups: Sequence[str]) -> _Table:
    """Sum a plan's predicted costs over the tensors of one role and type; with the three groups of each sum."""
    if set(types) != set(options):
        odd = sorted(set(types) ^ set(options))
        raise PlanError(f"{odd[0]}: the plan or the options lack this tensor ({len(odd)} in all). Name the same ones.")
    costs: dict[tuple[str, str], list[float]] = {}
    for name, kind in types.items():
        if all(option.kind != kind for option in options[name]):
            raise PlanError(f"{name}: {kind} is not among its options. Measure plans made of them.")
        costs.setdefault((role_group(name), kind), []).append(picked(options[name], kind).cost)
    index = {group: i for i, group in enumerate(groups)}
    return [((0, index[role], index[kind]), math.fsum(costs[role, kind])) for role, kind in sorted(costs)]


def _forecast(table: _Table, theta: np.ndarray, floor: float) -> tuple[float, np.ndarray]:
    """Predicted KLD of a plan, and its logarithm's derivative by theta, float64 [groups]."""
    total, shares = floor, np.zeros(len(theta))
    for places, cost in table:
        corrected = cost * math.exp(sum(theta[place] for place in places))
        total += corrected
        for place in places:
            shares[place] += corrected
    return total, shares / total if total else shares


def _fit(
    tables: Sequence[_Table], logs: np.ndarray, prior: np.ndarray, floor: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton with halved steps; returns theta [groups] and its precision [groups, groups]."""

    def state(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        forecasts = [_forecast(table, theta, floor) for table in tables]
        misses = (logs - np.log([total for total, _ in forecasts])) / noise
        slopes = np.array([shares for _, shares in forecasts]).reshape(len(tables), len(theta)) / noise
        loss = float(misses @ misses + theta @ prior @ theta)
        return loss, slopes.T @ misses - prior @ theta, prior + slopes.T @ slopes

    theta = np.zeros(len(prior))
    loss, downhill, precision = state(theta)
    for _ in range(MAX_STEPS):
        step = np.linalg.solve(precision, downhill)
        for _ in range(MAX_HALVINGS):
            after = state(theta + step)
            if after[0] <= loss:
                break
            step = step / 2
        else:
            break
        theta, (loss, downhill, precision) = theta + step, after
        if np.abs(step).max() < DONE:
            break
    return theta, precision
