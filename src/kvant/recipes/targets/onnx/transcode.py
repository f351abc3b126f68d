"""A decoder as ONNX without loss: float weights as they are, GGUF's Q4_0 and Q8_0 as MatMulNBits of the same values.

Both are a scale times an integer: Q4_0 is d * (q - 8) with q in 0..15, Q8_0 is d * q with q in -128..127, d a float16.
MatMulNBits with blocks of 32 and the middle code as zero point is (q - 8) * scale and (q - 128) * scale with float32
scales, which hold every float16. Whatever is stored otherwise (Q4_K and its like scale integers by integers) stays
float32: never a silent loss. Every matrix is proved: what is written decodes to the export's own float32 weights.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import FormatError
from kvant.files import partial_path
from kvant.formats.huggingface.writer import in_transformers_order
from kvant.formats.onnx.decoder import read_decoder
from kvant.formats.onnx.weights import Weight, packed_tensors
from kvant.formats.onnx.writer import array_of, write_graph
from kvant.formats.open import open_model
from kvant.kernels.nbits import Blocks, NBits
from kvant.progress import SILENT, Progress
from kvant.recipes.output import put_directory
from kvant.recipes.targets.onnx.encoding import joined
from kvant.recipes.targets.onnx.origin import GRAPH, open_export
from kvant.recipes.targets.onnx.rows import CHUNK_ROWS, Part, Rows
from kvant.recipes.targets.onnx.write import check_directory, copy_rest
from kvant.tensors import Tensor

EXACT = {"Q4_0": NBits(bits=4, block=32, symmetric=True), "Q8_0": NBits(bits=8, block=32, symmetric=True)}
"""Block types of GGUF that MatMulNBits holds exactly."""


class Transcoded(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a matrix.

    Attributes:
        name: Its initializer.
        source: Block types it had.
        target: Blocks it has now, or `float32`.
        n_weights: Weights compared with the export's, all of them equal.
    """

    name: str
    source: tuple[str, ...]
    target: str
    n_weights: int


class ConvertedDecoder(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        path: The directory.
        files: The files that hold graph and weights.
        size_bytes: Their bytes.
        matrices: What became of each matrix.
        wall_s: Seconds it took, the export aside.
    """

    path: str
    files: tuple[str, ...]
    size_bytes: int
    matrices: tuple[Transcoded, ...]
    wall_s: float


def convert_decoder(
    source: Path, out: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> ConvertedDecoder:
    """Write a Hugging Face directory or GGUF as a directory of onnxruntime-genai, without loss.

    Raises:
        UnsupportedModelError: The model cannot be exported.
        MissingDependencyError: No environment to export in is named.
        FormatError: A matrix would not come out the same.
        OutputExistsError: The output exists.
    """
    out = Path(out)
    check_directory(out, overwrite=overwrite)
    model = open_model(source)
    origin = open_export(model, progress=progress)
    started = time.monotonic()
    rows, weights = origin.rows, origin.weights
    stored = in_transformers_order(model) if model.path.is_file() else {}
    kinds: dict[str, NBits] = {}
    done: list[Transcoded] = []
    for weight in weights:
        types = tuple(
            dict.fromkeys(stored[part.name].block_type.name for part in rows.parts(weight) if part.name in stored)
        )
        kind = EXACT.get(types[0]) if len(types) == 1 else None
        if kind is not None:
            kinds[weight.name] = kind
        done.append(
            Transcoded(
                name=weight.name, source=types or ("float",), target=kind.name if kind else "float32",
                n_weights=weight.rows * weight.columns if kind else 0,
            )
        )  # fmt: skip
    arrays: dict[str, Callable[[], np.ndarray]] = {
        name: (lambda t=tensor: array_of(t, rows.path))  # type: ignore[misc]
        for name, tensor in rows.tensors.items()
        if name not in kinds
    }
    for weight in weights:
        if weight.name in kinds:
            proved = partial(_proved_rows, weight, rows, stored)
            arrays |= packed_tensors(weight, kinds[weight.name], proved)
    graph = origin.graph({name: kind.name for name, kind in kinds.items()}, {}, "F32")
    fresh = partial_path(out)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        progress.start("transcode", len(arrays), "tensors")
        write_graph(graph, arrays, fresh / GRAPH, on_tensor=lambda _: progress.advance("transcode", 1))
        progress.finish("transcode")
        copy_rest(origin.decoder, fresh)
        written = read_decoder(fresh)
        put_directory(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    files = tuple(out / file.name for file in written.files)
    return ConvertedDecoder(
        path=str(out), files=tuple(map(str, files)), size_bytes=sum(file.stat().st_size for file in files),
        matrices=tuple(done), wall_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


def transcode(data: np.ndarray, source: BlockType) -> Blocks:
    """Return rows of Q4_0 or Q8_0 blocks as MatMulNBits of exactly the same values.

    Args:
        data: Blocks, uint8 [rows, bytes per row]. Source of their layout: ggml-common.h `block_q4_0`, `block_q8_0`.
        source: Their type.
    """
    kind = EXACT[source.name]
    blocks = data.reshape(len(data), -1, source.block_bytes)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    codes = blocks[..., 2:]
    codes = np.concatenate([codes & 15, codes >> 4], axis=-1) if kind.bits == 4 else codes ^ np.uint8(128)
    return Blocks(
        kind=kind, n=blocks.shape[1] * kind.block, codes=np.ascontiguousarray(codes), scales=scales,
        zeros=np.full(scales.shape, kind.middle, np.uint8),
    )  # fmt: skip


def _proved_rows(weight: Weight, rows: Rows, stored: dict[str, Tensor]) -> Blocks:
    """Transcode a matrix and prove it."""
    return joined([_proved(weight, rows, stored[part.name], part) for part in rows.parts(weight)])


def _proved(weight: Weight, rows: Rows, tensor: Tensor, part: Part) -> Blocks:
    """Transcode a tensor, and compare every weight with the export's.

    Raises:
        FormatError: One differs.
    """
    found = []
    for start in range(part.start, part.stop, CHUNK_ROWS):
        stop, offset = min(part.stop, start + CHUNK_ROWS), part.first - part.start
        data = tensor.read_bytes(start + offset, stop + offset)
        blocks = transcode(np.ascontiguousarray(data), tensor.block_type)
        if not np.array_equal(blocks.decode(), rows.read(weight, slice(start, stop))):
            raise FormatError(
                f"{weight.name}: {tensor.name} in {tensor.block_type} does not come out as the export has it. "
                "Nothing was written; report it with the model's name."
            )
        found.append(blocks)
    return joined(found)
