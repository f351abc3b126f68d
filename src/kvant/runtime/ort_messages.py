"""What ONNX Runtime's process and its owner say to each other, beside what llama.cpp's says too (messages.py)."""

from typing import Literal

import msgspec
import numpy as np

from kvant.errors import EngineError
from kvant.runtime import messages


class Array(msgspec.Struct, frozen=True):
    """An array: its name, NumPy dtype (`<f4`), shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Port(msgspec.Struct, frozen=True):
    """An input or output of a model; unknown lengths are -1.

    Attributes:
        name: Its name.
        dtype: NumPy dtype, empty if it is no tensor.
        shape: Lengths.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model's operators become int8.

    Attributes:
        kind: `dynamic`: activations are quantized as they come; `static`: by ranges found on calibration data.
        per_channel: A scale for every output channel of a weight, instead of one for the tensor.
        method: How ranges are found.
        activation: Type of activations.
        reduce_range: Weights of 7 bits, for processors whose 8-bit products overflow (x86 without VNNI).
        operators: `all` that have int8 kernels, or only those with `weights`: products, convolutions, look-ups.
        exclude: Nodes that stay float.
        only: If not empty, the only nodes that do not.
    """

    kind: Literal["dynamic", "static"]
    per_channel: bool = True
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    activation: Literal["uint8", "int8"] = "uint8"
    reduce_range: bool = False
    operators: Literal["all", "weights"] = "all"
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A few words for tables."""
        words = [self.kind, "per-channel" if self.per_channel else "per-tensor"]
        if self.kind == "static":
            words += [self.method, *(["weights only"] if self.operators == "weights" else [])]
        return " ".join([*words, *(["7-bit"] if self.reduce_range else [])])


class OpenGraph(msgspec.Struct, tag=True, frozen=True):
    """Load a model of any kind."""

    path: str
    n_threads: int


class Run(msgspec.Struct, tag=True, frozen=True):
    """Run the open model on named inputs, `repeats` times."""

    feeds: list[Array]
    repeats: int = 1


class Prepare(msgspec.Struct, tag=True, frozen=True):
    """Write a model as quantization likes it; see `ort_quantize.prepare`."""

    source: str
    out: str
    step: Literal["opset", "slim", "script", "ort"]


class Quantize(msgspec.Struct, tag=True, frozen=True):
    """Write a model with int8 operators; see `ort_quantize.quantize`."""

    source: str
    out: str
    settings: Settings
    feeds: list[list[Array]]
    ranges: str


class Ports(msgspec.Struct, tag=True, frozen=True):
    """Inputs and outputs of the model that was opened."""

    inputs: list[Port]
    outputs: list[Port]
    load_s: float


class Outputs(msgspec.Struct, tag=True, frozen=True):
    """Outputs of a run, and the seconds of each."""

    arrays: list[Array]
    seconds: list[float]


class Done(msgspec.Struct, tag=True, frozen=True):
    """A file was written; nodes by name that were quantized, in the graph's order."""

    nodes: list[str]


Request = messages.Open | messages.Logits | messages.Speed | OpenGraph | Run | Prepare | Quantize
Reply = messages.Reply | Ports | Outputs | Done


def packed(arrays: dict[str, np.ndarray]) -> list[Array]:
    """Return arrays ready to be sent."""
    return [Array(name, a.dtype.str, a.shape, np.ascontiguousarray(a).tobytes()) for name, a in arrays.items()]


def unpacked(arrays: list[Array]) -> dict[str, np.ndarray]:
    """Return arrays as they were sent, not to be written to.

    Raises:
        EngineError: They are none.
    """
    try:
        return {a.name: np.frombuffer(a.data, np.dtype(a.dtype)).reshape(a.shape) for a in arrays}
    except (ValueError, TypeError, OverflowError) as error:
        raise EngineError(f"engine process: sends what is no array ({error}). Check the model.") from error
