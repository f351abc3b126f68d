"""Within what hyperparameters that are numbers lie: one table, for configuration and for GGUF's metadata.

Outside of it no model computes anything: the engine aborts over a negative epsilon, and logits are no numbers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvant.errors import FormatError
from kvant.metadata import Value

Bounds = tuple[float, float]

_EPSILON: Bounds = (0.0, 1.0)
_BASE: Bounds = (1.0, 1e12)
_FACTOR: Bounds = (1e-9, 1e9)
_STRENGTH: Bounds = (0.0, 1e9)

BOUNDS: Mapping[str, Bounds] = {
    **dict.fromkeys(("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon",
                     "attention.group_norm_epsilon"), _EPSILON),
    **dict.fromkeys(("rope.freq_base", "rope.freq_base_swa"), _BASE),
    **dict.fromkeys(("rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor",
                     "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
                     "attention.scale", "embedding_scale", "residual_scale", "logit_scale", "expert_weights_scale",
                     "attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping"), _FACTOR),
    **dict.fromkeys(("rope.scaling.yarn_log_multiplier", "attention.temperature_scale", "attention.clamp_kqv",
                     "attention.max_alibi_bias"), _STRENGTH),
    "image_mean": (-1e3, 1e3), "image_std": (1e-6, 1e3),
}  # fmt: skip
"""Least and most of a hyperparameter, by GGUF's key without its architecture. Published models: epsilons from 1e-12 to
1e-5, bases from 1e4 to 1e11, factors from .003 to 160."""

UNSET = frozenset(key for key, bounds in BOUNDS.items() if bounds == _FACTOR)
"""Keys whose zero a GGUF may hold: to the engine it is as good as absent."""

PARTS = ("vision.", "audio.")
"""What stands before a key of a projector."""


class Outside(NamedTuple):
    """A hyperparameter that lies outside.

    Attributes:
        key: Its key.
        value: What it is.
        least: The least it may be.
        most: The most.
    """

    key: str
    value: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.value:g}, not from {self.least:g} to {self.most:g}"


def outside(key: str, value: object) -> Outside | None:
    """Return what lies outside of the bounds of a key without its architecture; None if nothing does."""
    bounds = BOUNDS.get(key)
    if bounds is None or not isinstance(value, (int, float, np.ndarray)) or isinstance(value, bool):
        return None
    low, high = bounds
    values = np.atleast_1d(value)
    wrong = values[~((values >= low) & (values <= high))] if values.dtype.kind in "iuf" else values[:0]
    return Outside(key, float(wrong[0]), low, high) if wrong.size else None


def check_config(metadata: Mapping[str, Value], path: Path) -> None:
    """Refuse a configuration of which a hyperparameter comes out of bounds.

    Raises:
        FormatError: One does.
    """
    for found in _all_outside(metadata):
        raise FormatError(f"{path}: makes {found.key} {found}. Correct the entries that it is made of.")


def check_metadata(metadata: Mapping[str, Value], path: Path) -> None:
    """Refuse a GGUF of which a hyperparameter is out of bounds; what is unset may be zero.

    Raises:
        FormatError: One is.
    """
    for found in _all_outside(metadata):
        if found.value or found.key.partition(".")[2] not in UNSET:
            raise FormatError(f"{path}: {found.key} is {found}. Convert from the original model again.")


def _all_outside(metadata: Mapping[str, Value]) -> Iterator[Outside]:
    for key, value in metadata.items():
        short = key.partition(".")[2]
        for part in PARTS:
            short = short.removeprefix(part)
        found = outside(short, value.value)
        if found:
            yield found._replace(key=key)
