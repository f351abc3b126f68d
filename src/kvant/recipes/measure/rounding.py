"""What each block type would cost each tensor: real rounding errors of some rows, weighed by their Fisher curvature.

The KL divergence that an error E [rows, n] in one matrix causes is about 0.5 * trace(E Q Eᵀ) / rows, Q being its risk
by calibrate/statistics.py. E is what the encoder leaves of a sample of
rows; rows are alike enough for that, and encoding all of them at every type would take an hour for a large model.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from kvant import kernels
from kvant.allocate.options import Option
from kvant.documents import JSON_ERRORS
from kvant.files import atomic_write
from kvant.kernels.fitting import Curvature
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import DAMPING, DAMPING_BY_COLUMNS, EMBEDDING_DAMPING
from kvant.recipes.cache import digest
from kvant.recipes.measure.calibration import Calibration
from kvant.tensors import Tensor, n_rows, row_length

SAMPLE_ROWS = 64
SWEEPS = 1
"""Passes of descent on samples: the order of types and their ratios are settled after the first."""


def rounding_costs(
    model: Model,
    calibration: Calibration,
    kinds: Callable[[Tensor], Sequence[str]],
    restored: Callable[[np.ndarray, str, Curvature], np.ndarray],
    *,
    key: object,
    threads: int = 0,
    progress: Progress = SILENT,
) -> dict[str, dict[str, float]]:
    """Return the KL divergence that each kind of encoding is predicted to add by each measured matrix.

    On other text errors are larger than on the text that they were fitted to, the more columns there are to the fewer
    tokens: by about 1 + columns / tokens. With 8960 columns on 12,288 tokens twice the error was measured, where
    matrices of few columns had 1.2 times.

    Args:
        model: The full-precision model.
        calibration: What was measured of it.
        kinds: Names of what a tensor may become.
        restored: Encodes and decodes rows, float32 [rows, n], under a Hessian.
        key: What kinds there are, for the copy that is kept beside the statistics.
        threads: Threads; 0 for one per core.
        progress: Told of tensors.
    """
    name_of_copy = digest(SAMPLE_ROWS, SWEEPS, key, DAMPING, DAMPING_BY_COLUMNS, EMBEDDING_DAMPING)
    path = calibration.directory / f"rounding-{name_of_copy[:16]}.json"
    names = [name for name in model.tensors if name in calibration.curvatures.names]
    try:
        costs = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, float]])
    except (OSError, *JSON_ERRORS):
        costs = {}
    if sorted(costs) != sorted(names):
        progress.start("weigh block types", len(names), "tensors")
        costs = {}
        for name in names:
            tensor = model.tensors[name]
            x, risk = sample_rows(tensor), calibration.statistics.risk(name)
            curvature = calibration.curvatures.ready(name, threads=threads)
            errors = {kind: restored(x, kind, curvature) - x for kind in kinds(tensor)}
            costs[name] = {kind: _kld(error, risk) for kind, error in errors.items()}
            progress.advance("weigh block types", 1)
        progress.finish("weigh block types")
        with atomic_write(path) as file:
            file.write(msgspec.json.encode(costs))
    other_text = {name: 1 + row_length(model.tensors[name]) / calibration.curvatures.n_tokens for name in names}
    return {
        name: {kind: max(0.0, cost * other_text[name]) for kind, cost in kinds.items()} for name, kinds in costs.items()
    }


def _kld(error: np.ndarray, risk: np.ndarray) -> float:
    return 0.5 * float(np.sum((error @ risk) * error, dtype=np.float64)) / len(error)


def predicted_kld(costs: Mapping[str, Sequence[Option]], types: Mapping[str, str]) -> float:
    """Sum of what a plan's tensors are predicted to add, nats per token."""
    return sum(option.cost for name, kinds in costs.items() for option in kinds if option.kind == types[name])


def sample_rows(tensor: Tensor, count: int = SAMPLE_ROWS) -> np.ndarray:
    """Return up to `count` rows of a tensor, evenly spaced, as float32 [rows, n]."""
    rows = n_rows(tensor)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, count)).astype(np.int64))
    data = np.concatenate([tensor.read_bytes(int(row), int(row) + 1) for row in chosen])
    return kernels.decode(data, tensor.block_type, row_length(tensor))
