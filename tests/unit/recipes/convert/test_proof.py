"""Tests of what is looked at in files that another program made."""

from pathlib import Path

import numpy as np
import pytest

from kvant.dtypes import F32
from kvant.errors import ValueRangeError
from kvant.model import Model
from kvant.recipes.convert.proof import check_finite
from kvant.tensors import LazyTensor


@pytest.mark.parametrize(
    ("name", "value", "is_good"),
    [
        ("a.blk.0.attn_q.input_max", np.inf, True),  # Gemma 4's ears: nothing is clipped
        ("a.blk.0.attn_q.input_min", -np.inf, True),
        ("a.blk.0.attn_q.input_max", np.nan, False),
        ("a.blk.0.attn_q.weight", np.inf, False),
    ],
)
def test_bounds_alone_may_be_infinite(name: str, value: float, is_good: bool) -> None:
    rows = np.array([[1, value]], np.float32).view(np.uint8)
    tensor = LazyTensor(name=name, shape=(1, 2), block_type=F32, read=lambda start, stop: rows[start:stop])
    model = Model(metadata={}, tensors={name: tensor}, path=Path("m"), files=())
    if is_good:
        check_finite(model)
        return
    with pytest.raises(ValueRangeError, match=f"{name}: row 0, column 1 is not finite as F32"):
        check_finite(model)
