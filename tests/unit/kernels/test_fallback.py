import sys
from collections.abc import Iterator

import numpy as np
import pytest

import kvant
from kvant import kernels
from kvant.dtypes import BLOCK_TYPES, Family
from kvant.errors import MissingDependencyError, ValueRangeError
from kvant.kernels import fallback

X = np.random.default_rng(0).standard_normal((7, 256)).astype(np.float32)


@pytest.fixture
def without_libgguf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "libgguf", None)
    fallback._libgguf.cache_clear()
    yield
    fallback._libgguf.cache_clear()


@pytest.mark.usefixtures("without_libgguf")
def test_missing_package_is_named_with_what_to_do() -> None:
    with pytest.raises(MissingDependencyError, match=r"^libgguf: not installed, .*pip install libgguf.* or use IQ4_XS"):
        kvant.encode(X, "IQ3_S")


@pytest.mark.usefixtures("without_libgguf")
def test_native_types_do_not_need_the_package() -> None:
    assert kvant.encode(X, "Q4_K").shape == (7, 144)


@pytest.mark.parametrize("name", sorted(fallback.NEEDS_IMPORTANCE))
def test_importance_is_asked_for_where_ggml_asks(name: str) -> None:
    with pytest.raises(ValueRangeError, match=rf"^importance: none given, and {name} is encoded only with it\. "):
        kvant.encode(X, name)


def test_threads_do_not_change_bytes() -> None:
    assert np.array_equal(kvant.encode(X, "IQ3_S", threads=3), kvant.encode(X, "IQ3_S", threads=1))


def test_no_rows_give_no_bytes() -> None:
    assert kvant.encode(X[:0], "IQ3_S").shape == (0, 110)
    assert kvant.encode(X[:0], "Q4_K").shape == (0, 144)


CODEBOOKS = [name for name, kind in BLOCK_TYPES.items() if kind.family == Family.CODEBOOK]


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("weight", [np.inf, -np.inf, np.nan, 3.4e38, -1e30, 4e7])
def test_weights_that_end_libgguf_are_refused_by_row_and_column(name: str, weight: float) -> None:
    x = X.copy()
    x[3, 17] = weight
    importance = np.ones(256, np.float32)
    with pytest.raises(ValueRangeError, match=r"^row 3, column 17: .* (is not a finite weight|is too large for IQ)"):
        kvant.encode(x, name, importance=importance)
    with pytest.raises(ValueRangeError, match=r"^row 3, column 17: "):
        kernels.transcode(x.view(np.uint8), "F32", name, 256, importance=importance)


def test_weights_whose_scale_would_be_infinite_are_refused() -> None:
    x = X.copy()
    x[2] = 3.3e7
    with pytest.raises(ValueRangeError, match=r"^row 2, column 0: 3\.3e\+07 is too large for IQ3_S here"):
        kvant.encode(x, "IQ3_S")


@pytest.mark.parametrize("power", [-120, -60, 44, 120])
@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_XXS", "IQ3_S"])
def test_only_the_ratios_of_importance_count(name: str, power: int) -> None:
    importance = np.random.default_rng(1).random(256, dtype=np.float32) + np.float32(0.01)
    expected = kvant.encode(X, name, importance=importance)
    found = kvant.encode(X, name, importance=np.ldexp(importance, power))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_importance_that_is_none_is_refused(value: float) -> None:
    importance = np.ones(256, np.float32)
    importance[9] = value
    for name in ("IQ3_S", "Q4_K", "Q8_0"):
        with pytest.raises(ValueRangeError, match=r"^importance: column 9 is "):
            kvant.encode(X, name, importance=importance)
