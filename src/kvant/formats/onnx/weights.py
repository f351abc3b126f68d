"""Matrices of a decoder graph, and the operators that take them in few bits."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvant.errors import UnsupportedModelError
from kvant.formats.onnx.spec import MICROSOFT
from kvant.formats.onnx.writer import blank
from kvant.kernels.nbits import Blocks, NBits

if TYPE_CHECKING:
    import onnx

FLOAT = 1
ACCURACY_LEVEL = 4
"""Activations become int8 blocks inside the product, as in the model builder's own int4 models for processors."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:attn|self_attn|mlp)\.([a-z_]+)_proj(?:\.MatMul)?\.weight")
_JOINED = re.compile(rf"{_LAYER.pattern}(?:__{_LAYER.pattern})*(?:__axis_0__concat)?(?:_t)?")
_HEAD = re.compile(r"lm_head(?:\.MatMul)?\.weight(?:_t)?")
_STEMS = {
    "q": ("attn_q",), "k": ("attn_k",), "v": ("attn_v",), "qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",),
    "gate": ("ffn_gate",), "up": ("ffn_up",), "down": ("ffn_down",), "gate_up": ("ffn_gate", "ffn_up"),
}  # fmt: skip
"""Canonical names by the exporters'. Source: what onnxruntime-genai 0.18's model builder and mobius-onnx 0.1 write."""

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
    """Return the float matrices of an exported decoder.

    Raises:
        UnsupportedModelError: There are none, or it is quantized already.
    """
    if any(node.op_type in ("MatMulNBits", "GatherBlockQuantized") for node in model.graph.node):
        raise UnsupportedModelError(f"{path}: is quantized already. Start from the full-precision model.")
    tensors = {t.name: t for t in model.graph.initializer}
    turned = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Transpose"}
    users: dict[str, dict[str, str]] = {}
    transposed: dict[str, bool] = {}
    for node in model.graph.node:
        at = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        source = None if at is None else turned.get(node.input[at], node.input[at])
        if source is None or source not in tensors or not _is_matrix(tensors[source]):
            continue
        users.setdefault(source, {})[node.op_type] = node.name
        transposed[source] = (node.op_type == "MatMul") != (node.input[at] in turned)
    if not users:
        raise UnsupportedModelError(
            f"{path}: multiplies with no float matrices. Export it with kvant convert --to onnx."
        )
    found = []
    for name, nodes in users.items():
        rows, columns = reversed(tensors[name].dims) if transposed[name] else tensors[name].dims
        lookup = nodes.get("Gather")
        found.append(
            Weight(
                name=name, rows=rows, columns=columns, is_transposed=transposed[name], product=nodes.get("MatMul"),
                lookup=lookup, names=(EMBEDDING,) if lookup else canonical(name),
            )
        )  # fmt: skip
    return tuple(found)


def canonical(tensor: str) -> tuple[str, ...]:
    """Return canonical names of what a matrix holds, one below the other; empty if it is not known."""
    if _HEAD.fullmatch(tensor):
        return (HEAD,)
    if not _JOINED.fullmatch(tensor):
        return ()
    parts = [(layer, _STEMS.get(stem, ())) for layer, stem in _LAYER.findall(tensor)]
    known = all(stems for _, stems in parts)
    return tuple(f"blk.{layer}.{stem}.weight" for layer, stems in parts for stem in stems) if known else ()


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
        node, table = nodes[weight.lookup], codes
        reads = [node.input[1], *more]
        if weight.product is not None:
            table = f"{codes}_rows"
        made = helper.make_node(
            "GatherBlockQuantized", [table, *reads], list(node.output), name=node.name, domain=MICROSOFT,
            bits=kind.bits, block_size=kind.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        node.CopyFrom(made)
        if table != codes:
            shape = f"{codes}_shape"
            model.graph.node.insert(
                0, helper.make_node("Reshape", [codes, shape], [table], name=f"{weight.lookup}/Reshape")
            )
    for node in [n for n in model.graph.node if n.op_type == "Transpose" and n.input[0] == weight.name]:
        model.graph.node.remove(node)


def blank_tensors(weight: Weight, kind: NBits, floats: str) -> dict[str, np.ndarray]:
    """Return what `packed_tensors` makes, in its order, as arrays that take no memory.

    Args:
        weight: The matrix.
        kind: Its blocks.
        floats: Dtype of scales: `float32` or `float16`.
    """
    rows, blocks = weight.rows, kind.blocks(weight.columns)
    code_bytes = kind.code_bytes(weight.columns)
    codes, scales, zeros = tensor_names(weight)
    shape = (rows, code_bytes) if weight.product is None else (rows, blocks, code_bytes // blocks)
    found = {codes: blank(shape, np.uint8), scales: blank((rows, blocks), floats)}
    if not kind.symmetric:
        found[zeros] = blank((rows, -(-blocks * kind.bits // 8)), np.uint8)
    seen = shape_name(weight)
    return found | ({seen: blank((2,), np.int64)} if seen else {})


def packed_tensors(weight: Weight, kind: NBits, encode: Callable[[], Blocks]) -> dict[str, Callable[[], np.ndarray]]:
    """Return what makes the tensors of a matrix in few bits, in the order in which they are to be made.

    Args:
        weight: The matrix.
        kind: Its blocks.
        encode: Encodes it, once, when the first tensor is made; after the last one its blocks are let go.
    """
    made: list[Blocks] = []
    codes, scales, zeros = tensor_names(weight)
    shapes = {name: array.shape for name, array in blank_tensors(weight, kind, "float32").items()}

    def first() -> np.ndarray:
        made.append(encode())
        return made[0].packed_codes().reshape(shapes[codes])

    found: dict[str, Callable[[], np.ndarray]] = {codes: first}
    if kind.symmetric:
        found[scales] = lambda: made.pop().scales
    else:
        found |= {scales: lambda: made[0].scales, zeros: lambda: made.pop().packed_zeros()}
    seen = shape_name(weight)
    if seen:
        found[seen] = lambda: np.array([weight.rows, kind.code_bytes(weight.columns)], np.int64)
    return found


def read_embedding(model: "onnx.ModelProto", head: Weight, embedding: Weight) -> None:
    """Let the product of a head multiply with the embedding's tensor instead of its own."""
    from onnx import helper

    node = next(n for n in model.graph.node if n.name == head.product)
    if embedding.is_transposed:
        node.input[1] = embedding.name
        return
    turned = f"{embedding.name}_turned"
    node.input[1] = turned
    model.graph.node.insert(0, helper.make_node("Transpose", [embedding.name], [turned], name=turned, perm=[1, 0]))


def tensor_names(weight: Weight) -> tuple[str, str, str]:
    """Names of the codes, scales and zero points of a matrix."""
    return f"{weight.name}_Q", f"{weight.name}_scales", f"{weight.name}_zero_points"


def shape_name(weight: Weight) -> str | None:
    """Name of the shape that the look-up reads shared codes in; None if nothing is shared."""
    return f"{weight.name}_Q_shape" if weight.product is not None and weight.lookup is not None else None


def _is_matrix(tensor: "onnx.TensorProto") -> bool:
    return len(tensor.dims) == 2 and tensor.data_type == FLOAT
