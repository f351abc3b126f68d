"""Measure variants against their full-precision model: the same tokens, the same scale, one table.

against ── F32 GGUF (cached) ── base logits (cached) ──┐
text ───── windows of tokens ──────────────────────────┼── score(variant) for each ── Comparison
variants ── checked: not calibrated on this text ──────┘
"""

import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from kvant._version import __version__
from kvant.devices.detect import detect
from kvant.devices.limits import cores
from kvant.errors import UnsupportedModelError
from kvant.evaluate.baselogits import BaseLogits, engine_name
from kvant.evaluate.corpora import check_unseen
from kvant.evaluate.score import VariantScore, score
from kvant.formats.gguf.kinds import RERANKS, makes_vectors, reranks
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.measure.base import Floor, measure_floors, measured_text, prepare_base
from kvant.recipes.measure.parity import Parity, Truth
from kvant.recipes.measure.sample import PROMPT, TOKENS, Sample, Samples, continuation, generate
from kvant.recipes.measure.words import is_degraded
from kvant.recipes.source import opened
from kvant.runtime.artifacts import open_artifact
from kvant.runtime.engines.base import Artifact


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
    variants: Sequence[Artifact | Path],
    *,
    against: Model | Path,
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
        variants: Files of any format that an engine runs: GGUF files, MLX directories, directories of ONNX models as
            onnxruntime-genai reads them, and what other distributions bring.
        against: The full-precision model, or its Hugging Face directory or GGUF of F32, BF16 or F16.
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
    artifacts = [open_artifact(variant) for variant in variants]
    for artifact in artifacts:
        check_unseen(used, artifact.path, artifact.metadata)
    model = opened(against, progress=progress)
    if reranks(model):
        raise UnsupportedModelError(f"{model.path}: {RERANKS} In Python compare it with kvant.evaluate_rerankers.")
    if makes_vectors(model):
        raise UnsupportedModelError(
            f"{model.path}: makes vectors of texts and no text to compare. In Python use kvant.evaluate_embeddings."
        )
    base_file, base = prepare_base(model, text=used, context=context, chunks=chunks, threads=threads, progress=progress)
    found_floors = measure_floors(base_file, base, threads=threads, progress=progress) if floors else []
    scores = [score(artifact, base, threads=threads, speed=speed, progress=progress) for artifact in artifacts]
    served = [found for artifact, found in zip(artifacts, scores, strict=True) if artifact.engine.is_served]
    samples = degraded_samples(base_file, base, served, threads=threads)
    truth = Truth(model, used)
    return msgspec.structs.replace(
        compare(model.path, base, scores, floors=found_floors, threads=threads), samples=samples,
        tokenizers=[truth.try_compare(artifact) for artifact in artifacts],
    )  # fmt: skip


def degraded_samples(
    base_file: Path, base: BaseLogits, scores: Sequence[VariantScore], *, threads: int
) -> Samples | None:
    """Let the original and every degraded variant continue a prompt in llama.cpp; None if none is degraded."""
    degraded = [s for s in scores if is_degraded(s)]
    if not degraded:
        return None
    return Samples(
        prompt=PROMPT,
        tokens=TOKENS,
        original=continuation(base_file, base.header.base, threads=threads),
        variants=tuple(Sample(name=s.name, text=generate(Path(s.path), threads=threads)) for s in degraded),
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
