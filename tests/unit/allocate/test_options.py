import math

import pytest

from kvant.allocate.options import Option, allowed_types, stored_bytes, undominated
from kvant.errors import UnsupportedFormatError, ValueRangeError

TYPES = ("Q2_K", "Q4_0", "Q4_K", "IQ4_NL", "Q8_0")


def test_types_whose_blocks_divide_the_row() -> None:
    assert allowed_types("blk.0.attn_q.weight", (576, 576), TYPES) == ("Q4_0", "IQ4_NL", "Q8_0")
    assert allowed_types("blk.0.ffn_down.weight", (576, 1536), TYPES) == TYPES


def test_expert_stacks_are_matrices() -> None:
    assert allowed_types("blk.0.ffn_up_exps.weight", (8, 512, 256), TYPES) == TYPES


def test_names_in_any_case_and_each_once() -> None:
    assert allowed_types("output.weight", (64, 64), ("q8_0", "Q4_0", "Q8_0")) == ("Q8_0", "Q4_0")


def test_rows_that_no_block_divides_stay_in_half_precision() -> None:
    assert allowed_types("blk.0.ffn_up.weight", (64, 100), TYPES) == ("F16",)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("output_norm.weight", (576,)),
        ("blk.0.attn_q.bias", (64,)),
        ("blk.0.ffn_gate_inp.weight", (8, 256)),
        ("blk.0.attn_q.weight", (1, 256)),
    ],
)
def test_what_is_left_alone_has_no_types(name: str, shape: tuple[int, ...]) -> None:
    assert allowed_types(name, shape, TYPES) == ()


def test_some_architectures_leave_more_alone() -> None:
    name = "blk.0.attn_kv_a_mqa.weight"
    assert allowed_types(name, (256, 256), TYPES) == TYPES
    assert allowed_types(name, (256, 256), TYPES, architecture="glm5-next") == ()


def test_unknown_candidates_are_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="Q4_Z"):
        allowed_types("output.weight", (64, 64), ("Q4_Z",))


def test_bytes_in_the_file_are_padded() -> None:
    assert stored_bytes("output.weight", (3, 32), "Q4_0") == 64  # 54 and padding
    assert stored_bytes("output.weight", (3, 32), "Q4_0", alignment=1) == 54


@pytest.mark.parametrize("field", ["n_bytes", "cost", "seconds"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_options_that_do_not_add_up_are_refused(field: str, value: float) -> None:
    values = {"n_bytes": 1, "cost": 1.0, "seconds": 1.0, field: value}
    with pytest.raises(ValueRangeError, match=f"Q4_0: {field} {value}"):
        Option(kind="Q4_0", **values)  # type: ignore[arg-type]


def test_of_equal_options_the_first_by_name_stays() -> None:
    twins = [Option(kind=kind, n_bytes=8, cost=1) for kind in ("Q4_K", "IQ4_NL", "Q4_0")]
    assert [o.kind for o in undominated(twins)] == ["IQ4_NL"]


def test_speed_saves_an_option_where_it_matters() -> None:
    small = Option(kind="IQ3_S", n_bytes=8, cost=1, seconds=9)
    fast = Option(kind="Q4_0", n_bytes=9, cost=2, seconds=1)
    assert undominated([fast, small]) == (small, fast)
    assert undominated([fast, small], seconds_matter=False) == (small,)
