"""int8 operators through onnxruntime.quantization, which does the mechanics; what to quantize is decided elsewhere.

Everything here runs in ONNX Runtime's child process, on models that were read and checked before.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvant.formats.onnx.graphs import graphs_of, subgraphs
from kvant.runtime.ort import guarded
from kvant.runtime.ort_messages import Prepare, Settings

PER_CHANNEL_OPSET = 13
"""`QuantizeLinear` and `DequantizeLinear` take an axis from here on."""

DYNAMIC_OPERATORS = ("MatMul", "Gemm", "Gather", "LSTM", "Attention", "EmbedLayerNormalization")
"""Convolutions are not among them: with activations quantized as they come they run slower than in float."""

STATIC_OPERATORS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Gather", "EmbedLayerNormalization")
"""Those with weights, the only ones that become int8 where everything else would lose too much."""

INT8_OPERATORS = frozenset(
    {"DequantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "QAttention"}
    | {"QEmbedLayerNormalization", "MatMulIntegerToFloat"}
)
"""What stands in the place of a quantized node, or in front of it."""

PERCENTILE = 99.99
STRIDE = 1
"""Runs whose intermediate outputs are held at a time; more must all have the same shapes."""


def prepare(request: Prepare) -> None:
    """Do one step of preparation and write the model.

    `opset`: convert to the opset that per-channel scales need, where it is older. `slim`: onnxslim. `script`:
    onnxscript's optimizer, which folds constants and drops what nothing uses. `ort`: shape inference and ONNX Runtime's
    basic optimizations, after which weights that were `Constant` nodes are initializers. All nodes have names after
    it.

    Raises:
        EngineError: The tool refuses the model.
    """
    step = {"opset": _raise_opset, "slim": _slim, "script": _optimize, "ort": _ort_optimize}[request.step]
    with _quiet():
        guarded(request.source, lambda: step(request.source, request.out))
        guarded(request.out, lambda: _name_nodes(request.out))


def quantize(source: str, out: str, settings: Settings, feeds: Sequence[dict[str, np.ndarray]], ranges: str) -> None:
    """Write a model with int8 operators.

    Args:
        source: A prepared model.
        out: File to write.
        settings: How.
        feeds: Named inputs to calibrate on, one dict per run; unused for dynamic quantization.
        ranges: File that keeps the ranges found, for the next call with the same method.

    Raises:
        EngineError: onnxruntime.quantization refuses the model.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static

    def run() -> None:
        if settings.kind == "dynamic":
            quantize_dynamic(
                source, out, op_types_to_quantize=list(DYNAMIC_OPERATORS), per_channel=settings.per_channel,
                reduce_range=settings.reduce_range, weight_type=QuantType.QInt8,
                nodes_to_exclude=_as_products(settings.exclude), nodes_to_quantize=_as_products(settings.only),
                extra_options={"EnableSubgraph": True},
            )  # fmt: skip
            return
        methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
        quantize_static(
            source, out, _reader(feeds), per_channel=settings.per_channel, reduce_range=settings.reduce_range,
            activation_type=QuantType.QUInt8 if settings.activation == "uint8" else QuantType.QInt8,
            weight_type=QuantType.QInt8, nodes_to_exclude=list(settings.exclude),
            nodes_to_quantize=list(settings.only),
            op_types_to_quantize=list(STATIC_OPERATORS) if settings.operators == "weights" else None,
            calibrate_method=getattr(CalibrationMethod, methods[settings.method]), calibration_cache_path=ranges,
            extra_options={
                "CalibStridedMinMax": STRIDE, "CalibPercentile": PERCENTILE,
                "CalibTensorRangeSymmetric": settings.activation == "int8",
                "ActivationSymmetric": settings.activation == "int8",
            },
        )  # fmt: skip

    with _quiet():
        guarded(source, run)


def quantized_nodes(path: str | Path, source: str | Path) -> list[str]:
    """Return the nodes of `source`, in its order, that int8 operators of `path` compute; those inside nodes, too."""
    import onnx

    new = onnx.load(str(path), load_external_data=False).graph
    old = onnx.load(str(source), load_external_data=False).graph
    found = []
    waiting = [(old, new)]
    while waiting:
        one, other = waiting.pop(0)
        found += _quantized_in(one, other)
        theirs = {node.name: node for node in other.node}
        for node in one.node:
            if node.name in theirs:
                waiting += zip(subgraphs(node), subgraphs(theirs[node.name]), strict=False)
    return found


def _quantized_in(old: Any, new: Any) -> list[str]:
    """Nodes of one graph, those inside its nodes apart."""
    made_by = {output: node for node in new.node for output in node.output}
    kept = {name for node in old.node for name in node.output}
    found = []
    for node in old.node:
        waiting, ends = [node.output[0]] if node.output else [], kept.difference(node.output)
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            step = made_by.get(name)
            if step is None or name in seen or name in ends:
                continue
            seen.add(name)
            if step.op_type in INT8_OPERATORS:
                found.append(node.name)
                break
            waiting += step.input
    return found


def _as_products(nodes: Sequence[str]) -> list[str]:
    """Names of nodes, and what a Gemm among them is called once onnxruntime.quantization has made a MatMul of it."""
    return [name for node in nodes for name in (node, f"{node}_MatMul")]


def _reader(feeds: Sequence[dict[str, np.ndarray]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the base has no types
        def __init__(self) -> None:
            self._left = iter(feeds)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(feeds[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

        def __len__(self) -> int:
            return len(feeds)

    return Reader()


def _raise_opset(source: str, out: str) -> None:
    import onnx
    from onnx import version_converter

    model = onnx.load(source)
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), PER_CHANNEL_OPSET)
    if version < PER_CHANNEL_OPSET:
        model = version_converter.convert_version(model, PER_CHANNEL_OPSET)
    onnx.save(model, out)


def _slim(source: str, out: str) -> None:
    import onnxslim

    onnxslim.slim(source, out)


def _optimize(source: str, out: str) -> None:
    import onnx
    import onnxscript.optimizer

    onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), out)


def _ort_optimize(source: str, out: str) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(source, out, auto_merge=True)


def _name_nodes(path: str) -> None:
    """Give nodes without a name, or with one that another has, a name of their own."""
    import onnx

    model = onnx.load(path)
    taken: set[str] = set()
    for graph, _ in graphs_of(model):
        for index, node in enumerate(graph.node):
            if not node.name or node.name in taken:
                node.name = f"{node.op_type}.{index}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what these tools log to themselves: it is advice about calls that are made here on purpose."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
