"""Measure variants against their full-precision model: the same tokens, the same scale, one table.

against ── F32 GGUF (cached) ── base logits (cached) ──┐
text ───── windows of tokens ──────────────────────────┼── score(variant) for each ── Comparison
variants ── checked: not calibrated on this text ──────┘
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvant._version import __version__
from kvant.devices.detect import detect
from kvant.devices.limits import cores
from kvant.documents import JSON_ERRORS
from kvant.dtypes import F32
from kvant.errors import FormatError
from kvant.evaluate.base import CONVERSION, MAX_BASE_BYTES, identity
from kvant.evaluate.baselogits import BaseLogits, base_logits, engine_name, trim
from kvant.evaluate.corpora import Corpus, check_unseen, corpus, text_file
from kvant.evaluate.metrics import summarize
from kvant.evaluate.score import Engine, VariantScore, score, score_windows
from kvant.evaluate.windows import cut
from kvant.files import atomic_write, cache_dir
from kvant.formats.onnx.decoder import is_decoder, read_decoder
from kvant.formats.open import open_model
from kvant.metadata import Value, ValueType
from kvant.progress import SILENT, Progress
from kvant.recipes.convert import convert
from kvant.recipes.parity import Parity, Truth
from kvant.recipes.sample import PROMPT, TOKENS, Sample, Samples, continuation, generate
from kvant.recipes.words import is_degraded
from kvant.runtime.mlx import MLXProcess
from kvant.runtime.ort_process import OrtProcess
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


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Variants side by side, and everything the figures depend on.

    Attributes:
        base: The full-precision model.
        base_identity: SHA-256 over its files.
        base_ppl: Its perplexity on the scored tokens.
        text: Label of the text.
        text_sha256: Its hash.
        context: Tokens per window.
        chunks: Windows.
        n_positions: Tokens scored: of each window the second half but for the last position.
        n_threads: Threads of the engine.
        machine: Processor and memory.
        versions: Of kvant, engine, Python and NumPy.
        floors: Sanity floors.
        scores: One per variant, in the order given.
        samples: The same prompt continued by the original and by the variants that are degraded; None if none is.
        tokenizers: How each variant reads and prompts, against the base's own tokenizer; in the order of `scores`.
    """

    base: str
    base_identity: str
    base_ppl: float
    text: str
    text_sha256: str
    context: int
    chunks: int
    n_positions: int
    n_threads: int
    machine: dict[str, object]
    versions: dict[str, str]
    floors: list[Floor]
    scores: list[VariantScore]
    samples: Samples | None = None
    tokenizers: list[Parity] = []


def evaluate(
    variants: Sequence[Path],
    *,
    against: Path,
    text: Path | None = None,
    corpus: str = "default",
    context: int = 512,
    chunks: int = 16,
    threads: int = 0,
    speed: bool = True,
    floors: bool = True,
    progress: Progress = SILENT,
) -> Comparison:
    """Measure variants against the model they were made from.

    Args:
        variants: GGUF files, MLX directories, or directories of ONNX models as onnxruntime-genai reads them.
        against: The full-precision model: a Hugging Face directory or a GGUF of F32, BF16 or F16.
        text: A UTF-8 file to measure on; a bundled corpus if None.
        corpus: Name of the bundled corpus; its held-out half is used.
        context: Tokens per window.
        chunks: Most windows; 0 for all the text holds.
        threads: Threads of the engine; 0 for one per core.
        speed: Measure tokens per second and memory, too.
        floors: Measure the sanity floors, once per base and text.
        progress: Told of the tokens run.

    Raises:
        EngineError: The engine fails on a file.
        FormatError: A file is damaged.
        ValueRangeError: A variant was calibrated on the text, or has another vocabulary.
    """
    threads = threads or cores()
    used = measured_text(text, corpus)
    opened = [open_variant(variant) for variant in variants]
    for variant in opened:
        check_unseen(used, variant.path, variant.metadata)
    base_file, base = prepare_base(
        against, text=used, context=context, chunks=chunks, threads=threads, progress=progress
    )
    found_floors = measure_floors(base_file, base, threads=threads, progress=progress) if floors else []
    scores = [
        score(v.entry, base, files=v.files, threads=threads, speed=speed, engine=v.engine, progress=progress)
        for v in opened
    ]
    samples = degraded_samples(base_file, base, scores, threads=threads)
    truth = Truth(Path(against), used)
    return msgspec.structs.replace(
        compare(against, base, scores, floors=found_floors, threads=threads), samples=samples,
        tokenizers=[truth.try_compare(variant.path) for variant in opened],
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedVariant:
    """A variant whose files were checked.

    Attributes:
        path: As it was given.
        entry: What its engine opens.
        files: Files that hold its weights.
        metadata: Of these, for what it was calibrated on.
        engine: Starts what runs it.
    """

    path: Path
    entry: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, Value]
    engine: Callable[[], Engine]


def open_variant(path: Path) -> OpenedVariant:
    """Check a variant of any format and say what runs it.

    Raises:
        FormatError: It is damaged, or no format that is run here.
    """
    path = Path(path)
    if is_decoder(path):
        found = read_decoder(path)
        texts = {key: Value(ValueType.STRING, text) for key, text in found.notes.items()}
        return OpenedVariant(path=path, entry=path, files=found.files, metadata=texts, engine=OrtProcess)
    model = open_model(path)
    files = tuple(file for file in model.files if file.suffix in (".gguf", ".safetensors"))
    is_directory = model.path.is_dir()
    return OpenedVariant(
        path=model.path, entry=model.path if is_directory else model.files[0], files=files, metadata=model.metadata,
        engine=MLXProcess if is_directory else EngineProcess,
    )  # fmt: skip


def degraded_samples(
    base_file: Path, base: BaseLogits, scores: Sequence[VariantScore], *, threads: int
) -> Samples | None:
    """Let the original and every degraded GGUF continue a prompt; None if none is degraded."""
    degraded = [s for s in scores if is_degraded(s.kld_mean) and not Path(s.path).is_dir()]
    if not degraded:
        return None
    return Samples(
        prompt=PROMPT,
        tokens=TOKENS,
        original=continuation(base_file, base.header.base, threads=threads),
        variants=tuple(Sample(name=s.name, text=generate(Path(s.path), threads=threads)) for s in degraded),
    )


def measured_text(text: Path | None, name: str = "default") -> Corpus:
    """Return the text to measure on: a file, or the held-out half of a bundled corpus."""
    return corpus(name, "held-out") if text is None else text_file(text)


def prepare_base(
    against: Path, *, text: Corpus, context: int, chunks: int, threads: int, progress: Progress = SILENT
) -> tuple[Path, BaseLogits]:
    """Return the F32 file that stands for a model, and its logits on a text; both come from the cache if they can."""
    base_file, base_identity = f32_file(against, progress=progress)
    with EngineProcess() as engine:
        engine.open(base_file, n_ctx=context, n_threads=1, vocab_only=True)
        windows = cut(engine, text, context=context, chunks=chunks)
    return base_file, base_logits(base_file, base_identity, windows, text, threads=threads, progress=progress)


def f32_file(against: Path, *, progress: Progress = SILENT) -> tuple[Path, str]:
    """Return a GGUF of a model's weights as F32, made in the cache if it is not one already, and the model's identity.

    The engine rounds activations to the type of the weights they meet: run from a BF16 file a model is .0001 nats away
    from itself. So the base is always run from F32.

    Raises:
        FormatError: `against` is quantized.
    """
    against = Path(against)
    model = open_model(against)
    if model.quantized_types:
        raise FormatError(
            f"{against}: holds {', '.join(model.quantized_types)} tensors, so it is no full-precision base. "
            "Give the Hugging Face directory or a GGUF of F32, BF16 or F16."
        )
    name = identity(model.files)
    if model.files[0].suffix == ".gguf" and all(_is_f32(t) for t in model.tensors.values()):
        return model.files[0], name
    for remark in model.remarks:
        progress.say(f"{against}: {remark}")
    path = cache_dir("base") / f"{name[:32]}-{CONVERSION}.gguf"
    if path.is_file():
        path.touch()
    else:
        progress.say(f"Writing {against.name} as F32 to {path.parent}, once.")
        convert(against, path, to="gguf", type="F32", overwrite=True, progress=progress)
        trim(path.parent, MAX_BASE_BYTES, keep=path)
    return path, name


def _is_f32(tensor: Tensor) -> bool:
    return tensor.block_type is F32 or len(tensor.shape) <= 1


def measure_floors(base_file: Path, base: BaseLogits, *, threads: int, progress: Progress = SILENT) -> list[Floor]:
    """Measure how far the base is from itself and from its Q8_0 copy on the first windows; kept in the cache."""
    path = cache_dir("logits") / f"{base.key}.floors.json"
    if path.is_file():
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[Floor])
        except JSON_ERRORS:
            path.unlink()
    copy = cache_dir("base") / f"{base.key[:32]}.Q8_0.gguf"
    try:
        convert(base_file, copy, to="gguf", type="Q8_0", overwrite=True, progress=progress)
        floors = [
            _floor(name, file, base.head(FLOOR_WINDOWS[name]), threads, progress)
            for name, file in (("F32", base_file), ("Q8_0", copy))
        ]
    finally:
        copy.unlink(missing_ok=True)
    with atomic_write(path) as file:
        file.write(msgspec.json.encode(floors))
    return floors


def _floor(name: str, path: Path, base: BaseLogits, threads: int, progress: Progress) -> Floor:
    with EngineProcess() as engine:
        engine.open(path, n_ctx=base.windows.context, n_threads=threads, all_logits=True)
        summary = summarize(score_windows(engine, base, progress=progress), base.windows.domains)
    return Floor(
        name=name, kld_mean=summary.kld_mean, kld_se=summary.kld_se, top1=summary.top1, n_positions=summary.n_positions
    )


def compare(
    against: Path, base: BaseLogits, scores: list[VariantScore], *, floors: list[Floor], threads: int
) -> Comparison:
    """Put scores together with what they depend on."""
    log_p = np.concatenate([rows.label_log_p for rows in base.rows])
    machine = detect(measure=False)
    return Comparison(
        base=str(against), base_identity=base.header.base, base_ppl=float(np.exp(-log_p.mean())),
        text=base.header.text, text_sha256=base.header.text_sha256, context=base.windows.context,
        chunks=len(base.rows), n_positions=base.n_positions, n_threads=threads,
        machine={"system": machine.system, "cpu": machine.cpu, "isa": machine.isa, "cores": machine.cores},
        versions={"kvant": __version__, "engine": engine_name(), "python": platform.python_version(),
                  "numpy": np.__version__},
        floors=floors, scores=scores,
    )  # fmt: skip
