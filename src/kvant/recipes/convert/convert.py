"""Convert a model between Hugging Face directories, GGUF and MLX, without quantizing it further than Q8_0.

`keep` moves quantized weights between GGUF and MLX as they are, where both hold the same values; what cannot be moved
is decoded. Whenever quantized weights are moved or decoded, every weight of the result is compared with the source's:
"without loss" is a claim, and a loss is said.
"""

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from kvant.dtypes import F32, BlockType, block_type
from kvant.errors import UnsupportedFormatError
from kvant.files import check_apart
from kvant.formats.base import sniff
from kvant.formats.gguf.kinds import MODEL, PROJECTOR
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.huggingface.adapters.reader import read_adapter
from kvant.formats.huggingface.lora_gguf import adapter_model
from kvant.formats.huggingface.naming import directory_identifier
from kvant.formats.huggingface.staged import check_directory
from kvant.formats.open import open_model, open_with_adapter
from kvant.kernels import decode
from kvant.kernels.grids import rounded
from kvant.kernels.mlx_blocks import SAME_VALUES
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.convert.projector import Beside
from kvant.recipes.convert.upstream import NATIVE, UPSTREAM, Way, converted, keep, ready, way_of
from kvant.recipes.convert.writers import FILE_TYPES, WRITERS, Fallback, Work, Writer, find_fallbacks
from kvant.tensors import Tensor, n_rows, n_weights, row_length
from kvant.units import format_bytes

Format = Literal["gguf", "hf", "mlx"]
KEEP = "keep"
DECODED = "F16"
"""What `keep` decodes the rest to."""

COMPARED_WEIGHTS = 1 << 22
"""Weights in memory at once when a result is compared with its source."""


SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""What the stem of a shard's name ends with."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the tensors of one type.

    Attributes:
        source: The type.
        stored: What they are stored as.
        n_tensors: How many they are.
        n_exact: Those whose every weight is the source's: to the bit, rounded to the source's float type.
        n_blocks: Blocks of all of them; rows, of floats.
        n_exact_blocks: Those whose every weight is.
        largest_error: Largest difference of a weight, not rounded.
    """

    source: str
    stored: str
    n_tensors: int
    n_exact: int
    n_blocks: int
    n_exact_blocks: int
    largest_error: float


class ComparedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a tensor; attributes as of `Compared`."""

    name: str
    source: str
    stored: str
    n_blocks: int
    n_exact_blocks: int
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
        tensors: The same, tensor by tensor.
        converter: Who converted: `native`, or `upstream` for upstream's own converter.
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
    tensors: tuple[ComparedTensor, ...] = ()
    converter: str = NATIVE
    seconds: float


def convert(
    source: Model | Path | str,
    out: Path | str,
    *,
    to: Format,
    type: str = "F16",  # noqa: A002 - the word people use on the command line
    lora: Path | str | None = None,
    overwrite: bool = False,
    max_file_bytes: int | None = None,
    progress: Progress = SILENT,
    threads: int = 0,
    converter: Way = "auto",
    install: bool = False,
    projector: bool = True,
) -> ConvertResult:
    """Convert a model; weights pass through memory a few megabytes at a time.

    A directory whose model sees becomes two GGUFs: the language model, and its projector beside it.

    Args:
        source: A model, or its Hugging Face directory or GGUF file; what is quantized is decoded.
        out: The GGUF file or the directory to write.
        to: Format to write.
        type: Type of the matrices: F32, F16, BF16, and for GGUF Q8_0. Vectors stay F32 in GGUF. `keep` between GGUF
            and MLX: blocks and groups as they are, the rest F16; from other quantized directories, and of weights that
            lie on a grid, to GGUF: the smallest type that holds each tensor.
        lora: Directory of a LoRA adapter that is merged into the weights; the source is then its base's directory.
        overwrite: Replace an output that exists.
        max_file_bytes: Write shards of at most this size.
        progress: Told of the bytes written.
        threads: Threads of the encoders; 0 for one per core.
        converter: Who makes a GGUF of a directory: `auto` is kvant where it has a family of the class, else upstream's
            own converter, in an environment of its own.
        install: Install that environment if it is not there.
        projector: Write the projector of a model that sees or hears, too.

    Raises:
        UnsupportedFormatError: A type that is not converted to, nothing that could be kept, or upstream's converter for
            what it does not make.
        ConverterMissingError: Upstream's converter is needed and not installed.
        EngineError: It fails, or llama.cpp does not open what it makes; the message says what is written.
        OutputExistsError: The output or the projector's exists, or is the source.
        ValueRangeError: A weight is NaN or infinite, or overflows F16.
        FormatError: The source is damaged.
        UnsupportedModelError: The source's architecture or tokenizer is not supported.
    """
    started = time.monotonic()
    out, keeps, writer = Path(out), type.lower() == KEEP, WRITERS[to]
    target = conversion_type(DECODED if keeps else type, to)
    writer.check(out, overwrite=overwrite)
    eyes = None
    if projector and to == "gguf":
        eyes = Beside(source, target.name, converter=converter, install=install, progress=progress)
        eyes.check(out, overwrite=overwrite)
    if _goes_upstream(source, to, converter, keeps=keeps, lora=lora):
        result = _by_upstream(
            Path(source), out, target, max_file_bytes=max_file_bytes, overwrite=overwrite, install=install,  # type: ignore[arg-type]
            threads=threads, progress=progress,
        )  # fmt: skip
    else:
        model = _opened(source, lora)
        check_apart(out, (model.path, *model.files))
        if keeps:
            _check_keeps(model, writer)
        result = _by_kvant(
            Work(
                model=model, out=out, type=target, keeps=keeps, overwrite=overwrite, max_file_bytes=max_file_bytes,
                progress=progress, threads=threads,
            ),
            writer,
        )  # fmt: skip
    beside = eyes.write(out, overwrite=overwrite, threads=threads, progress=progress) if eyes else ()
    return msgspec.structs.replace(
        result, remarks=(*result.remarks, *beside), seconds=round(time.monotonic() - started, 3)
    )


def _by_kvant(work: Work, writer: Writer) -> ConvertResult:
    """Convert by kvant's own families, and compare what is written with the source where something could be lost."""
    model, keeps, target = work.model, work.keeps, work.type
    files, fallbacks = writer.write(work)
    written = files[0] if writer.suffix else work.out
    can_lose = keeps or bool(model.quantized_types and target is not F32)
    compared = tuple(_compared(model, open_model(written))) if can_lose else ()
    return ConvertResult(
        source=str(model.path), output=str(written), files=tuple(map(str, files)), architecture=model.architecture,
        type=KEEP if keeps else target.name, n_tensors=len(model.tensors), n_weights=model.n_weights,
        size_bytes=sum(path.stat().st_size for path in files), fallbacks=fallbacks,
        remarks=(*model.remarks, *(_float_costs(model, compared) if keeps else ())),
        compared=tuple(_by_types(compared)), tensors=compared, seconds=0.0,
    )  # fmt: skip


def _opened(source: Model | Path | str, lora: Path | str | None) -> Model:
    if lora is not None:
        return open_with_adapter(source.path if isinstance(source, Model) else source, lora)
    return source if isinstance(source, Model) else open_model(source, kinds=(MODEL, PROJECTOR))


def convert_adapter(base: Path | str, lora: Path | str, out: Path | str, *, overwrite: bool = False) -> ConvertResult:
    """Write a LoRA adapter of PEFT as a GGUF that llama.cpp applies beside its base (`--lora`).

    Args:
        base: The directory of the model that it was trained on; of it config.json is read.
        lora: The adapter's directory.
        out: The GGUF file to write.
        overwrite: Replace a file that exists.

    Raises:
        FormatError: A file is damaged.
        UnsupportedModelError: It changes what llama.cpp's adapters cannot, or is no LoRA adapter.
        OutputExistsError: The output exists.
    """
    started, out = time.monotonic(), Path(out)
    WRITERS["gguf"].check(out, overwrite=overwrite)
    model = adapter_model(read_adapter(Path(lora)), Path(base))
    check_apart(out, model.files)
    files = write_gguf(out, model.metadata, model.tensors.values(), overwrite=overwrite)
    return ConvertResult(
        source=str(model.path), output=str(files[0]), files=tuple(map(str, files)), architecture=model.architecture,
        type=F32.name, n_tensors=len(model.tensors), n_weights=model.n_weights, size_bytes=files[0].stat().st_size,
        fallbacks=(), seconds=round(time.monotonic() - started, 3),
    )  # fmt: skip


def _goes_upstream(
    source: Model | Path | str, to: Format, converter: Way, *, keeps: bool, lora: Path | str | None
) -> bool:
    """Whether upstream's converter is what converts.

    Raises:
        UnsupportedFormatError: It is asked for what it does not do.
    """
    if lora is not None and converter == UPSTREAM:
        raise UnsupportedFormatError(f"{lora}: adapters are merged by kvant's own families. Leave --converter out.")
    if lora is not None:
        return False
    is_directory = not isinstance(source, Model) and sniff(Path(source)) == "huggingface"
    if is_directory and to == "gguf" and way_of(Path(source), converter) == UPSTREAM:  # type: ignore[arg-type]
        if keeps:
            raise UnsupportedFormatError(f"{source}: -t {KEEP} is not what upstream's converter does. Use -t BF16.")
        return True
    if converter == UPSTREAM:
        raise UnsupportedFormatError(
            f"{source if not isinstance(source, Model) else source.path}: upstream's converter makes GGUF files of "
            f"Hugging Face directories alone. Leave --converter out."
        )
    return False


def _by_upstream(
    directory: Path, out: Path, target: BlockType, *, max_file_bytes: int | None, overwrite: bool, install: bool,
    threads: int, progress: Progress,
) -> ConvertResult:  # fmt: skip
    """Convert a directory by upstream's converter; what it makes is proven before it has the output's name."""
    checked = check_directory(directory)
    check_apart(out, checked.files)
    program = ready(directory, agreed=install, progress=progress)
    with converted(checked, out, target, program, threads=threads, progress=progress) as made:
        model = made.model
        if max_file_bytes is None:
            keep(made, out)
            files: tuple[Path, ...] = (out,)
        else:
            files = write_gguf(
                out, model.metadata, tuple(model.tensors.values()), overwrite=overwrite,
                max_file_bytes=max_file_bytes, progress=progress,
            )  # fmt: skip
    return ConvertResult(
        source=str(directory), output=str(files[0]), files=tuple(map(str, files)), architecture=model.architecture,
        type=target.name, n_tensors=len(model.tensors), n_weights=model.n_weights,
        size_bytes=sum(path.stat().st_size for path in files), remarks=made.remarks,
        fallbacks=find_fallbacks(tuple(model.tensors.values()), target), converter=UPSTREAM, seconds=0.0,
    )  # fmt: skip


def conversion_type(name: str, to: Format) -> BlockType:
    """Return the type that `name` asks for.

    Raises:
        UnsupportedFormatError: Nothing is converted to it.
    """
    known = WRITERS[to].types
    if name.upper() not in known:
        raise UnsupportedFormatError(
            f"type: {name!r} is none that kvant converts to. Use one of {', '.join(known)}, or for smaller types "
            f"`kvant quantize`."
        )
    return block_type(name)


def default_output(source: Path, to: Format, target: str, *, lora: Path | None = None) -> Path:
    """Return the output's name when none is given: in the current directory, after the source and the type."""
    name = directory_identifier(source).rpartition("/")[2] if source.is_dir() else SHARD.sub("", source.stem)
    for suffix in FILE_TYPES:
        name = name.removesuffix(f"-{suffix}")
    name += f"-{lora.resolve().name}" if lora else ""
    return WRITERS[to].output(name, None if target == KEEP else target.upper())


def _check_keeps(model: Model, writer: Writer) -> None:
    """Refuse to keep where nothing could be.

    Raises:
        UnsupportedFormatError: The target holds floats alone, or the source has nothing that the target holds.
    """
    if writer.can_keep(model):
        return
    held = ", ".join(model.quantized_types) or "floats alone"
    raise UnsupportedFormatError(
        f"{model.path}: -t {KEEP} moves quantized weights: {', '.join(SAME_VALUES)} of a GGUF to MLX (--to mlx), or "
        f"a quantized directory's and weights that lie on a grid to GGUF (--to gguf). It holds {held}. Use -t F16."
    )


def _compared(source: Model, written: Model) -> Iterator[ComparedTensor]:
    """Compare every weight with the source's, tensor by tensor."""
    for name, tensor in source.tensors.items():
        if name not in written.tensors:  # rotary factors, which went into config.json
            continue
        theirs, ours = (
            model.stored[name].kind if name in model.stored else model.tensors[name].block_type.name
            for model in (source, written)
        )
        n_blocks, n_exact, largest = _difference(tensor, written.tensors[name])
        yield ComparedTensor(
            name=name, source=theirs, stored=ours, n_blocks=n_blocks, n_exact_blocks=n_exact, largest_error=largest
        )


def _by_types(tensors: Iterable[ComparedTensor]) -> Iterator[Compared]:
    """Sum up by types."""
    groups: dict[tuple[str, str], list[ComparedTensor]] = {}
    for one in tensors:
        groups.setdefault((one.source, one.stored), []).append(one)
    for (theirs, ours), found in sorted(groups.items()):
        yield Compared(
            source=theirs, stored=ours, n_tensors=len(found),
            n_exact=sum(one.n_exact_blocks == one.n_blocks for one in found),
            n_blocks=sum(one.n_blocks for one in found), n_exact_blocks=sum(one.n_exact_blocks for one in found),
            largest_error=max(one.largest_error for one in found),
        )  # fmt: skip


def _difference(one: Tensor, other: Tensor) -> tuple[int, int, float]:
    """Blocks of another tensor, those that restore one to the bit of its float type, and the largest difference."""
    length, kind, largest, n_exact, n_blocks = row_length(one), one.block_type, 0.0, 0, 0
    block = other.block_type.block_length if other.block_type.is_quantized else length
    step = max(1, COMPARED_WEIGHTS // length)
    for start in range(0, n_rows(one), step):
        stop = min(start + step, n_rows(one))
        a, b = (decode(t.read_bytes(start, stop), t.block_type, length) for t in (one, other))
        largest = max(largest, float(np.abs(a - b).max()))
        same = (rounded(b, kind) == a).reshape(-1, block).all(axis=1)
        n_exact, n_blocks = n_exact + int(same.sum()), n_blocks + len(same)
    return n_blocks, n_exact, largest


def _float_costs(model: Model, compared: Iterable[ComparedTensor]) -> Iterator[str]:
    """Say of what no block type holds what it costs as floats, and what less would."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in compared:
        if one.name in model.stored and model.stored[one.name].is_base and not block_type(one.stored).is_quantized:
            groups.setdefault((one.source, one.stored), []).append(one.name)
    for (theirs, ours), names in groups.items():
        before, weights = sum(model.stored[n].n_bytes for n in names), sum(n_weights(model.tensors[n]) for n in names)
        after = weights * block_type(ours).block_bytes
        missed = model.stored[names[0]].grid(proven=False)
        nearest = f"; {missed.kind} comes nearest and restores {missed.share:.1%} of sampled blocks" if missed else ""
        less = ", -t BF16 writes half of that, with weights moved by up to .4 %" if ours == "F32" else ""
        yield (
            f"{len(names)} matrices of {theirs} are in no block type{nearest}. {ours} is the smallest float that holds "
            f"them: {format_bytes(after)} for {format_bytes(before)}{less}."
        )
