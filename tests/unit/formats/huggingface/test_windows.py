"""Which layers have a window: by kinds, by a period, by letters; and what cannot be read."""

from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.windows import windowed_layers
from kvant.formats.huggingface.config import Config


def layers(**entries: Any) -> list[bool]:
    return windowed_layers(Config(values={"num_hidden_layers": 4, **entries}, path=Path("config.json")), 4)


@pytest.mark.parametrize(
    "entries",
    [{}, {"sliding_window_pattern": 4}, {"sliding_window_pattern": "LLLG"},
     {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window_pattern": 2}],
)  # fmt: skip
def test_every_fourth_layer_attends_to_everything_however_it_is_written(entries: dict[str, Any]) -> None:
    assert layers(**entries) == [True, True, True, False]


def test_a_period_of_zero_is_no_window() -> None:
    assert layers(sliding_window_pattern=0) == [False] * 4


@pytest.mark.parametrize(
    ("entries", "words"),
    [({"layer_types": ["full_attention"]}, "has 1 items for 4 layers"), ({"sliding_window_pattern": "LX"}, "'LX'"),
     ({"sliding_window_pattern": ""}, "''"), ({"sliding_window_pattern": -1}, "is -1"),
     ({"sliding_window_pattern": True}, "is True"), ({"layer_types": 3}, "not a list")],
)  # fmt: skip
def test_what_cannot_be_read_is_named(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        layers(**entries)
