"""Options of `plan_preset`; the presets themselves are checked in tests/parity/test_presets.py."""

import dataclasses
from typing import Any

import pytest

from kvant.errors import PlanError, UnsupportedFormatError
from kvant.metadata import Value, ValueType, array
from kvant.quant.plan import Fallback
from kvant.quant.presets import ALIASES, PRESETS, find_preset, model_facts, plan_preset, plan_with_matches
from kvant.testing.model_shapes import SHAPES, shape_model

UNTIED = shape_model(SHAPES["two-layers"])
TIED = shape_model(dataclasses.replace(SHAPES["two-layers"], tied=True))
ODD = shape_model(SHAPES["smollm2-135m"])


def test_names_are_found_in_any_case_and_by_alias() -> None:
    assert find_preset("q4_k_m") is PRESETS["Q4_K_M"]
    assert all(find_preset(alias) is PRESETS[name] for alias, name in ALIASES.items())
    with pytest.raises(PlanError, match="'Q4_K_XL' is not known"):
        find_preset("Q4_K_XL")
    with pytest.raises(PlanError, match=r"'Q4KM' is not known\. Did you mean Q4_K_M\? There are F32"):
        find_preset("Q4KM")
    with pytest.raises(PlanError, match=r"'turbo' is not known\. Use one of F32"):
        find_preset("turbo")


def test_file_type_numbers_are_unique() -> None:
    assert len({preset.file_type for preset in PRESETS.values()}) == len(PRESETS)


def test_overrides_come_before_the_mix_and_the_first_match_wins() -> None:
    plan = plan_preset(UNTIED, "Q4_K_M", overrides=[(r"blk\.1\.ffn_down", "Q8_0"), ("ffn_down", "Q5_K")])
    assert plan.types["blk.1.ffn_down.weight"] == "Q8_0"
    assert plan.types["blk.0.ffn_down.weight"] == "Q5_K"
    assert plan.types["blk.0.attn_norm.weight"] == "F32"


def test_overridden_tensors_do_not_count_in_the_mix() -> None:
    shape = dataclasses.replace(SHAPES["two-layers"], layers=8)
    plain = plan_preset(shape_model(shape), "Q4_K_S").types
    shifted = plan_preset(shape_model(shape), "Q4_K_S", overrides=[(r"blk\.0\.ffn_down", "Q4_K")]).types
    assert plain["blk.0.ffn_down.weight"] == "Q5_K" != plain["blk.1.ffn_down.weight"]
    assert shifted["blk.0.ffn_down.weight"] == "Q4_K" != shifted["blk.1.ffn_down.weight"]


def test_an_override_that_does_not_fit_falls_back_and_says_so() -> None:
    plan = plan_preset(ODD, "Q8_0", overrides=[("attn_k", "Q6_K")])
    assert {plan.types[f"blk.{i}.attn_k.weight"] for i in range(30)} == {"Q8_0"}
    first = Fallback(tensor="blk.0.attn_k.weight", row_length=576, wanted="Q6_K", got="Q8_0", extra_bytes=26784)
    assert len(plan.fallbacks) == 30
    assert plan.fallbacks[0] == first
    assert str(first) == (
        "blk.0.attn_k.weight: row length 576 is not a multiple of the Q6_K block size 256, Q8_0 instead (+26,784 bytes)"
    )


@pytest.mark.parametrize(("model", "head"), [(UNTIED, "output.weight"), (TIED, "token_embd.weight")])
def test_output_type_is_that_of_the_head(model: object, head: str) -> None:
    plan = plan_preset(model, "Q4_K_M", output_type="q8_0")  # type: ignore[arg-type]
    assert plan.types[head] == "Q8_0"


def test_embedding_type() -> None:
    assert plan_preset(UNTIED, "Q4_K_M", embedding_type="Q8_0").types["token_embd.weight"] == "Q8_0"
    assert plan_preset(TIED, "Q4_K_M", embedding_type="Q5_K").types["token_embd.weight"] == "Q5_K"
    with pytest.raises(PlanError, match=r"--type token_embd=Q2_K: .* none of which it can change"):
        plan_preset(TIED, "Q4_K_M", embedding_type="Q5_K", overrides=[("token_embd", "Q2_K")])


@pytest.mark.parametrize(
    ("options", "decides"),
    [
        ({"embedding_type": "Q5_K"}, "--token-embedding-type"),
        ({"pure": True}, "--pure"),
        ({"overrides": [("token_embd", "Q5_K")]}, "--type token_embd=Q5_K"),
    ],
)
def test_a_head_type_for_a_head_that_is_not_there_is_refused(options: dict[str, Any], decides: str) -> None:
    assert plan_preset(TIED, "Q4_K_M", output_type="Q8_0").types["token_embd.weight"] == "Q8_0"
    words = f"--output-tensor-type: there is no output.weight: the head is token_embd.weight, whose type {decides} "
    with pytest.raises(PlanError, match=words):
        plan_preset(TIED, "Q4_K_M", output_type="Q8_0", **options)
    cured = {**options, "embedding_type": "Q8_0"}  # as it says
    if "overrides" not in cured:
        assert plan_preset(TIED, "Q4_K_M", **cured).types["token_embd.weight"] == "Q8_0"


def test_a_head_is_found_by_its_whole_name() -> None:
    _, (match,) = plan_with_matches(TIED, "Q4_K_M", output_type="Q8_0")
    assert match.found == match.decided == ("token_embd.weight",)
    _, (match,) = plan_with_matches(UNTIED, "Q4_K_M", output_type="Q8_0")
    assert match.found == match.decided == ("output.weight",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overrides": [("ffn_dwn", "Q8_0")]}, "--type ffn_dwn=Q8_0: is found in no .* Did you mean ffn_down"),
        ({"keep": ["attn_qkv"]}, "--keep attn_qkv: is found in no tensor's name. Did you mean attn_v or attn_q"),
        ({"overrides": [("mlp", "Q8_0")]}, "There are output, output_norm, token_embd"),
        ({"overrides": [("attn_norm", "Q8_0")]}, r"found in 2 tensors \(first blk.0.attn_norm.weight\), none of which"),
        ({"keep": ["output_norm"]}, "--keep output_norm: is found in 1 tensors"),
        ({"overrides": [("ffn", "Q8_0"), ("ffn_down", "Q6_K")]}, "--type ffn_down=Q6_K: .*what an earlier option"),
        ({"overrides": [("ffn_down", "Q6_K")], "keep": ["ffn"]}, "--type ffn_down=Q6_K: .*what an earlier option"),
    ],
)
def test_a_pattern_that_decides_nothing_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan_preset(UNTIED, "Q4_K_M", **options)


def test_what_each_option_did_is_told() -> None:
    _, matches = plan_with_matches(
        UNTIED, "Q4_K_M", overrides=[("attn_q", "q4_k"), ("ffn_down", "Q4_K")], keep=["^output"]
    )
    found = {match.option: (len(match.decided), len(match.changed)) for match in matches}
    assert found == {"--type attn_q=q4_k": (2, 0), "--type ffn_down=Q4_K": (2, 1), "--keep ^output": (1, 1)}
    assert "all would have these types without it" in str(matches[0])


def test_pure_is_one_type_for_every_matrix() -> None:
    types = plan_preset(UNTIED, "Q4_K_M", pure=True).types
    assert set(types.values()) == {"F32", "Q4_K"}


def test_kept_tensors_stay() -> None:
    types = plan_preset(UNTIED, "Q4_K_M", keep=["^output", "token_embd"]).types
    assert types["output.weight"] == types["token_embd.weight"] == "F16"
    assert types["blk.0.attn_q.weight"] == "Q4_K"


def test_patterns_and_types_are_checked() -> None:
    with pytest.raises(PlanError, match=r"pattern: '\['"):
        plan_preset(UNTIED, "Q4_K_M", keep=["["])
    with pytest.raises(UnsupportedFormatError, match="Q4_X"):
        plan_preset(UNTIED, "Q4_K_M", overrides=[("attn", "Q4_X")])
    with pytest.raises(PlanError, match="an empty one is found in every name"):
        plan_preset(UNTIED, "Q4_K_M", keep=[""])


@pytest.mark.parametrize("name", ["I32", "f64"])
def test_types_that_nothing_encodes_are_refused_before_anything_is_said_of_them(name: str) -> None:
    with pytest.raises(UnsupportedFormatError, match="none that weights are encoded as"):
        plan_preset(UNTIED, "Q4_K_M", overrides=[("attn_q", name)])
    with pytest.raises(UnsupportedFormatError, match="none that weights are encoded as"):
        plan_preset(UNTIED, "Q4_K_M", output_type=name)


def test_a_head_whose_rows_do_not_fit_is_a_fallback_too() -> None:
    fallback = plan_preset(ODD, "Q4_K_M").fallbacks[0]
    assert (fallback.tensor, fallback.wanted, fallback.got) == ("token_embd.weight", "Q6_K", "Q8_0")


def test_hyperparameters_per_layer_are_those_of_the_first() -> None:
    heads = array(ValueType.INT32, [16, 4])
    kv_heads = Value(ValueType.ARRAY, [2, 4], ValueType.INT32)
    metadata = {**UNTIED.metadata, "llama.attention.head_count": heads, "llama.attention.head_count_kv": kv_heads}
    model = dataclasses.replace(UNTIED, metadata=metadata)
    assert model_facts(model, has_importance=False).gqa == 8


def test_no_key_heads_at_all() -> None:
    metadata = {**UNTIED.metadata, "llama.attention.head_count_kv": array(ValueType.INT32, [0, 0])}
    assert model_facts(dataclasses.replace(UNTIED, metadata=metadata), has_importance=False).gqa == 0
