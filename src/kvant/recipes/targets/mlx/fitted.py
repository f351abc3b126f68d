"""MLX layers under Hessians: the encoders, and what every layer may become.

Files are as mlx-lm writes and reads them; what differs is which codes, scales and biases the groups hold, and which
grouping a layer has. How: docs/explanation/fitting.md. Scales and biases are float16.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from kvant.allocate.options import Option
from kvant.formats.huggingface.architectures.registry import family_of_model
from kvant.formats.huggingface.mlx.layers import WEIGHT, Encoder
from kvant.formats.huggingface.mlx.schemes import named_grouping
from kvant.kernels import mlx as kernels
from kvant.kernels.fitting import GROUP_BITS, GROUP_SIZES, SWEEPS, Curvature, fit_groups
from kvant.kernels.mlx import Grouping, Quantized
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import Curvatures
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.measure.rounding import SWEEPS as SAMPLE_SWEEPS
from kvant.recipes.measure.rounding import rounding_costs
from kvant.tensors import Tensor, n_weights, row_length

KINDS = tuple(f"{bits}bit-g{size}" for bits in GROUP_BITS for size in GROUP_SIZES)
SCALE_TYPE = "F16"


class FittedLayers:
    """Gives every measured layer an encoder under its Hessian.

    Args:
        model: The model whose layers they are.
        curvatures: Its Hessians.
        threads: Threads that factor one.
    """

    def __init__(self, model: Model, curvatures: Curvatures, *, threads: int = 0) -> None:
        self._family = family_of_model(model)
        self._curvatures, self._threads = curvatures, threads

    def __call__(self, path: str, grouping: Grouping) -> Encoder | None:
        """Return the encoder of a layer whose turn has come; None if it was not measured or cannot be fitted so."""
        name = self._family.canonical_name(path + WEIGHT)
        if name is None or name not in self._curvatures.names or not is_fittable(grouping):
            return None
        curvature = self._curvatures.ready(name, threads=self._threads)
        return partial(fitted, grouping=grouping, curvature=curvature, threads=1)


def is_fittable(grouping: Grouping) -> bool:
    """Tell whether there is an encoder under a Hessian."""
    return grouping.mode == "affine" and grouping.bits in GROUP_BITS and grouping.group_size in GROUP_SIZES


def fitted(
    x: np.ndarray, grouping: Grouping, curvature: Curvature, *, sweeps: int = SWEEPS, threads: int = 0
) -> Quantized:
    """Encode rows, float32 [rows, n], as affine groups of float16 scales and biases under a Hessian."""
    codes, scales, biases, _ = fit_groups(
        x, grouping.bits, grouping.group_size, curvature, sweeps=sweeps, threads=threads
    )
    return Quantized(
        words=kernels.pack(codes, grouping.bits), scales=scales.view(np.uint8), biases=biases.view(np.uint8)
    )


def grouping_options(
    model: Model, calibration: Calibration, *, threads: int = 0, progress: Progress = SILENT
) -> Mapping[str, Sequence[Option]]:
    """Return what every measured matrix may become, with bytes and predicted KL divergence.

    Kept beside the statistics: asked again, nothing is encoded. A matrix whose rows no group divides has no option.
    """

    def kinds(tensor: Tensor) -> Sequence[str]:
        return [kind for kind in KINDS if row_length(tensor) % named_grouping(kind).group_size == 0]

    def restored(x: np.ndarray, kind: str, curvature: Curvature) -> np.ndarray:
        grouping = named_grouping(kind)
        return kernels.dequantize(fitted(x, grouping, curvature, sweeps=SAMPLE_SWEEPS, threads=1), grouping)

    costs = rounding_costs(model, calibration, kinds, restored, key=("mlx", KINDS), threads=threads, progress=progress)
    sized = partial(_layer_bytes, model)
    return {
        name: tuple(Option(kind=kind, n_bytes=sized(name, kind), cost=cost) for kind, cost in by_kind.items())
        for name, by_kind in costs.items()
        if by_kind
    }


def _layer_bytes(model: Model, name: str, kind: str) -> int:
    tensor, grouping = model.tensors[name], named_grouping(kind)
    return round(n_weights(tensor) * grouping.bpw / 8)
