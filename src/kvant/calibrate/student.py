"""A quantized model of which everything that costs no bytes can change: float16 scales of blocks, norm weights.

    weight = Σ scale (1 + change) * basis        norm weight (1 + change)

Codes and sub-scales stay, so a trained model has the size and the types of the one it came from.
"""

from collections.abc import Iterable

import numpy as np
import torch

from kvant.calibrate.decoder import Decoder
from kvant.dtypes import F32, BlockType
from kvant.errors import UnsupportedFormatError
from kvant.kernels import decode, rowwise
from kvant.kernels.superscales import OFFSETS, bases, read_scales, with_scales
from kvant.model import Model
from kvant.tensors import LazyTensor, Tensor, array_tensor, n_rows, row_length

Key = tuple[str, int]
"""A tensor's name and the number of its scale; 0 for a norm."""

Changes = dict[Key, np.ndarray]


class Student:
    """A quantized model and the changes it is run with.

    Args:
        model: Llama, Qwen2 or Qwen3 (dense) under canonical names.
        threads: Threads; 0 for one per core. Their number does not change a bit.

    Attributes:
        decoder: Runs it; `weights` gives what to run it with.
        changes: Relative change of every scale, float32 [rows, blocks per row], and of every norm weight, float32 [n];
            zeros at first.

    Raises:
        UnsupportedFormatError: The architecture cannot be run, or nothing in the model is stored in blocks with scales.
    """

    def __init__(self, model: Model, *, threads: int = 0) -> None:
        self.decoder, self.model, self.threads = Decoder(model, threads=threads), model, threads
        self.changes: Changes = {}
        for name, tensor in model.tensors.items():
            if is_norm(tensor):
                self.changes[name, 0] = np.zeros(tensor.shape, np.float32)
            elif tensor.block_type.name in OFFSETS:
                shape = (n_rows(tensor), row_length(tensor) // tensor.block_type.block_length)
                for number in range(len(OFFSETS[tensor.block_type.name])):
                    self.changes[name, number] = np.zeros(shape, np.float32)
        if not any(tensor.block_type.name in OFFSETS for tensor in model.tensors.values()):
            raise UnsupportedFormatError(f"{model.path}: no tensor has blocks with scales to train. Quantize it first.")

    def weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the changed tensors of a layer, or for layer `n_layers` of the head, float32."""
        if layer == self.decoder.n_layers:
            names: Iterable[str] = ("output_norm.weight", self.decoder.head_name)
        else:
            names = (name for name in self.model.tensors if name.startswith(f"blk.{layer}."))
        return {name: torch.from_numpy(self.weight(name)) for name in names}

    def weight(self, name: str) -> np.ndarray:
        """Return one changed tensor, float32 in its shape."""
        tensor = self.model.tensors[name]
        if (name, 0) not in self.changes:
            return _decoded(tensor).reshape(tensor.shape)
        if is_norm(tensor):
            return np.asarray(_decoded(tensor).reshape(tensor.shape) * (1 + self.changes[name, 0]))
        parts = (_spread(scale, basis) for scale, basis in zip(*self._blocks(name), strict=True))
        return np.asarray(sum(parts, start=np.zeros(tensor.shape, np.float32)))

    def pull(self, name: str, gradient: np.ndarray) -> Changes:
        """Turn the gradient at a tensor, float32 in its shape, into those at its changes."""
        tensor = self.model.tensors[name]
        if (name, 0) not in self.changes:
            return {}
        if is_norm(tensor):
            return {(name, 0): gradient * _decoded(tensor).reshape(tensor.shape)}
        raw = _stored(tensor)
        found = {}
        for number, (scale, basis) in enumerate(
            zip(read_scales(raw, tensor.block_type), self._bases(tensor, raw), strict=True)
        ):
            found[name, number] = self._block_sums(gradient, basis, tensor.block_type) * scale
        return found

    def powers(self, name: str, weights: np.ndarray) -> tuple[Changes, np.ndarray]:
        """Weighted squares of what a relative change of 1 adds to a tensor: the shape of its curvature.

        Args:
            name: A tensor stored in blocks.
            weights: Of its columns, float32 [n].

        Returns:
            Sum of squares by change, shaped like it, and by column over all rows, float32 [n].
        """
        tensor, found = self.model.tensors[name], {}
        raw = _stored(tensor)
        for number, (scale, basis) in enumerate(
            zip(read_scales(raw, tensor.block_type), self._bases(tensor, raw), strict=True)
        ):
            by_column = np.broadcast_to(weights, basis.shape)
            found[name, number] = self._block_sums(basis * basis, by_column, tensor.block_type) * scale * scale
        columns = np.square(_decoded(tensor)).sum(axis=0, dtype=np.float64) * weights
        return found, columns.astype(np.float32)

    def tensors(self) -> list[Tensor]:
        """Return all tensors as they are stored now, scales rounded to float16, in file order."""
        return [self._rounded(tensor) for tensor in self.model.tensors.values()]

    def _rounded(self, tensor: Tensor) -> Tensor:
        name = tensor.name
        if (name, 0) not in self.changes:
            return tensor
        if is_norm(tensor):
            return array_tensor(name, self.weight(name), F32)
        blocks = with_scales(_stored(tensor), tensor.block_type, self._blocks(name)[0])
        return LazyTensor(
            name=name, shape=tensor.shape, block_type=tensor.block_type, read=lambda start, stop: blocks[start:stop]
        )

    def _blocks(self, name: str) -> tuple[list[np.ndarray], tuple[np.ndarray, ...]]:
        """Changed scales and their bases."""
        tensor = self.model.tensors[name]
        raw = _stored(tensor)
        scales = read_scales(raw, tensor.block_type)
        changed = [scale * (1 + self.changes[name, number]) for number, scale in enumerate(scales)]
        return changed, self._bases(tensor, raw)

    def _bases(self, tensor: Tensor, raw: np.ndarray) -> tuple[np.ndarray, ...]:
        return bases(raw, tensor.block_type, row_length(tensor), threads=self.threads)

    def _block_sums(self, a: np.ndarray, b: np.ndarray, kind: BlockType) -> np.ndarray:
        """Sum a * b over each block, float32 [rows, n] -> [rows, blocks]; the order of the sum is the kernel's."""
        length = kind.block_length
        sums = rowwise.row_dot(a.reshape(-1, length), b.reshape(-1, length), threads=self.threads)
        return sums.astype(np.float32).reshape(len(a), -1)


def is_norm(tensor: Tensor) -> bool:
    """Whether a tensor is a norm that linears follow, which files keep in F32."""
    return tensor.name.endswith(("attn_norm.weight", "ffn_norm.weight", "output_norm.weight")) and (
        tensor.block_type == F32
    )


def _spread(scale: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return scale * basis, float32 [rows, n], each scale over its block."""
    rows, blocks = scale.shape
    return np.asarray((basis.reshape(rows, blocks, -1) * scale[..., None]).reshape(rows, -1))


def _stored(tensor: Tensor) -> np.ndarray:
    return tensor.read_bytes(0, n_rows(tensor))


def _decoded(tensor: Tensor) -> np.ndarray:
    return decode(_stored(tensor), tensor.block_type, row_length(tensor))
