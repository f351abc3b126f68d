"""Finding the grid of an earlier quantization, and never in weights that have none."""

import numpy as np
import pytest

from kvant.kernels import decode, encode
from kvant.recipes.inspect.grid import find_grid

ROWS, LENGTH = 16, 1536


def genuine(name: str) -> np.ndarray:
    """Weights as training leaves them, float32 [16, 1536]."""
    rng = np.random.default_rng(5)
    values = {
        "normal": lambda: 0.02 * rng.standard_normal((ROWS, LENGTH)),
        "heavy-tailed": lambda: 0.02 * rng.standard_t(3, (ROWS, LENGTH)),
        "laplace": lambda: rng.laplace(size=(ROWS, LENGTH)),
        "uniform": lambda: rng.random((ROWS, LENGTH)) - 0.5,
        "positive": lambda: rng.random((ROWS, LENGTH)) + 0.25,
        "pruned": lambda: rng.standard_normal((ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < 0.4),
        "tiny": lambda: 1e-30 * rng.standard_normal((ROWS, LENGTH)),
    }[name]()
    return values.astype(np.float32)


def stored(values: np.ndarray, kind: str) -> np.ndarray:
    """Round float32 values to a float type and back, without the code under test."""
    if kind == "F16":
        return values.astype(np.float16).astype(np.float32)
    if kind == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view(np.float32)
    return values


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["normal", "heavy-tailed", "laplace", "uniform", "positive", "pruned", "tiny"])
def test_no_false_alarm(name: str, kind: str) -> None:
    if (name, kind) == ("tiny", "F16"):  # all zero in float16
        assert not stored(genuine(name), kind).any()
    assert find_grid([stored(genuine(name), kind)]) is None


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["normal", "heavy-tailed", "laplace"])
@pytest.mark.parametrize(
    ("block_type", "bits"),
    [
        ("Q4_0", {4}), ("Q4_1", {4}), ("Q5_0", {5}), ("Q5_1", {5}), ("Q8_0", {8}), ("IQ4_NL", {4}), ("MXFP4", {4}),
        ("Q2_K", {2, 3}), ("Q3_K", {3}), ("Q4_K", {4}), ("Q5_K", {5}), ("Q6_K", {6, 7, 8}),
    ],
)  # fmt: skip
def test_decoded_blocks_are_told(block_type: str, bits: set[int], name: str, kind: str) -> None:
    decoded = decode(encode(genuine(name), block_type), block_type, LENGTH)
    assert find_grid([stored(decoded, kind)]) in bits


def test_several_samples_count_together() -> None:
    values = decode(encode(genuine("normal"), "Q4_0"), "Q4_0", LENGTH)
    assert find_grid([row[None] for row in values]) == 4
    assert find_grid([values[:4], genuine("normal")]) is None


@pytest.mark.parametrize(
    "values",
    [
        np.empty((0, 64), np.float32), np.zeros((9, 5), np.float32), np.zeros((64, 64), np.float32),
        np.full((64, 64), np.nan, np.float32), np.full((64, 64), np.inf, np.float32),
        np.tile(np.array([0, 1], np.float32), (64, 32)),
    ],
)  # fmt: skip
def test_nothing_to_tell(values: np.ndarray) -> None:
    assert find_grid([values]) is None
    assert find_grid([]) is None
