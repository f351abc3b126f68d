"""How much the predictions answer to errors in each matrix, found by making such errors: no gradients.

A quantized matrix is the matrix plus an error E. Here E has independent random signs and, in every row, a size in
proportion to the row's weights; it is put on the products while the engine runs (native/src/observer.cpp), so the
weights stay as they are and any architecture will do. Of such a run comes the KL divergence of the predictions, D, nats
per token. By the quadratic form of statistics.py, with s the sizes of the rows,

    D = 0.5 * c * trace(E H Eᵀ) / rows        trace(E H Eᵀ) / rows = mean(s²) * trace(H)        c = 2 D / that

Of rows that are looked up, H is the identity, and the squared length of an error row is taken from the run.

The same tokens are tried on every matrix, so that what matters here, the proportions, is less noisy than D itself. What
is left of noise is of two kinds, each as large as that of few tokens: the logarithms of SmolLM2's c from pieces of
128 tokens differ by .39 to .73 (standard deviation) between code, prose and other languages, and by .32 between two
draws of signs on one piece. So there is a piece of every kind of text, with signs of its own, rather than one long one.
Noise of .3 in all c costs 2 to 8 % of the mix's KL divergence, of .5 4 to 13 %.

The mean of c is .98 of the Fisher trace that gradients give (correlation of the logarithms .93). Fewer runs, of whole
layers and whole roles, were tried and are not enough: with c or the cost as a product of one factor for each, single
matrices are off by a factor of 1.9 to 2.6.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from kvant import kernels
from kvant.calibrate.parts import Part
from kvant.calibrate.statistics import file_of, save
from kvant.documents import JSON_ERRORS
from kvant.files import atomic_write
from kvant.model import Model
from kvant.progress import Progress
from kvant.runtime import messages
from kvant.runtime.observer import LOOKUP
from kvant.runtime.process import EngineProcess
from kvant.tensors import Tensor, n_rows, row_length

RELATIVE_SIZE = 0.08
"""Size of errors over that of the weights in their row: what 4 bits leave."""

MOST_PIECES = 4
LEAST_PIECE_TOKENS = 32
LEAST_TOKENS = 16_384
"""Tokens that probes may run in all where the windows have fewer."""

KEPT = "probes.json"
"""What was tried so far."""

RMS_WEIGHTS = 1 << 22
"""Weights in memory at a time while their sizes are measured."""


class Probes:
    """The probes of one model; what was tried before is taken from the directory.

    Args:
        engine: A process with the model open, `is_observed`.
        model: The model.
        parts: What takes part.
        tokens: Token ids, int32 [windows, tokens].
        domains: Kind of text of each window.
        directory: Where second moments are and curvatures are written.
        progress: Told of probes.
    """

    def __init__(
        self, engine: EngineProcess, model: Model, parts: Sequence[Part], tokens: np.ndarray,
        domains: Sequence[str], directory: Path, progress: Progress,
    ) -> None:  # fmt: skip
        self.engine, self.model, self.parts, self.directory, self.progress = engine, model, parts, directory, progress
        self.pieces = pieces_of(tokens, domains, len(parts))
        self._scales: dict[str, np.ndarray] = {}

    def run(self) -> bool:
        """Write the curvature of every part; return whether any was missing."""
        waiting = [part for part in self.parts if not _file(self.directory, part).exists()]
        if not waiting:
            return False
        kept = self.directory / KEPT
        found = _read(kept)
        # By pieces on the outside: predictions without errors are computed once for each.
        self.progress.start("probes", len(waiting) * len(self.pieces), "probes")
        for number, piece in enumerate(self.pieces):
            for part in waiting:
                tried = found.setdefault(f"{part.role} {part.name}", [])
                if len(tried) <= number:
                    divergence, (put,) = self.engine.probe(piece, [self._error(part, number)])
                    nats, energy = max(0.0, float(divergence.mean(dtype=np.float64))), self._energy(part, put)
                    tried.append(2 * nats / energy if energy > 0 else 0.0)
                    with atomic_write(kept, is_shared=True) as file:
                        file.write(msgspec.json.encode(found))
                self.progress.advance("probes", 1)
        self.progress.finish("probes")
        for part in waiting:
            value = float(np.mean(found[f"{part.role} {part.name}"]))
            known = np.full(part.columns, value, np.float32) if part.role == LOOKUP else np.float64(value)
            save(_file(self.directory, part), known)
        return True

    def _energy(self, part: Part, put: float) -> float:
        """Return trace(E H Eᵀ) / rows; `put` is the squared length of the errors in rows looked up."""
        if part.role == LOOKUP:
            return put
        moments = np.load(file_of(self.directory, part.leader, "hessian"), mmap_mode="r")
        return float(np.mean(self._sizes(part.name) ** 2, dtype=np.float64) * moments.diagonal().sum(dtype=np.float64))

    def _error(self, part: Part, number: int) -> messages.WeightError:
        key = f"{part.name} {number}".encode()
        return messages.WeightError(
            part.name, part.role, self._sizes(part.name).tobytes(), part.stack,
            int.from_bytes(hashlib.sha256(key).digest()[:3], "big"),
        )  # fmt: skip

    def _sizes(self, name: str) -> np.ndarray:
        if name not in self._scales:
            self._scales[name] = (RELATIVE_SIZE * row_sizes(self.model.tensors[name])).astype("<f4")
        return self._scales[name]


def pieces_of(tokens: np.ndarray, domains: Sequence[str], parts: int) -> list[np.ndarray]:
    """Choose pieces of text, so that trying every part on each takes about as many tokens as there are.

    Args:
        tokens: Token ids, int32 [windows, tokens].
        domains: Kind of text of each window.
        parts: Matrices to try.

    Returns:
        Token ids of each, int32 [n]: as many of every domain, from its windows as far apart as possible.
    """
    each = max(tokens.size, LEAST_TOKENS) // parts
    count = max(1, min(MOST_PIECES, len(tokens), each // LEAST_PIECE_TOKENS))
    length = min(tokens.shape[1], max(LEAST_PIECE_TOKENS, each // count))
    windows: dict[str, list[int]] = {}
    for window, domain in enumerate(domains):
        windows.setdefault(domain, []).append(window)
    chosen: list[int] = []
    for number, able in enumerate(windows.values()):
        pieces = len(range(number, count, len(windows)))
        chosen += [able[(2 * piece + 1) * len(able) // (2 * pieces)] for piece in range(pieces)]
    return [tokens[window, :length] for window in dict.fromkeys(chosen)]


def _read(kept: Path) -> dict[str, list[float]]:
    """Return what an interrupted run has tried: curvatures by piece of text, by role and name."""
    try:
        return msgspec.json.decode(kept.read_bytes(), type=dict[str, list[float]])
    except (OSError, *JSON_ERRORS):
        return {}


def row_sizes(tensor: Tensor) -> np.ndarray:
    """Return the root mean square of every row's weights, float32 [rows]."""
    rows, length = n_rows(tensor), row_length(tensor)
    step = max(1, RMS_WEIGHTS // max(1, length))
    sizes = np.empty(rows, np.float32)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        x = kernels.decode(tensor.read_bytes(first, last), tensor.block_type, length)
        sizes[first:last] = np.sqrt(np.einsum("ij,ij->i", x, x) / length)
    return sizes


def _file(directory: Path, part: Part) -> Path:
    return file_of(directory, part.name, "lookup" if part.role == LOOKUP else "curvature")
