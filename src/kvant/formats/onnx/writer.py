"""Write an ONNX graph with its weights in one file beside it, tensor by tensor."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from kvant.files import disk_errors
from kvant.formats.onnx.external import external_range
from kvant.formats.onnx.spec import EXTERNAL

if TYPE_CHECKING:
    import onnx

INLINE_BYTES = 1024
"""Shorter tensors stay in the graph's file."""

PAGE, LINE, LARGE_BYTES = 4096, 64, 1 << 20
"""Alignment of large tensors in the data file, and of others; ONNX Runtime maps the large ones."""

DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}
"""`TensorProto.DataType` by NumPy dtype."""


def write_graph(
    model: "onnx.ModelProto", arrays: Mapping[str, Callable[[], np.ndarray]], path: Path,
    on_tensor: Callable[[str], object] = lambda _: None,
) -> tuple[Path, Path]:  # fmt: skip
    """Write a graph; one array is in memory at a time.

    Args:
        model: The graph; its initializers are replaced.
        arrays: What makes each initializer, by name; the dtypes of `DTYPES`, C order.
        path: The .onnx file; weights go to `<path>.data`.
        on_tensor: Told the name of each tensor written.

    Returns:
        Both files.

    Raises:
        KvantError: The disk is full.
    """
    data = data_file(path)
    del model.graph.initializer[:]
    with disk_errors(data), data.open("wb") as file:
        for name, make in arrays.items():
            array = make()
            offset = add_tensor(model, name, array, data.name, file.tell())
            if offset is not None:
                file.write(bytes(offset - file.tell()))
                file.write(np.ascontiguousarray(array).data.cast("B"))
            on_tensor(name)
        file.flush()
        os.fsync(file.fileno())
    with disk_errors(path), path.open("wb") as file:
        file.write(model.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    return path, data


def graph_bytes(model: "onnx.ModelProto", arrays: Mapping[str, np.ndarray], path: Path) -> int:
    """Return the bytes of both files that `write_graph` makes, to the byte; nothing is written.

    Args:
        model: The graph; its initializers are replaced.
        arrays: Initializers by name, of the right shapes and dtypes: see `blank`.
        path: The .onnx file that it would be, whose name is in the graph.
    """
    del model.graph.initializer[:]
    end = 0
    for name, array in arrays.items():
        offset = add_tensor(model, name, array, data_file(path).name, end)
        end = end if offset is None else offset + array.nbytes
    return end + int(model.ByteSize())


def add_tensor(model: "onnx.ModelProto", name: str, array: np.ndarray, location: str, end: int) -> int | None:
    """Add an initializer to a graph.

    Args:
        model: The graph.
        name: The initializer's name.
        array: Its values, or where they lie outside an array of that shape and dtype.
        location: Name of the file that weights lie in.
        end: Bytes in that file so far.

    Returns:
        The offset at which its bytes belong into that file, up to a page behind the end; None if they are in the graph.
    """
    tensor = model.graph.initializer.add(name=name, dims=list(array.shape), data_type=DTYPES[array.dtype.name])
    if array.nbytes < INLINE_BYTES:
        tensor.raw_data = array.tobytes()
        return None
    offset = end + -end % alignment(array.nbytes)
    tensor.data_location = EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return offset


def alignment(n_bytes: int) -> int:
    """Return what the offset of a tensor of so many bytes in the data file is a multiple of."""
    return PAGE if n_bytes >= LARGE_BYTES else LINE


def data_file(path: Path) -> Path:
    """Return the file of weights that goes with an .onnx file."""
    return path.with_name(path.name + ".data")


def blank(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """Return an array of zeros that takes no memory: the shape and dtype of one that is still to be made."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def array_of(tensor: "onnx.TensorProto", path: Path) -> np.ndarray:
    """Return a checked tensor's values, mapped if they lie in a file beside; the dtypes of `DTYPES`."""
    dtype = dtype_of(tensor)
    if tensor.data_location == EXTERNAL:
        place, offset, _ = external_range(tensor, path)
        return np.memmap(place, dtype, "r", offset, tuple(tensor.dims)) if tensor.dims else np.empty((), dtype)
    if tensor.HasField("raw_data"):
        return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
    import onnx

    values: np.ndarray = onnx.numpy_helper.to_array(tensor)
    return values


def dtype_of(tensor: "onnx.TensorProto") -> str:
    """Return the NumPy dtype of a checked tensor; one of `DTYPES`."""
    return next(name for name, number in DTYPES.items() if number == tensor.data_type)
