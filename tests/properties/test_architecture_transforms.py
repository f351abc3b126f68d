"""What a family does to a tensor on the way in, it undoes on the way out, in any window of rows."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvant.dtypes import F16, F32
from kvant.formats.huggingface.architectures.transforms import PLUS_ONE, ROTARY, interleave_order
from kvant.formats.huggingface.config import Config
from kvant.tensors import array_tensor

HEADS, HALVES = st.integers(1, 9), st.integers(1, 20)


@given(heads=HEADS, half=HALVES)
def test_rotary_order_pairs_the_halves_of_every_head(heads: int, half: int) -> None:
    order = interleave_order(heads, 2 * heads * half).reshape(heads, half, 2)
    assert sorted(order.reshape(-1).tolist()) == list(range(2 * heads * half))
    assert (order[..., 1] - order[..., 0] == half).all()
    assert (order // (2 * half) == np.arange(heads)[:, None, None]).all()


@given(heads=HEADS, half=HALVES, columns=st.integers(1, 7), data=st.data())
def test_rotary_rows_come_back(heads: int, half: int, columns: int, data: st.DataObject) -> None:
    rows = 2 * heads * half
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float16)
    config = Config(values={"num_attention_heads": heads}, path=Path("config.json"))
    tensor = array_tensor("blk.0.attn_q.weight", values, F16)
    transform = ROTARY["attn_q"]
    assert transform.back is not None
    back = transform.back(transform.forward(tensor, config), config)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert np.array_equal(back.read_bytes(start, stop), tensor.read_bytes(start, stop))


@given(st.lists(st.integers(-(1 << 20), 1 << 20), min_size=1, max_size=50))
def test_norms_on_a_grid_of_2_to_the_minus_20_come_back(steps: list[int]) -> None:
    values = (np.array(steps) / (1 << 20)).astype(np.float32)
    config = Config(values={}, path=Path("config.json"))
    tensor = array_tensor("output_norm.weight", values, F32)
    assert PLUS_ONE.back is not None
    back = PLUS_ONE.back(PLUS_ONE.forward(tensor, config), config)
    assert np.array_equal(back.read_bytes(0, 1).view(np.float32)[0], values)
