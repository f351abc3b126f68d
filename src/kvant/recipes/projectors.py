"""The projector that goes with a model: what it takes beside every variant, and how it comes to lie there.

A directory whose model sees or hears has it among its weights; beside a GGUF it is a file of its own. Its type is what
upstream's files have as a rule, F16; one that lies beside a GGUF stays as it is unless another type is asked for.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from kvant._version import __version__
from kvant.devices.memory import PICTURE_BYTES, projector_bytes
from kvant.dtypes import block_type
from kvant.errors import UnsupportedFormatError, UnsupportedModelError
from kvant.evaluate.base import identity
from kvant.files import cache_dir
from kvant.formats.gguf.companions import Projector, described, projector_for, read_projector
from kvant.formats.gguf.layout import TensorInfo, file_layout
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.huggingface.staged import check_directory
from kvant.progress import SILENT, Progress
from kvant.recipes.cache import digest
from kvant.recipes.companion import Companion
from kvant.recipes.convert.eyes import eyes_way, tower
from kvant.recipes.convert.projector import convert_projector, planned, projector_name
from kvant.recipes.convert.upstream import UPSTREAM, ready
from kvant.recipes.convert.writers import FILE_TYPES
from kvant.recipes.output import check_place, copy_file
from kvant.recipes.targets.gguf.write import quantize
from kvant.tensors import n_bytes, n_weights

NONE = "none"
"""The wish for no projector."""

USUAL = "F16"
HALF_BYTES = 2
CACHE = "projectors"
WITHOUT = "To leave its eyes and ears out: --mmproj none."


def check_wish(wish: str | None) -> None:
    """Refuse a type that no projector has.

    Raises:
        UnsupportedFormatError: It is none.
    """
    if wish is not None and wish.lower() != NONE and wish.upper() not in FILE_TYPES:
        raise UnsupportedFormatError(f"mmproj: {wish!r} is no type of it. Use one of {', '.join(FILE_TYPES)}, or none.")


def companion_of(
    source: Path, wish: str | None = None, *, only_estimate: bool = False, progress: Progress = SILENT
) -> Companion | None:
    """Return the projector that goes with a model; None if it has none, or none is wished for.

    Args:
        source: The model's directory or GGUF file.
        wish: Type of its matrices, or `none`; None for the usual one.
        only_estimate: Make nothing to know its size, where upstream's converter is what makes it.
        progress: Told of what is made.

    Raises:
        UnsupportedFormatError: Another type.
        UnsupportedModelError: It cannot be made.
        FormatError: The directory is damaged.
        ConverterMissingError, EngineError: Upstream's converter is needed and not there, or fails.
    """
    check_wish(wish)
    if wish is not None and wish.lower() == NONE:
        return None
    kind = None if wish is None else wish.upper()
    if not source.is_dir():
        return _beside_file(source, kind)
    way = eyes_way(source)
    if way is None:
        return None
    if way == UPSTREAM and only_estimate:
        size = HALF_BYTES * sum(map(n_weights, tower(source).values()))
        return Companion(
            source=str(source), way="upstream", kind="", type=kind or USUAL, size_bytes=size, is_estimate=True,
            memory_bytes=size + PICTURE_BYTES,
        )  # fmt: skip
    if way == UPSTREAM:
        ready(source, agreed=False, what="its projector", words="", instead=WITHOUT, progress=progress)
        found = read_projector(_kept(source, way, kind or USUAL, progress=progress))
        return _companion(found, source, "upstream", kind or USUAL)
    try:
        model, tensors, _ = planned(source, block_type(kind or USUAL))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error} {WITHOUT}") from error
    layout = file_layout(dict(model.metadata), [TensorInfo(t.name, t.shape, t.block_type) for t in tensors])
    return _companion(described(model, source, layout.total_bytes), source, "native", kind or USUAL)


def deliver(companion: Companion, model: Path, *, overwrite: bool, threads: int, progress: Progress = SILENT) -> Path:
    """Put a projector beside a model's file, unless it is there.

    Args:
        companion: It.
        model: Path that the model has or will have.
        overwrite: Replace another file.
        threads: Threads of the encoders.
        progress: Told of the work.

    Raises:
        OutputExistsError: Another file has its name.
    """
    made = Path(companion.source)
    if companion.way != "copy":
        made = _kept(made, companion.way, companion.type, threads=threads, progress=progress)
    out = projector_name(model, companion.type)
    if check_place(made, out, overwrite=overwrite):
        copy_file(made, out)
    return out


def _beside_file(path: Path, kind: str | None) -> Companion | None:
    found = projector_for(path, read_gguf(path).hyper("embedding_length", 0))
    if found is None:
        return None
    own = _main_type(found.path)
    if kind is None or kind == own:
        return _companion(found, found.path, "copy", own)
    return _companion(read_projector(_kept(found.path, "quantize", kind)), found.path, "quantize", kind)


def _companion(
    found: Projector, source: Path, way: Literal["native", "upstream", "copy", "quantize"], kind: str
) -> Companion:
    return Companion(
        source=str(source), way=way, kind=found.kind, type=kind, size_bytes=found.size_bytes,
        memory_bytes=projector_bytes(found.size_bytes, found.patches, found.hidden),
    )  # fmt: skip


def _main_type(path: Path) -> str:
    """The type that most of a projector's bytes are in."""
    totals = Counter[str]()
    for tensor in read_gguf(path).tensors.values():
        totals[tensor.block_type.name] += n_bytes(tensor)
    return totals.most_common(1)[0][0] if totals else USUAL


def _kept(source: Path, way: str, kind: str, *, threads: int = 0, progress: Progress = SILENT) -> Path:
    """Return a projector's file in the cache, made unless it is there."""
    facts = [identity(tuple(check_directory(source).files) if source.is_dir() else (source,))]
    if way == UPSTREAM:
        facts.append(ready(source, agreed=False).digest)
    path = cache_dir(CACHE) / f"{digest('projector', __version__, way, kind, *facts)[:32]}.gguf"
    if path.is_file():
        return path
    if way == "quantize":
        quantize(source, kind, path, overwrite=True, allow_requantize=True, threads=threads, progress=progress)
    else:
        convert_projector(
            source, path, type=kind, overwrite=True, threads=threads, progress=progress,
            converter="upstream" if way == UPSTREAM else "native",
        )  # fmt: skip
    return path
