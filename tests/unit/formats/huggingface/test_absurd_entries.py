"""Entries of config.json of another kind or of absurd size, in families of every sort: a sentence, and at once."""

from pathlib import Path
from typing import Any

import pytest

from family_cases import table, write_checkpoint
from kvant.errors import FormatError
from kvant.formats.huggingface.reader import read_huggingface

HUGE = 10**9


@pytest.mark.parametrize(
    ("case", "entry", "value"),
    [
        ("bge-reranker", "pad_token_id", "x"),
        ("bge-reranker", "pad_token_id", []),
        ("ernie4_5_moe", "moe_num_shared_experts", "x"),
        ("ernie4_5_moe", "moe_num_shared_experts", 1e308),
        ("ernie4_5_moe", "moe_layer_start_index", "x"),
        ("glm4moe", "num_nextn_predict_layers", "x"),
        ("glm4moe", "first_k_dense_replace", "x"),
        ("lfm2moe", "num_dense_layers", [1]),
        ("exaone4", "hidden_size", HUGE),
        ("gemma4-31b", "text_config.global_head_dim", HUGE),
        ("phi2", "partial_rotary_factor", "x"),
        ("phi2", "partial_rotary_factor", float("nan")),
        ("phi2", "partial_rotary_factor", 1e308),
        ("glm4", "partial_rotary_factor", -1),
        ("qwen35", "text_config.rope_parameters.partial_rotary_factor", []),
        ("qwen35", "text_config.linear_num_value_heads", HUGE),
        ("qwen3next", "linear_num_value_heads", HUGE),
        ("hunyuan-moe", "rope_scaling.alpha", -1),
    ],
)
def test_it_is_refused_at_once(tmp_path: Path, case: str, entry: str, value: object) -> None:
    made: dict[str, Any] = table(case)
    *above, last = entry.split(".")
    place = made["config"]
    for name in above:
        place = place.get(name, place)  # a table may hold the text model's entries alone
    assert last in place or last in ("partial_rotary_factor", "linear_num_value_heads")
    place[last] = value
    with pytest.raises(FormatError, match=r"Correct it|Check that it belongs"):
        read_huggingface(write_checkpoint(made, tmp_path / case))
