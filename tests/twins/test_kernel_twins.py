"""The native kernels against their NumPy twins and against themselves: levels, threads, pieces of rows, the fused path.

Not checked here: weights that are not finite, or so large or small that searches overflow; ggml is the oracle for them.
"""

from functools import cache

import numpy as np
import pytest

import kvant
from kvant.dtypes import BLOCK_TYPES, Family
from kvant.errors import BlockShapeError, FormatError, UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, isa, reference, transcode

ENCODED = [name for name, _, _, _, plain, _, _ in _ext.types() if plain]
WITH_TWIN = [name for name in (*reference.ENCODERS, *reference.SEARCHING_ENCODERS) if name in ENCODED]
CODEBOOK = {name for name, kind in BLOCK_TYPES.items() if kind.family == Family.CODEBOOK}
N = 768
IMPORTANCE = np.random.default_rng(1).random(N).astype(np.float32) ** 2


def weights(rows: int = 19, n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (rows, n)).astype(np.float32)


@pytest.fixture(params=isa.levels())
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KVANT_ISA", request.param)
    return str(request.param)


@cache
def twin(name: str, rows: int, weighted: bool) -> np.ndarray:
    """The twin's bytes, once for all levels."""
    return reference.encode(weights(rows), name, IMPORTANCE if weighted else None)


@pytest.mark.parametrize("name", WITH_TWIN)
@pytest.mark.usefixtures("level")
def test_encoder_equals_its_twin(name: str) -> None:
    for rows in (1, 7) if name in CODEBOOK else (1, 16, 19):  # blocks of codebook types are lanes, whatever their rows
        assert np.array_equal(kvant.encode(weights(rows), name), twin(name, rows, False))


@pytest.mark.parametrize("name", [*reference.SEARCHING_ENCODERS, *sorted(reference.WEIGHTED_ROWS)])
@pytest.mark.usefixtures("level")
def test_weighted_encoder_equals_its_twin(name: str) -> None:
    rows = 7 if name in CODEBOOK else 19
    found = kvant.encode(weights(rows), name, importance=IMPORTANCE)
    assert np.array_equal(found, twin(name, rows, True))


@cache
def odd_case(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of runs that are empty, equal, sparse, tiny or positive; importance with zeros; the twin's bytes."""
    x = weights(6)
    x[0, 100:356], x[1], x[2] = 0, 0.375, np.where(np.arange(N) % 9, 0, x[2])
    x[3], x[4] = x[3] * np.float32(1e-9), np.abs(x[4])
    x[5, 300:500] *= np.float32(3e-39)
    importance = np.where(np.arange(N) % 3, IMPORTANCE, np.float32(0))
    return x, importance, reference.encode(x, name, importance)


@pytest.mark.parametrize("name", sorted(CODEBOOK))
@pytest.mark.usefixtures("level")
def test_codebook_encoder_equals_its_twin_on_odd_rows(name: str) -> None:
    x, importance, expected = odd_case(name)
    assert np.array_equal(kvant.encode(x, name, importance=importance), expected)


@pytest.mark.parametrize("name", list(reference.DECODERS))
@pytest.mark.usefixtures("level")
def test_decoder_equals_its_twin(name: str) -> None:
    blocks = np.random.default_rng(2).integers(0, 256, (19, BLOCK_TYPES[name].row_bytes(N)), np.uint8)
    found, expected = kvant.decode(blocks, name, N), reference.decode(blocks, name, N)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found)[expected == 0], np.signbit(expected)[expected == 0])


def test_every_type_has_a_decoding_twin() -> None:
    assert list(reference.DECODERS) == [name for name, *_, decodes in _ext.types() if decodes]


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_K", "IQ4_XS", "F16"])
def test_threads_and_pieces_do_not_change_a_byte(name: str) -> None:
    x = weights(600)  # more rows than one piece of work holds
    whole = kvant.encode(x, name, threads=1)
    assert np.array_equal(kvant.encode(x, name, threads=3), whole)
    assert np.array_equal(np.concatenate([kvant.encode(x[:7], name), kvant.encode(x[7:], name)]), whole)
    assert np.array_equal(kvant.decode(whole, name, N, threads=3), kvant.decode(whole, name, N, threads=1))


@pytest.mark.parametrize("source", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "IQ3_XXS"])
@pytest.mark.usefixtures("level")
def test_transcode_equals_decode_then_encode(source: str) -> None:
    x = weights()
    data = kvant.encode(x, source)
    decoded = kvant.decode(data, source, N)
    importance = x[0] ** 2
    for target in {*ENCODED, *CODEBOOK} - {source}:
        if target in ENCODED:
            assert np.array_equal(transcode(data, source, target, N), kvant.encode(decoded, target)), target
        weighted = transcode(data, source, target, N, importance=importance)
        assert np.array_equal(weighted, kvant.encode(decoded, target, importance=importance)), target


def test_transcode_of_long_rows_in_threads_equals_one_thread() -> None:
    x = weights(70, 8192)  # rows longer than a tile
    data, importance = kvant.encode(x, "F16"), x[0] ** 2
    for target in ("Q8_0", "Q4_K"):
        assert np.array_equal(
            transcode(data, "F16", target, 8192, threads=3), kvant.encode(x.astype("f2").astype("f4"), target)
        )
    one, three = (transcode(data, "F16", "Q4_0", 8192, importance=importance, threads=t) for t in (1, 3))
    assert np.array_equal(one, three)


def test_same_type_is_copied_even_with_nan() -> None:
    data = kvant.encode(np.full((2, 32), np.nan, np.float32), "F16")
    copy = transcode(data, "F16", "F16", 32)
    assert np.array_equal(copy, data)
    assert not np.shares_memory(copy, data)


@pytest.mark.parametrize("target", ["Q8_0", "Q4_K", "IQ2_S"])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
def test_transcode_names_the_first_weight_that_is_not_finite(source: str, target: str) -> None:
    x = weights(400)
    x[311, 17], x[311, 700], x[390, 0] = -np.inf, np.nan, np.nan
    with pytest.raises(ValueRangeError, match=r"row 311, column 17: -inf is not a finite weight\. .+"):
        transcode(kvant.encode(x, source), source, target, N, threads=2)
    with pytest.raises(ValueRangeError, match="row 311, column 17"):
        transcode(kvant.encode(x, source), source, target, N, importance=np.ones(N, np.float32), threads=2)


@pytest.mark.parametrize("importance", [None, np.ones(N, np.float32)])
@pytest.mark.usefixtures("level")
def test_transcode_refuses_weights_that_overflow_the_target(importance: np.ndarray | None) -> None:
    x = weights(20)
    x[7, 300] = 65519.0  # the largest value that still rounds to a float16
    transcode(kvant.encode(x, "F32"), "F32", "F16", N, importance=importance)
    x[7, 300], x[7, 301] = 1, -7e4
    for source in ("F32", "BF16"):
        data = kvant.encode(x, source)
        with pytest.raises(
            ValueRangeError, match=r"row 7, column 301: -[67].* is too large for F16 here\. Use F32, .+"
        ):
            transcode(data, source, "F16", N, importance=importance)
        for fits in ("BF16", "Q8_0", "Q4_0"):
            decoded = kvant.decode(data, source, N)
            found = transcode(data, source, fits, N, importance=importance)
            assert np.array_equal(found, kvant.encode(decoded, fits, importance=importance))
    x[9, 5] = 3e30  # the block is refused, by the weight that is in its way
    with pytest.raises(ValueRangeError, match="row 9, column 5: 3e\\+30 is too large for Q8_0"):
        transcode(kvant.encode(x, "F32"), "F32", "Q8_0", N, importance=importance)


def test_transcode_refuses_what_does_not_fit() -> None:
    data = kvant.encode(weights(2, 96), "F16")
    with pytest.raises(BlockShapeError, match="row length 96 is not a multiple of the Q4_K block length 256"):
        transcode(data, "F16", "Q4_K", 96)
    with pytest.raises(FormatError, match="not whole rows of 256 bytes"):
        transcode(data, "F16", "Q8_0", 128)
    with pytest.raises(ValueRangeError, match="importance"):
        transcode(data, "F16", "Q8_0", 96, importance=np.ones(32, np.float32))
    with pytest.raises(UnsupportedFormatError, match="I32 holds no encoded weights"):
        transcode(np.zeros((1, 384), np.uint8), "I32", "Q8_0", 96)


def test_decode_refuses_what_does_not_fit() -> None:
    with pytest.raises(FormatError, match="33 values of uint8 are not whole rows of 34 bytes"):
        kvant.decode(np.zeros(33, np.uint8), "Q8_0", 32)
    with pytest.raises(BlockShapeError, match="row length 0"):
        kvant.decode(np.zeros(0, np.uint8), "Q8_0", 0)
    with pytest.raises(FormatError, match="float32"):
        kvant.decode(np.zeros(34, np.float32), "Q8_0", 32)
    assert kvant.decode(np.zeros((0, 34), np.uint8), "Q8_0", 32).shape == (0, 32)
