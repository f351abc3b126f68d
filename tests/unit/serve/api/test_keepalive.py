"""How long a model is to stay loaded, in all forms that Ollama takes."""

import pytest

from kvant.errors import ApiError
from kvant.serve.api.keepalive import seconds


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None), (0, 0.0), (300, 300.0), (-1, -1.0), (1.5, 1.5), ("0", 0.0), ("5m", 300.0), ("1h30m", 5400.0),
        ("-1m", -1.0), ("100ms", 0.1), ("1.5h", 5400.0), ("0s", 0.0), (float("inf"), -1.0),
    ],
)  # fmt: skip
def test_keep_alive(given: float | str | None, expected: float | None) -> None:
    assert seconds(given) == expected


@pytest.mark.parametrize(
    "given", ["", "5", "five", "5 m", "m5", "5mm5", "1h30", "--5m", "5m-3s", "5m\n", "∞", "+", "5s" + "1" * 1_000_000]
)
def test_what_is_no_duration(given: str) -> None:
    if given == "5m\n":  # white space around is let pass
        assert seconds(given) == 300.0
        return
    with pytest.raises(ApiError, match="keep_alive"):
        seconds(given)
