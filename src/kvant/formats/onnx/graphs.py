"""What must hold of an ONNX graph before anything runs it: no cycles, known opsets, functions that end, sane fills."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvant.errors import FormatError, LimitError, UnsupportedFormatError
from kvant.formats.onnx.spec import (
    DOMAINS,
    IR_VERSIONS,
    MAX_FILLED_ELEMENTS,
    MAX_FUNCTION_NODES,
    MIN_OPSET,
)

if TYPE_CHECKING:
    import onnx

_EXPORT = "Export the model again."


def graphs_of(model: "onnx.ModelProto") -> Iterator[tuple[Any, str]]:
    """Yield every graph and function body, those inside nodes too, each with a name for messages."""
    waiting: list[tuple[Any, str]] = [(model.graph, "graph")]
    waiting += [(f, f"function {f.name[:80]!r}") for f in model.functions]
    waiting += [(g, "training graph") for t in model.training_info for g in (t.initialization, t.algorithm)]
    while waiting:
        graph, name = waiting.pop()
        yield graph, name
        for node in graph.node:
            waiting += [(inner, f"graph inside {node.name[:80]!r}") for inner in subgraphs(node)]


def subgraphs(node: "onnx.NodeProto") -> list["onnx.GraphProto"]:
    """Return the graphs that a node's attributes hold."""
    found = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found + [graph for attribute in node.attribute for graph in attribute.graphs]


def tensors_of(graph: Any) -> Iterator["onnx.TensorProto"]:
    """Yield the tensors stored in a graph or function: initializers and attributes, not those of inner graphs."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in [*sparse_tensors, *attribute.sparse_tensors]:
                yield from (sparse.values, sparse.indices)


def check_opsets(model: "onnx.ModelProto", path: Path) -> None:
    """Check versions, and that every node's operator comes from a domain that is imported and known.

    Raises:
        FormatError: No opset, or one that a node needs is missing.
        UnsupportedFormatError: A version or domain that is not known here.
    """
    import onnx

    if model.ir_version not in IR_VERSIONS:
        raise UnsupportedFormatError(f"{path}: is of IR version {model.ir_version}, not {IR_VERSIONS}. {_EXPORT}")
    newest = onnx.defs.onnx_opset_version()
    functions = {f.domain for f in model.functions}
    for owner, imports in [("the model", model.opset_import), *((f.name, f.opset_import) for f in model.functions)]:
        versions = {_domain(entry.domain): entry.version for entry in imports}
        version = versions.get("")
        if not versions:
            raise FormatError(f"{path}: {owner[:80]} names no opset, so its operators have no meaning. {_EXPORT}")
        if version is not None and not MIN_OPSET <= version <= newest:
            raise UnsupportedFormatError(
                f"{path}: {owner[:80]} needs opset {version}; {MIN_OPSET} to {newest} are known here. {_EXPORT}"
            )
    imported = {_domain(entry.domain) for entry in model.opset_import}
    for graph, name in graphs_of(model):
        own = {_domain(entry.domain) for entry in getattr(graph, "opset_import", ())}
        for domain in sorted({_domain(node.domain) for node in graph.node}):
            if domain not in DOMAINS and domain not in functions:
                raise UnsupportedFormatError(
                    f"{path}: {name} uses operators of {domain[:80]!r}, which need code of their own. "
                    "kvant loads no such code; export the model with standard operators."
                )
            if domain not in imported | own:
                raise FormatError(f"{path}: {name} uses {domain[:80] or 'ai.onnx'!r} but imports no opset. {_EXPORT}")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def check_order(graph: Any, name: str, path: Path) -> None:
    """Check that no node waits for its own output, and that every value has one origin.

    Raises:
        FormatError: It does, or has two.
    """
    origin: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for output in filter(None, node.output):
            if output in origin:
                raise FormatError(f"{path}: {name} makes {output[:80]!r} twice. {_EXPORT}")
            origin[output] = index
    needs = [{origin[used] for used in _uses(node) if used in origin} for node in graph.node]
    users: list[list[int]] = [[] for _ in needs]
    for index, found in enumerate(needs):
        for before in found:
            users[before].append(index)
    missing = [len(found) for found in needs]
    ready = [index for index, count in enumerate(missing) if not count]
    done = 0
    while ready:
        done += 1
        for user in users[ready.pop()]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    if done < len(needs):
        node = graph.node[next(i for i, count in enumerate(missing) if count)]
        raise FormatError(f"{path}: {name} has a cycle through {(node.name or node.op_type)[:80]!r}. {_EXPORT}")


def _uses(node: "onnx.NodeProto") -> Iterator[str]:
    """Names a node reads, those that its inner graphs take from outside too."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield from filter(None, current.input)
        for graph in subgraphs(current):
            waiting += graph.node
            yield from (output.name for output in graph.output)


def check_functions(model: "onnx.ModelProto", path: Path) -> None:
    """Check that functions do not call themselves and do not unfold beyond `MAX_FUNCTION_NODES` nodes.

    Raises:
        FormatError: A function calls itself, by detours too.
        LimitError: Too many nodes.
    """
    bodies = {(f.domain, f.name): f for f in model.functions}
    size: dict[tuple[str, str], int] = {}
    open_: list[tuple[str, str]] = []

    def unfold(nodes: Sequence["onnx.NodeProto"]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += 1 + sum(unfold(graph.node) for graph in subgraphs(node))
            if key in bodies:
                total += enter(key)
            if total > MAX_FUNCTION_NODES:
                raise LimitError(f"{path}: unfolds to more than {MAX_FUNCTION_NODES} nodes. {_EXPORT}")
        return total

    def enter(key: tuple[str, str]) -> int:
        if key in open_ or len(open_) > 100:
            raise FormatError(f"{path}: function {key[1][:80]!r} calls itself or 100 others in one another. {_EXPORT}")
        if key not in size:
            open_.append(key)
            size[key] = unfold(bodies[key].node)
            open_.pop()
        return size[key]

    unfold(model.graph.node)
    for key in bodies:
        enter(key)


def check_fills(graph: Any, path: Path) -> None:
    """Check that no operator fills a huge tensor from a shape that is written in the file.

    Raises:
        LimitError: One makes more than `MAX_FILLED_ELEMENTS`.
    """
    shapes: Mapping[str, onnx.TensorProto] = {t.name: t for t in getattr(graph, "initializer", ())} | {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.HasField("t")
    }
    for node in graph.node:
        at = {"ConstantOfShape": 0, "Expand": 1}.get(node.op_type)
        if at is None or len(node.input) <= at or node.input[at] not in shapes:
            continue
        dims = _integers(shapes[node.input[at]])
        if math.prod(max(1, abs(d)) for d in dims) > MAX_FILLED_ELEMENTS:
            raise LimitError(
                f"{path}: {(node.name or node.op_type)[:80]!r} makes a tensor of {dims[:8]}, more than "
                f"{MAX_FILLED_ELEMENTS} elements. {_EXPORT}"
            )


def _integers(tensor: "onnx.TensorProto") -> list[int]:
    if tensor.int64_data or tensor.data_type != 7:
        return list(tensor.int64_data)
    raw = tensor.raw_data[: 8 * 64]
    return [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)]
