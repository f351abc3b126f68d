"""Choosing on made-up measurements whose right answer is known."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.devices.memory import RamPrediction
from kvant.devices.profiles import PROFILES
from kvant.errors import BudgetError, ValueRangeError
from kvant.evaluate.loss import DISTANCE, KLD
from kvant.evaluate.score import VariantScore
from kvant.metadata import string
from kvant.model import Model
from kvant.quant.plan import Plan
from kvant.recipes.companion import Companion
from kvant.recipes.goal import Budget, Goal, goal_of
from kvant.recipes.optimize.budget import affordable, why_not
from kvant.recipes.optimize.choose import Contest, can_win, explain, is_finer, least_loss, next_candidate, pick
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.gguf.target import GGUF
from kvant.recipes.targets.limits import limits_of

QUALITY = Goal(kind="quality", max_kld=0.05)
CLOSE = Goal(kind="size", max_kld=0.05)
STRICT = Goal(kind="size", max_kld=0.05, is_strict=True)


def candidate(name: str, size_mb: float, distortion: float, kind: str = "Q4_K", speed: float = 50.0) -> Candidate:
    size = int(size_mb * 1e6)
    ram = RamPrediction(
        context=4096, weights_bytes=size, repacked_bytes=0, kv_cache_bytes=0, compute_bytes=0, engine_bytes=0,
        total_bytes=2 * size,
    )  # fmt: skip
    return Candidate(
        preset=name, name=name, plan=Plan(preset=name, file_type=0, types={"blk.0.attn_q.weight": kind}),
        size_bytes=size, bpw=4.5, ram=ram, speed_tok_s=speed, distortion=distortion,
    )  # fmt: skip


def measured(
    found: Candidate, kld: float, se: float = 0.0, speed: float = 50.0, windows: tuple[float, ...] = ()
) -> Variant:
    score = VariantScore(
        name=found.preset, path="", size_bytes=found.size_bytes, bpw=4.5, kld_mean=kld, kld_se=se, kld_median=kld,
        kld_p95=kld, kld_p99=kld, kld_p999=kld, top1=0.9, rms_dp=0.1, ppl=20.0, ppl_ratio=1.02, pp_tok_s=100.0,
        tg_tok_s=speed, rss_bytes=1, rss_model_bytes=1, load_s=0.1, energy_j_per_token=None, energy_reason="none",
        kld_sampling_se=0.0, n_positions=100, n_threads=2, domains={}, windows=windows,
    )  # fmt: skip
    return Variant(candidate=found, score=score, memory_bytes=found.ram.total_bytes)


def contest(goal: Goal) -> Contest:
    return Contest(goal=goal, measure=KLD, finer=GGUF().finer, points=5, weights=135_000_000)


def run(candidates: Sequence[Candidate], truth: Callable[[Candidate], float], goal: Goal) -> list[Variant]:
    done: list[Variant] = []
    while True:
        waiting = [c for c in candidates if c not in [v.candidate for v in done]]
        following = next_candidate(waiting, done, contest(goal))
        if following is None:
            return done
        done.append(measured(following, truth(following)))


def test_most_promising_first() -> None:
    one, two = candidate("a", 90, 0.005), candidate("b", 95, 0.004)
    assert next_candidate([one, two], [], contest(QUALITY)) is two


def test_a_size_goal_starts_at_the_smallest_that_may_do() -> None:
    sizes = [candidate(f"c{i}", 100 + i, d) for i, d in enumerate((0.004, 0.001, 0.0008, 0.0001))]
    # A 135M model is expected to have 41 times the distortion: 0.16, 0.041, ...
    assert next_candidate(sizes, [], contest(CLOSE)) is sizes[1]


def test_a_candidate_far_worse_by_its_types_is_left_out() -> None:
    good, bad = candidate("good", 95, 0.004), candidate("bad", 80, 0.02)
    done = [measured(good, 0.2)]
    assert least_loss(bad, done, contest(QUALITY)) == pytest.approx(0.02 * 50 / 1.5)
    assert not can_win(bad, done, contest(QUALITY))
    assert can_win(candidate("near", 94, 0.005, "IQ4_XS"), done, contest(QUALITY))


def test_a_candidate_that_is_nowhere_finer_cannot_win() -> None:
    fine, coarse = candidate("fine", 95, 0.0, "Q6_K"), candidate("coarse", 80, 0.0, "Q4_K")
    assert least_loss(coarse, [measured(fine, 0.1)], contest(STRICT)) == pytest.approx(0.1)
    assert not can_win(coarse, [measured(fine, 0.1)], contest(STRICT))


@pytest.mark.parametrize(
    ("fine", "coarse", "expected"),
    [
        ("Q6_K", "Q4_K", True), ("Q4_K", "Q6_K", False), ("Q4_K", "Q4_K", True), ("F16", "Q8_0", True),
        ("IQ4_NL", "Q4_0", False), ("Q5_0", "IQ4_NL", True), ("Q4_K", "IQ4_XS", False),
    ],
)  # fmt: skip
def test_finer_types(fine: str, coarse: str, expected: bool) -> None:
    a, b = candidate("a", 1, 0, fine), candidate("b", 1, 0, coarse)
    assert is_finer(a.plan, b.plan, GGUF().finer) is expected


@pytest.mark.parametrize(("shift", "taken"), [(0.001, "large"), (0.0, "small")])
def test_variants_are_told_apart_on_the_same_windows_of_text(shift: float, taken: str) -> None:
    text = np.random.default_rng(1).uniform(0.01, 0.2, 32)
    noise = np.random.default_rng(2).normal(0, 1e-4, 32)
    klds = {"large": text, "small": text + shift + noise - noise.mean() + 1e-6}
    done = [
        measured(candidate(name, size, 0.004), float(kld.mean()), 0.01, windows=tuple(kld.tolist()))
        for (name, kld), size in zip(klds.items(), (90, 89), strict=True)
    ]
    assert pick(done, QUALITY) is next(v for v in done if v.candidate.preset == taken)


def test_quality_takes_the_smaller_of_equals() -> None:
    small, large = measured(candidate("s", 90, 0.004), 0.101, 0.002), measured(candidate("l", 95, 0.004), 0.100, 0.002)
    assert pick([small, large], QUALITY) is small
    clear = measured(candidate("l", 95, 0.004), 0.080, 0.002)
    assert pick([small, clear], QUALITY) is clear


def test_size_takes_the_smallest_that_is_close() -> None:
    done = [measured(candidate(n, s, 1), k) for n, s, k in (("a", 90, 0.2), ("b", 100, 0.04), ("c", 110, 0.01))]
    assert pick(done, CLOSE) is done[1]
    assert pick(done[:1], CLOSE) is done[0]
    assert pick(done[:1], STRICT) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(50, 200), st.floats(1e-4, 0.05)), min_size=1, max_size=20), st.integers(0, 99))
def test_the_search_finds_the_best_if_the_ratio_stays_within_the_slack(
    points: list[tuple[float, float]], seed: int
) -> None:
    noise = random.Random(seed)
    # Each plan has another tensor at Q8_0, so that none is finer than another and the ratio alone decides; it lies
    # between 10 and 14.9.
    plans = [
        Plan(preset=f"c{i}", file_type=0, types={f"t{j}": "Q8_0" if i == j else "Q4_0" for j in range(len(points))})
        for i in range(len(points))
    ]
    candidates = [
        msgspec.structs.replace(candidate(f"c{i}", size, d), plan=plans[i]) for i, (size, d) in enumerate(points)
    ]
    truth = {c.preset: c.distortion * noise.uniform(10, 14.9) for c in candidates}
    for goal in (QUALITY, CLOSE):
        taken = pick(run(candidates, lambda c: truth[c.preset], goal), goal)
        assert taken is not None
        passing = [c for c in candidates if truth[c.preset] <= goal.bound]
        if goal is CLOSE and passing:
            assert taken.candidate.size_bytes == min(c.size_bytes for c in passing)
        else:
            assert taken.loss == min(truth.values())


def test_the_search_stops_early() -> None:
    candidates = [candidate(f"c{i}", 80 + 5 * i, 0.05 / 2**i) for i in range(10)]
    done = run(candidates, lambda c: 20 * c.distortion, QUALITY)
    assert len(done) == 5
    assert done[0].candidate is candidates[-1]


def test_reasons_name_the_figures() -> None:
    done = [measured(candidate("small", 90, 0.004), 0.2, 0.004), measured(candidate("large", 95, 0.002), 0.1, 0.002)]
    assert explain(done[1], done, QUALITY, 7, "at most 100.0 MB") == (
        "large is the closest to the original of the 7 variants for at most 100.0 MB, with a mean KLD of "
        "0.1000 ± 0.0020; small would save 5.0 MB at 2.0 times the KLD."
    )
    assert explain(done[0], done, Goal(kind="size", max_kld=0.3), 7, "") == (
        "small is the smallest of the 7 variants considered with a mean KLD below 0.3: 0.2000 ± 0.0040."
    )


def test_goals() -> None:
    assert goal_of(Budget()) == CLOSE
    assert goal_of(Budget(device="phone-6gb")) == CLOSE
    assert goal_of(Budget(max_size_bytes=1)).kind == "quality"
    assert goal_of(Budget(max_size_bytes=1, max_kld=0.05)) == STRICT


def test_goals_of_models_that_make_vectors_are_bounded_by_distance() -> None:
    assert goal_of(Budget(), DISTANCE) == Goal(kind="size", max_distance=0.01)
    assert goal_of(Budget(max_distance=0.002), DISTANCE) == Goal(kind="size", max_distance=0.002, is_strict=True)
    assert goal_of(Budget(max_size_bytes=1), DISTANCE).kind == "quality"
    with pytest.raises(ValueRangeError, match=r"^--max-kld: bounds the KL divergence .*--max-distance 0\.01$"):
        goal_of(Budget(max_kld=0.05), DISTANCE)
    with pytest.raises(ValueRangeError, match=r"^--max-distance: bounds the cosine distance .*--max-kld 0\.05$"):
        goal_of(Budget(max_distance=0.05))


def test_limits() -> None:
    phone = PROFILES["phone-4gb"]
    big = candidate("big", 900, 0.001, speed=5)
    assert why_not(big, Budget(), phone, margin=0.5) == ""
    assert why_not(big, Budget(max_size_bytes=10**8), phone, margin=0.5) == "larger than 100.0 MB"
    assert why_not(big, Budget(max_size_bytes=100), phone, margin=0.5) == "larger than 100 bytes"
    assert why_not(big, Budget(max_ram_bytes=10**9), phone, margin=0.5) == "needs 1.80 GB of memory, more than 1.00 GB"
    assert why_not(big, Budget(device="phone-4gb"), phone, margin=0.5) == "needs 1.80 GB of memory, more than 1.60 GB"
    assert why_not(big, Budget(min_speed_tok_s=20), phone, margin=0.5) == "predicted 5.00 tokens/s, slower than 20"
    assert why_not(big, Budget(min_speed_tok_s=20), phone, margin=0.5, speed_scale=10.0) == ""
    assert why_not(big, Budget(min_speed_tok_s=20), phone, margin=0.0) == ""


def test_a_projector_counts_within_the_limits() -> None:
    plain = candidate("a", 90, 1)
    seen = msgspec.structs.replace(
        plain, beside_bytes=20 * 10**6, ram=msgspec.structs.replace(plain.ram, projector_bytes=50 * 10**6)
    )
    budget, phone = Budget(max_size_bytes=100 * 10**6), PROFILES["phone-4gb"]
    assert why_not(plain, budget, phone, margin=0.5) == ""
    assert why_not(seen, budget, phone, margin=0.5) == "larger than 100.0 MB, its projector of 20.0 MB included"
    little = Budget(max_ram_bytes=plain.ram.total_bytes - 1)
    assert "of memory, 50.0 MB of it its projector, more than" in why_not(seen, little, phone, margin=0.5)
    with pytest.raises(BudgetError, match=r"and its projector 20\.0 MB,.*--mmproj none"):
        affordable([seen], budget, phone, margin=0.5)
    limits = limits_of(Budget(max_size_bytes=100, max_ram_bytes=10**9), phone, model(), 64, beside=eyes())
    without = limits_of(Budget(max_size_bytes=100, max_ram_bytes=10**9), phone, model(), 64)
    assert (limits.max_file_bytes, without.max_file_bytes) == (70, 100)
    assert (without.max_resident_bytes or 0) - (limits.max_resident_bytes or 0) == 40


def eyes() -> Companion:
    return Companion(source="", way="copy", kind="idefics3", type="F16", size_bytes=30, memory_bytes=40)


def model() -> Model:
    return Model(metadata={"general.architecture": string("llama")}, tensors={}, path=Path(), files=())


def test_an_impossible_budget_says_what_is_possible() -> None:
    with pytest.raises(BudgetError, match=r"smallest possible is a with 90\.0 MB \(90000000 bytes\).*Allow more"):
        affordable(
            [candidate("a", 90, 1), candidate("b", 95, 1)],
            Budget(max_size_bytes=10**6),
            PROFILES["browser"],
            margin=0.5,
        )


@pytest.mark.parametrize("field", ["max_size_bytes", "max_ram_bytes", "min_speed_tok_s", "max_kld", "max_distance"])
def test_limits_are_above_zero(field: str) -> None:
    limits: dict[str, Any] = {field: 0}
    with pytest.raises(ValueRangeError, match=r"^--m(ax|in)-\w+: 0 is not above 0"):
        Budget(**limits)
