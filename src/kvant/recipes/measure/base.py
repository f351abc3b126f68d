"""The full-precision model that variants are measured against, its logits and its floors."""

from pathlib import Path

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.dtypes import F32
from kvant.errors import FormatError
from kvant.evaluate.base import CONVERSION, MAX_BASE_BYTES, identity
from kvant.evaluate.baselogits import BaseLogits, base_logits, trim
from kvant.evaluate.corpora import Corpus, corpus, text_file
from kvant.evaluate.loss import DISTANCE, KLD, Measure
from kvant.evaluate.metrics import summarize
from kvant.evaluate.score import score_windows
from kvant.evaluate.windows import cut
from kvant.files import atomic_write, cache_dir
from kvant.formats.base import is_gguf
from kvant.formats.gguf.kinds import makes_vectors
from kvant.formats.gguf.reader import files_of
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes import cache
from kvant.recipes.convert.convert import convert
from kvant.recipes.source import opened
from kvant.runtime.process import EngineProcess
from kvant.tensors import Tensor

FLOOR_WINDOWS = {"F32": 1, "Q8_0": 4}
"""Windows that each sanity floor is measured on."""


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """A variant whose distance is known to be next to nothing, measured on the first windows.

    Attributes:
        name: `F32` for the base against itself, `Q8_0` for its plain 8-bit copy.
        kld_mean: Mean KL divergence, nats.
        kld_se: Its standard error.
        top1: Share of positions with the same most likely token.
        n_positions: Positions scored.
    """

    name: str
    kld_mean: float
    kld_se: float
    top1: float
    n_positions: int


def measured_text(text: Path | None, name: str = "default") -> Corpus:
    """Return the text to measure on: a file, or the held-out half of a bundled corpus."""
    return corpus(name, "held-out") if text is None else text_file(text)


def measure_of(model: Model) -> Measure:
    """Return what the loss of a model's variants is measured in."""
    return DISTANCE if makes_vectors(model) else KLD


def possible_context(model: Model, context: int) -> int:
    """Return a context that a model can have: one that makes vectors reads a text at once, as long as it was trained.

    What writes text goes on beyond that, if worse.
    """
    return min(context, model.hyper("context_length", context)) if makes_vectors(model) else context


def prepare_base(
    against: Model | Path, *, text: Corpus, context: int, chunks: int, threads: int, progress: Progress = SILENT
) -> tuple[Path, BaseLogits]:
    """Return the F32 file that stands for a model, and its logits on a text; both come from the cache if they can."""
    base_file, base_identity = f32_file(against, progress=progress)
    with cache.alone("runs the original", base_identity, text.sha256), EngineProcess() as engine:
        engine.open(base_file, n_ctx=context, n_threads=1, vocab_only=True)
        windows = cut(engine, text, context=context, chunks=chunks)
        base = base_logits(base_file, base_identity, windows, text, engine=engine, threads=threads, progress=progress)
    return base_file, base


def f32_file(against: Model | Path, *, progress: Progress = SILENT) -> tuple[Path, str]:
    """Return a GGUF of a model's weights as F32, made in the cache if it is not one already, and the model's identity.

    The engine rounds activations to the type of the weights they meet: run from a BF16 file a model is .0001 nats away
    from itself. So the base is always run from F32.

    A model that its makers publish in MXFP4 or another grid is its own base: a directory is decoded, a GGUF runs as it
    is.

    Raises:
        FormatError: `against` is quantized from something else.
    """
    model = opened(against, progress=progress)
    if not model.is_base:
        raise FormatError(
            f"{model.path}: holds {', '.join(model.quantized_types)} tensors, so it is no full-precision base. "
            "Give the Hugging Face directory or a GGUF of F32, BF16 or F16."
        )
    name = identity(model.files)
    if model.quantized_types:
        progress.say(
            f"{model.path}: holds {', '.join(model.quantized_types)}, and is taken for the original: what was lost "
            f"when that was made is not seen."
        )
    if is_gguf(model.files[0]) and model.quantized_types:  # decoded, experts would take eight times the memory
        return model.files[0], name
    if is_gguf(model.files[0]) and all(_is_f32(t) for t in model.tensors.values()):
        return model.files[0], name
    for remark in model.remarks:
        progress.say(f"{model.path}: {remark}")
    path = cache_dir("base") / f"{name[:32]}-{CONVERSION}.gguf"
    with cache.alone("writes a model as F32", path.name):
        if path.is_file():
            path.touch()
        else:
            progress.say(f"Writing {model.path.name} as F32 to {path.parent}, once.")
            convert(model, path, to="gguf", type="F32", overwrite=True, progress=progress)
            trim(path.parent, MAX_BASE_BYTES, keep=path)
    return path, name


def _is_f32(tensor: Tensor) -> bool:
    return tensor.block_type is F32 or len(tensor.shape) <= 1


def measure_floors(base_file: Path, base: BaseLogits, *, threads: int, progress: Progress = SILENT) -> list[Floor]:
    """Measure how far the base is from itself and from its Q8_0 copy on the first windows; kept in the cache."""
    with cache.alone("measures what a copy in 8 bits loses", base.key):
        return _floors(base_file, base, threads, progress)


def _floors(base_file: Path, base: BaseLogits, threads: int, progress: Progress) -> list[Floor]:
    path = cache_dir("logits") / f"{base.key}.floors.json"
    if path.is_file():
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[Floor])
        except JSON_ERRORS:
            path.unlink()
    copy = cache_dir("base") / f"{base.key[:32]}.Q8_0.gguf"
    try:
        convert(base_file, copy, to="gguf", type="Q8_0", overwrite=True, progress=progress)
        with EngineProcess(reads=(*files_of(base_file), copy)) as engine:
            floors = [
                _floor(name, file, engine, base.head(FLOOR_WINDOWS[name]), threads, progress)
                for name, file in (("F32", base_file), ("Q8_0", copy))
            ]
    finally:
        copy.unlink(missing_ok=True)
    with atomic_write(path, is_shared=True) as file:
        file.write(msgspec.json.encode(floors))
    return floors


def _floor(name: str, path: Path, engine: EngineProcess, base: BaseLogits, threads: int, progress: Progress) -> Floor:
    engine.open(path, n_ctx=base.windows.context, n_threads=threads, all_logits=True)
    summary = summarize(score_windows(engine, base, progress=progress), base.windows.domains)
    return Floor(
        name=name, kld_mean=summary.kld_mean, kld_se=summary.kld_se, top1=summary.top1, n_positions=summary.n_positions
    )
