"""Write the projector of a Hugging Face directory as a GGUF, its tensors of the types that upstream gives them."""

import time
from pathlib import Path

import msgspec

from kvant.dtypes import BlockType, block_type
from kvant.errors import KvantError, UnsupportedFormatError
from kvant.files import check_apart, check_output
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.huggingface.projectors.reader import eyes_of, read_projector_of, stored_type
from kvant.formats.recode import recoded
from kvant.metadata import u32
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.convert.writers import FILE_TYPES, Fallback
from kvant.tensors import row_length

BESIDE = ("F32", "F16", "BF16")
"""Types that a projector shares with the language model it is written beside; for others it has F16."""


def projector_name(stem: Path, kind: str) -> Path:
    """Return the usual name of a projector in a directory, after the model's path and the type."""
    name = stem.name.removesuffix(".gguf")
    for known in FILE_TYPES:
        name = name.removesuffix(f"-{known}")
    return stem.parent / f"mmproj-{name}-{kind.upper()}.gguf"


class ProjectorResult(msgspec.Struct, frozen=True, kw_only=True):
    """What writing a projector made.

    Attributes:
        source: The model read.
        output: The file written.
        kind: What the engine calls it.
        type: Type of the matrices.
        n_tensors: Number of tensors.
        n_weights: Weights in all of them.
        size_bytes: Size of the file.
        fallbacks: Tensors stored otherwise than asked, since their rows do not fit.
        remarks: What was left out or taken otherwise than it looks.
        seconds: Wall time.
    """

    source: str
    output: str
    kind: str
    type: str
    n_tensors: int
    n_weights: int
    size_bytes: int
    fallbacks: tuple[Fallback, ...]
    remarks: tuple[str, ...]
    seconds: float


def write_beside(
    source: Model | Path | str, written: Path | str, kind: str, *, overwrite: bool, threads: int
) -> tuple[str, ...]:
    """Write the projector of a directory's model beside its language model; return what is to be said of it."""
    if isinstance(source, Model) or not source or not Path(source).is_dir() or eyes_of(Path(source)) is None:
        return ()
    kind = kind if kind in BESIDE else "F16"
    try:
        made = convert_projector(
            source, projector_name(Path(written), kind), type=kind, overwrite=overwrite, threads=threads
        )
    except KvantError as error:
        return (f"Its projector is not written: {error}",)
    return (f"Its projector, {made.kind}, is written beside it: {made.output}", *made.remarks)


def convert_projector(
    source: Path | str, out: Path | str, *, type: str = "F16", overwrite: bool = False,  # noqa: A002
    progress: Progress = SILENT, threads: int = 0,
) -> ProjectorResult:  # fmt: skip
    """Write a model's projector.

    Args:
        source: The model's directory.
        out: The GGUF file.
        type: Type of the matrices: F32, F16, BF16 or Q8_0.
        overwrite: Replace a file that exists.
        progress: Told of the bytes written.
        threads: Threads of the encoders; 0 for one per core.

    Raises:
        UnsupportedModelError: The model has no projector that kvant writes.
        UnsupportedFormatError: Another type.
        FormatError: The directory is damaged.
        OutputExistsError: The file exists.
    """
    started, out = time.monotonic(), Path(out)
    if type.upper() not in FILE_TYPES:
        raise UnsupportedFormatError(f"type: {type!r} is none of a projector. Use one of {', '.join(FILE_TYPES)}.")
    target: BlockType = block_type(type.upper())
    check_output(out, overwrite=overwrite)
    model, eyes = read_projector_of(Path(source))
    check_apart(out, model.files)
    kinds = {name: stored_type(name, tensor.shape, eyes, target) for name, tensor in model.tensors.items()}
    tensors = [recoded(tensor, kinds[name], threads=threads) for name, tensor in model.tensors.items()]
    metadata = {**model.metadata, "general.file_type": u32(FILE_TYPES[target.name])}
    files = write_gguf(out, metadata, tensors, overwrite=overwrite, progress=progress)
    misfits = [t for t in tensors if t.block_type.name == "F16" and row_length(t) % target.block_length]
    return ProjectorResult(
        source=str(model.path), output=str(files[0]), kind=eyes.kind,
        type=target.name, n_tensors=len(tensors), n_weights=model.n_weights, size_bytes=files[0].stat().st_size,
        fallbacks=tuple(
            Fallback(tensor=t.name, wanted=target.name, used="F16", row_length=row_length(t)) for t in misfits
        ),
        remarks=model.remarks, seconds=round(time.monotonic() - started, 3),
    )  # fmt: skip
