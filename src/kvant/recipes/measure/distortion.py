"""What a plan is expected to cost, before anything is encoded: the error of its block types on Gaussian weights.

A block type turns weights w into w + e. Its relative distortion E[e^2] / E[w^2] on normal weights is a constant of the
type and its search. A plan's distortion is the mean over its weights, and the KL divergence it causes is nearly
proportional to that within one model (rank correlation on the reference model in docs/explanation/choosing.md).
So it orders candidates and rules some out; it never stands in for a measurement.
"""

import math
from collections.abc import Callable, Mapping

from kvant.dtypes import block_type
from kvant.evaluate.loss import DISTANCE, KLD, Measure
from kvant.model import Model
from kvant.quant.plan import KEEP, Plan
from kvant.tensors import n_weights

# Relative distortion without importance and with (uniform) importance; None: cannot be encoded without.
# Made by encoding and decoding 262,144 normal values; tests/unit/recipes/test_distortion.py repeats it.
DISTORTION: Mapping[str, tuple[float | None, float]] = {
    "F32": (0.0, 0.0), "F16": (4e-8, 4e-8), "BF16": (2.77e-6, 2.77e-6),
    "Q8_0": (2.88e-5, 2.88e-5), "Q6_K": (3.16e-4, 3.00e-4), "Q5_K": (1.31e-3, 1.25e-3), "Q5_1": (1.43e-3, 1.14e-3),
    "Q5_0": (1.83e-3, 1.64e-3), "Q4_K": (5.12e-3, 5.12e-3), "Q4_1": (6.13e-3, 4.90e-3), "Q4_0": (7.42e-3, 6.69e-3),
    "IQ4_NL": (5.81e-3, 5.62e-3), "IQ4_XS": (5.90e-3, 5.73e-3), "Q3_K": (2.28e-2, 2.09e-2), "IQ3_S": (2.76e-2, 1.87e-2),
    "IQ3_XXS": (4.54e-2, 3.30e-2), "Q2_K": (8.82e-2, 7.20e-2), "IQ2_S": (7.03e-2, 6.20e-2), "IQ2_XS": (None, 8.97e-2),
    "IQ2_XXS": (None, 0.118), "IQ1_M": (0.339, 0.204), "IQ1_S": (None, 0.236), "TQ1_0": (0.657, 0.657),
    "TQ2_0": (0.657, 0.657), "MXFP4": (1.33e-2, 1.33e-2), "NVFP4": (9.09e-3, 9.09e-3), "Q1_0": (0.361, 0.361),
}  # fmt: skip
UNKNOWN = 0.5

# The engine rounds activations to 8 bits wherever weights are quantized; this floor makes Q8_0's measured divergence
# consistent with that of the coarser types.
ACTIVATION_FLOOR = 8e-5

# Mean KLD per unit of distortion: about 6 from 1.5 B parameters up, rising below (40 at 135 M). A rule of thumb from
# measured Q8_0 to Q2_K files of SmolLM2-135M, Qwen2.5-Coder-1.5B and Llama-3-8B.
KLD_PER_DISTORTION = 6.0
RULE_FROM_WEIGHTS = 1.5e9
RULE_EXPONENT = 0.8

# KLD of a fitted mix over that of a preset of its size: .23 to .41 on SmolLM2-135M and Qwen2.5-Coder-1.5B from 4 to 6
# bits per weight, presets with importance (docs/explanation/fitting.md).
FITTED_SHARE = 1 / 3

# Mean cosine distance of vectors per unit of distortion: 7.6 to 11.6 on Q3_K to Q5_K files of all-MiniLM-L6-v2, 2.2 to
# 5.7 on Q3_K to Q8_0 files of SmolLM2-135M with its states' mean as vector. A rule of thumb between the two.
DISTANCE_PER_DISTORTION = 6.0


def type_distortion(name: str, *, has_importance: bool) -> float:
    """Relative distortion of a block type, with the engine's rounding of activations."""
    plain, weighted = DISTORTION.get(name, (UNKNOWN, UNKNOWN))
    value = weighted if has_importance or plain is None else plain
    return value + (ACTIVATION_FLOOR if block_type(name).is_quantized else 0.0)


def plan_distortion(plan: Plan, model: Model) -> float:
    """Mean distortion of a plan over its weights; a tensor that stays as it is costs nothing."""
    total = 0.0
    if plan.preset == KEEP:  # nothing is rounded but activations
        blocks = [t for t in model.tensors.values() if block_type(plan.types[t.name]).is_quantized]
        return ACTIVATION_FLOOR * sum(map(n_weights, blocks)) / max(1, model.n_weights)
    for tensor in model.tensors.values():
        kind = plan.types[tensor.name]
        if kind != tensor.block_type.name:
            total += n_weights(tensor) * type_distortion(kind, has_importance=plan.has_importance)
    return total / max(1, model.n_weights)


def expected_loss(measure: Measure, distortion: float, weights: int) -> float:
    """Mean loss to expect of a distortion, by rule of thumb; right within a factor of about three."""
    return _EXPECTED[measure.name](distortion, weights)


def expected_kld(distortion: float, weights: int) -> float:
    """Mean KL divergence to expect of a distortion."""
    smaller = max(1.0, RULE_FROM_WEIGHTS / max(1, weights))
    return KLD_PER_DISTORTION * math.pow(smaller, RULE_EXPONENT) * distortion


def expected_distance(distortion: float, weights: int) -> float:  # noqa: ARG001 - of one size only is enough known
    """Mean cosine distance of vectors to expect of a distortion."""
    return DISTANCE_PER_DISTORTION * distortion


_EXPECTED: Mapping[str, Callable[[float, int], float]] = {KLD.name: expected_kld, DISTANCE.name: expected_distance}
