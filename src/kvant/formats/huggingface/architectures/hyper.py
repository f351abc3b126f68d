"""Hyperparameters of a GGUF, read with checks: what becomes entries of config.json."""

import numpy as np

from kvant.errors import FormatError
from kvant.formats.huggingface.config import MAX_INTEGER, finite, shown
from kvant.model import Model


def has(model: Model, key: str) -> bool:
    """Whether the model has a hyperparameter, named without its architecture."""
    return f"{model.architecture}.{key}" in model.metadata


def integer(model: Model, key: str, default: int | None = None, *, least: int = 1) -> int:
    """Return an integer hyperparameter of a GGUF, `least` or more; of per-layer ones the value they share.

    Raises:
        FormatError: Absent without a default, no such integer, or different between layers.
    """
    value = model.get(f"{model.architecture}.{key}", default)
    if isinstance(value, np.ndarray) and value.ndim == 1 and len(value) and (value == value[0]).all():
        value = value[0].item()
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_INTEGER:
        raise FormatError(
            f"{model.path}: {model.architecture}.{key} is {shown(value)}, not one integer in {least}..{MAX_INTEGER}. "
            f"Convert from the original model again."
        )
    return value


def number(model: Model, key: str, default: float) -> float:
    """Return a hyperparameter of a GGUF as the shortest decimal that is the same float32: 1e-05, not 9.9999997e-06.

    Raises:
        FormatError: It is not a finite number.
    """
    return shortest(
        finite(model.get(f"{model.architecture}.{key}", default), f"{model.architecture}.{key}", model.path)
    )


def shortest(value: float) -> float:
    """Return the shortest decimal that rounds to the same float32."""
    return float(str(np.float32(value)))
