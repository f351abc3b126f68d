"""Encode the matrices of a decoder as they are written, one at a time: under Hessians, or by rounding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kvant._version import __version__
from kvant.evaluate.corpora import CALIBRATION_HASH_KEY, CALIBRATION_NAME_KEY
from kvant.formats.onnx.halves import as_half
from kvant.formats.onnx.weights import Weight, packed_tensors
from kvant.formats.onnx.writer import array_of
from kvant.kernels.nbits import FITTED, Blocks, NBits, encode, fit, nbits_type
from kvant.model import Model
from kvant.quant.curvature import Curvatures, diagonal
from kvant.quant.importance import Importance
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.targets.onnx.origin import Origin
from kvant.recipes.targets.onnx.plan import Dtype
from kvant.recipes.targets.onnx.rows import CHUNK_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What encoders know beyond the weights; nothing to round as ONNX Runtime's default quantizer, bit for bit.

    Attributes:
        curvatures: Hessians.
        importance: The importance that they are the diagonals of, if that is what they are.
    """

    curvatures: Curvatures | None = None
    importance: Importance | None = None

    @property
    def sha256(self) -> str:
        """Hash of it; empty if that is nothing."""
        return self.curvatures.sha256 if self.curvatures else ""

    def notes(self, preset: str) -> dict[str, str]:
        """Return what a graph made so says of itself."""
        found = {"kvant.version": __version__, "kvant.type": preset}
        if self.curvatures is not None and self.curvatures.text_sha256:
            found[CALIBRATION_HASH_KEY] = self.curvatures.text_sha256
        if self.importance is not None and self.importance.datasets:
            found[CALIBRATION_NAME_KEY] = self.importance.datasets[0]
        return found


def known_of(model: Model, calibration: Calibration | None, importance: Importance | None) -> Known:
    """Return what encoders know: the Hessians of a calibration, else the diagonal that an importance file gives.

    Raises:
        PlanError: The importance was measured on another model.
    """
    if calibration is not None:
        return Known(curvatures=calibration.curvatures)
    return Known(curvatures=diagonal(importance, model.tensors) if importance else None, importance=importance)


def can_fit(kind: NBits) -> bool:
    """Say whether blocks of a type can be encoded under a Hessian."""
    return (kind.bits, kind.block, kind.symmetric) in FITTED


class Encoder:
    """Encodes matrices.

    Args:
        origin: Where they are read.
        types: Their blocks, by initializer.
        curvatures: Hessians; None to round.
        dtype: Type of all floats that are written.
        threads: Threads; their number does not change a bit.

    Attributes:
        n_fitted: Matrices encoded under a Hessian so far.
    """

    def __init__(
        self, origin: Origin, types: Mapping[str, str], curvatures: Curvatures | None, dtype: Dtype, threads: int
    ) -> None:
        self.rows, self.weights, self.types = origin.rows, origin.weights, types
        self.curvatures, self.dtype, self.threads = curvatures, dtype, threads
        self.n_fitted = 0

    def arrays(self) -> dict[str, Callable[[], np.ndarray]]:
        """Return what makes every initializer of the new graph: the old ones but for the matrices, then those."""
        found: dict[str, Callable[[], np.ndarray]] = {
            name: (lambda t=tensor: array_of(t, self.rows.path))  # type: ignore[misc]
            for name, tensor in self.rows.tensors.items()
            if name not in self.types
        }
        for weight in self.weights:
            kind = nbits_type(self.types[weight.name])
            found |= packed_tensors(weight, kind, lambda w=weight: self.encode(w))  # type: ignore[misc]
        return {name: as_half(name, make) for name, make in found.items()} if self.dtype == "F16" else found

    def encode(self, weight: Weight) -> Blocks:
        """Encode a matrix: under Hessians where they were measured and its type can be, else by rounding."""
        kind = nbits_type(self.types[weight.name])
        parts = self.rows.parts(weight)
        names = self.curvatures.names if self.curvatures else ()
        can = can_fit(kind) and weight.columns % kind.block == 0
        if self.curvatures is None or not can or not parts or any(part.name not in names for part in parts):
            spans = [slice(at, at + CHUNK_ROWS) for at in range(0, weight.rows, CHUNK_ROWS)]
            return joined([encode(self.rows.read(weight, span), kind) for span in spans])
        found = []
        for part in parts:
            ready = self.curvatures.ready(part.name, threads=self.threads)
            for at in range(part.start, part.stop, CHUNK_ROWS):
                x = self.rows.read(weight, slice(at, min(part.stop, at + CHUNK_ROWS)))
                found.append(fit(x, kind, ready, threads=self.threads)[0])
        self.n_fitted += 1
        return joined(found)


def joined(blocks: list[Blocks]) -> Blocks:
    """Put rows encoded one after the other into one."""
    return Blocks(
        kind=blocks[0].kind, n=blocks[0].n, codes=np.concatenate([b.codes for b in blocks]),
        scales=np.concatenate([b.scales for b in blocks]), zeros=np.concatenate([b.zeros for b in blocks]),
    )  # fmt: skip
