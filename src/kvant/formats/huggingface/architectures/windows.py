"""Which layers attend to a window: as a list of kinds by layer, or as a period."""

from kvant.errors import FormatError
from kvant.formats.huggingface.config import Config, shown


def windowed_layers(config: Config, period: int) -> list[bool]:
    """Return for each layer whether it attends to a window only.

    Args:
        config: The configuration: `layer_types`, else `sliding_window_pattern` as a number (the last layer of each
            group attends to everything) or as letters (`LLLG`).
        period: The number that transformers assumes.

    Raises:
        FormatError: Neither can be read.
    """
    kinds = config.items("layer_types")
    if kinds is not None:
        if len(kinds) != config.n_layers:
            raise FormatError(f"{config.path}: layer_types has {len(kinds)} items for {config.n_layers} layers.")
        return [kind == "sliding_attention" for kind in kinds]
    pattern = config.get("sliding_window_pattern", period)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return [pattern[layer % len(pattern)] == "L" for layer in range(config.n_layers)]
    if isinstance(pattern, bool) or not isinstance(pattern, int) or pattern < 0:
        raise FormatError(
            f"{config.path}: sliding_window_pattern is {shown(pattern)}, no number of layers. Correct it."
        )
    return [bool(pattern and (layer + 1) % pattern) for layer in range(config.n_layers)]
