"""What each block type would cost each tensor: real rounding errors of some rows, weighed by their Fisher curvature.

The KL divergence that an error E [rows, n] in one matrix causes is about 0.5 * trace(E Q Eᵀ) / rows, Q being its risk
by calibrate/statistics.py. E is what the encoder leaves of a sample of
rows; rows are alike enough for that, and encoding all of them at every type would take an hour for a large model.

Experts are fitted each under the second moment of its own tokens, and there are few of these. Some stand for all: what
share of its output each loses under its own moment, those whose output is larger counting more.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from kvant import kernels
from kvant.allocate.options import Option
from kvant.devices.limits import cores, spare_bytes
from kvant.documents import JSON_ERRORS
from kvant.files import atomic_write
from kvant.kernels import linalg
from kvant.kernels.fitting import ENCODING, Curvature
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import DAMPING, DAMPING_BY_COLUMNS, EMBEDDING_DAMPING, factor_threads
from kvant.recipes import cache
from kvant.recipes.measure.calibration import Calibration
from kvant.tensors import Tensor, n_rows, row_length

SAMPLE_ROWS = 64
SAMPLE_EXPERTS = 8
"""Matrices of a stack that stand for all; they share the rows."""

SWEEPS = 1
"""Passes of descent on samples: the order of types and their ratios are settled after the first."""

BYTES_PER_ELEMENT = 16
"""Of a Hessian in memory while a matrix is made ready and weighed: the factor, the Hessian, its risk."""


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
        restored: Encodes and decodes rows, float32 [rows, n], under a Hessian, on one thread.
        key: What kinds there are, for the copy that is kept beside the statistics.
        threads: Threads; 0 for one per core.
        progress: Told of tensors.
    """
    name_of_copy = cache.digest(
        SAMPLE_ROWS, SAMPLE_EXPERTS, SWEEPS, key, DAMPING, DAMPING_BY_COLUMNS, EMBEDDING_DAMPING, ENCODING
    )  # fmt: skip
    path = calibration.directory / f"rounding-{name_of_copy[:16]}.json"
    names = [name for name in model.tensors if name in calibration.curvatures.names]
    with cache.alone("weighs block types", str(path)):
        try:
            costs = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, float]])
        except (OSError, *JSON_ERRORS):
            costs = {}
        if sorted(costs) == sorted(names):
            return costs
        progress.start("weigh block types", len(names), "tensors")
        costs = {name: dict.fromkeys(kinds(model.tensors[name]), 0.0) for name in names}
        for name, found in _weighed(model, costs, calibration, restored, threads):
            for kind, cost in found.items():
                costs[name][kind] += cost
            if not found:
                progress.advance("weigh block types", 1)
        progress.finish("weigh block types")
        with atomic_write(path, is_shared=True) as file:
            file.write(msgspec.json.encode(costs))
    return costs


def _weighed(
    model: Model, kinds: Mapping[str, Collection[str]], calibration: Calibration,
    restored: Callable[[np.ndarray, str, Curvature], np.ndarray], threads: int,
) -> Iterator[tuple[str, dict[str, float]]]:  # fmt: skip
    """Yield what each sample of each tensor costs, in order, and nothing more of a tensor that is done.

    Every kind is a thread's work of its own; samples to come are made ready meanwhile, as many as there
    are threads and `spare_bytes` holds.
    """
    workers, room = threads or cores(), spare_bytes()
    ahead: deque[tuple[str, int, bool, Future[dict[str, Future[float]]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="weigh") as pool:

        def begin(make: "Callable[[], _Sample]", name: str) -> dict[str, Future[float]]:
            sample = make()

            def cost(kind: str) -> float:
                return sample.cost(restored(sample.rows, kind, sample.curvature))

            return {kind: pool.submit(cost, kind) for kind in kinds[name]}

        def finished() -> Iterator[tuple[str, dict[str, float]]]:
            name, _, is_last, begun = ahead.popleft()
            yield name, {kind: cost.result() for kind, cost in begun.result().items()}
            if is_last:
                yield name, {}

        try:
            for name in kinds:
                tensor = model.tensors[name]
                need = BYTES_PER_ELEMENT * row_length(tensor) ** 2
                samples = list(_samples(tensor, calibration, threads))
                for number, make in enumerate(samples, 1):
                    while ahead and (len(ahead) > workers or sum(entry[1] for entry in ahead) + need > room):
                        yield from finished()
                    ahead.append((name, need, number == len(samples), pool.submit(begin, make, name)))
            while ahead:
                yield from finished()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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
        nats = (
            0.5
            * float(
                np.sum(
                    linalg.matmul(error, self.risk.astype(np.float32, copy=False), threads=1) * error, dtype=np.float64
                )
            )
            / len(error)
        )
        return max(0.0, self.share * nats)


def _samples(tensor: Tensor, calibration: Calibration, threads: int) -> Iterator[Callable[[], _Sample]]:
    """Yield what makes a sample of a matrix, or of some matrices of a stack one each."""
    name, length, stack = tensor.name, row_length(tensor), math.prod(tensor.shape[:-2])
    known, curvatures = calibration.statistics, calibration.curvatures
    ready = partial(curvatures.ready, name, threads=factor_threads(tensor, threads))
    if stack == 1 or curvatures.expert is None:
        yield lambda: _Sample(
            rows=sample_rows(tensor), risk=known.risk(name), curvature=ready(), share=1 + length / curvatures.n_tokens
        )
        return
    moment_of, chosen = curvatures.expert, evenly(stack, SAMPLE_EXPERTS)
    strengths = sum(float(np.trace(moment_of(name, expert)[0], dtype=np.float64)) for expert in chosen)
    whole = known.curvature(name) * float(np.trace(known.hessian(name), dtype=np.float64)) / strengths

    def sample(expert: int) -> _Sample:
        moment, n_tokens = moment_of(name, expert)
        return _Sample(
            rows=sample_rows(tensor, SAMPLE_ROWS // len(chosen), matrix=expert), risk=moment,
            curvature=ready(expert=expert), share=whole * (1 + length / n_tokens),
        )  # fmt: skip

    for expert in chosen:
        yield partial(sample, expert)


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
