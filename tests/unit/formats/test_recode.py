"""Weights converted between types as they are read, and weights that do not fit refused by name."""

import numpy as np
import pytest

from kvant.dtypes import BF16, BLOCK_TYPES, F16, F32
from kvant.errors import ValueRangeError
from kvant.formats.recode import recoded
from kvant.kernels import encode
from kvant.tensors import LazyTensor, array_tensor

ROWS, N = 9, 64


def floats(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, N)).astype(np.float32)


def bf16(values: np.ndarray, name: str = "blk.0.ffn_up.weight") -> LazyTensor:
    return array_tensor(name, (values.view(np.uint32) >> 16).astype(np.uint16), BF16)


@pytest.mark.parametrize("target", ["F32", "F16", "BF16", "Q8_0"])
def test_any_window_of_rows_is_that_window_of_the_whole(target: str) -> None:
    values = floats()
    tensor = recoded(array_tensor("t", values, F32), BLOCK_TYPES[target])
    whole = encode(values, target)
    assert np.array_equal(tensor.read_bytes(0, ROWS), whole)
    assert np.array_equal(tensor.read_bytes(2, 5), whole[2:5])


def test_the_same_type_is_a_copy() -> None:
    values = floats()[:1]
    assert np.array_equal(recoded(array_tensor("t", values, F32), F32).read_bytes(0, 1), values.view(np.uint8))


def test_bf16_beyond_f16_is_refused_with_its_place() -> None:
    values = floats()
    values[7, 11] = 1e6
    tensor = recoded(bf16(values), F16)
    tensor.read_bytes(0, 7)
    with pytest.raises(
        ValueRangeError,
        match=r"blk\.0\.ffn_up\.weight: row 7, column 11: 999424 is too large for F16 here.*Use F32, or BF16",
    ):
        tensor.read_bytes(5, 9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("target", ["F16", "BF16", "Q8_0"])
def test_weights_that_are_no_numbers_are_refused_by_tensor(bad: float, target: str) -> None:
    values = floats()
    values[3, 5] = bad
    with pytest.raises(ValueRangeError, match=r"ffn_up\.weight: row 3, column 5: (nan|-?inf) is not"):
        recoded(bf16(values), BLOCK_TYPES[target]).read_bytes(0, ROWS)
