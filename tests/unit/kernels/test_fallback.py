import sys
from collections.abc import Iterator

import numpy as np
import pytest

import kvant
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
