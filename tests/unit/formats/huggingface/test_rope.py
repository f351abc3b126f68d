"""Rotary parameters in every spelling: what transformers computes is what the metadata makes the engine compute."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.registry import family_of_class
from kvant.formats.huggingface.config import ORIGINAL_LENGTH
from kvant.formats.huggingface.reader import read_huggingface
from kvant.formats.huggingface.writer import config_json
from kvant.model import Model
from kvant.testing.tiny_models import write_tiny_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
LENGTHENING = 1 + 0.1 * math.log(4)
"""What both sides multiply queries and keys by at a factor of 4 unless told otherwise."""
FACTORS = {"long_factor": [1.0] * 12, "short_factor": [1.0] * 12}


def read(directory: Path, family: str = "llama", **overrides: Any) -> Model:
    write_tiny_model(family, directory)
    path = directory / "config.json"
    entries = {**json.loads(path.read_text()), **overrides}
    path.write_text(json.dumps({key: value for key, value in entries.items() if value != "absent"}))
    return read_huggingface(directory)


def test_rope_scaling_counts_where_both_spellings_are_there(tmp_path: Path) -> None:
    model = read(tmp_path, rope_theta="absent", rope_parameters={**DEFAULT, "rope_theta": 1e6}, rope_scaling=YARN)

    assert model.get("llama.rope.scaling.type") == "yarn"
    assert model.get("llama.rope.freq_base") == 10000.0  # the class's own: transformers drops rope_parameters whole
    assert "takes rope_scaling" in model.remarks[0]


def test_an_empty_rope_scaling_does_not_count(tmp_path: Path) -> None:
    model = read(tmp_path, rope_scaling={}, rope_parameters={**YARN, "rope_theta": 5e5})

    assert model.get("llama.rope.scaling.factor") == 4.0
    assert model.get("llama.rope.freq_base") == 5e5
    assert model.remarks == ()


@pytest.mark.parametrize(
    ("stated", "total"),
    [
        ({"attention_factor": 1.0}, 1.0),
        ({"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 1.0}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 0.5, "mscale_all_dim": 2.0}, (1 + 0.05 * math.log(4)) / (1 + 0.2 * math.log(4))),
        ({"mscale": 2.0}, None),  # counts only beside the other
        ({"mscale": 0.0, "mscale_all_dim": 0.0}, None),
    ],
)
def test_yarn_keeps_its_attention_factor(stated: dict[str, float], total: float | None, tmp_path: Path) -> None:
    model = read(tmp_path, rope_scaling={**YARN, **stated})

    found = model.get("llama.rope.scaling.attn_factor")
    assert found is None if total is None else found == pytest.approx(total / LENGTHENING)


def test_yarn_without_a_factor_takes_the_ratio_of_lengths(tmp_path: Path) -> None:
    model = read(tmp_path, max_position_embeddings=512, rope_scaling={**YARN, "factor": None})

    assert model.get("llama.rope.scaling.factor") == 4.0


def test_an_original_length_beside_the_parameters_comes_first(tmp_path: Path) -> None:
    model = read(tmp_path, original_max_position_embeddings=64, rope_scaling=YARN)

    assert model.get("llama.rope.scaling.original_context_length") == 64


@pytest.mark.parametrize(
    ("family", "entries", "words"),
    [
        ("llama", {"rope_scaling": {**YARN, "truncate": False}}, "truncate is false"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("qwen3", {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "sliding_att"),
    ],
)
def test_what_the_engine_would_rotate_otherwise_is_refused(
    family: str, entries: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        read(tmp_path, family, **entries)


@pytest.mark.parametrize("stated", [{"attention_factor": 0.0}, {"mscale": 1.0, "mscale_all_dim": -10 / math.log(4)}])
def test_an_attention_factor_of_nothing_is_refused(stated: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="attention factor"):
        read(tmp_path, rope_scaling={**YARN, **stated})


def test_gemma_scales_its_full_layers_on_top_of_their_parameters(tmp_path: Path) -> None:
    nested = {"full_attention": {**DEFAULT, "rope_theta": 5e5}, "sliding_attention": {**DEFAULT, "rope_theta": 2e3}}

    model = read(tmp_path, "gemma3", rope_parameters=nested, rope_scaling={"rope_type": "linear", "factor": 8.0})

    assert model.get("gemma3.rope.scaling.factor") == 8.0
    assert (model.get("gemma3.rope.freq_base"), model.get("gemma3.rope.freq_base_swa")) == (5e5, 2e3)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, math.sqrt(1 + math.log(4) / math.log(128))),
        ({"factor": 16.0}, math.sqrt(1 + math.log(16) / math.log(128))),
        ({"attention_factor": 1.25}, 1.25),
    ],
)
def test_long_rotary_factors_keep_their_attention_factor(
    stated: dict[str, float], expected: float, tmp_path: Path
) -> None:
    scaling = {"type": "longrope", **FACTORS, **stated}

    model = read(tmp_path, "phi4", original_max_position_embeddings=128, max_position_embeddings=512,
                 rope_scaling=scaling)  # fmt: skip

    assert model.get("phi3.rope.scaling.attn_factor") == pytest.approx(expected)
    back = config_json(model, family_of_class("Phi3ForCausalLM", "x"), "F32")["rope_scaling"]
    assert back.get("attention_factor", expected) == pytest.approx(expected)
    assert ("attention_factor" in back) == bool(stated)


def test_factors_of_another_kind_of_scaling_do_not_count(tmp_path: Path) -> None:
    model = read(tmp_path, "phi4", rope_scaling={"type": "default", **FACTORS})

    assert not [name for name in model.tensors if "rope" in name]
    assert model.get("phi3.rope.scaling.attn_factor") is None


def test_the_attention_factor_comes_back(tmp_path: Path) -> None:
    model = read(tmp_path, rope_scaling={**YARN, "mscale": 0.5, "mscale_all_dim": 2.0, "beta_fast": 16})

    back = config_json(model, family_of_class("LlamaForCausalLM", "x"), "F32")["rope_scaling"]

    expected = (1 + 0.05 * math.log(4)) / (1 + 0.2 * math.log(4))
    assert back == {**YARN, "beta_fast": 16.0, "attention_factor": pytest.approx(expected)}


def test_rotary_parameters_that_nobody_reads_are_said(tmp_path: Path) -> None:
    model = read(tmp_path, rope_scaling={**YARN, "extrapolation_factor": 2.0, "finetuned": True})

    assert len(model.remarks) == 1
    assert "extrapolation_factor, finetuned" in model.remarks[0]
    assert model.get("llama.rope.scaling.yarn_ext_factor") is None  # transformers has no such parameter


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 0}, {**YARN, "factor": -2.0}])
def test_a_factor_of_nothing_is_refused(scaling: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"factor is .*, not above 0"):
        read(tmp_path, rope_scaling=scaling)


def test_llama3_without_an_original_length_takes_the_context(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    names = ("without", "stated", "other")
    lengths: tuple[dict[str, int], ...] = ({}, {ORIGINAL_LENGTH: 512}, {ORIGINAL_LENGTH: 8192})
    found = {}
    for name, length in zip(names, lengths, strict=True):
        model = read(tmp_path / name, max_position_embeddings=512, rope_scaling=scaling | length)
        found[name] = model.tensors["rope_freqs.weight"].read_bytes(0, 1).tobytes()
    assert found["without"] == found["stated"] != found["other"]
