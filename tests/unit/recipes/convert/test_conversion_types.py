"""Which type every tensor gets, for GGUFs of any architecture."""

import numpy as np
import pytest

from kvant.dtypes import BLOCK_TYPES
from kvant.errors import UnsupportedFormatError
from kvant.recipes.convert.convert import Format, conversion_type
from kvant.recipes.convert.writers import converted_type
from kvant.tensors import LazyTensor


def tensor(name: str, shape: tuple[int, ...], kind: str = "BF16") -> LazyTensor:
    return LazyTensor(name=name, shape=shape, block_type=BLOCK_TYPES[kind], read=lambda *_: np.empty(0, np.uint8))


@pytest.mark.parametrize(
    ("name", "shape", "kind", "expected"),
    [
        ("blk.0.ffn_up.weight", (8, 64), "BF16", "Q8_0"),
        ("token_embd.weight", (8, 64), "F16", "Q8_0"),
        ("blk.0.ffn_down_exps.weight", (4, 8, 64), "Q4_K", "Q8_0"),
        ("blk.0.ffn_up.weight", (8, 48), "BF16", "F16"),
        ("blk.0.attn_norm.weight", (64,), "BF16", "F32"),
        ("blk.0.attn_q_norm.weight", (8, 64), "BF16", "F32"),
        ("blk.0.attn_q.bias", (64,), "F16", "F32"),
        ("blk.0.ssm_a", (64, 64), "F32", "F32"),
        ("blk.0.ffn_gate_inp.weight", (4, 64), "F32", "F32"),
        ("blk.0.ffn_gate_inp_shexp.weight", (4, 64), "F32", "F32"),
        ("position_embd.weight", (4, 64), "F16", "F32"),
        ("blk.0.tid2eid.weight", (4, 64), "I32", "I32"),
    ],
)
def test_types_at_q8_0(name: str, shape: tuple[int, ...], kind: str, expected: str) -> None:
    assert converted_type(tensor(name, shape, kind), BLOCK_TYPES["Q8_0"]).name == expected


@pytest.mark.parametrize(("name", "to"), [("Q4_K", "gguf"), ("Q8_0", "hf"), ("", "gguf"), ("I32", "gguf")])
def test_other_types_are_refused(name: str, to: Format) -> None:
    with pytest.raises(UnsupportedFormatError, match="kvant quantize"):
        conversion_type(name, to)
