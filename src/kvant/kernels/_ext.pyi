"""Native kernels of kvant."""

from typing import Any

import numpy as np

def isa_levels() -> list[str]:
    """Instruction-set levels this machine can run, slowest first."""

def types() -> list[tuple[str, int, int, int, bool, bool, bool]]:
    """Per type: name, ggml id, block length, block bytes, encodes, encodes with importance, decodes."""

def encode(
    ggml_id: int,
    isa: str,
    x: np.ndarray[Any, Any],
    importance: np.ndarray[Any, Any] | None,
    out: np.ndarray[Any, Any],
    threads: int,
) -> None:
    """Encode float32 rows into `out`, uint8 [rows, bytes per row]."""

def decode(ggml_id: int, isa: str, data: np.ndarray[Any, Any], out: np.ndarray[Any, Any], threads: int) -> None:
    """Decode rows of blocks into `out`, float32 [rows, n]."""

def transcode(
    source_id: int,
    target_id: int,
    isa: str,
    data: np.ndarray[Any, Any],
    importance: np.ndarray[Any, Any] | None,
    out: np.ndarray[Any, Any],
    n: int,
    threads: int,
    largest: float = ...,
) -> int:
    """Encode rows of one type as another into `out`; the index of the first weight refused, or -1.

    Refused are NaN, magnitudes above `largest` (by default infinity), and what the target makes infinite.
    """

def codebooks() -> dict[str, bytes]:
    """Points of the codebooks and values of the 4-bit levels, one byte per weight."""

def string_bounds(
    data: np.ndarray[Any, Any], limit: int, starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]
) -> bool:
    """Fill `starts` and `ends` with the bounds of strings that follow their uint64 lengths; False: one is too long."""

def fit(
    ggml_id: int,
    isa: str,
    weights: np.ndarray[Any, Any],
    hessian: np.ndarray[Any, Any],
    feedback: np.ndarray[Any, Any],
    curvature: np.ndarray[Any, Any],
    local: np.ndarray[Any, Any],
    sweeps: int,
    codes: np.ndarray[Any, Any],
    scales: np.ndarray[Any, Any],
    minimums: np.ndarray[Any, Any],
    d: np.ndarray[Any, Any],
    dmin: np.ndarray[Any, Any],
    loss: np.ndarray[Any, Any],
    threads: int,
) -> None:
    """Round rows under a full Hessian; see kvant.kernels.fitting."""

def fit_nbits(
    bits: int,
    block: int,
    symmetric: bool,
    isa: str,
    weights: np.ndarray[Any, Any],
    hessian: np.ndarray[Any, Any],
    feedback: np.ndarray[Any, Any],
    curvature: np.ndarray[Any, Any],
    local: np.ndarray[Any, Any],
    sweeps: int,
    codes: np.ndarray[Any, Any],
    scales: np.ndarray[Any, Any],
    zeros: np.ndarray[Any, Any],
    loss: np.ndarray[Any, Any],
    threads: int,
) -> None:
    """Round rows under a full Hessian to MatMulNBits; see kvant.kernels.nbits."""

def factor_mixture(
    isa: str,
    moments: list[np.ndarray[Any, Any]],
    divisors: list[float],
    more: float,
    h: np.ndarray[Any, Any],
    in_floats: bool,
    threads: int,
) -> int:
    """Factor a sum of moments, damped and turned round; the column without a positive pivot, -1, or -2: not finite."""

def round_mixture(
    moments: list[np.ndarray[Any, Any]], divisors: list[float], more: float, out: np.ndarray[Any, Any], threads: int
) -> None:
    """Write a sum of second moments, damped, in floats."""

def split_factor(
    l: np.ndarray[Any, Any],
    feedback: np.ndarray[Any, Any],
    cost: np.ndarray[Any, Any],
    local: np.ndarray[Any, Any],
    threads: int,
) -> None:
    """What rounding reads of a factor; see kvant.kernels.fitting."""

def fit_types() -> list[tuple[int, int, int]]:
    """(ggml id, weights per run, weights per block) of the types `fit` knows."""

def matmul(
    isa: str,
    a: np.ndarray[Any, Any],
    transpose_a: bool,
    b: np.ndarray[Any, Any],
    transpose_b: bool,
    out: np.ndarray[Any, Any],
    threads: int,
) -> None:
    """Write the products of two stacks of float32 matrices into `out`."""

def gram32(isa: str, x: np.ndarray[Any, Any], out: np.ndarray[Any, Any], threads: int) -> None:
    """Add x^T x to a symmetric float32 matrix."""

def gram64(isa: str, x: np.ndarray[Any, Any], out: np.ndarray[Any, Any], threads: int) -> None:
    """Add x^T x to a symmetric float64 matrix."""

def cholesky(isa: str, h: np.ndarray[Any, Any], inverse: bool, threads: int) -> int:
    """Factor a float64 matrix in place, or its factor's inverse; the column without a positive pivot, or -1."""

def row_dot(
    isa: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], out: np.ndarray[Any, Any], threads: int
) -> None:
    """Write the scalar product of each row of a with the same row of b, float64, into `out`."""

def softmax(isa: str, x: np.ndarray[Any, Any], period: int, threads: int) -> None:
    """Turn rows into probabilities in place; see kvant.kernels.rowwise."""

def sigmoid(isa: str, x: np.ndarray[Any, Any], out: np.ndarray[Any, Any], threads: int) -> None:
    """Write 1 / (1 + exp(-x)) into `out`."""

class Observer:
    """Sums and disturbs what llama.cpp multiplies, from its evaluation callback."""

    callback: int
    """Address of the callback."""

    def __init__(self, mul_mat: int, mul_mat_id: int, get_rows: int, soft_max: int, isa: str, threads: int) -> None: ...
    @property
    def address(self) -> int:
        """Of the observer: the callback's user data."""

    def listen(self, on: bool) -> None:
        """Note which weights take part, or stop to."""

    def seen(self) -> list[tuple[str, str, int, int, int, int]]:
        """Per product: name, role, columns, rows, stack, what tells its input apart."""

    def weigh(self, weights: np.ndarray[Any, Any]) -> None:
        """Weights of the next batch's tokens, float32 [tokens]."""

    def add(
        self,
        name: str,
        moments: np.ndarray[Any, Any] | None,
        squares: np.ndarray[Any, Any],
        counts: np.ndarray[Any, Any],
        layer: int,
    ) -> None:
        """Sum up a weight's inputs into these arrays from now on; attention of a layer weighs them, of -1 none."""

    def finish(self) -> None:
        """Add what waits for an attention that was not shown."""

    def forget(self) -> None:
        """Sum up nothing any more."""

    def disturb(self, name: str, role: str, scales: np.ndarray[Any, Any], first_sign: int) -> None:
        """Put errors of these sizes, float32 [stack, rows], on a weight's products from now on."""

    def calm(self) -> dict[tuple[str, str], float]:
        """Stop all disturbances; return their energies by name and role."""

    def complaint(self) -> str:
        """Why the last run was stopped; empty if it was not."""

def read_engine_tensor(address: int) -> dict[str, Any]:
    """What the observer reads of a tensor of the engine."""
