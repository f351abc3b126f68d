"""Write safetensors files as a stream; a file appears under its name when it is complete and synced."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kvant.errors import FormatError, LimitError, UnsupportedFormatError
from kvant.files import atomic_write
from kvant.formats.safetensors import spec
from kvant.progress import SILENT, Progress
from kvant.tensors import Tensor, n_bytes, n_rows

CHUNK_BYTES = 1 << 24
_ALIGNMENT = 8


def write_safetensors(
    path: Path,
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> None:
    """Write tensors as they are stored, in the order given, 16 MB at a time.

    Args:
        path: The file.
        tensors: Tensors of element types that safetensors knows.
        metadata: Free text entries; transformers wants `{"format": "pt"}`.
        overwrite: Replace an existing file.
        progress: Told of the bytes written.

    Raises:
        UnsupportedFormatError: A block type that safetensors cannot hold.
        OutputExistsError: The file exists and `overwrite` is false.
        KvantError: The disk is full.
    """
    listed = list(tensors)
    header = _header(listed, metadata or {})
    progress.start(path.name, sum(map(n_bytes, listed)), "B")
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(header)
        for tensor in listed:
            rows = n_rows(tensor)
            step = max(1, CHUNK_BYTES * rows // max(1, n_bytes(tensor)))
            for start in range(0, rows, step):
                piece = np.ascontiguousarray(tensor.read_bytes(start, min(start + step, rows)))
                file.write(piece.data)
                progress.advance(path.name, piece.size)
    progress.finish(path.name)


def file_bytes(tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Return the exact size of the file that `write_safetensors` makes of tensors; none is read.

    Raises:
        UnsupportedFormatError: A block type that safetensors cannot hold.
    """
    listed = list(tensors)
    return len(_header(listed, metadata or {})) + sum(map(n_bytes, listed))


def _header(tensors: list[Tensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the weights start at a multiple of 8 bytes."""
    document: dict[str, object] = {spec.KEY_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        if tensor.name in document or tensor.name == spec.KEY_METADATA:
            raise FormatError(f"{tensor.name}: appears twice or is reserved. Give every tensor its own name.")
        if spec.DTYPES.get(tensor.block_type.name) is None:
            raise UnsupportedFormatError(
                f"{tensor.name}: {tensor.block_type} is no element type of safetensors. Decode it to F16 first."
            )
        end = position + n_bytes(tensor)
        document[tensor.name] = {
            "dtype": tensor.block_type.name, "shape": list(tensor.shape), "data_offsets": [position, end],
        }  # fmt: skip
        position = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > spec.MAX_HEADER_BYTES or len(tensors) > spec.MAX_TENSORS:
        raise LimitError(f"safetensors: {len(tensors)} tensors are too many for one file. Write several.")
    return len(text).to_bytes(spec.LENGTH_BYTES, "little") + text
