"""The formats that a conversion writes: one writer each, and what it takes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvant.devices.limits import cores
from kvant.dtypes import BLOCK_TYPES, F16, F32, BlockType, Family
from kvant.files import check_output
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.huggingface.mlx.writer import write_mlx
from kvant.formats.huggingface.reader import FILE_TYPES as FLOAT_FILE_TYPES
from kvant.formats.huggingface.writer import write_huggingface
from kvant.formats.recode import recoded
from kvant.kernels.mlx_blocks import SAME_VALUES
from kvant.metadata import u32
from kvant.model import Model
from kvant.progress import Progress
from kvant.quant.grids import kept_tensors, may_keep
from kvant.quant.roles import is_float32
from kvant.recipes.convert.loadable import check_loads, is_checked
from kvant.tensors import LazyTensor, Tensor, row_length

FILE_TYPES = {kind.name: number for kind, number in FLOAT_FILE_TYPES.items()} | {"Q8_0": 7}
"""Types of matrices to convert to, with `general.file_type`. Source: llama.h `enum llama_ftype`."""

_FILE_TYPES = FILE_TYPES | {"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "MXFP4": 38, "NVFP4": 39}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a writer is to write.

    Attributes:
        model: The model.
        out: The file or directory.
        type: Type of the matrices.
        keeps: Quantized weights are moved as they are, where the format holds the same values.
        overwrite: Replace an output that exists.
        max_file_bytes: Write shards of at most this size.
        progress: Told of the bytes written.
        threads: Threads of the encoders; 0 for one per core.
    """

    model: Model
    out: Path
    type: BlockType
    keeps: bool
    overwrite: bool
    max_file_bytes: int | None
    progress: Progress
    threads: int


Files = tuple[tuple[Path, ...], tuple[Fallback, ...]]
"""Files written that hold weights, and tensors stored otherwise than asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """How a conversion writes a format.

    Attributes:
        name: As `--to` takes it.
        suffix: Ending of its files; empty if it is a directory.
        types: Names of the types that matrices may have.
        can_keep: Whether quantized weights of a model can be moved as they are.
        write: Writes.
    """

    name: str
    suffix: str
    types: tuple[str, ...]
    can_keep: Callable[[Model], bool]
    write: Callable[[Work], Files]

    def output(self, stem: str, kind: str | None) -> Path:
        """Return the name of an output of a model in the working directory; files are named after their type, too."""
        if not self.suffix:
            return Path(f"{stem}-{self.name}")
        return Path(f"{stem}-{kind}{self.suffix}" if kind else f"{stem}{self.suffix}")

    def check(self, out: Path, *, overwrite: bool) -> None:
        """Refuse a file that exists, before anything is read; directories are checked by what writes them.

        Raises:
            OutputExistsError: It exists.
        """
        if self.suffix:
            check_output(out, overwrite=overwrite)


def _write_gguf(work: Work) -> Files:
    blocks = kept_tensors(work.model) if work.keeps else {}
    tensors = [blocks.get(t.name) or t for t in _rest(work)]
    kinds = Counter(t.block_type.name for t in blocks.values() if t.block_type.is_quantized)
    kinds = kinds or Counter([t.block_type.name for t in blocks.values()] or [work.type.name])
    metadata = {**work.model.metadata, "general.file_type": u32(_FILE_TYPES[kinds.most_common(1)[0][0]])}
    if is_checked(work.model):
        check_loads(metadata, tensors, work.out, work.model.path)
    files = write_gguf(
        work.out, metadata, tensors, overwrite=work.overwrite, max_file_bytes=work.max_file_bytes,
        progress=work.progress,
    )  # fmt: skip
    return files, () if work.keeps else find_fallbacks(tensors, work.type)


def _write_huggingface(work: Work) -> Files:
    files = write_huggingface(
        work.model, work.out, dtype=work.type.name, overwrite=work.overwrite, max_file_bytes=work.max_file_bytes,
        progress=work.progress, threads=work.threads,
    )  # fmt: skip
    return files, ()


def _write_mlx(work: Work) -> Files:
    files = write_mlx(
        work.model, work.out, dtype=work.type.name, keep_blocks=work.keeps, overwrite=work.overwrite,
        max_file_bytes=work.max_file_bytes, progress=work.progress, threads=work.threads or cores(),
    )  # fmt: skip
    return files, ()


_FLOATS = tuple(name for name in FILE_TYPES if not BLOCK_TYPES[name].is_quantized)


def _holds_blocks_of_mlx(model: Model) -> bool:
    return any(tensor.block_type.name in SAME_VALUES for tensor in model.tensors.values())


WRITERS = {
    writer.name: writer
    for writer in (
        Writer(
            name="gguf", suffix=".gguf", types=tuple(FILE_TYPES), can_keep=may_keep, write=_write_gguf,
        ),
        Writer(name="hf", suffix="", types=_FLOATS, can_keep=lambda _: False, write=_write_huggingface),
        Writer(name="mlx", suffix="", types=_FLOATS, can_keep=_holds_blocks_of_mlx, write=_write_mlx),
    )
}  # fmt: skip


def _rest(work: Work) -> Iterator[LazyTensor]:
    """The tensors as floats; where the source lies on a grid of its own, in the type that they have."""
    if work.keeps and work.model.is_base:
        return kept_floats(work.model)
    return gguf_tensors(work.model, work.type, threads=work.threads)


def gguf_tensors(model: Model, target: BlockType, *, threads: int = 0) -> Iterator[LazyTensor]:
    """Yield every tensor in the type that upstream's converter gives it at this output type."""
    for tensor in model.tensors.values():
        yield recoded(tensor, converted_type(tensor, target), threads=threads)


def kept_floats(model: Model) -> Iterator[LazyTensor]:
    """Yield every tensor in its own type, and vectors in F32."""
    for tensor in model.tensors.values():
        yield recoded(tensor, converted_type(tensor, tensor.block_type))


def converted_type(tensor: Tensor, target: BlockType) -> BlockType:
    """Return a tensor's type: F32 for what the engine knows in no other; F16 where the rows do not fit."""
    if tensor.block_type.family is Family.INTEGER:
        return tensor.block_type
    if is_float32(tensor.name, tensor.shape):
        return F32
    return F16 if row_length(tensor) % target.block_length else target


def find_fallbacks(tensors: Sequence[Tensor], target: BlockType) -> tuple[Fallback, ...]:
    """List the tensors whose rows do not fit the type asked for."""
    return tuple(
        Fallback(tensor=t.name, wanted=target.name, used=t.block_type.name, row_length=row_length(t))
        for t in tensors
        if t.block_type == F16 != target
    )
