"""Rows of an exported decoder's matrices, as kvant knows them: output channels first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvant.errors import UnsupportedModelError
from kvant.formats.onnx.weights import EMBEDDING, Weight
from kvant.formats.onnx.writer import array_of
from kvant.model import Model

if TYPE_CHECKING:
    import onnx

CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Access to a checked export.

    Attributes:
        tensors: Its initializers by name.
        path: Its .onnx file.
        model: The model it was exported from.
    """

    tensors: "Mapping[str, onnx.TensorProto]"
    path: Path
    model: Model

    def parts(self, weight: Weight) -> list[tuple[str, int, int]]:
        """Return the tensors that a matrix holds: canonical name, first row, row after the last; empty if not known.

        Raises:
            UnsupportedModelError: They do not fill it.
        """
        found, at = [], 0
        for name in weight.names:
            own = name if name in self.model.tensors else EMBEDDING
            shape = self.model.tensors[own].shape
            if shape[-1] != weight.columns:
                raise UnsupportedModelError(
                    f"{weight.name}: has {weight.columns} columns, {own} {shape[-1]}. Export the model again."
                )
            found.append((own, at, at + shape[0]))
            at += shape[0]
        if found and at != weight.rows:
            raise UnsupportedModelError(f"{weight.name}: has {weight.rows} rows, not {at}. Export the model again.")
        return found

    def read(self, weight: Weight, rows: slice | np.ndarray) -> np.ndarray:
        """Return some rows of a matrix, float32 [rows, columns]."""
        array = array_of(self.tensors[weight.name], self.path)
        found: np.ndarray = np.ascontiguousarray(array[:, rows].T if weight.is_transposed else array[rows], np.float32)
        return found
