"""Fuzz the ONNX reader: `python tests/fuzz/fuzz_onnx.py -runs=100000`."""

import sys
from pathlib import Path
from typing import Any

import onnx
import onnx.helper as make

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
from kvant.formats.onnx import external, graphs, reader, wire

FLOAT, BOOL, INT64 = 1, 9, 7


def value(name: str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    """A value of two elements."""
    return make.make_tensor_value_info(name, kind, [2])


def model(nodes: list[Any], initializers: tuple[Any, ...] = (), functions: tuple[Any, ...] = ()) -> bytes:
    """A model of some nodes, serialized."""
    graph = make.make_graph(nodes, "g", [value("x")], [value("y")], list(initializers))
    imports = [make.make_opsetid("", 17), make.make_opsetid("com.microsoft", 1)]
    made = make.make_model(graph, functions=list(functions), opset_imports=imports, ir_version=9)
    return bytes(made.SerializeToString())


def seeds(work: Path) -> list[bytes]:
    """Weights inside and outside, graphs inside nodes, functions, fills."""
    (work / "w").write_bytes(bytes(16))
    weights = make.make_tensor("w", FLOAT, [2], [1.0, 2.0])
    outside = onnx.TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", "w"), ("offset", "8"), ("length", "8")):
        outside.external_data.add(key=key, value=text)
    shape = make.make_tensor("s", INT64, [1], [2])
    fill = make.make_graph([make.make_node("ConstantOfShape", ["s"], ["e"])], "e", [], [value("e")], [shape])
    then = make.make_graph([make.make_node("Constant", [], ["t"], value=weights)], "t", [], [value("t")])
    function = make.make_function(
        "com.microsoft", "F", ["a"], ["b"], [make.make_node("Relu", ["a"], ["b"])], [make.make_opsetid("", 17)]
    )
    add = make.make_node("Add", ["x", "w"], ["y"])
    return [
        model([add], (weights,)), model([add], (outside,)),
        model([make.make_node("If", ["x"], ["y"], then_branch=then, else_branch=fill)]),
        model([make.make_node("F", ["x"], ["y"], domain="com.microsoft")], functions=(function,)),
    ]  # fmt: skip


def exercise(path: Path) -> None:
    """Read a model, and name its files."""
    found = reader.read_onnx(path)
    assert all(file.is_relative_to(path.parent) for file in reader.data_files(found, path))


if __name__ == "__main__":
    fuzzing.instrument(external, graphs, reader, wire)
    fuzzing.run(exercise, seeds)
