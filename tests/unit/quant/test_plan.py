import dataclasses
from pathlib import Path

import msgspec
import pytest

from kvant.dtypes import BLOCK_TYPES
from kvant.errors import FormatError, KvantError, OutputExistsError, PlanError, UnsupportedFormatError
from kvant.quant.plan import (
    Plan,
    check_plan,
    fitting_type,
    needs_importance,
    read_plan,
    stored_type,
    write_plan,
)
from kvant.quant.presets import plan_preset
from kvant.testing.model_shapes import SHAPES, shape_model

MODEL = shape_model(SHAPES["two-layers"])
PLAN = plan_preset(MODEL, "Q4_K_M")


def test_a_plan_file_comes_back_the_same(tmp_path: Path) -> None:
    plan = plan_preset(shape_model(SHAPES["smollm2-135m"]), "Q4_K_M")
    assert plan.fallbacks
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    with pytest.raises(OutputExistsError):
        write_plan(plan, tmp_path / "plan.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"preset": "Q4_K_M", "file_type": 15, "types": {"a": 3}}',
        b"\xff",
        b'{"preset": "Q4_K_M", "file_type": 15, "types": {"a": "F16"}, "keep": ["a"]}',
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(FormatError, match="breaks the plan format"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KvantError, match="No such file"):
        read_plan(tmp_path / "none.json")


def test_the_digest_follows_types_and_nothing_else() -> None:
    reordered = msgspec.structs.replace(PLAN, types=dict(reversed(PLAN.types.items())), predicted_bytes=7)
    changed = msgspec.structs.replace(PLAN, types={**PLAN.types, "token_embd.weight": "Q8_0"})
    assert PLAN.sha256 == reordered.sha256 != changed.sha256


def test_a_plan_file_names_its_form_and_older_ones_without_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(PLAN, path)
    assert msgspec.json.decode(path.read_bytes())["plan"] == 1
    assert read_plan(path) == PLAN
    path.write_bytes(msgspec.json.encode(PLAN))
    assert read_plan(path) == PLAN


def test_a_plan_of_a_newer_form_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(PLAN), "plan": 2}))
    with pytest.raises(UnsupportedFormatError, match=r"plan\.json: plan: 2 is newer than 1.* Update kvant"):
        read_plan(path)


def replaced(name: str, kind: str) -> Plan:
    return msgspec.structs.replace(PLAN, types={**PLAN.types, name: kind})


def test_plans_must_name_the_tensors_of_the_model() -> None:
    check_plan(PLAN, MODEL)
    with pytest.raises(PlanError, match=r"names unknown 1 tensors \(blk.9.x"):
        check_plan(replaced("blk.9.x", "F16"), MODEL)
    fewer = msgspec.structs.replace(PLAN, types={"token_embd.weight": "F16"})
    with pytest.raises(PlanError, match="has no type for 20 tensors"):
        check_plan(fewer, MODEL)
    with pytest.raises(PlanError, match="'Q9' is no block type"):
        check_plan(replaced("output.weight", "Q9"), MODEL)
    with pytest.raises(PlanError, match="nothing is encoded as I32"):
        check_plan(replaced("output.weight", "I32"), MODEL)


def test_plans_must_fit_the_rows() -> None:
    model = shape_model(SHAPES["smollm2-135m"])
    plan = plan_preset(model, "Q4_K_M")
    wrong = msgspec.structs.replace(plan, types={**plan.types, "blk.0.attn_q.weight": "Q4_K"})
    with pytest.raises(PlanError, match=r"576 is not a multiple of the Q4_K block size 256\. Use Q5_0"):
        check_plan(wrong, model)


@pytest.mark.parametrize(
    ("wanted", "n", "got"),
    [
        ("Q4_K", 512, "Q4_K"), ("Q4_K", 576, "Q5_0"), ("Q5_K", 576, "Q5_1"), ("Q6_K", 576, "Q8_0"),
        ("Q3_K", 576, "Q4_0"), ("IQ3_S", 576, "IQ4_NL"), ("IQ4_XS", 576, "IQ4_NL"), ("TQ1_0", 576, "Q4_0"),
        ("Q2_0", 576, "Q2_0"), ("Q2_0", 96, "Q4_0"), ("Q8_0", 40, "F16"), ("Q4_K", 40, "F16"), ("F32", 7, "F32"),
    ],
)  # fmt: skip
def test_fitting_type(wanted: str, n: int, got: str) -> None:
    assert fitting_type(wanted, n) == got
    assert n % BLOCK_TYPES[got].block_length == 0


def test_where_nothing_fits() -> None:
    with pytest.raises(PlanError, match="nothing stands in for it"):
        fitting_type("Q1_0", 576)


def test_types_that_cannot_do_without_importance_are_named_even_in_embeddings() -> None:
    assert needs_importance(replaced("token_embd.weight", "IQ2_XS"), MODEL) == ["token_embd.weight"]
    assert needs_importance(replaced("token_embd.weight", "IQ3_XXS"), MODEL) == []
    assert needs_importance(replaced("blk.1.attn_k.weight", "IQ3_XXS"), MODEL) == ["blk.1.attn_k.weight"]
    assert needs_importance(replaced("blk.1.attn_k.weight", "Q2_K"), MODEL) == []


def test_a_tensor_that_has_its_type_already_needs_no_importance() -> None:
    name = "blk.1.attn_k.weight"
    stored = dataclasses.replace(MODEL.tensors[name], block_type=BLOCK_TYPES["IQ2_XS"])  # type: ignore[type-var]
    model = dataclasses.replace(MODEL, tensors={**MODEL.tensors, name: stored})
    assert needs_importance(replaced(name, "IQ2_XS"), model) == []


def test_norms_and_vectors_become_f32() -> None:
    assert stored_type("blk.0.attn_norm.weight", (64,), "BF16") == "F32"
    assert stored_type("blk.0.attn_q_norm.weight", (2, 64), "F16") == "F32"
    assert stored_type("blk.0.ffn_gate_inp.weight", (4, 64), "F16") == "F16"


def test_counts_and_bpw() -> None:
    assert PLAN.counts() == {"F32": 5, "Q4_K": 13, "Q6_K": 3}
    assert 4.5 < PLAN.bpw(MODEL) < 5.0
