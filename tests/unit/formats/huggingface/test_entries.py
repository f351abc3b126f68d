"""Every entry of the files beside the weights is read, changes nothing, or is reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.registry import family_of_class
from kvant.formats.huggingface.config import Config
from kvant.formats.huggingface.entries import COMMON, HARMLESS, HARMLESS_AT, config_remarks, generation_remarks
from kvant.formats.huggingface.reader import complete_config, read_huggingface
from kvant.testing.tiny_models import FAMILIES, weights, write_safetensors, write_tiny_model


class Recorder(dict[str, Any]):
    """A configuration that remembers what was asked of it."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def remarks_of(directory: Path) -> tuple[str, ...]:
    return read_huggingface(directory).remarks


def add_biases(directory: Path, *stems: str) -> Path:
    config = {"head_dim": 32, **json.loads((directory / "config.json").read_text())}
    arrays = dict(weights({**config, "attention_bias": False}, 0))
    for layer in range(config["num_hidden_layers"]):
        for stem in stems:
            rows = arrays[f"model.layers.{layer}.{stem}.weight"].shape[0]
            arrays[f"model.layers.{layer}.{stem}.bias"] = np.full(rows, 0.5, np.float32)
    write_safetensors(directory / "model.safetensors", arrays, "F32")
    return directory


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (*QKV, "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_whatever_a_family_asks_for_is_in_its_table(family: str, tmp_path: Path) -> None:
    raw = json.loads((write_tiny_model(family, tmp_path) / "config.json").read_text())
    found = family_of_class(raw["architectures"][0], "x")
    values = Recorder(dict(complete_config(raw, found, tmp_path).values))
    config = Config(values=values, path=tmp_path)

    found.check(config)
    found.metadata(config)
    found.extra_tensors(config)
    found.biases(config)
    found.unseen_window(config)

    assert values.asked - {"rope_local_base_freq"} <= COMMON | found.known_entries


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_published_configuration_needs_no_word(family: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {
        "transformers_version": "4.55.0",
        "use_cache": True,
        "initializer_range": 0.02,
        "attention_dropout": 0.1,
    }

    usual |= {} if family == "gemma3" else {"sliding_window": None}

    notes = remarks_of(write_tiny_model(family, tmp_path, **usual))

    assert [note for note in notes if "rotary factors" not in note and "composes accents" not in note] == []


def test_an_entry_that_nobody_reads_is_said_with_its_value(tmp_path: Path) -> None:
    notes = remarks_of(write_tiny_model("llama", tmp_path, attention_sinks=4, logit_scale=0.5))

    assert len(notes) == 1
    assert "nobody reads attention_sinks = 4, logit_scale = 0.5" in notes[0]


@pytest.mark.parametrize(("key", "values"), list(HARMLESS_AT.items()))
def test_an_entry_is_silent_at_its_harmless_value_only(key: str, values: tuple[object, ...]) -> None:
    assert list(config_remarks({key: values[0]}, (), Path("config.json"))) == []
    assert len(list(config_remarks({key: "otherwise"}, (), Path("config.json")))) == 1


def test_null_is_as_good_as_absent() -> None:
    assert list(config_remarks({"attention_sinks": None}, (), Path("config.json"))) == []


def test_tables_do_not_contradict_each_other() -> None:
    assert not COMMON & HARMLESS
    assert not (COMMON | HARMLESS) & set(HARMLESS_AT)


def test_advice_that_is_not_carried_over_is_said() -> None:
    path = Path("generation_config.json")
    usual = {"do_sample": True, "temperature": 0.6, "eos_token_id": [1, 2], "num_beams": 1}

    assert list(generation_remarks(usual, path)) == []
    assert "no_repeat_ngram_size = 3" in next(iter(generation_remarks({**usual, "no_repeat_ngram_size": 3}, path)))


@pytest.mark.parametrize(
    ("family", "entries", "window"),
    [
        ("mistral", {"sliding_window": 32}, 32),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1}, 32),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 99}, None),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": False}, None),
        ("qwen3", {"sliding_window": 32, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 3}, 32),
        ("smollm3", {"sliding_window": 32, "use_sliding_window": True}, 32),
        ("phi4", {"sliding_window": 32}, 32),
        ("llama", {"sliding_window": 32}, None),  # transformers' Llama has none either
    ],
)
def test_a_window_that_the_engine_has_not_is_said(
    family: str, entries: dict[str, Any], window: int | None, tmp_path: Path
) -> None:
    notes = [note for note in remarks_of(write_tiny_model(family, tmp_path, **entries)) if "sliding_window" in note]

    assert len(notes) == (window is not None)
    assert not notes or f"sliding_window is {window}" in notes[0]


BIASES: list[tuple[str, tuple[str, ...], dict[str, bool], set[str]]] = [
    ("llama", ATTENTION, {"attention_bias": True}, {"attn_q", "attn_k", "attn_v", "attn_output"}),
    ("llama", MLP, {"mlp_bias": True}, {"ffn_gate", "ffn_up", "ffn_down"}),
    ("llama", ATTENTION, {}, set()),
    ("mistral", ATTENTION, {"attention_bias": True}, set()),  # transformers' Mistral has no such entry
    ("qwen2", ("self_attn.o_proj", *MLP), {}, {"attn_q", "attn_k", "attn_v"}),
    ("qwen3", QKV, {"attention_bias": False}, set()),
    ("granite", (*ATTENTION, *MLP), {"attention_bias": True}, {"attn_q", "attn_k", "attn_v", "attn_output"}),
]


@pytest.mark.parametrize(("family", "stored", "flags", "kept"), BIASES)
def test_biases_are_those_that_transformers_adds(
    family: str, stored: tuple[str, ...], flags: dict[str, Any], kept: set[str], tmp_path: Path
) -> None:
    directory = add_biases(write_tiny_model(family, tmp_path, dtype="F32", sliding_window=None, **flags), *stored)

    model = read_huggingface(directory)

    assert {name.split(".")[2] for name in model.tensors if name.endswith(".bias")} == kept
    assert any("are left out as transformers" in note for note in model.remarks) == (len(kept) != len(stored))


@pytest.mark.parametrize(
    ("family", "flag", "stems"),
    [("qwen3", "attention_bias", ATTENTION), ("smollm3", "mlp_bias", MLP), ("gemma3", "attention_bias", ATTENTION)],
)
def test_biases_that_the_engine_does_not_add_are_refused(
    family: str, flag: str, stems: tuple[str, ...], tmp_path: Path
) -> None:
    asked: dict[str, Any] = {flag: True}
    directory = add_biases(write_tiny_model(family, tmp_path, dtype="F32", **asked), *stems)
    with pytest.raises(UnsupportedModelError, match=flag):
        read_huggingface(directory)


def test_biases_that_are_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"\d+ biases are missing, first model\.layers\.0\.mlp"):
        read_huggingface(write_tiny_model("llama", tmp_path, mlp_bias=True))


@pytest.mark.parametrize(("family", "entries"), [("llama", {"hidden_act": "swish", "hidden_activation": "gelu"}),
                                                 ("gemma3", {"hidden_act": "silu"})])  # fmt: skip
def test_the_activation_is_the_one_that_the_class_reads(family: str, entries: dict[str, Any], tmp_path: Path) -> None:
    assert read_huggingface(write_tiny_model(family, tmp_path, **entries)).architecture == family


def test_heads_of_another_length_than_the_engine_loads(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="head_dim is 64"):
        read_huggingface(write_tiny_model("qwen2", tmp_path / "qwen2", head_dim=64))
    model = read_huggingface(write_tiny_model("granite", tmp_path / "granite", head_dim=64))
    assert model.get("granite.attention.key_length") == 64
