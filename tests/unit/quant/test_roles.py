import pytest

from kvant.quant.roles import Role, file_order, is_matrix, is_quantizable, layer_of, role_of


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("token_embd.weight", Role.EMBEDDING),
        ("per_layer_token_embd.weight", Role.EMBEDDING),
        ("output.weight", Role.OUTPUT),
        ("blk.0.attn_output.weight", Role.ATTENTION_OUTPUT),
        ("blk.0.attn_qkv.weight", Role.ATTENTION_V),
        ("blk.0.attn_kv_b.weight", Role.ATTENTION_V),
        ("blk.0.ffn_gate_exps.weight", Role.FFN_GATE),
        ("blk.0.ffn_down_shexp.weight", Role.FFN_DOWN),
        ("blk.0.attn_norm.weight", Role.OTHER),
        ("output_norm.weight", Role.OTHER),
    ],
)
def test_role_of(name: str, role: Role) -> None:
    assert role_of(name) is role


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_norm.weight", (64,)),
        ("blk.0.attn_q.bias", (2, 64)),
        ("blk.0.attn_q_norm.weight", (8, 64)),
        ("blk.0.ffn_gate_inp.weight", (8, 64)),
        ("blk.0.ssm_conv1d.weight", (8, 64)),
        ("position_embd.weight", (8, 64)),
        ("blk.0.ffn_up.weight", (1, 64)),
        ("rope_freqs.weight", (64,)),
    ],
)
def test_left_alone(name: str, shape: tuple[int, ...]) -> None:
    assert not is_quantizable(name, shape, "llama")


def test_weight_matrices_are_quantizable_but_for_the_small_ones_of_an_architecture() -> None:
    assert is_quantizable("blk.0.ffn_up.weight", (8, 64), "llama")
    assert is_quantizable("blk.0.ffn_up_exps.weight", (4, 8, 64), "llama")
    assert is_quantizable("blk.0.attn_k_b.weight", (8, 64), "deepseek2")
    assert not is_quantizable("blk.0.attn_k_b.weight", (8, 64), "glm5-next")


def test_a_matrix_has_rows() -> None:
    assert [is_matrix(s) for s in ((), (8,), (1, 8), (2, 8), (2, 1, 8), (1, 1, 8))] == [
        False, False, False, True, True, False,
    ]  # fmt: skip


def test_layers_come_in_numeric_order_behind_what_is_outside_them() -> None:
    names = ["blk.10.b", "blk.2.b", "output.weight", "blk.2.a", "token_embd.weight"]
    assert file_order(names) == ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.b"]
    assert [layer_of(name) for name in names] == [10, 2, None, 2, None]
