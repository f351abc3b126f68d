"""A float32 graph in float16: its inputs, outputs, casts, constants and tensors.

Operators keep their names; a processor computes those that it has in float32 alone between casts that ONNX Runtime
inserts. Source: onnx.proto `TensorProto.DataType`; what the model builder's own fp16 models hold.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kvant.errors import ValueRangeError
from kvant.formats.onnx.graphs import subgraphs

if TYPE_CHECKING:
    import onnx

FLOAT, FLOAT16 = 1, 10


def halve(model: "onnx.ModelProto") -> None:
    """Turn every float32 type of a graph into float16; its tensors are the caller's to convert (`as_half`).

    Graphs inside nodes are turned with their tensors. Bodies of functions keep their types, which follow their inputs.
    """
    _halve(model.graph)
    waiting = [inner for node in model.graph.node for inner in subgraphs(node)]
    while waiting:
        graph = waiting.pop()
        _halve(graph)
        for tensor in graph.initializer:
            _halve_tensor(tensor)
        waiting += [inner for node in graph.node for inner in subgraphs(node)]


def _halve(graph: "onnx.GraphProto") -> None:
    del graph.value_info[:]
    for port in (*graph.input, *graph.output):
        if port.type.tensor_type.elem_type == FLOAT:
            port.type.tensor_type.elem_type = FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = FLOAT16
            elif attribute.HasField("t"):
                _halve_tensor(attribute.t)


def _halve_tensor(tensor: "onnx.TensorProto") -> None:
    from onnx import numpy_helper

    if tensor.data_type == FLOAT:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(_half(values, tensor.name), tensor.name))


def as_half(name: str, make: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """Return what makes a tensor in float16, if it is float32.

    Raises:
        ValueRangeError: When it is made: a value is beyond float16.
    """

    def made() -> np.ndarray:
        values = make()
        return _half(values, name) if values.dtype == np.float32 else values

    return made


def _half(values: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = np.asarray(values.astype(np.float16))
    if not np.isfinite(found).all():
        raise ValueRangeError(f"{name}: holds values beyond float16 (65504). Leave --dtype out: float32 holds them.")
    return found
