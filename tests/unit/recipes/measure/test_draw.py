import numpy as np

from kvant.recipes.measure.draw import draw

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def test_draws_follow_the_models_own_distribution() -> None:
    uniform = (np.arange(1000) + 0.5) / 1000
    drawn = draw(np.tile(LOGITS[::-1], (1000, 1)) + 50, uniform)
    assert np.bincount(drawn).tolist() == [100, 150, 250, 500]
    assert draw(LOGITS[None], np.array([np.nextafter(1.0, 0.0)])).tolist() == [3]
    assert draw(np.array([[-np.inf, 0.0]], np.float32), np.array([0.0])).tolist() == [1]
