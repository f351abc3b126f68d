"""MatMulNBits blocks: bit-equal to onnxruntime's default quantizer, and decoded as its operator computes."""

import numpy as np
import pytest

from kvant.kernels.nbits import BITS, Blocks, NBits, encode

onnxruntime = pytest.importorskip("onnxruntime")
SHAPES = [(5, 96), (3, 72), (7, 256), (2, 36)]
"""Rows end with a whole byte: what onnxruntime leaves in the rest of one is whatever was there before."""


def rows(shape: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    x[0, :16] = 0
    x[1] = np.abs(x[1])
    x[-1] = np.round(x[-1] * 2) / 2  # halves between codes
    return x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", BITS)
def test_bytes_equal_onnxruntimes(bits: int, block: int, symmetric: bool, shape: tuple[int, int]) -> None:
    from onnxruntime.capi import _pybind_state

    kind = NBits(bits=bits, block=block, symmetric=symmetric)
    x = rows(shape, bits * block)
    n, k = shape
    ours = encode(x, kind)
    blocks = kind.blocks(k)
    codes = np.zeros((n, blocks, block * bits // 8), np.uint8)
    zeros = np.zeros((n, -(-blocks * bits // 8)), np.uint8)
    scales = np.zeros((n, blocks), np.float32)
    padded = np.ascontiguousarray(np.pad(x.T, ((0, blocks * block - k), (0, 0))))
    getattr(_pybind_state, f"quantize_matmul_{bits}bits")(codes, padded, scales, zeros, block, n, k, symmetric)
    np.testing.assert_array_equal(ours.scales, scales)
    np.testing.assert_array_equal(ours.packed_codes(), codes)
    if not symmetric:
        np.testing.assert_array_equal(ours.packed_zeros(), zeros)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize(("bits", "block"), [(2, 32), (4, 32), (4, 64), (8, 32)])
def test_the_operator_computes_what_is_decoded(bits: int, block: int, symmetric: bool) -> None:
    kind = NBits(bits=bits, block=block, symmetric=symmetric)
    x = rows((6, 96), 1)
    encoded = encode(x, kind)
    a = np.random.default_rng(2).standard_normal((3, 96)).astype(np.float32)
    found = run_operator(encoded, a)
    np.testing.assert_allclose(found, a @ encoded.decode().T, rtol=0, atol=1e-4)


def run_operator(encoded: Blocks, a: np.ndarray) -> np.ndarray:
    from onnx import TensorProto, helper, numpy_helper

    kind = encoded.kind
    arrays = {"b": encoded.packed_codes(), "scales": encoded.scales}
    if not kind.symmetric:
        arrays["zeros"] = encoded.packed_zeros()
    node = helper.make_node(
        "MatMulNBits", ["a", *arrays], ["y"], domain="com.microsoft", K=encoded.n, N=len(encoded.codes),
        bits=kind.bits, block_size=kind.block,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("a", TensorProto.FLOAT, list(a.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(a), len(encoded.codes)])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"a": a})[0]
    return found
