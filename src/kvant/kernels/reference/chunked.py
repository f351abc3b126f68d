"""Twin of native/include/kvant/fit_rows.h: the order in which columns are rounded and told of each other's errors.

Arrays of columns come first, [n, rows], so that a line here is a line of the kernel, where rows are lanes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

F = np.float32
CHUNK = 256
"""Columns that know of each other's changes at once; the others are told when all of them are done."""


@dataclass(frozen=True, slots=True)
class Metric:
    """The block of a chunk's columns of the matrix that errors are measured with.

    Attributes:
        m: The block, [columns, columns].
        inverse: 1 over its diagonal.
        sums: Sums over the columns of each run, [runs, columns].
    """

    m: np.ndarray
    inverse: np.ndarray
    sums: np.ndarray


def metric_of(m: np.ndarray, run: int) -> Metric:
    """Read a block of a matrix."""
    sums = np.zeros((len(m) // run, len(m)), F)
    for j in range(len(m)):
        sums[j // run] += m[j]
    return Metric(m, F(1) / np.diag(m), sums)


def answer(matrix: np.ndarray, out: np.ndarray, e: np.ndarray) -> None:
    """Add matrix[:, j] e[j] to the rows of out, one column after the other."""
    for j in range(len(e)):
        out += matrix[:, j, None] * e[j]


class ChunkedRows(ABC):
    """Rows being rounded, arrays [n, rows]: weights w, the same less what earlier errors ask x, values v, levels t.

    Attributes:
        g: Gradients, H (v - w) or, while a chunk is first rounded, those under its local block.
        loss: The error that is left.
    """

    run_length: int

    def __init__(
        self, weights: np.ndarray, hessian: np.ndarray, feedback: np.ndarray, cost: np.ndarray, local: np.ndarray
    ) -> None:
        self.h, self.feedback, self.curvature, self.local = hessian, feedback, cost, local
        self.w = np.ascontiguousarray(weights.T)
        self.n, rows = self.w.shape
        self.x, self.v, self.t, self.g = self.w.copy(), *(np.zeros_like(self.w) for _ in range(3))
        self.loss = np.zeros(rows, F)

    @abstractmethod
    def round(self, now: slice) -> None:
        """Round the columns of a chunk in order, each run's errors answered by those after it."""

    @abstractmethod
    def improve(self, now: slice, h: Metric) -> None:
        """Improve the runs of a chunk under a metric."""

    def left(self, now: slice, start: np.ndarray) -> None:
        """Put into x what cannot be answered any more of a chunk's errors, times what it costs."""
        e, matrix, x = self.w[now] - self.v[now], self.feedback[now, now], start.copy()
        for j in range(len(e)):
            x[j + 1 :] += matrix[j + 1 :, j, None] * e[j]
        self.x[now] = self.curvature[now, None] * (self.v[now] - x)

    def raised(self, now: slice) -> np.ndarray:
        """Gradients of a chunk of what its own columns left."""
        matrix, g = self.feedback[now, now], np.zeros_like(self.w[now])
        for j in range(len(g)):
            g[: j + 1] += matrix[: j + 1, j, None] * self.x[now][j]
        return g

    def run(self, sweeps: int) -> None:
        """Round, then improve."""
        chunks = [slice(first, min(self.n, first + CHUNK)) for first in range(0, self.n, CHUNK)]
        for number, now in enumerate(chunks):
            start = self.x[now].copy()
            self.round(now)
            self.left(now, start)
            if sweeps:
                count = now.stop - now.start
                self.g[now] = self.raised(now)
                self.improve(now, metric_of(self.local[number, :count, :count], self.run_length))
                self.left(now, start)
            answer(self.feedback[now.stop :, now], self.x[now.stop :], self.w[now] - self.v[now])
        self.loss = np.zeros_like(self.loss)
        for j in range(self.n):
            self.loss = self.loss + self.x[j] * self.x[j] / self.curvature[j]
        for now in chunks:
            self.g[now] = self.raised(now)
            answer(self.feedback[: now.start, now], self.g[: now.start], self.x[now])
        for _ in range(sweeps):
            for now in chunks:
                before = self.v[now].copy()
                self.improve(now, metric_of(self.h[now, now], self.run_length))
                moved = self.v[now] - before
                answer(self.h[: now.start, now], self.g[: now.start], moved)
                answer(self.h[now.stop :, now], self.g[now.stop :], moved)
