"""Rows of an exported decoder's matrices, as kvant knows them: output channels first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvant.errors import UnsupportedModelError
from kvant.formats.onnx.weights import EMBEDDING, HEAD, Weight
from kvant.formats.onnx.writer import array_of
from kvant.model import Model

if TYPE_CHECKING:
    import onnx

CHUNK_ROWS = 4096


FUSED = {"attn_q": "attn_qkv", "attn_k": "attn_qkv", "attn_v": "attn_qkv", "ffn_gate": "ffn_up"}
"""Tensors that hold another's rows where a model has no tensor of that name (Phi-3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of a model's tensor that are rows of an exported matrix.

    Attributes:
        name: Canonical name of the tensor.
        first: The first of its rows.
        start: Row of the matrix that it becomes.
        stop: Row of the matrix after the last.
    """

    name: str
    first: int
    start: int
    stop: int


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

    def parts(self, weight: Weight) -> list[Part]:
        """Return the tensors that a matrix holds, one below the other; empty if they are not known.

        Raises:
            UnsupportedModelError: They do not fill it.
        """
        resolved = [self._owner(name) for name in weight.names]
        owners = dict.fromkeys(name for name in resolved if name)
        if not owners or None in resolved:
            return []
        found, at = [], 0
        for name in owners:
            rows, columns = self.model.tensors[name].shape
            if columns != weight.columns:
                raise UnsupportedModelError(
                    f"{weight.name}: has {weight.columns} columns, {name} {columns}. Export the model again."
                )
            first = 0
            if len(owners) == 1 and name.endswith("ffn_up.weight") and rows == 2 * weight.rows:  # holds gate and up
                first, rows = (0 if "gate" in weight.names[0] else weight.rows), weight.rows
            found.append(Part(name=name, first=first, start=at, stop=at + rows))
            at += rows
        if at != weight.rows:
            raise UnsupportedModelError(f"{weight.name}: has {weight.rows} rows, not {at}. Export the model again.")
        return found

    def read(self, weight: Weight, rows: slice | np.ndarray) -> np.ndarray:
        """Return some rows of a matrix, float32 [rows, columns]."""
        array = array_of(self.tensors[weight.name], self.path)
        found: np.ndarray = np.ascontiguousarray(array[:, rows].T if weight.is_transposed else array[rows], np.float32)
        return found

    def _owner(self, name: str) -> str | None:
        """The model's tensor that holds the rows of a name."""
        layer, _, stem = name.removesuffix(".weight").rpartition(".")
        others = (EMBEDDING,) if name == HEAD else (f"{layer}.{FUSED.get(stem, stem)}.weight",)
        return next((own for own in (name, *others) if own in self.model.tensors), None)
