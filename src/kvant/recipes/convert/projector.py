"""Write the projector of a Hugging Face directory as a GGUF, its tensors of the types that upstream gives them.

What kvant has no kind of, upstream's converter writes. Either way llama.cpp opens the file before it is kept.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvant.dtypes import BlockType, block_type
from kvant.errors import ConverterMissingError, EngineError, KvantError, UnsupportedFormatError, UnsupportedModelError
from kvant.files import check_apart, check_output
from kvant.formats.gguf.companions import read_projector
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.huggingface.projectors.reader import eyes_of, read_projector_of, stored_type
from kvant.formats.huggingface.staged import check_directory
from kvant.formats.recode import recoded
from kvant.metadata import u32
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.convert.eyes import eyes_way, tells_of_eyes, tower
from kvant.recipes.convert.loadable import check_loads
from kvant.recipes.convert.upstream import NATIVE, UPSTREAM, Way, converted, keep, ready
from kvant.recipes.convert.writers import FILE_TYPES, Fallback
from kvant.tensors import LazyTensor, Tensor, n_weights, row_length

_WITHOUT = "For the language model alone: --no-mmproj."
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
        converter: Who wrote it: `native`, or `upstream` for upstream's own converter.
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
    converter: str = NATIVE
    seconds: float


class Beside:
    """The projector that is to be written beside a language model; what keeps it from that is known before.

    Args:
        source: What is converted.
        kind: Type of the language model's matrices.
        converter: Who converts.
        install: Whether upstream's converter may be installed.
        progress: Told of that.

    Raises:
        UnsupportedModelError: It cannot be written.
        ConverterMissingError: Upstream's converter writes it, and is not there.
        FormatError: The directory is damaged.
    """

    def __init__(
        self, source: Model | Path | str, kind: str, *, converter: Way, install: bool, progress: Progress = SILENT
    ) -> None:
        self._source = Path() if isinstance(source, Model) else Path(source)
        self._kind, self._converter, self._install = kind if kind in BESIDE else "F16", converter, install
        is_directory = not isinstance(source, Model) and self._source.is_dir()
        self._way = eyes_way(self._source, converter) if is_directory else None
        self._is_blind = is_directory and self._way is None and tells_of_eyes(self._source)
        try:
            if self._way == NATIVE:
                read_projector_of(self._source)
            elif self._way == UPSTREAM:
                ready(self._source, agreed=install, what="its projector", words="", instead=_WITHOUT, progress=progress)
        except ConverterMissingError:
            raise
        except KvantError as error:
            raise UnsupportedModelError(
                f"{self._source}: its projector cannot be written. {error} {_WITHOUT}"
            ) from error

    def check(self, written: Path, *, overwrite: bool) -> None:
        """Refuse a place where another file is.

        Raises:
            OutputExistsError: There is one.
        """
        if self._way is not None:
            check_output(projector_name(written, self._kind), overwrite=overwrite)

    def write(self, written: Path, *, overwrite: bool, threads: int, progress: Progress = SILENT) -> tuple[str, ...]:
        """Write it beside a language model that is there; return what is to be said of it.

        Raises:
            EngineError: It fails after all; the message says that the language model is written.
        """
        if self._way is None:
            return (self._why_none(),) if self._is_blind else ()
        try:
            made = convert_projector(
                self._source, projector_name(written, self._kind), type=self._kind, overwrite=overwrite,
                threads=threads, progress=progress, converter=self._way, install=self._install,
            )  # fmt: skip
        except KvantError as error:
            own = self._way == UPSTREAM and eyes_of(self._source) is not None
            hint = f" kvant writes it itself: kvant convert {self._source} --mmproj" if own else ""
            raise EngineError(f"{written}: is written, and its projector is not. {error}{hint}") from error
        return (f"Its projector, {made.kind}, is written beside it: {made.output}", *made.remarks)

    def _why_none(self) -> str:
        if not tower(self._source):
            return "config.json tells of eyes or ears, and the weights hold none: the language model is all there is."
        who = (
            "kvant itself writes no" if self._converter == NATIVE else "neither kvant nor upstream's converter writes a"
        )
        return f"Its eyes or ears are left out: {who} projector of this class."


def write_for_chat(source: Path, written: Path, *, progress: Progress = SILENT) -> tuple[str, ...]:
    """Write a projector beside a language model that can be talked to without it; what keeps it from that is said."""
    try:
        eyes = Beside(source, "F16", converter="auto", install=False, progress=progress)
        return eyes.write(written, overwrite=True, threads=0, progress=progress)
    except KvantError as error:
        return (f"It can be asked by text alone: {str(error).removesuffix(_WITHOUT).strip()}",)


def convert_projector(
    source: Path | str, out: Path | str, *, type: str = "F16", overwrite: bool = False,  # noqa: A002
    progress: Progress = SILENT, threads: int = 0, converter: Way = "auto", install: bool = False,
) -> ProjectorResult:  # fmt: skip
    """Write a model's projector.

    Args:
        source: The model's directory.
        out: The GGUF file.
        type: Type of the matrices: F32, F16, BF16 or Q8_0.
        overwrite: Replace a file that exists.
        progress: Told of the bytes written.
        threads: Threads of the encoders; 0 for one per core.
        converter: Who writes it: `auto` is kvant where it has the kind, else upstream's own converter.
        install: Install that one's environment if it is not there.

    Raises:
        UnsupportedModelError: The model has no projector that is written, or the engine does not load it.
        UnsupportedFormatError: Another type.
        FormatError: The directory is damaged.
        OutputExistsError: The file exists.
        ConverterMissingError: Upstream's converter is needed and not installed.
        EngineError: It fails, or llama.cpp does not open what it makes.
    """
    started, out, source = time.monotonic(), Path(out), Path(source)
    if type.upper() not in FILE_TYPES:
        raise UnsupportedFormatError(f"type: {type!r} is none of a projector. Use one of {', '.join(FILE_TYPES)}.")
    target: BlockType = block_type(type.upper())
    check_output(out, overwrite=overwrite)
    if converter == UPSTREAM or (converter == "auto" and eyes_way(source) == UPSTREAM):
        made = _by_upstream(source, out, target, install=install, threads=threads, progress=progress)
    else:
        made = _by_kvant(source, out, target, overwrite=overwrite, threads=threads, progress=progress)
    return msgspec.structs.replace(made, seconds=round(time.monotonic() - started, 3))


def planned(directory: Path, target: BlockType) -> tuple[Model, list[LazyTensor], str]:
    """Return what kvant would write: metadata, tensors in their types, and the kind; nothing is encoded.

    Raises:
        UnsupportedModelError: The model has no projector that kvant writes.
        FormatError: The directory is damaged.
    """
    model, eyes = read_projector_of(directory)
    kinds = {name: stored_type(name, tensor.shape, eyes, target) for name, tensor in model.tensors.items()}
    tensors = [recoded(tensor, kinds[name]) for name, tensor in model.tensors.items()]
    metadata = {**model.metadata, "general.file_type": u32(FILE_TYPES[target.name])}
    return dataclasses.replace(model, metadata=metadata), tensors, eyes.kind


def _by_kvant(
    source: Path, out: Path, target: BlockType, *, overwrite: bool, threads: int, progress: Progress
) -> ProjectorResult:
    model, tensors, kind = planned(source, target)
    check_apart(out, model.files)
    if sys.platform != "win32":
        check_loads(model.metadata, tensors, out, source)
    tensors = [recoded(model.tensors[t.name], t.block_type, threads=threads) for t in tensors]
    files = write_gguf(out, model.metadata, tensors, overwrite=overwrite, progress=progress)
    return _result(source, files[0], kind, target, tensors, model.remarks, NATIVE)


def _by_upstream(
    source: Path, out: Path, target: BlockType, *, install: bool, threads: int, progress: Progress
) -> ProjectorResult:
    checked = check_directory(source)
    check_apart(out, checked.files)
    program = ready(source, agreed=install, what="its projector", words="--mmproj ", progress=progress)
    with converted(checked, out, target, program, mmproj=True, threads=threads, progress=progress) as made:
        kind, tensors = read_projector(made.file).kind, tuple(made.model.tensors.values())
        keep(made, out)
    return _result(source, out, kind, target, tensors, made.remarks, UPSTREAM)


def _result(
    source: Path, out: Path, kind: str, target: BlockType, tensors: Sequence[Tensor], remarks: tuple[str, ...], by: str
) -> ProjectorResult:
    misfits = [t for t in tensors if t.block_type.name == "F16" and row_length(t) % target.block_length]
    return ProjectorResult(
        source=str(source), output=str(out), kind=kind, type=target.name, n_tensors=len(tensors),
        n_weights=sum(map(n_weights, tensors)), size_bytes=out.stat().st_size,
        fallbacks=tuple(
            Fallback(tensor=t.name, wanted=target.name, used="F16", row_length=row_length(t)) for t in misfits
        ),
        remarks=remarks, converter=by, seconds=0.0,
    )  # fmt: skip
