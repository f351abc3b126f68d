"""How the layers of an MLX directory are encoded, and what config.json says of that."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvant._version import __version__
from kvant.formats.huggingface.mlx.schemes import named_grouping
from kvant.model import Model
from kvant.quant.curvature import Curvatures, diagonal
from kvant.quant.importance import Importance
from kvant.quant.plan import Plan
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.targets.mlx.fitted import SCALE_TYPE, is_fittable


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How layers are encoded.

    Attributes:
        dtype: Float type of scales and biases, and of what is not quantized.
        curvatures: Hessians that errors are minimised under; None for `mx.quantize`'s own encoder.
        provenance: What config.json says of what they were measured on.
    """

    dtype: str
    curvatures: Curvatures | None = None
    provenance: Mapping[str, str] | None = None


def under_hessians(calibration: Calibration) -> Encoding:
    """Encode under the Hessians of a calibration."""
    text = calibration.text
    return Encoding(
        dtype=SCALE_TYPE, curvatures=calibration.curvatures,
        provenance={"version": __version__, "calibration.name": text.label, "calibration.sha256": text.sha256},
    )  # fmt: skip


def by_importance(importance: Importance, model: Model) -> Encoding:
    """Weigh errors by the importance of input channels.

    Raises:
        PlanError: It was measured on another model.
        ValueRangeError: It is not finite.
    """
    return Encoding(
        dtype=SCALE_TYPE, curvatures=diagonal(importance, model.tensors),
        provenance={"version": __version__, "calibration.name": "".join(importance.datasets[:1])},
    )  # fmt: skip


def can_be_fitted(plan: Plan) -> bool:
    """Tell whether any layer of a plan can be encoded under a Hessian."""
    return any(is_fittable(named_grouping(kind)) for kind in set(plan.types.values()))
