"""What every matrix may become in GGUF, and what that costs: bytes, KL divergence, memory and time per token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kvant import kernels
from kvant.allocate.options import Option, allowed_types, stored_bytes
from kvant.devices.memory import OUTPUT, copied_bytes
from kvant.devices.profiles import Profile
from kvant.dtypes import BLOCK_TYPES, block_type
from kvant.errors import KvantError
from kvant.kernels.fitting import FITTABLE, WORTH_WEIGHING, Curvature, fit
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.measure.base import Floor
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.measure.rounding import SWEEPS, predicted_kld, rounding_costs
from kvant.recipes.targets.gguf.pace import Pace
from kvant.tensors import Tensor, row_length

TYPES = tuple(name for name in BLOCK_TYPES if name in WORTH_WEIGHING)


def rounding_options(
    model: Model,
    calibration: Calibration,
    *,
    types: Sequence[str] = TYPES,
    threads: int = 0,
    progress: Progress = SILENT,
) -> dict[str, tuple[Option, ...]]:
    """Return what every measured matrix may become, with the KL divergence each type is predicted to add.

    Kept beside the statistics: asked again, nothing is encoded.

    Args:
        model: The full-precision model.
        calibration: What was measured of it.
        types: Block types to weigh; fewer take less time.
        threads: Threads; 0 for one per core.
        progress: Told of tensors.

    Raises:
        ValueRangeError: A weight is NaN or infinite.
    """

    def allowed(tensor: Tensor) -> Sequence[str]:
        found = allowed_types(tensor.name, tensor.shape, types, architecture=model.architecture)
        if any(kind not in FITTABLE for kind in found):
            raise KvantError(
                f"{tensor.name}: no block type divides its rows of {row_length(tensor)} weights. Leave out --calibrate."
            )
        return found

    def restored(x: np.ndarray, kind: str, curvature: Curvature) -> np.ndarray:
        blocks, _ = fit(x, kind, curvature, sweeps=SWEEPS, threads=1)
        return kernels.decode(blocks, kind, x.shape[1], threads=1)

    costs = rounding_costs(model, calibration, allowed, restored, key=tuple(types), threads=threads, progress=progress)
    return {
        name: tuple(
            Option(
                kind=block_type(kind).name,
                n_bytes=stored_bytes(name, model.tensors[name].shape, kind),
                cost=cost,
            )
            for kind, cost in kinds.items()
        )
        for name, kinds in costs.items()
    }


def on_device(
    options: Mapping[str, Sequence[Option]], model: Model, device: Profile, pace: Pace | None
) -> dict[str, tuple[Option, ...]]:
    """Return options with what a device makes of them: the engine's copies, and seconds per token by a pace."""
    is_tied = OUTPUT not in model.tensors

    def on(name: str, option: Option) -> Option:
        copies = copied_bytes(
            name, block_type(option.kind), model.tensors[name].shape, is_tied=is_tied, architecture=device.architecture
        )
        return replace(option, copy_bytes=copies, seconds=pace.seconds(model, name, option.kind) if pace else 0.0)

    return {name: tuple(on(name, option) for option in kinds) for name, kinds in options.items()}


def engine_floor(floors: Sequence[Floor], options: Mapping[str, Sequence[Option]]) -> float:
    """Return the KLD that the engine's own rounding of activations adds to every mix, nats per token.

    It is what a copy in Q8_0 was measured to lose beyond what its weights are predicted to.
    """
    measured = sum(floor.kld_mean for floor in floors if floor.name == "Q8_0")
    return max(0.0, measured - predicted_kld(options, dict.fromkeys(options, "Q8_0")))
