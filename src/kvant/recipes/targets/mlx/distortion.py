"""What groupings are expected to cost before anything is encoded: their error on Gaussian weights.

As measure/distortion.py has it for block types, without the rounding of activations: MLX does none.
"""

from collections.abc import Mapping, Sequence

from kvant.formats.huggingface.mlx.layers import part_path
from kvant.formats.huggingface.mlx.schemes import named_grouping
from kvant.quant.plan import Plan
from kvant.tensors import Tensor, n_weights

DISTORTION: Mapping[str, tuple[float, float | None]] = {
    "8bit-g32": (2.33e-5, 1.65e-5), "8bit-g64": (2.95e-5, 2.33e-5), "8bit-g128": (3.58e-5, None),
    "6bit-g32": (3.74e-4, 2.69e-4), "6bit-g64": (4.75e-4, 3.81e-4), "6bit-g128": (5.78e-4, None),
    "mxfp8": (7.02e-4, None),
    "5bit-g32": (1.55e-3, 1.12e-3), "5bit-g64": (1.95e-3, 1.57e-3), "5bit-g128": (2.38e-3, None),
    "4bit-g32": (6.57e-3, 4.79e-3), "4bit-g64": (8.29e-3, 6.60e-3), "nvfp4": (9.05e-3, None),
    "4bit-g128": (1.01e-2, None), "mxfp4": (1.34e-2, None),
    "3bit-g32": (2.93e-2, 2.10e-2), "3bit-g64": (3.64e-2, 2.76e-2), "3bit-g128": (4.33e-2, None),
    "2bit-g32": (0.132, 8.88e-2), "2bit-g64": (0.156, 0.105), "2bit-g128": (0.181, None),
}  # fmt: skip
"""Relative distortion by `mx.quantize`, and by the encoder under an even Hessian; None where there is none.

Made by encoding and decoding 262,144 normal values; tests/unit/recipes/targets/mlx/test_distortion.py repeats it.
"""

CERTAIN = 2.0
"""Times the distortion that makes a grouping coarser than another of whatever mode, however weights are spread."""


def plan_distortion(plan: Plan, plain: Sequence[Tensor], *, is_weighed: bool) -> float:
    """Mean distortion of a plan over a model's weights; what stays floats costs next to nothing.

    Args:
        plan: Grouping of every layer that is quantized.
        plain: The model's tensors under MLX's names.
        is_weighed: Whether layers are encoded by what matters, where they can be.
    """
    total, count = 0.0, 0
    for tensor in plain:
        count += n_weights(tensor)
        kind = plan.types.get(part_path(tensor.name))
        if kind is not None:
            by_mlx, weighed = DISTORTION[kind]
            total += n_weights(tensor) * (weighed if is_weighed and weighed is not None else by_mlx)
    return total / max(1, count)


def is_finer(fine: str, coarse: str) -> bool:
    """Tell whether a grouping certainly stores weights at least as finely as another."""
    one, other = named_grouping(fine), named_grouping(coarse)
    if one.mode == other.mode:
        return one.bits > other.bits or (one.bits == other.bits and one.group_size <= other.group_size)
    return DISTORTION[fine][0] * CERTAIN <= DISTORTION[coarse][0]
