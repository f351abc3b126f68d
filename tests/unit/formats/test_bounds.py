"""Numbers out of bounds: in configuration by the entry's name, in GGUF by the key's."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from family_cases import table, write_checkpoint
from kvant.errors import FormatError
from kvant.formats.bounds import BOUNDS, UNSET, check_metadata, outside
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.open import open_model
from kvant.metadata import Value, ValueType, array, f32, string

NAN, HUGE = float("nan"), 1e30


@pytest.mark.parametrize(
    ("name", "entries", "words"),
    [
        ("qwen3moe", {"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06, not from 0 to 1"),
        ("qwen3moe", {"rms_norm_eps": HUGE}, "rms_norm_eps is 1e[+]30, not from 0 to 1"),
        ("qwen3moe", {"rms_norm_eps": NAN}, "rms_norm_eps is nan"),
        ("gpt2", {"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon is -1e-05"),
        ("mamba2", {"layer_norm_epsilon": -1e-5}, "makes mamba2.attention.layer_norm_rms_epsilon -1e-05"),
        ("embeddinggemma", {"rope_local_base_freq": -1e4}, "makes gemma-embedding.rope.freq_base_swa -10000"),
        ("modern-bert", {"local_rope_theta": HUGE}, "makes modern-bert.rope.freq_base_swa 1e[+]30"),
        ("cohere2", {"logit_scale": -0.25}, "logit_scale is -0.25"),
        ("granitemoe", {"attention_multiplier": 0.0}, "attention_multiplier is 0, not from 1e-09"),
        ("granitemoe", {"residual_multiplier": HUGE}, "residual_multiplier is 1e[+]30"),
        ("gemma2", {"attn_logit_softcapping": -50.0}, "attn_logit_softcapping is -50"),
        ("deepseek2_lite", {"routed_scaling_factor": -1.0}, "routed_scaling_factor is -1"),
        ("hunyuan", {"rope_scaling": {"type": "dynamic", "alpha": HUGE, "factor": 1.0}}, "rope.freq_base"),
        ("olmo3", {"rope_scaling": {"rope_type": "yarn", "factor": HUGE}}, "rope.scaling.factor 1e[+]30"),
    ],
)  # fmt: skip
def test_an_entry_out_of_bounds(name: str, entries: dict[str, Any], words: str, tmp_path: Path) -> None:
    directory = write_checkpoint(table(name), tmp_path / "m")
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    with pytest.raises(FormatError, match=rf"config\.json: .*{words}"):
        open_model(directory)


@pytest.mark.parametrize("key", sorted(BOUNDS))
def test_every_key_of_a_gguf(key: str, tmp_path: Path) -> None:
    low, high = BOUNDS[key]
    fine = [low, high, *([0.0] if key in UNSET else [])]
    for value in fine:
        check_metadata({f"llama.{key}": f32(value)}, tmp_path)
    for value in (low - 1, high * 2, NAN, float("inf"), -float("inf")):
        with pytest.raises(FormatError, match=re.escape(f"x.gguf: clip.vision.{key} is {value:g}, not from")):
            check_metadata({f"clip.vision.{key}": f32(value)}, Path("x.gguf"))


def test_a_file_out_of_bounds(tmp_path: Path) -> None:
    values = {"general.architecture": string("llama"), "llama.rope.freq_base": f32(-1)}
    write_gguf(tmp_path / "x.gguf", values, ())
    with pytest.raises(FormatError, match=r"x\.gguf: llama\.rope\.freq_base is -1, not from 1 to 1e\+12\. Convert"):
        read_gguf(tmp_path / "x.gguf")


def test_numbers_by_layer_and_what_is_no_number() -> None:
    layers = array(ValueType.FLOAT32, np.array([1e-6, NAN], np.float32))
    assert str(outside("attention.layer_norm_epsilon", layers.value)) == "nan, not from 0 to 1"
    for value in ("big", True, np.array([], np.float32), np.array([1e-6], np.float32), 1e-6):
        assert outside("attention.layer_norm_epsilon", value) is None
    assert outside("block_count", -1) is None
    check_metadata({"llama.rope.freq_base": Value(ValueType.STRING, "x")}, Path("x"))
