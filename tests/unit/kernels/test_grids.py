"""Blocks that restore a grid: the step is found, and what is called exact was compared."""

import numpy as np
import pytest

from kvant.dtypes import BF16, BLOCK_TYPES, F16, F32, BlockType
from kvant.kernels import decode, encode
from kvant.kernels.grids import fit_grid, rounded

FLOATS = (BF16, F16, F32)


def on_grid(low: int, high: int, step: BlockType, source: BlockType, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights on a grid of whole levels as a source stores them, [64, 256], and their steps, [64, 8]."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(5, (64, 8, 32)).astype(np.float32) * np.float32(0.02)
    steps = rounded(np.abs(drawn).max(-1) / np.float32(high), step)
    levels = np.clip(np.rint(drawn / steps[..., None]), low, high).astype(np.float32)
    return rounded((levels * steps[..., None]).reshape(64, 256), source), steps


def restored(blocks: np.ndarray, kind: str, source: BlockType) -> np.ndarray:
    return rounded(decode(blocks, kind, 256), source)


@pytest.mark.parametrize("source", FLOATS, ids=str)
@pytest.mark.parametrize("step", [BF16, F16], ids=str)
@pytest.mark.parametrize("low", [-7, -8])
def test_the_step_of_a_grid_is_found(low: int, step: BlockType, source: BlockType) -> None:
    weights, _ = on_grid(low, 7, step, source)
    found = fit_grid(weights, BLOCK_TYPES["Q4_0"], source)
    assert found.exact.all()
    assert found.error == 0
    assert np.array_equal(restored(found.blocks, "Q4_0", source), weights)
    if low == -7:  # ggml's rule puts the largest magnitude on -8, which such a grid has not
        assert not (restored(encode(weights, "Q4_0"), "Q4_0", source) == weights).reshape(-1, 32).all(axis=1).any()


@pytest.mark.parametrize(("kind", "low", "high"), [("Q5_0", -16, 15), ("Q8_0", -128, 127), ("Q4_0", -8, 7)])
def test_a_known_step_needs_no_search(kind: str, low: int, high: int) -> None:
    weights, steps = on_grid(low, high, BF16, F32)
    assert fit_grid(weights, BLOCK_TYPES[kind], F32, steps=steps).exact.all()


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_an_offset_of_float16_is_found(kind: str) -> None:
    rng = np.random.default_rng(1)
    levels, steps = rng.integers(0, 16, (64, 8, 32)), np.float32(2.0 ** rng.integers(-9, -5, (64, 8, 1)))
    weights = ((levels - 5) * steps).astype(np.float32).reshape(64, 256)
    assert fit_grid(weights, BLOCK_TYPES[kind], F32).exact.all()


def test_a_step_that_float16_has_not_comes_near_and_is_not_called_exact() -> None:
    weights, _ = on_grid(-7, 7, F32, F32)
    found = fit_grid(weights, BLOCK_TYPES["Q4_0"], F32)
    assert not found.exact.any()
    assert found.near.mean() < 0.1
    wrong = np.abs(restored(found.blocks, "Q4_0", F32) - weights)
    assert found.error == wrong.max()
    assert (wrong <= np.abs(weights) * 2.0**-11).all()  # half the last place of float16: the codes are the grid's
    stored = rounded(weights, BF16)
    assert fit_grid(stored, BLOCK_TYPES["Q4_0"], BF16).near.all()


@pytest.mark.parametrize("kind", ["MXFP4", "Q4_0", "Q4_1", "Q5_0"])
def test_genuine_weights_get_the_encoding_of_ggml(kind: str) -> None:
    weights = rounded(np.random.default_rng(2).standard_normal((8, 256)).astype(np.float32), BF16)
    found = fit_grid(weights, BLOCK_TYPES[kind], BF16)
    assert not found.exact.any()
    assert np.array_equal(found.blocks, encode(weights, kind))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e-30, 3e38])
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_odd_blocks_are_what_decoding_says(kind: str, value: float) -> None:
    weights = np.full((1, 64), value, np.float32)
    weights[0, 32:] = np.arange(32) % 8 / 8
    steps = np.full((1, 2), 0.125, np.float32)
    for known in (None, steps):
        found = fit_grid(weights, BLOCK_TYPES[kind], F32, steps=known)
        decoded = decode(found.blocks, kind, 64)
        same = ((decoded == weights) & np.isfinite(weights)).reshape(-1, 32).all(axis=1)
        assert np.array_equal(found.exact.ravel(), same)


def test_mxfp4_is_restored_from_floats() -> None:
    rng = np.random.default_rng(3)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    codes, signs = rng.integers(0, 8, (16, 256)), rng.choice([-1, 1], (16, 256))
    scales = np.float32(2.0 ** rng.integers(-12, -3, (16, 8))).repeat(32, axis=1)
    weights = (values[codes] * signs * scales).astype(np.float32)
    assert fit_grid(weights, BLOCK_TYPES["MXFP4"], BF16).exact.all()
