"""What each block type would cost each tensor: real rounding errors of some rows, weighed by their Fisher curvature.

The KL divergence that an error E [rows, n] in one matrix causes is about 0.5 * trace(E Q Eᵀ) / rows, Q being its risk
by calibrate/statistics.py. E is what the encoder leaves of a sample of
rows; rows are alike enough for that, and encoding all of them at every type would take an hour for a large model.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from kvant import kernels
from kvant.allocate.options import Option, allowed_types, stored_bytes
from kvant.dtypes import BLOCK_TYPES, block_type
from kvant.errors import KvantError
from kvant.files import atomic_write
from kvant.kernels.fitting import FITTABLE, fit
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import DAMPING, DAMPING_BY_COLUMNS, EMBEDDING_DAMPING
from kvant.recipes.calibration import Calibration
from kvant.recipes.variants import digest
from kvant.tensors import Tensor, n_rows, row_length

SAMPLE_ROWS = 64
SWEEPS = 1
"""Passes of descent on samples: the order of types and their ratios are settled after the first."""

TYPES = tuple(name for name in BLOCK_TYPES if name in FITTABLE)


class Moments(Protocol):
    """The part of calibrate's `Statistics` that is needed here."""

    def risk(self, name: str) -> np.ndarray:
        """Q, float32 [n, n]."""


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
    key = digest(SAMPLE_ROWS, SWEEPS, tuple(types), DAMPING, DAMPING_BY_COLUMNS, EMBEDDING_DAMPING)
    path = calibration.directory / f"rounding-{key[:16]}.json"
    names = [name for name in model.tensors if name in calibration.curvatures.names]
    try:
        costs = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, float]])
    except (OSError, msgspec.MsgspecError):
        costs = {}
    if sorted(costs) != sorted(names):
        costs = _measured(model, calibration, names, types, threads, progress)
        with atomic_write(path) as file:
            file.write(msgspec.json.encode(costs))
    tokens = calibration.curvatures.n_tokens
    return {name: _options(model.tensors[name], costs[name], tokens) for name in names}


def predicted_kld(costs: Mapping[str, Sequence[Option]], types: Mapping[str, str]) -> float:
    """Sum of what a plan's tensors are predicted to add, nats per token."""
    return sum(option.cost for name, kinds in costs.items() for option in kinds if option.kind == types[name])


def _measured(
    model: Model,
    calibration: Calibration,
    names: Sequence[str],
    types: Sequence[str],
    threads: int,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    moments = calibration.statistics
    progress.start("weigh block types", len(names), "tensors")
    costs = {}
    for name in names:
        costs[name] = _costs(model.tensors[name], model.architecture, calibration, moments, types, threads)  # type: ignore[arg-type]
        progress.advance("weigh block types", 1)
    progress.finish("weigh block types")
    return costs


def _costs(
    tensor: Tensor, architecture: str, calibration: Calibration, moments: Moments, types: Sequence[str], threads: int
) -> dict[str, float]:
    """Predicted KL divergence by block type of one tensor."""
    n = row_length(tensor)
    x = sample_rows(tensor)
    curvature = calibration.curvatures.ready(tensor.name, threads=threads)
    risk = moments.risk(tensor.name)
    found = {}
    for kind in allowed_types(tensor.name, tensor.shape, types, architecture=architecture):
        if kind not in FITTABLE:
            raise KvantError(f"{tensor.name}: no block type divides its rows of {n} weights. Leave out --calibrate.")
        blocks, _ = fit(x, kind, curvature, sweeps=SWEEPS, threads=threads)
        error = kernels.decode(blocks, kind, n, threads=threads) - x
        found[kind] = 0.5 * float(np.sum((error @ risk) * error, dtype=np.float64)) / len(x)
    return found


def sample_rows(tensor: Tensor, count: int = SAMPLE_ROWS) -> np.ndarray:
    """Return up to `count` rows of a tensor, evenly spaced, as float32 [rows, n]."""
    rows = n_rows(tensor)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, count)).astype(np.int64))
    data = np.concatenate([tensor.read_bytes(int(row), int(row) + 1) for row in chosen])
    return kernels.decode(data, tensor.block_type, row_length(tensor))


def _options(tensor: Tensor, costs: Mapping[str, float], n_tokens: int) -> tuple[Option, ...]:
    """Options of a tensor from errors on the calibration text.

    On other text they are larger, the more columns were fitted to the fewer tokens: by about 1 + columns / tokens. With
    8960 columns on 12,288 tokens twice the error was measured, where matrices of few columns had 1.2 times.
    """
    other_text = 1 + row_length(tensor) / n_tokens
    return tuple(
        Option(
            kind=block_type(kind).name,
            n_bytes=stored_bytes(tensor.name, tensor.shape, kind),
            cost=max(0.0, cost * other_text),
        )
        for kind, cost in costs.items()
    )
