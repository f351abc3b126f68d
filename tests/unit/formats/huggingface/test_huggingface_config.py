"""config.json: limits, refusals that name the key, and the spellings of rotary parameters."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FormatError, LimitError
from kvant.formats.huggingface.config import MAX_JSON_BYTES, Config, architecture_name, read_config, read_json


def config(**values: Any) -> Config:
    return Config(values=values, path=Path("config.json"))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_malformed_json_is_a_format_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"config\.json"):
        read_json(path)


def test_a_missing_file_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        read_json(tmp_path / "config.json")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(LimitError, match=str(MAX_JSON_BYTES)):
        read_json(path)


def test_a_text_config_is_merged_over_the_outer_one(tmp_path: Path) -> None:
    document = {"architectures": ["A"], "hidden_size": 1, "pad_token_id": 7, "text_config": {
        "hidden_size": 2, "architectures": ["B"], "pad_token_id": None}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(document))
    merged = read_config(tmp_path)
    assert (merged["architectures"], merged["hidden_size"], merged["pad_token_id"]) == (["A"], 2, 7)


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", [1]])
def test_architectures_must_be_a_list_of_names(names: object) -> None:
    with pytest.raises(FormatError, match="architectures"):
        architecture_name({"architectures": names}, Path("config.json"))


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, 1 << 31, [8], float("nan")])
def test_integers_are_checked(value: object) -> None:
    with pytest.raises(FormatError, match="hidden_size"):
        config(hidden_size=value).integer("hidden_size")


@pytest.mark.parametrize("value", ["1", None, float("inf"), float("nan"), True, [1.0]])
def test_numbers_are_checked(value: object) -> None:
    with pytest.raises(FormatError, match="rms_norm_eps"):
        config(rms_norm_eps=value).number("rms_norm_eps")


def test_a_whole_float_is_an_integer() -> None:
    assert config(hidden_size=256.0).integer("hidden_size") == 256


def test_too_many_layers_are_refused() -> None:
    with pytest.raises(FormatError, match="num_hidden_layers"):
        _ = config(num_hidden_layers=100_000).n_layers


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rope_theta": 5.0}, {"rope_theta": 5.0, "rope_type": "default"}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0}}, {"rope_type": "llama3", "rope_theta": 7.0}),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
            {"rope_type": "default", "rope_theta": 1e6},
        ),
        (
            {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 64},
            {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rotary_parameters_have_one_spelling(values: dict[str, Any], expected: dict[str, Any]) -> None:
    rope = config(**values).rope
    assert {key: rope[key] for key in expected} == expected


def test_the_local_rotary_base_has_two_spellings() -> None:
    nested = {"full_attention": {}, "sliding_attention": {"rope_theta": 3.0}}
    assert config(rope_parameters=nested).local_rope_theta == 3.0
    assert config(rope_local_base_freq=4.0).local_rope_theta == 4.0
    assert config().local_rope_theta is None


@pytest.mark.parametrize("value", [3, [1], "linear"])
def test_rotary_parameters_must_be_an_object(value: object) -> None:
    with pytest.raises(FormatError, match=r"rope_scaling is .* not an object"):
        _ = config(rope_scaling=value).rope
