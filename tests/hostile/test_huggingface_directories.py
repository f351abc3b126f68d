"""Hugging Face directories with entries of config.json replaced by anything: a model or a clear error, nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import FormatError, KvantError
from kvant.formats.huggingface.reader import read_huggingface
from kvant.testing.tiny_models import FAMILIES, write_tiny_model

KEYS = sorted(
    {key for config in FAMILIES.values() for key in config}
    | {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
       "max_position_embeddings", "rms_norm_eps", "rope_theta", "vocab_size", "tie_word_embeddings", "bos_token_id",
       "text_config", "rope_parameters", "layer_types", "head_dim", "hidden_act", "_name_or_path",
       "no_rope_layer_interval", "final_logit_softcapping", "torch_dtype", "quantization_config", "auto_map"}
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.sampled_from([0, 1, -1, 2, 255, 256, 1 << 31, 1 << 70, 0.5, 1e308]), st.integers(),
    st.floats(), st.text(max_size=6), st.sampled_from(["linear", "yarn", "llama3", "longrope", "silu"]),
)  # fmt: skip
ROPE_KEYS = st.sampled_from(
    ["rope_type", "type", "factor", "rope_theta", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor",
     "original_max_position_embeddings", "partial_rotary_factor", "full_attention", "sliding_attention", "beta_fast"]
)  # fmt: skip
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.dictionaries(ROPE_KEYS, SCALARS | st.lists(SCALARS, max_size=16), max_size=5),
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    found = {}
    for family in ("llama3", "smollm3", "gemma3", "phi4", "granite"):
        directory = write_tiny_model(family, tmp_path_factory.mktemp(family))
        found[family] = (directory, json.loads((directory / "config.json").read_text()))
    return found


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_entry_may_hold_anything(directories: dict[str, tuple[Path, dict[str, Any]]], data: st.DataObject) -> None:
    directory, config = directories[data.draw(st.sampled_from(sorted(directories)))]
    entries = data.draw(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
    (directory / "config.json").write_text(json.dumps({**config, **entries}))
    try:
        model = read_huggingface(directory)
    except KvantError:
        return
    for tensor in model.tensors.values():
        assert tensor.read_bytes(0, 1).nbytes


@pytest.mark.parametrize(
    ("key", "value"),
    [("rope_theta", 1.8e-173), ("rope_theta", 1e300), ("factor", 1e-300), ("low_freq_factor", 1e-320),
     ("high_freq_factor", 1e308)],
)  # fmt: skip
def test_rotary_settings_beyond_floats_are_refused(key: str, value: float, tmp_path: Path) -> None:
    directory = write_tiny_model("llama3", tmp_path)
    config = json.loads((directory / "config.json").read_text())
    rope = config["rope_scaling"]
    entries = {"rope_theta": value} if key == "rope_theta" else {"rope_scaling": {**rope, key: value}}
    (directory / "config.json").write_text(json.dumps({**config, **entries}))
    with pytest.raises(FormatError, match="Correct"):
        read_huggingface(directory)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_any_file_may_be_cut_short(name: str, tmp_path: Path) -> None:
    directory = write_tiny_model("llama", tmp_path)
    content = (directory / name).read_bytes()
    for length in (0, 1, 7, 8, 9, len(content) // 2, len(content) - 1):
        (directory / name).write_bytes(content[:length])
        try:
            read_huggingface(directory)
        except KvantError:
            continue
        assert name == "generation_config.json"
