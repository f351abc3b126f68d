"""Constants of ONNX files and the limits that bound what reading one can cost.

Source: onnx.proto (IR version 13) and ONNX Runtime's contrib operators (ContribOperators.md).
"""

EXTERNAL = 1
"""`TensorProto.DataLocation.EXTERNAL`."""

MAX_FILE_BYTES = (1 << 31) - 1
"""Protocol buffers end here; larger models keep their weights in files beside."""

MAX_MESSAGES = 4_000_000
"""Messages in a file: nodes, attributes, tensors, dimensions. Every one costs some hundred bytes once it is parsed."""

MAX_PACKED_BYTES = 1 << 28
"""Bytes of integers of variable length, each of which can become eight in memory."""

MAX_DEPTH = 64
"""Messages inside one another; a graph inside an attribute is three of them. Protocol buffers' own limit is 100."""

MAX_FUNCTION_NODES = 1_000_000
"""Nodes after all functions of a model are put in the place of their calls."""

MAX_TENSOR_BYTES = 1 << 40
"""Bytes of one tensor."""

MAX_FILLED_ELEMENTS = 1 << 30
"""Elements that `ConstantOfShape` or `Expand` may make from a shape written in the file."""

MIN_OPSET, IR_VERSIONS = 7, range(3, 14)
"""The oldest opset ONNX Runtime still runs, and the versions of the file itself that are read here."""

DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
"""Domains whose operators ONNX Runtime brings along; any other needs code of its own, which is not loaded."""

MICROSOFT = "com.microsoft"

ELEMENT_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""Bits of an element by `TensorProto.DataType`; strings (8) have no fixed length."""

STRING = 8
