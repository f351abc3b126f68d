"""Small ONNX models made for tests with onnx alone."""

from pathlib import Path
from typing import Any

import numpy as np


def two_layers(path: Path, *, seed: int = 0, outlier: float = 1.0, external: bool = False) -> Path:
    """Write x [runs, 32] -> MatMul, Add, Relu, MatMul -> y [runs, 8].

    One weight is `outlier`; the input it meets is always 0, so it spoils nothing but the scale it is in.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    first = rng.standard_normal((32, 64)).astype(np.float32)
    first[31, 5] = outlier
    second = rng.standard_normal((64, 8)).astype(np.float32)
    arrays = {"first": first, "bias": rng.standard_normal(64).astype(np.float32), "second": second}
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], name="one"),
        helper.make_node("Add", ["a", "bias"], ["b"], name="add"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("MatMul", ["c", "second"], ["y"], name="two"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["runs", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["runs", 8])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )  # fmt: skip
    save(graph, path, external=external)
    return path


def save(graph: Any, path: Path, *, opsets: list[tuple[str, int]] | None = None, external: bool = False) -> None:
    """Write a graph as a model."""
    import onnx
    from onnx import helper

    imports = [helper.make_opsetid(d, v) for d, v in (opsets if opsets is not None else [("", 17)])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    if opsets == []:
        del model.opset_import[:]
    where = f"{path.name}.data"
    onnx.save(model, str(path), save_as_external_data=external, location=where, size_threshold=64)


def write_feeds(path: Path, *, runs: int = 16, seed: int = 1) -> Path:
    """Write inputs for `two_layers`, one run per first axis."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((runs, 4, 32)).astype(np.float32)
    x[..., 31] = 0
    np.savez(path, x=x)
    return path


def half_weights(path: Path) -> Path:
    """Write two products whose weights and activations are float16."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    w1, w2 = (rng.standard_normal(shape).astype(np.float16) for shape in ((64, 128), (128, 32)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("MatMul", ["b", "w2"], ["y"])],
        "half", [_value("x", 64, TensorProto.FLOAT16)], [_value("y", 32, TensorProto.FLOAT16)],
        [numpy_helper.from_array(w1, "w1"), numpy_helper.from_array(w2, "w2")],
    )  # fmt: skip
    save(graph, path)
    return path


def branches(path: Path) -> Path:
    """Write a product, and one in either branch of an If; `c` chooses."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((rng.standard_normal(shape) / 8).astype(np.float32), name)

    def branch(name: str) -> Any:
        return helper.make_graph(
            [helper.make_node("MatMul", ["h", f"w_{name}"], [f"o_{name}"])], name, [], [_value(f"o_{name}", 64)],
            [weight(f"w_{name}", 128, 64)],
        )  # fmt: skip

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]),
         helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e"))],
        "branches", [_value("x", 64), helper.make_tensor_value_info("c", TensorProto.BOOL, [])], [_value("y", 64)],
        [weight("w", 64, 128)],
    )  # fmt: skip
    save(graph, path)
    return path


def convolution(path: Path) -> Path:
    """Write a convolution whose weights are stored as float16 and cast."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float16)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["kh"], ["k"], to=TensorProto.FLOAT), helper.make_node("Conv", ["x", "k"], ["a"]),
         helper.make_node("GlobalAveragePool", ["a"], ["g"]), helper.make_node("Flatten", ["g"], ["y"])],
        "convolution", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])], [_value("y", 8)],
        [numpy_helper.from_array(kernel, "kh")],
    )  # fmt: skip
    save(graph, path)
    return path


def _value(name: str, width: int, kind: int | None = None) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, kind or TensorProto.FLOAT, ["n", width])
