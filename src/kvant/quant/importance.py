"""Importance: how much each input channel of a weight matrix matters, measured on calibration text.

The importance of channel j is the mean of x_j² over all tokens, x being what the matrix is multiplied with. Encoders
weigh the error of each weight by it. Files call it an importance matrix, "imatrix".
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvant.errors import PlanError, ValueRangeError
from kvant.quant.roles import EMBEDDINGS
from kvant.tensors import Tensor, row_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What was summed over the calibration text for one tensor.

    Attributes:
        sums: Sum of x² by input channel, float32 [matrices, n]; one matrix but for stacked experts.
        counts: What the sums are divided by, float32 [matrices]; 0 for an expert that was never called.
    """

    sums: np.ndarray
    counts: np.ndarray

    def weights(self) -> np.ndarray:
        """Return the mean of x² by input channel, float32 [matrices, n]; 1 where nothing was counted."""
        called = self.counts > 0
        divisor = np.where(called, self.counts, np.float32(1)).astype(np.float32)
        return np.where(called[:, None], self.sums / divisor[:, None], np.float32(1)).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Importance of a model's tensors.

    Attributes:
        entries: Entry by tensor name.
        datasets: Names of the texts it was measured on.
        n_chunks: Chunks of text that were run.
        chunk_size: Tokens per chunk; 0 if unknown.
        source: Name of the file it came from, without its directory; empty if it was measured here.
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    chunk_size: int = 0
    source: str = ""

    @property
    def sha256(self) -> str:
        """SHA-256 of everything that can change an encoded byte or the output's metadata."""
        digest = hashlib.sha256(repr((self.source, self.datasets, self.n_chunks)).encode())
        for name in sorted(self.entries):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.entries[name].weights()).tobytes())
        return digest.hexdigest()

    def check_finite(self) -> None:
        """Check that every weight is a finite number, and no less than zero, as a mean of squares is.

        Raises:
            ValueRangeError: One is not.
        """
        for name, entry in self.entries.items():
            with np.errstate(over="ignore", invalid="ignore"):
                weights = entry.weights()
            if not np.isfinite(weights).all():
                raise ValueRangeError(f"importance: {name}: holds NaN or infinity. Measure it again.")
            if (weights < 0).any():
                raise ValueRangeError(f"importance: {name}: holds {weights.min():g}, below zero. Measure it again.")

    def weights_for(self, tensor: Tensor) -> np.ndarray | None:
        """Return the importance of a tensor's input channels, float32 [matrices, n]; None if it was not measured.

        Raises:
            PlanError: It was measured on a matrix of another size; for embeddings that only means none.
        """
        entry = self.entries.get(tensor.name)
        if entry is None:
            return None
        n, matrices = row_length(tensor), tensor.shape[-3] if len(tensor.shape) > 2 else 1
        if entry.sums.size != n * matrices:
            if tensor.name in EMBEDDINGS:
                return None
            raise PlanError(
                f"importance: {tensor.name}: {entry.sums.size} channels are not the tensor's {n * matrices}. "
                f"Measure it on this model."
            )
        return entry.weights().reshape(matrices, n)


def zero_runs(weights: np.ndarray, run: int) -> np.ndarray:
    """Tell which runs of channels have no importance at all, bool [matrices, n / run].

    Args:
        weights: Importance, float32 [matrices, n].
        run: Channels of a run; n is a multiple of it, or one run is all of a row.
    """
    n = weights.shape[1]
    run = run if n % run == 0 else n
    return np.asarray(~weights.reshape(len(weights), n // run, run).any(axis=2))


def without_zero_runs(weights: np.ndarray, run: int) -> np.ndarray:
    """Return importance with 1 throughout the runs that have none.

    Encoders would store such a run as zeros: no error in it counts. Texts that never reach a channel leave them, and
    the model may reach it all the same.
    """
    empty = zero_runs(weights, run)
    if not empty.any():
        return weights
    width = weights.shape[1] // empty.shape[1]
    return np.where(np.repeat(empty, width, axis=1), np.float32(1), weights).astype(np.float32)
