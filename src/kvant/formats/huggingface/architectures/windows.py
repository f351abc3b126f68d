"""Which layers attend to a window: as a list of kinds by layer, or as a period."""

from typing import Any

import numpy as np

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.hyper import has, integer
from kvant.formats.huggingface.config import Config, shown
from kvant.model import Model

WINDOW = "attention.sliding_window"


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


def windows_back(model: Model, period: int) -> dict[str, Any]:
    """Return the window and the kinds of layers as entries of config.json.

    Args:
        model: A GGUF.
        period: After how many layers one attends to everything, where the metadata does not say it by layer.

    Raises:
        FormatError: The metadata has another number of layers.
    """
    layers, stated = integer(model, "block_count"), model.get(f"{model.architecture}.{WINDOW}_pattern")
    if not has(model, WINDOW):
        return {"layer_types": ["full_attention"] * layers}
    windowed = [bool((layer + 1) % period) for layer in range(layers)]
    if isinstance(stated, (np.ndarray, list)):
        windowed = [bool(value) for value in stated]
    if len(windowed) != layers:
        raise FormatError(f"{model.path}: {WINDOW}_pattern has {len(windowed)} items for {layers} layers.")
    kinds = ["sliding_attention" if one else "full_attention" for one in windowed]
    return {"sliding_window": integer(model, WINDOW), "layer_types": kinds}
