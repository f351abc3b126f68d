"""Read an ONNX file so that nothing in it can hurt: all checks are done before any other library sees it."""

from pathlib import Path
from typing import TYPE_CHECKING

from kvant.errors import FormatError, LimitError, MissingDependencyError
from kvant.formats.mapped import map_file
from kvant.formats.onnx.external import check_data
from kvant.formats.onnx.graphs import check_fills, check_functions, check_opsets, check_order, graphs_of, tensors_of
from kvant.formats.onnx.spec import MAX_FILE_BYTES
from kvant.formats.onnx.wire import check_wire

if TYPE_CHECKING:
    import onnx

MIN_BYTES = 8


def require_onnx() -> None:
    """Check that the extra `[onnx]` is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"{error.name}: is not installed. Run: pip install 'kvant[onnx]'") from error


def read_onnx(path: Path) -> "onnx.ModelProto":
    """Parse and check an ONNX file; weights kept in files beside it are checked too, but stay there.

    Args:
        path: The .onnx file.

    Returns:
        The model. Its tensors hold as many bytes as their shapes say, its graphs have no cycles, its operators come
        from domains that ONNX Runtime knows, and its files of external data are its own.

    Raises:
        FormatError: It is damaged or hostile.
        LimitError: A count or size above the limits in spec.py.
        UnsupportedFormatError: Versions, element types or operators that are not known here.
        MissingDependencyError: The extra `[onnx]` is not installed.
    """
    require_onnx()
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    data = map_file(path, least_bytes=MIN_BYTES, suffix=".onnx")
    if len(data) > MAX_FILE_BYTES:
        raise LimitError(
            f"{path}: {len(data)} bytes are above {MAX_FILE_BYTES}, where protocol buffers end. "
            "Save the model with external data."
        )
    check_wire(data.data, onnx.ModelProto.DESCRIPTOR, path)
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data.tobytes())
    except DecodeError as error:
        raise FormatError(f"{path}: is no ONNX file or damaged. Download or export it again.") from error
    check_model(model, path)
    return model


def check_model(model: "onnx.ModelProto", path: Path) -> None:
    """Check a parsed model; see `read_onnx`."""
    if not model.graph.node:
        raise FormatError(f"{path}: has no graph, so it is no ONNX model or damaged. Export it again.")
    check_opsets(model, path)
    check_functions(model, path)
    for graph, name in graphs_of(model):
        check_order(graph, name, path)
        for tensor in tensors_of(graph):
            check_data(tensor, path)
        check_fills(graph, path)


def data_files(model: "onnx.ModelProto", path: Path) -> tuple[Path, ...]:
    """Return every file that holds a part of a checked model: the .onnx file first, then its external data."""
    names = {
        entry.value
        for graph, _ in graphs_of(model)
        for tensor in tensors_of(graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return (path, *(path.parent / name for name in sorted(names)))
