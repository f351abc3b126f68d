import numpy as np
import pytest

from kvant.errors import ValueRangeError
from kvant.runtime.sampling import Sampling, choose, draw, generator, likeliest

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
EVERYTHING = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def kept(**options: float) -> list[int]:
    sampling = Sampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **options})  # type: ignore[arg-type]
    return list(map(int, likeliest(LOGITS.astype(np.float64), sampling)[0]))


def test_draws_follow_the_models_own_distribution() -> None:
    uniform = (np.arange(1000) + 0.5) / 1000
    drawn = draw(np.tile(LOGITS[::-1], (1000, 1)) + 50, uniform)
    assert np.bincount(drawn).tolist() == [100, 150, 250, 500]
    assert draw(LOGITS[None], np.array([np.nextafter(1.0, 0.0)])).tolist() == [3]
    assert draw(np.array([[-np.inf, 0.0]], np.float32), np.array([0.0])).tolist() == [1]


def test_temperature_zero_takes_the_likeliest() -> None:
    sampling = Sampling(temperature=0)
    assert choose(LOGITS[::-1].copy(), [], sampling, generator(sampling)) == 3


def test_what_each_filter_leaves() -> None:
    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.6) == [0, 1]  # 0.5 alone is not enough
    assert kept(top_p=0.0) == [0]
    assert kept(min_p=0.25) == [0, 1, 2]  # a quarter of 0.5 is 0.125
    assert kept(min_p=1.0) == [0]


def test_tokens_come_as_often_as_they_are_likely() -> None:
    chance = generator(Sampling(seed=7))
    n = 20_000
    counts = np.bincount([choose(LOGITS, [], EVERYTHING, chance) for _ in range(n)], minlength=4)

    expected = n * np.array([0.5, 0.25, 0.15, 0.1])
    assert ((counts - expected) ** 2 / expected).sum() < 16.27  # chi-square, 3 degrees of freedom, p = 0.001


def test_temperature_sharpens() -> None:
    sampling = Sampling(temperature=0.5, top_k=0, top_p=1.0, min_p=0.0, seed=1)
    chance = generator(sampling)
    share = np.mean([choose(LOGITS, [], sampling, chance) == 0 for _ in range(5000)])

    assert share == pytest.approx(0.25 / (0.25 + 0.0625 + 0.0225 + 0.01), abs=0.02)


def test_the_same_seed_makes_the_same_choices() -> None:
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)

    def choices(seed: int) -> list[int]:
        chance = generator(Sampling(seed=seed))
        return [choose(logits, [], Sampling(seed=seed), chance) for _ in range(20)]

    assert choices(3) == choices(3)
    assert choices(3) != choices(4)


def test_repeat_penalty_makes_recent_tokens_less_likely() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    sampling = Sampling(temperature=0, repeat_penalty=1.5)

    assert choose(logits, [], sampling, generator(sampling)) == 0
    assert choose(logits, [0], sampling, generator(sampling)) == 1
    assert choose(logits, [0, *[2] * 64], sampling, generator(sampling)) == 0  # out of the window
    assert logits.tolist() == pytest.approx([2.0, 1.9, -1.0])


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}, {"repeat_penalty": 0}, {"seed": -1},
     {"temperature": float("nan")}],
)  # fmt: skip
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueRangeError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
