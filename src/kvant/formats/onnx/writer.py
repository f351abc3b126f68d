"""Write an ONNX graph with its weights in one file beside it, tensor by tensor."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvant.files import disk_errors
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
    data = path.with_name(path.name + ".data")
    del model.graph.initializer[:]
    with disk_errors(data), data.open("wb") as file:
        for name, make in arrays.items():
            array = make()
            tensor = model.graph.initializer.add(name=name, dims=list(array.shape), data_type=DTYPES[array.dtype.name])
            raw = np.ascontiguousarray(array)
            if raw.nbytes < INLINE_BYTES:
                tensor.raw_data = raw.tobytes()
            else:
                file.write(bytes(-file.tell() % (PAGE if raw.nbytes >= LARGE_BYTES else LINE)))
                tensor.data_location = EXTERNAL
                for key, value in (("location", data.name), ("offset", file.tell()), ("length", raw.nbytes)):
                    tensor.external_data.add(key=key, value=str(value))
                file.write(raw.data.cast("B"))
            on_tensor(name)
        file.flush()
        os.fsync(file.fileno())
    with disk_errors(path), path.open("wb") as file:
        file.write(model.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    return path, data


def array_of(tensor: "onnx.TensorProto", path: Path) -> np.ndarray:
    """Return a checked tensor's values, mapped if they lie in a file beside; the dtypes of `DTYPES`."""
    from kvant.formats.onnx.external import external_range

    dtype = next(name for name, number in DTYPES.items() if number == tensor.data_type)
    if tensor.data_location == EXTERNAL:
        place, offset, _ = external_range(tensor, path)
        return np.memmap(place, dtype, "r", offset, tuple(tensor.dims)) if tensor.dims else np.empty((), dtype)
    if tensor.HasField("raw_data"):
        return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
    import onnx

    values: np.ndarray = onnx.numpy_helper.to_array(tensor)
    return values
