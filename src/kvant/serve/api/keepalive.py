"""How long a model is to stay loaded, as clients of Ollama's and OpenAI's APIs say it."""

import math
import re

from kvant.errors import ApiError

KeepAlive = int | float | str


_GO_PART = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>ns|us|µs|ms|s|m|h)")


_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(keep_alive: KeepAlive | None) -> float | None:
    """Return how long a model is to stay loaded, seconds; negative for ever, None for the gateway's setting.

    Args:
        keep_alive: Seconds, or a duration as Go writes it: `5m`, `1h30m`, `-1m`, `0`.

    Raises:
        ApiError: It is neither.
    """
    if keep_alive is None:
        return None
    if isinstance(keep_alive, int | float):
        return -1.0 if keep_alive < 0 or not math.isfinite(keep_alive) else float(keep_alive)
    text = keep_alive.strip()
    if text in ("0", "+0", "-0"):
        return 0.0
    begun = position = int(text[:1] in ("+", "-"))
    total = 0.0
    while part := _GO_PART.match(text, position):  # not `search`: digits without a unit would be read again and again
        total += float(part["number"]) * _SECONDS[part["unit"]]
        position = part.end()
    if position == begun or position < len(text):
        raise ApiError(
            f'keep_alive: time: invalid duration "{text[:100]}". Give seconds, or a duration such as "5m".',
            param="keep_alive",
        )
    return -1.0 if text[0] == "-" and total else total
