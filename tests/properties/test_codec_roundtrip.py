"""What encoding and decoding keep for any weights: errors within a step, zeros, factors of two, rows apart."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import kvant
from kvant.dtypes import BLOCK_TYPES, Family
from kvant.kernels import _ext, transcode

ENCODED = [name for name, _, _, _, plain, _, _ in _ext.types() if plain]
QUANTIZED = [name for name in ENCODED if BLOCK_TYPES[name].is_quantized]
# NVFP4's scales have a range of seven binades, so multiplying weights by four can saturate them.
SCALABLE = [name for name in QUANTIZED if name != "NVFP4"]
# ggml fits one scale to all runs of an IQ1_M block, whose steps are rounded to eight: small runs may be too large.
BOUNDED = [name for name in QUANTIZED if name != "IQ1_M"]
# Largest error over the largest magnitude of the block: half a step, and the rounding of a float16 scale.
STEP = {"Q8_0": 1 / 127, "Q5_0": 1 / 16, "Q4_0": 1 / 8}
HALF_SCALE = 2.0**-11

ordinary = st.floats(-(2.0**6), 2.0**6, width=32).map(lambda v: 0.0 if abs(v) < 2.0**-8 else v)
# 768 weights out of a few drawn ones: small inputs that Hypothesis can shrink.
rows_of_256 = st.builds(
    lambda palette, seed: np.random.default_rng(seed).choice(np.array(palette, np.float32), (3, 256)),
    st.lists(ordinary, min_size=1, max_size=20),
    st.integers(0, 99),
)


@given(x=rows_of_256)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", BOUNDED)
def test_decoded_weights_are_no_larger_than_the_largest_allows(name: str, x: np.ndarray) -> None:
    decoded = kvant.decode(kvant.encode(x, name), name, 256)
    assert decoded.shape == x.shape
    assert np.isfinite(decoded).all()
    # Q2_0's highest code is twice the scale, E2M1's largest level 1.5 times the power of two below the largest weight.
    assert np.abs(decoded).max() <= 2.01 * np.abs(x).max()


@given(x=rows_of_256)
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("name", list(STEP))
def test_rounding_is_within_half_a_step(name: str, x: np.ndarray) -> None:
    blocks = x.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True).astype(np.float64)
    error = np.abs(kvant.decode(kvant.encode(x, name), name, 256).reshape(-1, 32) - blocks.astype(np.float64))
    # The symmetric types put the largest magnitude on the lowest code; the opposite sign ends one step short.
    steps = 0.5 if name == "Q8_0" else 1.0
    assert (error <= largest * (STEP[name] * steps + HALF_SCALE) * (1 + 1e-6)).all()


@given(x=rows_of_256)
@settings(max_examples=25, deadline=None)
def test_halves_are_exact_after_one_rounding(x: np.ndarray) -> None:
    for name in ("F16", "BF16"):
        once = kvant.encode(x, name)
        assert np.array_equal(kvant.encode(kvant.decode(once, name, 256), name), once)
    assert np.array_equal(kvant.decode(kvant.encode(x, "F16"), "F16", 256), x.astype(np.float16).astype(np.float32))


@given(x=rows_of_256, binades=st.integers(-2, 2))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", SCALABLE)
def test_a_power_of_two_passes_through(name: str, x: np.ndarray, binades: int) -> None:
    """Codes do not change when all weights are multiplied by a power of two and scales stay normal."""
    scales = np.abs(x.reshape(-1, BLOCK_TYPES[name].block_length)).max(axis=1)
    if BLOCK_TYPES[name].family in (Family.K_QUANT, Family.IQ4):
        x = np.where(np.abs(x) < 1, np.float32(1), x)  # their inner scales are rounded: keep them far from underflow
    elif (scales[scales > 0] < 0.25).any():
        x = np.where(np.abs(x) < 0.25, np.float32(0.25), x)
    factor = np.float32(2.0**binades)
    plain = kvant.decode(kvant.encode(x, name), name, 256)
    scaled = kvant.decode(kvant.encode(x * factor, name), name, 256)
    assert np.array_equal(scaled, plain * factor)


@given(x=rows_of_256)
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("name", ENCODED)
def test_rows_do_not_see_each_other(name: str, x: np.ndarray) -> None:
    together = kvant.encode(x, name)
    assert np.array_equal(np.concatenate([kvant.encode(row[None], name) for row in x]), together)
    assert np.array_equal(transcode(x.view(np.uint8), "F32", name, 256), together)


@given(data=st.data(), name=st.sampled_from([name for name, *_, decodes in _ext.types() if decodes]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_decode(data: st.DataObject, name: str) -> None:
    """No byte pattern is out of bounds of a table: decoders take what a hostile file holds."""
    size = BLOCK_TYPES[name].row_bytes(256)
    blocks = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)[None]
    assert kvant.decode(blocks, name, 256).shape == (1, 256)


@pytest.mark.parametrize("name", ENCODED)
def test_zeros_stay_zeros(name: str) -> None:
    assert not kvant.decode(kvant.encode(np.zeros((2, 256), np.float32), name), name, 256).any()
