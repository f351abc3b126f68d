"""What could be made of a model."""

from typing import NamedTuple

import msgspec

from kvant.devices.memory import RamPrediction
from kvant.quant.plan import Plan

FITTED_GAIN = 0.4
"""Distortion of a fitted plan over that of the same types searched with importance: .36 to .61 by type on SmolLM2."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A variant that could be made in one format.

    Attributes:
        preset: Its preset.
        name: That as tables of several formats show it.
        plan: Type of every tensor, both by the format's own names.
        aliases: Other presets that come to the same types on this model.
        size_bytes: Exact size of its files of weights.
        bpw: Bits per weight over all tensors.
        ram: Memory it is predicted to take.
        beside_bytes: Size of the projector that goes with it; 0 if none does.
        speed_tok_s: Generation speed predicted, tokens per second.
        distortion: Expected distortion of its weights; orders candidates by quality.
        is_fitted: Encoded under Hessians, not with importance.
        predicted_kld: Mean KL divergence predicted from its rounding errors; None of presets.
    """

    preset: str
    name: str
    plan: Plan
    aliases: tuple[str, ...] = ()
    size_bytes: int
    bpw: float
    ram: RamPrediction
    beside_bytes: int = 0
    speed_tok_s: float
    distortion: float
    is_fitted: bool = False
    predicted_kld: float | None = None


class Matrix(NamedTuple):
    """How a matrix is stored.

    Attributes:
        name: Canonical name; the first of several that are stored as one.
        type: Name of its type.
        n_bytes: Its bytes.
        n_weights: Its weights.
    """

    name: str
    type: str
    n_bytes: int
    n_weights: int
