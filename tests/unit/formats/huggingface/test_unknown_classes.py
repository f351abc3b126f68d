"""Classes without a family: what the error says of those that upstream's converter knows, and of those nobody does."""

from typing import Any

import pytest

from kvant.formats.huggingface.architectures.registry import BY_CLASS
from kvant.formats.huggingface.architectures.unknown import nearest, unknown_class, upstream_class
from kvant.formats.huggingface.architectures.upstream_table import PROJECTORS, TEXT


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["StableLmForCausalLM"]}, "StableLmForCausalLM"),
        ({"architectures": ["A"], "text_config": {"architectures": ["B"]}}, "B"),
        ({"architectures": ["A"], "text_config": {"architectures": []}}, "A"),
        ({"architectures": ["A"], "llm_config": {"architectures": ["B"]}}, "B"),
        ({"architectures": ["KimiK3ForConditionalGeneration"], "text_config": {"architectures": ["B"]}},
         "KimiK3ForConditionalGeneration"),
        ({}, ""), ({"architectures": None}, ""), ({"architectures": [1]}, ""), ({"architectures": "A"}, ""),
    ],
)  # fmt: skip
def test_the_class_that_upstream_takes_a_model_for(config: dict[str, Any], name: str) -> None:
    assert upstream_class(config) == name


def said(name: str) -> str:
    return str(unknown_class(name, "config.json", BY_CLASS))


def test_a_class_of_upstream_s_is_sent_there() -> None:
    assert "'MambaForCausalLM' is none of kvant's own families" in said("MambaForCausalLM")
    assert "`kvant convert DIR`" in said("MambaForCausalLM")


def test_an_unknown_class_is_told_its_nearest_and_what_it_would_take() -> None:
    text = said("StableLmForCausalLMs")
    assert "nearest are StableLmForCausalLM" in text
    assert "`kvant convert --list-architectures`" in text
    assert "KVANT_CONVERTER_SOURCE=" in text


def test_a_name_that_is_like_no_other_has_no_nearest() -> None:
    assert nearest("Zzz", BY_CLASS) == []
    assert "nearest" not in said("Zzz")


def test_an_encoder_that_nobody_makes_a_gguf_of_goes_to_onnx() -> None:
    assert "kvant quantize model.onnx" in said("ViTForImageClassification")


def test_eyes_alone_are_no_model() -> None:
    assert "the whole model" in said("InternVisionModel")
    assert "add the class to text_config" in said("GlmasrModel")


def test_names_that_are_long_or_odd_are_shown_short() -> None:
    assert len(said("x" * 10_000)) < 1000


def test_the_table_is_the_pinned_converter_s() -> None:
    assert len(TEXT) == 267
    assert len(PROJECTORS) == 66
    assert [TEXT[f"{name}ForCausalLM"] for name in ("StableLm", "GPTNeoX", "Mamba")] == ["stablelm", "gptneox", "mamba"]
