"""What every matrix of an export may become, with bytes and predicted KL divergence; and what the others become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.allocate.options import Option
from kvant.allocate.solver import solve
from kvant.devices.providers import Provider
from kvant.errors import BudgetError
from kvant.kernels.fitting import Curvature
from kvant.kernels.nbits import NBits, fit, nbits_type
from kvant.progress import SILENT, Progress
from kvant.quant.plan import Plan
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.measure.rounding import SWEEPS, rounding_costs
from kvant.recipes.targets.onnx.encoding import Known
from kvant.recipes.targets.onnx.origin import Origin
from kvant.recipes.targets.onnx.plan import CANDIDATES, Dtype, fitting_plan, refusal
from kvant.recipes.targets.onnx.sizes import LONGEST_NAME, Bounds
from kvant.tensors import Tensor, n_rows, row_length

UNKNOWN = NBits(bits=8, block=32)
"""Blocks of matrices that nothing is known of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the matrices of an export may become.

    Attributes:
        options: By canonical name: the first of those whose rows a matrix holds.
        names: Initializers by canonical name.
        fixed: Blocks of the matrices that have no choice, by initializer: calibration knows nothing of them.
        order: All matrices, by initializer, as they are written.
        rest_bytes: Bytes of both files beside those of the options, at most.
    """

    options: Mapping[str, tuple[Option, ...]]
    names: Mapping[str, str]
    fixed: Mapping[str, str]
    order: tuple[str, ...]
    rest_bytes: int

    def plan(self, choice: Mapping[str, str], preset: str) -> Plan:
        """Return the plan of a choice: blocks of every initializer."""
        found = {**self.fixed, **{self.names[name]: kind for name, kind in choice.items()}}
        return Plan(preset=preset, file_type=0, types={name: found[name] for name in self.order})

    def choice(self, types: Mapping[str, str]) -> dict[str, str] | None:
        """Return which options a plan takes; None if it is none of them."""
        if any(types.get(name) != kind for name, kind in self.fixed.items()):
            return None
        found = {name: types[initializer] for name, initializer in self.names.items()}
        is_offered = all(kind in (o.kind for o in self.options[name]) for name, kind in found.items())
        return found if is_offered else None

    def best(self, max_bytes: int) -> dict[str, Option]:
        """Return the choice of the least predicted KL divergence whose files take at most so many bytes.

        Raises:
            BudgetError: Even the smallest takes more.
        """
        least = sum(min(o.n_bytes for o in kinds) for kinds in self.options.values())
        most = sum(max(o.n_bytes for o in kinds) for kinds in self.options.values())
        room = max_bytes - self.rest_bytes
        if room < least:
            raise BudgetError(
                f"max size: {max_bytes} bytes are below {least + self.rest_bytes}, the least possible. "
                "Allow at least that."
            )
        return solve(self.options, most).at(min(room, most))


def choices_of(
    origin: Origin, calibration: Calibration | None, dtype: Dtype, *, runs: Provider | None = None, threads: int = 0,
    progress: Progress = SILENT,
) -> Choices:  # fmt: skip
    """Weigh what every matrix may become; errors are kept beside the statistics.

    Args:
        origin: The export.
        calibration: What was measured of the model; None leaves no choice.
        dtype: Type of all floats.
        runs: The execution provider that it must run on; None for any.
        threads: Threads; 0 for one per core.
        progress: Told of tensors.

    Raises:
        UnsupportedFormatError: The provider runs no blocks that a matrix without choice could have.
    """
    costs = _costs(origin, calibration, threads, progress) if calibration else {}
    bounds = Bounds(origin, dtype)
    options: dict[str, tuple[Option, ...]] = {}
    names: dict[str, str] = {}
    for weight in origin.weights:
        kinds = [kind for kind in CANDIDATES if not refusal(weight, kind, runs)]
        parts = origin.rows.parts(weight)
        if not kinds or not parts or weight.names[0] in names or any(not costs.get(part.name) for part in parts):
            continue
        shares = [
            (part.name, (part.stop - part.start) / n_rows(origin.rows.model.tensors[part.name])) for part in parts
        ]
        options[weight.names[0]] = tuple(
            Option(kind=kind.name, n_bytes=size, cost=sum(share * costs[name][kind.name] for name, share in shares))
            for kind, size in zip(kinds, bounds.matrix_bytes(weight, kinds), strict=True)
        )
        names[weight.names[0]] = weight.name
    others = [weight for weight in origin.weights if weight.name not in names.values()]
    plain = Plan(preset="", file_type=0, types={weight.name: UNKNOWN.name for weight in others})
    fixed = fitting_plan(others, plain, runs)[0].types
    known = Known(curvatures=calibration.curvatures if calibration else None)
    rest = bounds.rest_bytes(names.values(), fixed, known.notes(LONGEST_NAME))
    order = tuple(weight.name for weight in origin.weights)
    return Choices(options=options, names=names, fixed=fixed, order=order, rest_bytes=rest)


def _costs(origin: Origin, calibration: Calibration, threads: int, progress: Progress) -> dict[str, dict[str, float]]:
    """Return what each of `CANDIDATES` is predicted to add by each tensor of the model that the export holds."""
    model = origin.rows.model
    held = {part.name for weight in origin.weights for part in origin.rows.parts(weight)}

    def kinds(tensor: Tensor) -> Sequence[str]:
        fits = tensor.name in held and len(tensor.shape) == 2
        return [kind.name for kind in CANDIDATES if fits and row_length(tensor) % kind.block == 0]

    def restored(x: np.ndarray, kind: str, curvature: Curvature) -> np.ndarray:
        return fit(x, nbits_type(kind), curvature, sweeps=SWEEPS, threads=1)[0].decode()

    key = ("onnx", [kind.name for kind in CANDIDATES], sorted(held))
    return rounding_costs(model, calibration, kinds, restored, key=key, threads=threads, progress=progress)
