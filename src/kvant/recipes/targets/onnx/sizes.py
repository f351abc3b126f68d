"""How large a variant becomes, before anything is encoded: to the byte, and as a sum over its matrices.

Nothing is estimated for the first: the graph is drawn and the weights are laid out as they will be, but for their
values. The second is an upper bound, since a sum cannot know where in the file a tensor will lie: it takes a line of
padding behind each tensor, a page behind each large one, and offsets of as many digits as the longest.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from kvant.formats.onnx.decoder import sizes
from kvant.formats.onnx.weights import Weight, blank_tensors, replace
from kvant.formats.onnx.writer import LINE, PAGE, add_tensor, alignment, data_file, graph_bytes
from kvant.kernels.nbits import BLOCKS, NBits
from kvant.recipes.targets.onnx.origin import DTYPES, GRAPH, Origin
from kvant.recipes.targets.onnx.plan import Dtype

if TYPE_CHECKING:
    import onnx

LONGEST_NAME = "kvant-00.00-00"
"""No mix has a longer preset, which its graph holds."""

LENGTH_BYTES = 4
"""Most that the length of a graph takes beyond a byte. Source: protobuf.dev, varints of 32 bits."""

LARGEST = NBits(bits=8, block=min(BLOCKS))
"""Blocks that no others are larger than."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant takes.

    Attributes:
        n_bytes: Bytes of its graph and weights.
        n_params: Weights; a matrix that is used twice counts once.
        bpw: Bits per weight over all tensors.
    """

    n_bytes: int
    n_params: int
    bpw: float


def exact_size(origin: Origin, types: Mapping[str, str], notes: Mapping[str, str], dtype: Dtype) -> Size:
    """Return the size of a variant to the byte; see `Origin.graph` for the arguments."""
    graph = origin.graph(types, notes, dtype)
    n_bytes = graph_bytes(graph, origin.blanks(types, dtype), Path(GRAPH))
    found = sizes(graph)
    return Size(n_bytes=n_bytes, n_params=found.n_params, bpw=8 * found.tensor_bytes / found.n_params)


@dataclass(frozen=True)
class Bounds:
    """Most bytes of both files that parts of a variant take.

    Attributes:
        origin: The export.
        dtype: Type of all floats.
    """

    origin: Origin
    dtype: Dtype

    def matrix_bytes(self, weight: Weight, kinds: Sequence[NBits]) -> list[int]:
        """Return what a matrix takes in blocks of some types: its tensors, their padding and all that names them."""
        nodes = [node for node in self.origin.bare.graph.node if _is_of(node, weight)]
        found = []
        for kind in kinds:
            part = type(self.origin.bare)()
            part.graph.node.extend(nodes)
            replace(part, weight, kind)
            tensors = self._add(part, blank_tensors(weight, kind, DTYPES[self.dtype]))
            found.append(tensors + int(part.graph.ByteSize()))
        return found

    def rest_bytes(self, free: Collection[str], fixed: Mapping[str, str], notes: Mapping[str, str]) -> int:
        """Return what all the rest takes.

        Args:
            free: Matrices that it is beside, by initializer.
            fixed: Blocks of the others.
            notes: What the graph says of itself.
        """
        rest = self.origin.graph(fixed, notes, self.dtype)
        nodes, theirs = rest.graph.node, [weight for weight in self.origin.weights if weight.name in free]
        for index in reversed(range(len(nodes))):
            if any(_is_of(nodes[index], weight) for weight in theirs):
                del nodes[index]
        blanks = self.origin.blanks(fixed, self.dtype)
        tensors = self._add(rest, {name: array for name, array in blanks.items() if name not in free})
        return tensors + int(rest.ByteSize()) + LENGTH_BYTES

    def _add(self, graph: "onnx.ModelProto", arrays: Mapping[str, np.ndarray]) -> int:
        """Add tensors to a graph as if they lay at its end, and return the bytes that they take outside."""
        outside = 0
        for name, array in arrays.items():
            if add_tensor(graph, name, array, data_file(Path(GRAPH)).name, self._end) is not None:
                outside += array.nbytes + -array.nbytes % LINE + alignment(array.nbytes) - LINE
        return outside

    @cached_property
    def _end(self) -> int:
        """An offset of as many digits as any can have."""
        largest = dict.fromkeys((weight.name for weight in self.origin.weights), LARGEST.name)
        arrays = self.origin.blanks(largest, self.dtype).values()
        return int(10 ** (len(str(sum(array.nbytes + PAGE for array in arrays))) - 1))


def _is_of(node: "onnx.NodeProto", weight: Weight) -> bool:
    """Whether a matrix's types decide what becomes of a node."""
    turns = node.op_type == "Transpose" and node.input[0] == weight.name
    return turns or node.name in (weight.product, weight.lookup)
