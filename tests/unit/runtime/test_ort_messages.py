import numpy as np
import pytest

from kvant.errors import EngineError
from kvant.runtime.ort_messages import Array, packed, unpacked


def test_arrays_come_back_and_what_is_none_is_an_error() -> None:
    given = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    np.testing.assert_array_equal(unpacked(packed(given))["x"], given["x"])
    for dtype, shape, data in (
        ("O", (1,), b"12345678"),
        ("<f4", (3,), b"1234"),
        ("what", (1,), b""),
        ("<f4", (-2,), b"12"),
    ):
        with pytest.raises(EngineError, match="sends what is no array"):
            unpacked([Array("x", dtype, shape, data)])
