"""Encoders that round against ggml on rows made to sit on their edges: ties, halves, binades, mixed zeros, odd lengths.

`test_ggml_encoders.py` has the distributions; this file has what a distribution seldom hits.
"""

from collections.abc import Iterator

import numpy as np
import pytest

import kvant
from ggml_oracle import ggml_encode
from kvant.dtypes import BLOCK_TYPES
from kvant.kernels import isa, reference

ROUNDED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"]
SEARCHED = ["IQ4_NL", "IQ4_XS"]


def edges(rows: int, n: int) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng([rows, n])
    shape = (rows, n)
    signs = np.where(rng.random(shape) < 0.5, np.float32(-1), np.float32(1))
    yield "largest value twice, once negative", signs * rng.integers(0, 4, shape).astype(np.float32)
    yield "halves of the 8-bit grid", rng.integers(-255, 256, shape).astype(np.float32) / 2
    yield "halves of the 4-bit grid", rng.integers(-16, 17, shape).astype(np.float32) / 4
    yield "zeros of both signs", signs * 0
    yield "zeros of both signs and positives", np.where(rng.random(shape) < 0.5, signs * 0, np.abs(signs))
    yield "zeros of both signs and negatives", np.where(rng.random(shape) < 0.5, signs * 0, -np.abs(signs))
    powers = np.exp2(rng.integers(-120, 120, shape)).astype(np.float32)
    yield "powers of two", signs * powers
    yield "just below powers of two", signs * np.nextafter(powers, np.float32(0))
    yield "bfloat16", (rng.standard_normal(shape).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    yield "one scale per 32", signs * np.repeat(10 ** rng.uniform(-45, 38, (rows, n // 32)), 32, axis=1)
    yield "inverse overflows", signs * np.float32(2e-39)
    yield "range overflows", signs * np.float32(3e38)
    weights = rng.standard_normal(shape).astype(np.float32)
    yield "negative NaN", np.where(rng.random(shape) < 0.05, np.copysign(np.float32(np.nan), np.float32(-1)), weights)
    yield "NaN, then large", np.where(rng.random(shape) < 0.05, np.nan, weights * 10 ** rng.uniform(0, 12, shape))


@pytest.mark.parametrize("level", isa.levels())
@pytest.mark.parametrize("name", [*ROUNDED, *SEARCHED])
def test_edges_equal_ggml(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_ISA", level)
    target = BLOCK_TYPES[name]
    for rows, n in ((67, 256), (3, 512)):
        for label, x in edges(rows, n):
            x = x.astype(np.float32)
            assert np.array_equal(kvant.encode(x, name, threads=1), ggml_encode(x, target)), label


@pytest.mark.parametrize("name", [*ROUNDED, *SEARCHED])
def test_numpy_twin_equals_ggml_on_edges(name: str) -> None:
    for label, x in edges(19, 256):
        x = x.astype(np.float32)
        assert np.array_equal(reference.encode(x, name), ggml_encode(x, BLOCK_TYPES[name])), label


@pytest.mark.parametrize("level", isa.levels())
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"])
def test_short_and_odd_rows_equal_ggml(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_ISA", level)
    target = BLOCK_TYPES[name]
    for rows, n in ((1, 32), (1, 96), (17, 32), (16, 160), (33, 576)):
        x = np.random.default_rng([rows, n]).standard_normal((rows, n)).astype(np.float32)
        importance = x[0] ** 2
        assert np.array_equal(kvant.encode(x, name), ggml_encode(x, target)), (rows, n)
        weighted = kvant.encode(x, name, importance=importance)
        assert np.array_equal(weighted, ggml_encode(x, target, importance)), (rows, n)


@pytest.mark.parametrize("level", isa.levels())
def test_iq4_values_change_code_at_their_midpoints(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks whose scale comes out near 1, so that weights sit on and next to every midpoint of the values."""
    monkeypatch.setenv("KVANT_ISA", level)
    values = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
    middles = (values[1:] + values[:-1]) / 2
    near = np.stack([middles, np.nextafter(middles, np.float32(-200)), np.nextafter(middles, np.float32(200))])
    rows = [np.concatenate([values, step]) for step in near]
    x = np.pad(np.stack(rows), ((0, 0), (0, 1)), constant_values=np.float32(-127)).astype(np.float32)
    x = np.concatenate([x * scale for scale in (1, 0.5, 3e-5)]).astype(np.float32)
    assert np.array_equal(kvant.encode(x, "IQ4_NL"), ggml_encode(x, BLOCK_TYPES["IQ4_NL"]))


@pytest.mark.parametrize("level", isa.levels())
@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_halves_round_as_ggml_does(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every upper half of a float32 with lower halves at, below and above every rounding edge, NaNs included."""
    monkeypatch.setenv("KVANT_ISA", level)
    upper = np.arange(65536, dtype=np.uint32) << 16
    for lower in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (upper | np.uint32(lower)).view(np.float32)[None]
        assert np.array_equal(kvant.encode(x, name), ggml_encode(x, BLOCK_TYPES[name])), hex(lower)
    x = np.random.default_rng(4).standard_normal((3, 21)).astype(np.float32)
    assert np.array_equal(kvant.encode(x, name), ggml_encode(x, BLOCK_TYPES[name]))
