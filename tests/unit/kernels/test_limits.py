"""What codebook types are not encoded from, and what the importance they get is made of."""

import subprocess
import sys

import numpy as np
import pytest

import kvant
from kvant import kernels
from kvant.dtypes import BLOCK_TYPES, Family
from kvant.errors import ValueRangeError

X = np.random.default_rng(0).standard_normal((7, 256)).astype(np.float32)
CODEBOOKS = [name for name, kind in BLOCK_TYPES.items() if kind.family == Family.CODEBOOK]


# Source: ggml.c `ggml_quantize_requires_imatrix`.
@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ1_S"])
def test_importance_is_asked_for_where_ggml_asks(name: str) -> None:
    with pytest.raises(ValueRangeError, match=rf"^importance: none given, and {name} is encoded only with it\. "):
        kvant.encode(X, name)
    with pytest.raises(ValueRangeError, match=rf"^importance: none given, and {name} is encoded only with it\. "):
        kernels.transcode(X.view(np.uint8), "F32", name, 256)


def test_no_rows_give_no_bytes() -> None:
    assert kvant.encode(X[:0], "IQ3_S").shape == (0, 110)
    assert kvant.encode(X[:0], "Q4_K").shape == (0, 144)


FIRST_USE = """
import sys, threading
import numpy as np
from kvant import kernels

x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
names, found = sys.argv[1:], {}
def work(name, k):
    found[name, k] = kernels.encode(x, name, importance=x[0] ** 2)
threads = [threading.Thread(target=work, args=(name, k)) for k in range(3) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
for (name, k), blocks in found.items():
    assert np.array_equal(blocks, kernels.encode(x, name, importance=x[0] ** 2)), name
assert len(found) == 3 * len(names)
"""


@pytest.mark.heavy
def test_first_uses_of_codebooks_at_once_give_the_same() -> None:
    subprocess.run([sys.executable, "-c", FIRST_USE, *CODEBOOKS], check=True, timeout=60)


@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("weight", [np.inf, -np.inf, np.nan, 3.4e38, -1e30, 4e7])
def test_weights_that_end_ggml_are_refused_by_row_and_column(name: str, weight: float) -> None:
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
