"""What each block type would cost each tensor: real rounding errors of some rows, weighed by their Fisher curvature.

The KL divergence that an error E [rows, n] in one matrix causes is about 0.5 * trace(E Q Eᵀ) / rows, Q being its risk
by calibrate/statistics.py. E is what the encoder leaves of a sample of
rows; rows are alike enough for that, and encoding all of them at every type would take an hour for a large model.

Experts are fitted each under the second moment of its own tokens, and there are few of these. Some stand for all: what
share of its output each loses under its own moment, those whose output is larger counting more.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
SAMPLE_EXPERTS = 8
"""Matrices of a stack that stand for all; they share the rows."""

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
    matrices of few columns had 1.2 times. An expert's tokens are those that came to it and those it borrows.

    Args:
        model: The full-precision model.
        calibration: What was measured of it.
        kinds: Names of what a tensor may become.
        restored: Encodes and decodes rows, float32 [rows, n], under a Hessian.
        key: What kinds there are, for the copy that is kept beside the statistics.
        threads: Threads; 0 for one per core.
        progress: Told of tensors.
    """
    name_of_copy = digest(SAMPLE_ROWS, SAMPLE_EXPERTS, SWEEPS, key, DAMPING, DAMPING_BY_COLUMNS, EMBEDDING_DAMPING)
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
            costs[name] = dict.fromkeys(kinds(tensor), 0.0)
            for sample in _samples(tensor, calibration, threads):  # one second moment in memory at a time
                for kind in costs[name]:
                    costs[name][kind] += sample.cost(restored(sample.rows, kind, sample.curvature))
            progress.advance("weigh block types", 1)
        progress.finish("weigh block types")
        with atomic_write(path) as file:
            file.write(msgspec.json.encode(costs))
    return costs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """Rows of a tensor that stand for all of it, or for its share of that.

    Attributes:
        rows: Weights, float32 [rows, n].
        risk: What their errors do, float32 [n, n]; see calibrate/statistics.py.
        curvature: What they are encoded under.
        share: Share of the tensor's cost, times what errors grow by on other text.
    """

    rows: np.ndarray
    risk: np.ndarray
    curvature: Curvature
    share: float

    def cost(self, restored: np.ndarray) -> float:
        """Return the KL divergence of what was restored of the rows, at least 0."""
        error = restored - self.rows
        nats = 0.5 * float(np.sum((error @ self.risk) * error, dtype=np.float64)) / len(error)
        return max(0.0, self.share * nats)


def _samples(tensor: Tensor, calibration: Calibration, threads: int) -> Iterator[_Sample]:
    """Yield one sample of a matrix, or of some matrices of a stack one each."""
    name, length, stack = tensor.name, row_length(tensor), math.prod(tensor.shape[:-2])
    known, curvatures = calibration.statistics, calibration.curvatures
    if stack == 1 or curvatures.expert is None:
        yield _Sample(
            rows=sample_rows(tensor), risk=known.risk(name), curvature=curvatures.ready(name, threads=threads),
            share=1 + length / curvatures.n_tokens,
        )  # fmt: skip
        return
    chosen = evenly(stack, SAMPLE_EXPERTS)
    strengths = sum(float(np.trace(curvatures.expert(name, expert)[0], dtype=np.float64)) for expert in chosen)
    whole = known.curvature(name) * float(np.trace(known.hessian(name), dtype=np.float64)) / strengths
    for expert in chosen:
        moment, n_tokens = curvatures.expert(name, expert)
        yield _Sample(
            rows=sample_rows(tensor, SAMPLE_ROWS // len(chosen), matrix=expert), risk=moment,
            curvature=curvatures.ready(name, expert=expert, threads=threads), share=whole * (1 + length / n_tokens),
        )  # fmt: skip


def predicted_kld(costs: Mapping[str, Sequence[Option]], types: Mapping[str, str]) -> float:
    """Sum of what a plan's tensors are predicted to add, nats per token."""
    return sum(option.cost for name, kinds in costs.items() for option in kinds if option.kind == types[name])


def sample_rows(tensor: Tensor, count: int = SAMPLE_ROWS, *, matrix: int | None = None) -> np.ndarray:
    """Return up to `count` rows of a tensor, or of one matrix of a stack, evenly spaced, as float32 [rows, n]."""
    rows = n_rows(tensor) if matrix is None else tensor.shape[-2]
    chosen = [(matrix or 0) * rows + row for row in evenly(rows, count)]
    data = np.concatenate([tensor.read_bytes(row, row + 1) for row in chosen])
    return kernels.decode(data, tensor.block_type, row_length(tensor))


def evenly(n: int, count: int) -> list[int]:
    """Return up to `count` of the numbers below n, evenly spaced, first and last among them."""
    return list(dict.fromkeys(np.linspace(0, n - 1, min(n, count)).astype(int).tolist()))
