import dataclasses

import pytest

from kvant.quant.roles import Role
from kvant.quant.rules import Facts, expert_type, head_type, least_type, mixed_type

DENSE = Facts(
    architecture="llama", n_layers=16, n_attention_v=16, gqa=1, n_experts=0, is_70b=False, is_tied=False,
    has_importance=False,
)  # fmt: skip


def test_q4_k_m_gives_more_bits_to_the_ends_and_to_every_third_layer() -> None:
    given = [i for i in range(16) if mixed_type(Role.FFN_DOWN, "Q4_K_M", "Q4_K", i, 16, DENSE) == "Q6_K"]
    assert given == [0, 1, 4, 7, 10, 13, 14, 15]


@pytest.mark.parametrize(("gqa", "expected"), [(1, "Q3_K"), (3, "Q3_K"), (4, "Q4_K"), (8, "Q4_K")])
def test_shared_keys_earn_values_more_bits(gqa: int, expected: str) -> None:
    facts = dataclasses.replace(DENSE, gqa=gqa)
    assert mixed_type(Role.ATTENTION_V, "Q2_K", "Q2_K", 0, 16, facts) == expected


def test_eight_experts_earn_values_eight_bits_but_not_below_three() -> None:
    facts = dataclasses.replace(DENSE, n_experts=8)
    assert mixed_type(Role.ATTENTION_V, "Q4_K_S", "Q4_K", 9, 16, facts) == "Q8_0"
    assert mixed_type(Role.ATTENTION_V, "IQ2_XS", "IQ2_XS", 9, 16, facts) == "Q4_K"


def test_importance_changes_two_mixes() -> None:
    with_importance = dataclasses.replace(DENSE, has_importance=True)
    assert mixed_type(Role.FFN_DOWN, "Q4_0", "Q4_0", 0, 16, DENSE) == "Q4_0"
    assert mixed_type(Role.FFN_DOWN, "Q4_0", "Q4_0", 0, 16, with_importance) == "Q4_1"
    assert mixed_type(Role.FFN_DOWN, "IQ4_XS", "IQ4_XS", 0, 16, DENSE) == "Q5_K"
    assert mixed_type(Role.FFN_DOWN, "IQ4_XS", "IQ4_XS", 0, 16, with_importance) == "IQ4_XS"


def test_heads() -> None:
    assert head_type("Q4_K_M", "Q4_K", DENSE, base_fits=True) == "Q6_K"
    assert head_type("Q4_K_M", "Q4_K", DENSE, base_fits=False) == "Q8_0"
    assert head_type("Q8_0", "Q8_0", DENSE, base_fits=True) == "Q8_0"
    assert head_type("IQ1_S", "IQ1_S", DENSE, base_fits=True) == "Q5_K"


def test_only_stacks_of_experts_become_mxfp4() -> None:
    assert expert_type(Role.FFN_UP, 8, DENSE) == "MXFP4"
    assert expert_type(Role.FFN_UP, 1, DENSE) == "Q8_0"
    mla = dataclasses.replace(DENSE, architecture="bailingmoe3")
    assert expert_type(Role.OTHER, 8, mla) == "Q8_0"


def test_one_architecture_protects_its_low_rank_queries() -> None:
    glm = dataclasses.replace(DENSE, architecture="glm5-next")
    assert least_type("blk.0.attn_q_a.weight", "Q4_K", glm) == "Q8_0"
    assert least_type("blk.0.attn_q_a.weight", "F16", glm) is None
    assert least_type("blk.0.attn_q_a.weight", "Q4_K", DENSE) is None
