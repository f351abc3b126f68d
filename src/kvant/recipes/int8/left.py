"""Which products of a model are not int8 although they have weights, and why: a type that quantizes nothing is refused.

Tools pass over what they do not know: weights of float16, operators that a type does not take, graphs inside nodes.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from kvant.errors import FormatError, UnsupportedFormatError
from kvant.formats.onnx.external import tensor_bytes
from kvant.formats.onnx.graphs import graphs_of
from kvant.formats.onnx.reader import read_onnx
from kvant.runtime.ort_quantize import DYNAMIC_OPERATORS, STATIC_OPERATORS

if TYPE_CHECKING:
    import onnx

OPERATORS = frozenset({*DYNAMIC_OPERATORS, *STATIC_OPERATORS, "GRU", "RNN"})
"""Those whose weights are most of a model."""


MAX_WEIGHT = 2.0**64
"""The largest number whose square float32 holds."""
MAX_STEPS = 8
"""Casts and the like between weights and where they are used."""


class LeftNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node with weights that no int8 operator computes.

    Attributes:
        node: Its name.
        operator: What it does.
        dtype: Element type of its weights, as NumPy calls it.
        is_inner: It is inside another node, such as a branch of If.
        weight_bytes: Bytes of its weights.
    """

    node: str
    operator: str
    dtype: str
    is_inner: bool
    weight_bytes: int


def left_float(path: Path, quantized: Collection[str]) -> tuple[tuple[LeftNode, ...], int]:
    """Return the nodes of a prepared model whose matrices of weights stay float, and how many have int8 ones.

    Tools name a node quantized when only its activations are: weights of another type than float32 stay as they are.
    """
    import onnx

    found, n_done = [], 0
    for node, name, held in _with_weights(read_onnx(path)):
        kind = onnx.helper.tensor_dtype_to_np_dtype(held[0].data_type)
        if kind.kind != "f" and kind.name != "bfloat16":
            continue
        if kind.name == "float32" and node.name in quantized:
            n_done += 1
            continue
        found.append(
            LeftNode(
                node=node.name, operator=node.op_type, dtype=kind.name, is_inner=name != "graph",
                weight_bytes=sum(tensor_bytes(t, path) for t in held),
            )
        )  # fmt: skip
    return tuple(found), n_done


def check_weights(model: "onnx.ModelProto", path: Path) -> None:
    """Refuse weights that no scale of int8 can hold; tools would write them all the same.

    Raises:
        FormatError: A matrix holds NaN, infinity, or what leaves float32 when it is squared.
    """
    from onnx import numpy_helper

    for node, _, held in _with_weights(model):
        for tensor in held if node.op_type != "Gather" else ():  # which takes from tables, of masks too
            values = numpy_helper.to_array(tensor, base_dir=str(path.parent))
            if values.dtype.kind != "f" or not values.size:
                continue
            largest = float(max(-values.min(), values.max()))  # NaN if one is
            if not largest <= MAX_WEIGHT:
                what = f"a weight of {largest:.3g}" if np.isfinite(largest) else "NaN or infinity"
                raise FormatError(
                    f"{path}: tensor {tensor.name[:80]!r} holds {what}, which int8 cannot scale. "
                    "Mend the model's weights."
                )


def _with_weights(model: "onnx.ModelProto") -> Iterator[tuple["onnx.NodeProto", str, list["onnx.TensorProto"]]]:
    """Yield the nodes that multiply by matrices of weights, the kind of graph they are in, and these."""
    graphs = list(graphs_of(model))
    weights = {t.name: t for inner, _ in graphs for t in getattr(inner, "initializer", ()) if len(t.dims) > 1}
    made_by = {out: node for inner, _ in graphs for node in inner.node for out in node.output}
    for inner, name in graphs:
        for node in inner.node:
            held = [weights[i] for i in (_origin(i, made_by) for i in node.input) if i in weights]
            if node.op_type in OPERATORS and held:
                yield node, name, held


def _origin(name: str, made_by: Mapping[str, "onnx.NodeProto"]) -> str:
    """Follow a value back through what does not compute: weights are often cast or turned where they are used."""
    for _ in range(MAX_STEPS):
        node = made_by.get(name)
        if node is None or node.op_type not in ("Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"):
            break
        name = node.input[0]
    return name


def check_some(source: Path, kind: str, n_done: int, left: Collection[LeftNode]) -> None:
    """Refuse a result without int8 weights: it would be the model as it was, under another name.

    Raises:
        UnsupportedFormatError: There is none.
    """
    if n_done:
        return
    if not left:
        raise UnsupportedFormatError(
            f"{source}: has no product with weights that {kind} could make int8 (MatMul, Gemm, Gather, Conv with "
            f"int8-static, ...). Keep the model as it is."
        )
    raise UnsupportedFormatError(f"{source}: none of it becomes int8: {reasons(left, kind)}. {_remedy(left, kind)}")


def reasons(left: Collection[LeftNode], kind: str) -> str:
    """Say why nodes stay float, alike ones together."""
    groups: dict[str, list[LeftNode]] = {}
    for node in left:
        groups.setdefault(_reason(node, kind), []).append(node)
    return "; ".join(
        f"{len(nodes)} {'/'.join(sorted({n.operator for n in nodes}))} (first {nodes[0].node}) {why}"
        for why, nodes in groups.items()
    )


def _reason(node: LeftNode, kind: str) -> str:
    if not _takes(kind, node):
        return f"are not among what {kind} takes"
    if node.dtype != "float32":
        return f"have {node.dtype} weights, and ONNX Runtime makes int8 of float32 alone"
    return f"are inside other nodes (If, Loop), where {kind} does not reach" if node.is_inner else "stay float"


def _takes(kind: str, node: LeftNode) -> bool:
    return node.operator in (DYNAMIC_OPERATORS if kind == "int8-dynamic" else STATIC_OPERATORS)


def _remedy(left: Collection[LeftNode], kind: str) -> str:
    if not any(_takes(kind, node) for node in left):
        return f"Use {'int8-static with --calibration-data' if kind == 'int8-dynamic' else 'int8-dynamic'}."
    if any(node.dtype != "float32" for node in left):
        return "Export the model in float32."
    if any(node.is_inner for node in left):
        return "Use int8-dynamic, or export the model without branches."
    return "Keep the model as it is."
