import math

import numpy as np
import pytest

from allocation_cases import decoder
from kvant.allocate.correct import ROLE_SPREAD, SCALE_SPREAD, TYPE_SPREAD, Measurement, correct, role_group
from kvant.errors import PlanError, ValueRangeError

OPTIONS = decoder(layers=4)
KINDS = ("Q4_0", "Q4_1", "Q5_1", "Q8_0")
FACTORS = {"embedding": 1.6, "attention": 0.8, "ffn": 1.0, "Q4_0": 1.3, "Q4_1": 0.9, "Q5_1": 1.0, "Q8_0": 1.0}
PRIOR = np.array([SCALE_SPREAD, *[ROLE_SPREAD] * 3, *[TYPE_SPREAD] * 4])


def pure(kind: str) -> dict[str, str]:
    return dict.fromkeys(OPTIONS, kind)


def mixed(seed: int) -> dict[str, str]:
    """A random type per role, as different plans have."""
    rng = np.random.default_rng(seed)
    chosen = {group: str(rng.choice(KINDS)) for group in ("embedding", "attention", "ffn")}
    return {name: chosen[role_group(name)] for name in OPTIONS}


def truth(types: dict[str, str], scale: float = 0.75, floor: float = 0.0) -> float:
    """What a plan loses if the factors are as above."""
    costs = [
        o.cost * scale * FACTORS[role_group(name)] * FACTORS[o.kind]
        for name, kind in types.items()
        for o in OPTIONS[name]
        if o.kind == kind
    ]
    return floor + sum(costs)


def measured(*plans: dict[str, str], floor: float = 0.0) -> list[Measurement]:
    return [Measurement(types=types, kld=truth(types, floor=floor)) for types in plans]


def test_roles_by_name() -> None:
    names = ("token_embd.weight", "output.weight", "blk.0.attn_k.weight", "blk.0.ffn_down_exps.weight", "x.weight")
    assert [role_group(name) for name in names] == ["embedding", "head", "attention", "ffn", "other"]


def test_nothing_measured_changes_nothing() -> None:
    belief = correct(OPTIONS)
    assert set(belief.factors().values()) == {1.0}
    assert belief.corrected() == {name: tuple(kinds) for name, kinds in OPTIONS.items()}
    assert belief.spreads() == pytest.approx(dict(zip(belief.groups, PRIOR.tolist(), strict=True)))
    raw = sum(o.cost for kinds in OPTIONS.values() for o in kinds if o.kind == "Q4_1")
    assert belief.predict(pure("Q4_1")) == pytest.approx(raw)


def test_one_measurement_moves_the_scale_most() -> None:
    belief = correct(OPTIONS, measured(pure("Q4_0")))
    factors = belief.factors()
    assert factors["Q5_1"] == 1
    assert abs(math.log(factors["scale"])) > 2 * max(abs(math.log(f)) for g, f in factors.items() if g != "scale")
    assert belief.predict(pure("Q4_0")) == pytest.approx(truth(pure("Q4_0")), rel=1e-3)


def test_many_measurements_find_the_factors() -> None:
    belief = correct(OPTIONS, measured(*(mixed(seed) for seed in range(40))), noise=1e-4)
    factors = belief.factors()
    for a, b in (("embedding", "attention"), ("ffn", "attention"), ("Q4_0", "Q4_1"), ("Q5_1", "Q4_1")):
        assert factors[a] / factors[b] == pytest.approx(FACTORS[a] / FACTORS[b], rel=0.02)
    for seed in range(100, 120):
        assert belief.predict(mixed(seed)) == pytest.approx(truth(mixed(seed)), rel=1e-3)


def test_a_few_measurements_predict_other_plans_better_than_none() -> None:
    few = correct(OPTIONS, measured(*(mixed(seed) for seed in range(4))))
    scale = truth(mixed(0)) / correct(OPTIONS).predict(mixed(0))

    def miss(predicted: float, seed: int) -> float:
        return abs(math.log(predicted / truth(mixed(seed))))

    seeds = range(100, 130)
    corrected = sum(miss(few.predict(mixed(s)), s) for s in seeds)
    assert corrected < 0.6 * sum(miss(scale * correct(OPTIONS).predict(mixed(s)), s) for s in seeds)


def test_the_floor_is_no_cost() -> None:
    plans = [mixed(seed) for seed in range(40)]
    belief = correct(OPTIONS, measured(*plans, floor=0.01), floor=0.01, noise=1e-4)
    corrected = {name: {o.kind: o.cost for o in kinds} for name, kinds in belief.corrected().items()}
    added = sum(corrected[name][kind] for name, kind in mixed(200).items())
    assert added == pytest.approx(truth(mixed(200)), rel=5e-3)
    assert belief.predict(mixed(200)) == pytest.approx(added + 0.01)


def test_costs_stay_positive_whatever_is_measured() -> None:
    wild = [Measurement(types=pure(kind), kld=kld) for kind, kld in zip(KINDS, (1e-9, 50, 1e-9, 50), strict=True)]
    factors = correct(OPTIONS, wild).factors().values()
    assert all(math.isfinite(f) and f > 0 for f in factors)


def test_the_fit_is_a_minimum_of_what_it_says() -> None:
    seen = measured(*(mixed(seed) for seed in range(5)))
    belief = correct(OPTIONS, seen, noise=0.05)

    def loss(theta: np.ndarray) -> float:
        factor = dict(zip(belief.groups, np.exp(theta), strict=True))
        total = float(((theta / PRIOR) ** 2).sum())
        for m in seen:
            costs = [
                o.cost * factor["scale"] * factor[role_group(name)] * factor[o.kind]
                for name, kinds in OPTIONS.items()
                for o in kinds
                if o.kind == m.types[name]
            ]
            total += (math.log(m.kld / float(sum(costs))) / 0.05) ** 2
        return total

    best = loss(belief.log_factors)
    for place in range(len(belief.groups)):
        for step in (-0.01, 0.01):
            moved = belief.log_factors.copy()
            moved[place] += step
            assert loss(moved) > best


def test_shares_are_the_slope_of_the_prediction() -> None:
    belief = correct(OPTIONS, measured(mixed(1), mixed(2)), floor=0.001)
    types = mixed(3)
    for group, share in zip(belief.groups, belief.shares(types), strict=True):
        step = 1e-4 / belief.spreads()[group]
        up, down = (belief.shifted(group, sign * step).predict(types) for sign in (1, -1))
        assert (math.log(up) - math.log(down)) / 2e-4 == pytest.approx(share, abs=1e-6)


def test_measuring_makes_surer() -> None:
    before, after = correct(OPTIONS), correct(OPTIONS, measured(mixed(1), mixed(2)))
    assert all(after.spreads()[g] <= before.spreads()[g] + 1e-12 for g in before.groups)
    assert after.spreads()["scale"] < 0.5 * before.spreads()["scale"]


def test_order_does_not_matter() -> None:
    other = {name: OPTIONS[name][::-1] for name in reversed(OPTIONS)}
    flipped = [
        Measurement(types=dict(reversed(list(m.types.items()))), kld=m.kld) for m in measured(mixed(1), mixed(2))
    ]
    a, b = correct(OPTIONS, measured(mixed(1), mixed(2))), correct(other, flipped)
    assert a.groups == b.groups
    assert np.array_equal(a.log_factors, b.log_factors)


def test_plans_that_lose_nothing_are_passed_over() -> None:
    seen = [Measurement(types=mixed(1), kld=0.0)]
    assert set(correct(OPTIONS, seen).factors().values()) == {1.0}


@pytest.mark.parametrize("kld", [-1e-9, math.nan, math.inf])
def test_measurements_that_are_none_are_refused(kld: float) -> None:
    with pytest.raises(ValueRangeError, match="measured KLD"):
        correct(OPTIONS, [Measurement(types=mixed(1), kld=kld)])


@pytest.mark.parametrize(("floor", "noise"), [(-1.0, 0.1), (math.nan, 0.1), (0.0, 0.0), (0.0, -1.0), (0.0, math.inf)])
def test_a_floor_or_noise_out_of_range_is_refused(floor: float, noise: float) -> None:
    with pytest.raises(ValueRangeError, match="correction"):
        correct(OPTIONS, floor=floor, noise=noise)


def test_plans_of_other_tensors_or_types_are_refused() -> None:
    with pytest.raises(PlanError, match=r"blk.0.attn_q.weight: the plan or the options lack"):
        correct(OPTIONS, [Measurement(types={k: v for k, v in mixed(1).items() if "blk.0.attn_q" not in k}, kld=1.0)])
    with pytest.raises(PlanError, match=r"token_embd.weight: Q6_K is not among"):
        correct(OPTIONS, [Measurement(types=mixed(1) | {"token_embd.weight": "Q6_K"}, kld=1.0)])
