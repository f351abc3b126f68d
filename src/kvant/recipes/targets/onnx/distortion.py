"""What blocks are expected to cost before anything is encoded: their error on Gaussian weights.

As measure/distortion.py has it for block types, the rounding of activations included: the products make them int8, too.
"""

from collections.abc import Mapping, Sequence

from kvant.formats.onnx.weights import Weight
from kvant.kernels.nbits import nbits_type
from kvant.recipes.measure.distortion import ACTIVATION_FLOOR

DISTORTION: Mapping[str, tuple[float, float | None]] = {
    "MatMulNBits8_b16": (1.67e-5, None), "MatMulNBits8_b16_sym": (2.18e-5, None),
    "MatMulNBits8_b32": (2.26e-5, 1.97e-5), "MatMulNBits8_b32_sym": (2.83e-5, None),
    "MatMulNBits8_b64": (2.88e-5, 2.64e-5), "MatMulNBits8_b64_sym": (3.51e-5, None),
    "MatMulNBits8_b128": (3.53e-5, 3.33e-5), "MatMulNBits8_b128_sym": (4.18e-5, None),
    "MatMulNBits8_b256": (4.18e-5, None), "MatMulNBits8_b256_sym": (4.87e-5, None),
    "MatMulNBits4_b16": (4.84e-3, None), "MatMulNBits4_b16_sym": (5.76e-3, None),
    "MatMulNBits4_b32": (6.55e-3, 5.96e-3), "MatMulNBits4_b32_sym": (7.42e-3, 6.58e-3),
    "MatMulNBits4_b64": (8.34e-3, 7.60e-3), "MatMulNBits4_b64_sym": (9.11e-3, 8.11e-3),
    "MatMulNBits4_b128": (1.02e-2, 9.08e-3), "MatMulNBits4_b128_sym": (1.08e-2, 9.41e-3),
    "MatMulNBits4_b256": (1.21e-2, None), "MatMulNBits4_b256_sym": (1.25e-2, None),
    "MatMulNBits2_b16": (0.123, None), "MatMulNBits2_b16_sym": (0.106, None),
    "MatMulNBits2_b32": (0.165, 0.110), "MatMulNBits2_b32_sym": (0.131, None),
    "MatMulNBits2_b64": (0.210, 0.123), "MatMulNBits2_b64_sym": (0.156, None),
    "MatMulNBits2_b128": (0.255, None), "MatMulNBits2_b128_sym": (0.181, None),
    "MatMulNBits2_b256": (0.301, None), "MatMulNBits2_b256_sym": (0.207, None),
}  # fmt: skip
"""Relative distortion by ONNX Runtime's rounding, and by the encoder under an even Hessian; None where there is none.

Made by encoding and decoding 262,144 normal values; tests/unit/recipes/targets/onnx/test_distortion.py repeats it.
"""


def plan_distortion(weights: Sequence[Weight], types: Mapping[str, str], n_params: int, *, is_weighed: bool) -> float:
    """Mean distortion of a plan over a model's weights; what is no matrix stays as it is and costs nothing.

    Args:
        weights: The matrices.
        types: Their blocks, by initializer.
        n_params: Weights of the model.
        is_weighed: Whether they are encoded by what matters, where they can be.
    """
    total = 0.0
    for weight in weights:
        plain, weighed = DISTORTION[types[weight.name]]
        found = weighed if is_weighed and weighed is not None else plain
        total += weight.rows * weight.columns * (found + ACTIVATION_FLOOR)
    return total / max(1, n_params)


def is_finer(fine: str, coarse: str) -> bool:
    """Say whether blocks certainly store weights at least as finely as others."""
    one, other = nbits_type(fine), nbits_type(coarse)
    if one.bits != other.bits:
        return one.bits > other.bits
    return one.block <= other.block and one.symmetric == other.symmetric
