"""Convert a model between Hugging Face directories, GGUF and MLX, without quantizing it further than Q8_0.

`keep` moves quantized weights between GGUF and MLX as they are, where both hold the same values; what cannot be moved
is decoded. Whenever quantized weights are moved or decoded, every weight of the result is compared with the source's:
"without loss" is a claim, and a loss is said.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from kvant.devices.limits import cores
from kvant.dtypes import BLOCK_TYPES, F16, F32, BlockType, Family, block_type
from kvant.errors import UnsupportedFormatError
from kvant.files import check_apart, check_output
from kvant.formats.gguf.kinds import MODEL, PROJECTOR
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.huggingface.mlx.writer import write_mlx
from kvant.formats.huggingface.naming import directory_identifier
from kvant.formats.huggingface.reader import FILE_TYPES as FLOAT_FILE_TYPES
from kvant.formats.huggingface.writer import write_huggingface
from kvant.formats.open import open_model
from kvant.formats.recode import recoded
from kvant.kernels import decode
from kvant.kernels.mlx_blocks import SAME_VALUES
from kvant.metadata import u32
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.tensors import LazyTensor, Tensor, n_rows, row_length

Target = Literal["gguf", "hf", "mlx"]
KEEP = "keep"
DECODED = "F16"
"""What `keep` decodes the rest to."""

FILE_TYPES = {kind.name: number for kind, number in FLOAT_FILE_TYPES.items()} | {"Q8_0": 7}
"""Types of matrices to convert to, with `general.file_type`. Source: llama.h `enum llama_ftype`."""


ALWAYS_F32 = re.compile(
    r"(blk\.\d+\.)?(ffn_gate_inp(_shexp)?|ssm_conv1d|shortconv\.conv|altup_(correct|predict)_coef"
    r"|time_mix_(first|w1|w2|decay_w1|decay_w2|lerp_fused)|position_embd|token_types)\.weight"
)
"""Matrices that the engine reads as F32 only; they come with GGUFs of other architectures."""

_FILE_TYPES = FILE_TYPES | {"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "MXFP4": 38}
COMPARED_WEIGHTS = 1 << 22
"""Weights in memory at once when a result is compared with its source."""

SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""What the stem of a shard's name ends with."""


class Fallback(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor stored otherwise than asked, because its rows do not fit the block length.

    Attributes:
        tensor: Its name.
        wanted: The type asked for.
        used: The type it has.
        row_length: Weights per row.
    """

    tensor: str
    wanted: str
    used: str
    row_length: int


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the tensors of one type.

    Attributes:
        source: The type.
        stored: What they are stored as.
        n_tensors: How many they are.
        n_exact: Those whose every weight is the source's, to the bit.
        largest_error: Largest difference of a weight.
    """

    source: str
    stored: str
    n_tensors: int
    n_exact: int
    largest_error: float


class ConvertResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion wrote.

    Attributes:
        source: The model read.
        output: The file, first shard or directory written.
        files: Every file written that holds weights.
        architecture: llama.cpp's name of the architecture.
        type: Type of the matrices.
        n_tensors: Number of tensors.
        n_weights: Weights in all of them.
        size_bytes: Size of the files.
        fallbacks: Tensors stored otherwise than asked.
        remarks: What was left out or taken otherwise than it looks.
        compared: Of a quantized source: every tensor compared with it, by types. Empty if nothing could be lost.
        seconds: Wall time.
    """

    source: str
    output: str
    files: tuple[str, ...]
    architecture: str
    type: str
    n_tensors: int
    n_weights: int
    size_bytes: int
    fallbacks: tuple[Fallback, ...]
    remarks: tuple[str, ...] = ()
    compared: tuple[Compared, ...] = ()
    seconds: float


def convert(
    source: Model | Path | str,
    out: Path | str,
    *,
    to: Target,
    type: str = "F16",  # noqa: A002 - the word people use on the command line
    overwrite: bool = False,
    max_file_bytes: int | None = None,
    progress: Progress = SILENT,
    threads: int = 0,
) -> ConvertResult:
    """Convert a model; weights pass through memory a few megabytes at a time.

    Args:
        source: A model, or its Hugging Face directory or GGUF file; what is quantized is decoded.
        out: The GGUF file or the directory to write.
        to: Format to write.
        type: Type of the matrices: F32, F16, BF16, and for GGUF Q8_0. Vectors stay F32 in GGUF. `keep` between GGUF
            and MLX: blocks and groups as they are, the rest F16.
        overwrite: Replace an output that exists.
        max_file_bytes: Write shards of at most this size.
        progress: Told of the bytes written.
        threads: Threads of the encoders; 0 for one per core.

    Raises:
        UnsupportedFormatError: A type that is not converted to, or nothing that could be kept.
        OutputExistsError: The output exists, or is the source.
        ValueRangeError: A weight is NaN or infinite, or overflows F16.
        FormatError: The source is damaged.
        UnsupportedModelError: The source's architecture or tokenizer is not supported.
    """
    started = time.monotonic()
    out, keeps = Path(out), type.lower() == KEEP
    target = conversion_type(DECODED if keeps else type, to)
    if to == "gguf":  # refuse before reading anything
        check_output(out, overwrite=overwrite)
    model = source if isinstance(source, Model) else open_model(source, kinds=(MODEL, PROJECTOR))
    check_apart(out, (model.path, *model.files))
    if keeps:
        _check_keeps(model, to)
    can_lose = keeps or bool(model.quantized_types and target is not F32)
    fallbacks: tuple[Fallback, ...] = ()
    if to == "gguf":
        blocks = _kept_blocks(model) if keeps else {}
        tensors = [blocks.get(t.name) or t for t in gguf_tensors(model, target, threads=threads)]
        fallbacks = () if keeps else find_fallbacks(tensors, target)
        kinds = Counter(t.block_type.name for t in blocks.values()) or Counter([target.name])
        metadata = {**model.metadata, "general.file_type": u32(_FILE_TYPES[kinds.most_common(1)[0][0]])}
        files = write_gguf(
            out, metadata, tensors, overwrite=overwrite, max_file_bytes=max_file_bytes, progress=progress
        )
    elif to == "hf":
        files = write_huggingface(
            model, out, dtype=target.name, overwrite=overwrite, max_file_bytes=max_file_bytes, progress=progress,
            threads=threads,
        )  # fmt: skip
    else:
        files = write_mlx(
            model, out, dtype=target.name, keep_blocks=keeps, overwrite=overwrite, max_file_bytes=max_file_bytes,
            progress=progress, threads=threads or cores(),
        )  # fmt: skip
    return ConvertResult(
        source=str(model.path), output=str(files[0] if to == "gguf" else out), files=tuple(map(str, files)),
        architecture=model.architecture, type=KEEP if keeps else target.name, n_tensors=len(model.tensors),
        n_weights=model.n_weights, size_bytes=sum(path.stat().st_size for path in files), fallbacks=fallbacks,
        remarks=model.remarks,
        compared=tuple(_compared(model, open_model(files[0] if to == "gguf" else out))) if can_lose else (),
        seconds=round(time.monotonic() - started, 3),
    )  # fmt: skip


def conversion_type(name: str, to: Target) -> BlockType:
    """Return the type that `name` asks for.

    Raises:
        UnsupportedFormatError: Nothing is converted to it.
    """
    known = [key for key in FILE_TYPES if to == "gguf" or not BLOCK_TYPES[key].is_quantized]
    if name.upper() not in known:
        raise UnsupportedFormatError(
            f"type: {name!r} is none that kvant converts to. Use one of {', '.join(known)}, or for smaller types "
            f"`kvant quantize`."
        )
    return block_type(name)


def default_output(source: Path, to: Target, target: str) -> Path:
    """Return the output's name when none is given: in the current directory, after the source and the type."""
    name = directory_identifier(source).rpartition("/")[2] if source.is_dir() else SHARD.sub("", source.stem)
    for suffix in FILE_TYPES:
        name = name.removesuffix(f"-{suffix}")
    if target == KEEP:
        return Path(f"{name}.gguf" if to == "gguf" else f"{name}-{to}")
    return Path(f"{name}-{target.upper()}.gguf" if to == "gguf" else f"{name}-{to}")


def _check_keeps(model: Model, to: Target) -> None:
    """Refuse to keep where nothing could be.

    Raises:
        UnsupportedFormatError: The target holds floats alone, or the source has nothing that the target holds.
    """
    if to == "mlx" and any(t.block_type.name in SAME_VALUES for t in model.tensors.values()):
        return
    if to == "gguf" and model.stored:
        return
    raise UnsupportedFormatError(
        f"{model.path}: -t {KEEP} moves quantized weights: {', '.join(SAME_VALUES)} of a GGUF to MLX (--to mlx), or "
        f"an MLX directory's to GGUF (--to gguf). It holds {', '.join(model.quantized_types) or 'floats alone'}. "
        f"Use -t F16."
    )


def _kept_blocks(model: Model) -> dict[str, Tensor]:
    """The quantized tensors of an MLX directory as blocks of the same values, where there are such."""
    found = {name: stored.blocks() for name, stored in model.stored.items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _compared(source: Model, written: Model) -> Iterator[Compared]:
    """Compare every weight with the source's, tensor by tensor, and sum up by types."""
    errors: dict[tuple[str, str], list[float]] = {}
    for name, tensor in source.tensors.items():
        if name not in written.tensors:  # rotary factors, which went into config.json
            continue
        kinds = tuple(
            model.stored[name].kind if name in model.stored else model.tensors[name].block_type.name
            for model in (source, written)
        )
        errors.setdefault((kinds[0], kinds[1]), []).append(_largest_error(tensor, written.tensors[name]))
    for (theirs, ours), found in sorted(errors.items()):
        yield Compared(
            source=theirs, stored=ours, n_tensors=len(found), n_exact=found.count(0.0), largest_error=max(found)
        )  # fmt: skip


def _largest_error(one: Tensor, other: Tensor) -> float:
    length, largest = row_length(one), 0.0
    step = max(1, COMPARED_WEIGHTS // length)
    for start in range(0, n_rows(one), step):
        stop = min(start + step, n_rows(one))
        a, b = (decode(t.read_bytes(start, stop), t.block_type, length) for t in (one, other))
        largest = max(largest, float(np.abs(a - b).max()))
    return largest


def gguf_tensors(model: Model, target: BlockType, *, threads: int = 0) -> Iterator[LazyTensor]:
    """Yield every tensor in the type that upstream's converter gives it at this output type."""
    for tensor in model.tensors.values():
        yield recoded(tensor, converted_type(tensor, target), threads=threads)


def converted_type(tensor: Tensor, target: BlockType) -> BlockType:
    """Return a tensor's type: F32 for vectors, norms and whatever is no weight; F16 where the rows do not fit.

    Source: upstream's converter, `ModelBase.prepare_tensors`; parity in tests/parity/test_upstream_converter.py.
    """
    if tensor.block_type.family is Family.INTEGER:
        return tensor.block_type
    if ALWAYS_F32.fullmatch(tensor.name):
        return F32
    if len(tensor.shape) <= 1 or tensor.name.endswith("_norm.weight") or not tensor.name.endswith(".weight"):
        return F32
    return F16 if row_length(tensor) % target.block_length else target


def find_fallbacks(tensors: Sequence[Tensor], target: BlockType) -> tuple[Fallback, ...]:
    """List the tensors whose rows do not fit the type asked for."""
    return tuple(
        Fallback(tensor=t.name, wanted=target.name, used=t.block_type.name, row_length=row_length(t))
        for t in tensors
        if t.block_type == F16 != target
    )
