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
