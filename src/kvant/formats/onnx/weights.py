"""Matrices of a decoder graph, and the operators that take them in few bits."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvant.errors import UnsupportedModelError
from kvant.formats.onnx.spec import MICROSOFT
from kvant.kernels.nbits import NBits

if TYPE_CHECKING:
    import onnx

FLOAT = 1
ACCURACY_LEVEL = 4
"""Activations become int8 blocks inside the product, as in the model builder's own int4 models for processors."""

_LAYER = re.compile(r"/model/layers\.(\d+)/(attn|self_attn|mlp)/(\w+)_proj/MatMul")
_STEMS = {
    "q": ("attn_q",), "k": ("attn_k",), "v": ("attn_v",), "qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",),
    "gate": ("ffn_gate",), "up": ("ffn_up",), "down": ("ffn_down",), "gate_up": ("ffn_gate", "ffn_up"),
}  # fmt: skip
"""Canonical names by the model builder's. Source: onnxruntime-genai 0.18, models/builders/base.py."""

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A matrix of a graph.

    Attributes:
        name: Its initializer.
        rows: Output channels, or tokens of an embedding.
        columns: Input channels: what is summed over, and cut into blocks.
        is_transposed: The initializer is [columns, rows], as a product takes it; else [rows, columns].
        product: Node that multiplies with it, or None.
        lookup: Node that looks rows up in it, or None.
        names: Canonical names of the tensors whose rows it holds, one below the other.
    """

    name: str
    rows: int
    columns: int
    is_transposed: bool
    product: str | None
    lookup: str | None
    names: tuple[str, ...]


def find_weights(model: "onnx.ModelProto", path: Path) -> tuple[Weight, ...]:
    """Return the float matrices of a decoder exported by the model builder.

    Raises:
        UnsupportedModelError: There are none, or it is quantized already.
    """
    if any(node.op_type in ("MatMulNBits", "GatherBlockQuantized") for node in model.graph.node):
        raise UnsupportedModelError(f"{path}: is quantized already. Start from the full-precision model.")
    tensors = {t.name: t for t in model.graph.initializer}
    found: dict[str, Weight] = {}
    turned = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Transpose"}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors and _is_matrix(tensors[node.input[1]]):
            columns, rows = tensors[node.input[1]].dims
            found[node.input[1]] = Weight(
                name=node.input[1], rows=rows, columns=columns, is_transposed=True, product=node.name, lookup=None,
                names=canonical(node.name),
            )  # fmt: skip
    for node in model.graph.node:
        source = turned.get(node.input[0], node.input[0]) if node.op_type == "Gather" else None
        if source is None or source not in tensors or not _is_matrix(tensors[source]):
            continue
        first, second = tensors[source].dims
        is_turned = node.input[0] in turned
        found[source] = Weight(
            name=source, rows=second if is_turned else first, columns=first if is_turned else second,
            is_transposed=is_turned, product=found[source].product if source in found else None, lookup=node.name,
            names=(EMBEDDING,),
        )  # fmt: skip
    if not found:
        raise UnsupportedModelError(
            f"{path}: multiplies with no float matrices. Export it with kvant convert --to onnx."
        )
    return tuple(found.values())


def canonical(node: str) -> tuple[str, ...]:
    """Return canonical names of what a product multiplies with; empty if it is not known."""
    if node == "/lm_head/MatMul":
        return (HEAD,)
    match = _LAYER.fullmatch(node)
    stems = _STEMS.get(match[3], ()) if match else ()
    return tuple(f"blk.{match[1]}.{stem}.weight" for stem in stems) if match else ()


def replace(model: "onnx.ModelProto", weight: Weight, kind: NBits) -> None:
    """Let the graph's nodes take a matrix in few bits, from the tensors named by `tensor_names`.

    A matrix that is multiplied with and looked up in is stored once: the look-up reads the product's codes through a
    Reshape, which ONNX Runtime folds.
    """
    from onnx import helper

    codes, scales, zeros = tensor_names(weight)
    more = [scales] if kind.symmetric else [scales, zeros]
    nodes = {node.name: node for node in model.graph.node}
    if weight.product is not None:
        node = nodes[weight.product]
        made = helper.make_node(
            "MatMulNBits", [node.input[0], codes, *more], list(node.output), name=node.name, domain=MICROSOFT,
            K=weight.columns, N=weight.rows, bits=kind.bits, block_size=kind.block, accuracy_level=ACCURACY_LEVEL,
        )  # fmt: skip
        node.CopyFrom(made)
    if weight.lookup is not None:
        node = nodes[weight.lookup]
        table = codes
        if weight.product is not None:
            table = f"{codes}_rows"
            shape = f"{codes}_shape"
            reshape = helper.make_node("Reshape", [codes, shape], [table], name=f"{node.name}/Reshape")
            model.graph.node.insert(0, reshape)
            node = next(n for n in model.graph.node if n.name == weight.lookup)
        made = helper.make_node(
            "GatherBlockQuantized", [table, node.input[1], *more], list(node.output), name=node.name,
            domain=MICROSOFT, bits=kind.bits, block_size=kind.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        turned = node.input[0] if weight.is_transposed else None
        node.CopyFrom(made)
        if turned is not None:
            transpose = next(n for n in model.graph.node if turned in n.output)
            model.graph.node.remove(transpose)


def tensor_names(weight: Weight) -> tuple[str, str, str]:
    """Names of the codes, scales and zero points of a matrix."""
    return f"{weight.name}_Q", f"{weight.name}_scales", f"{weight.name}_zero_points"


def shape_name(weight: Weight) -> str | None:
    """Name of the shape that the look-up reads shared codes in; None if nothing is shared."""
    return f"{weight.name}_Q_shape" if weight.product is not None and weight.lookup is not None else None


def _is_matrix(tensor: "onnx.TensorProto") -> bool:
    return len(tensor.dims) == 2 and tensor.data_type == FLOAT
