"""Curvature: how errors in a matrix's input channels act together, measured on calibration text.

Where importance (importance.py) knows one number per channel, a Hessian E[x xᵀ] knows every pair of them. Encoders that
use it let weights answer each other's rounding errors: kernels/fitting.py.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from kvant.dtypes import BlockType
from kvant.kernels import fitting

DAMPING = 0.03
"""Share of the mean diagonal added to a Hessian. From .003 to .2 the KL divergence of SmolLM2 at Q4_1 differs by 9 % at
most, and is least here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvatures:
    """Hessians of a model's matrices.

    Attributes:
        names: Tensors that were measured.
        hessian: Returns a tensor's Hessian, float32 or float64 [n, n]; it is asked for when the tensor's turn comes.
        sha256: Digest of all that decides the Hessians' bytes.
        text_sha256: Digest of the text they were measured on.
        n_tokens: Tokens they were measured on.
    """

    names: Collection[str]
    hessian: Callable[[str], np.ndarray]
    sha256: str
    text_sha256: str = ""
    n_tokens: int = 0

    def encoder(self, name: str, kind: BlockType) -> "FittedEncoder | None":
        """Return the encoder of a tensor; None if it was not measured, or the type cannot use what was."""
        if name not in self.names or kind.name not in fitting.FITTABLE:
            return None
        return FittedEncoder(name=name, kind=kind, hessian=self.hessian)


@dataclass(slots=True, kw_only=True)
class FittedEncoder:
    """Encodes the rows of one tensor under its Hessian, which is loaded and factored when the first rows come.

    Attributes:
        name: The tensor.
        kind: Type to encode.
        hessian: See `Curvatures`.
    """

    name: str
    kind: BlockType
    hessian: Callable[[str], np.ndarray]
    _lock: Lock = field(default_factory=Lock)
    _ready: fitting.Curvature | None = None

    def __call__(self, x: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """Encode rows of weights, float32 [rows, n] -> uint8 [rows, bytes per row].

        Raises:
            ValueRangeError: A weight is NaN or infinite, or the Hessian does not fit.
        """
        with self._lock:
            if self._ready is None:
                self._ready = fitting.prepare(self.hessian(self.name), damping=DAMPING, threads=threads)
            ready = self._ready
        return fitting.fit(x, self.kind, ready, threads=threads)[0]

    def release(self) -> None:
        """Forget the factored Hessian: its turn is over."""
        self._ready = None
