"""Measure variants of a reranker against the model they were made from.

against ── F32 GGUF (cached) ── scores of queries and passages ──┐
variants ────────────────────── scores of the same pairs ────────┴── differences and order ── RankComparison
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from kvant.devices.limits import cores
from kvant.errors import UnsupportedModelError
from kvant.evaluate.baselogits import engine_name
from kvant.evaluate.ranking import RankScore, compare_scores, questions
from kvant.evaluate.vectors import pairs_to_measure
from kvant.formats.gguf.kinds import reranks
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.measure.base import f32_file, measured_text
from kvant.recipes.source import opened
from kvant.runtime.process import EngineProcess

LONGEST_TOKENS = 1024


class RankedVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A variant's scores: how large its file is and how far they are."""

    name: str
    path: str
    size_bytes: int
    bpw: float
    score: RankScore


class RankComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Variants side by side, and what the figures depend on.

    Attributes:
        base: The full-precision model.
        base_identity: SHA-256 over its files.
        text: Label of the text that queries and passages come from.
        text_sha256: Its hash.
        engine: Engine and version.
        scores: One per variant, in the order given.
    """

    base: str
    base_identity: str
    text: str
    text_sha256: str
    engine: str
    scores: tuple[RankedVariant, ...]


def evaluate_rerankers(
    variants: Sequence[Path],
    *,
    against: Model | Path,
    text: Path | None = None,
    corpus: str = "default",
    threads: int = 0,
    progress: Progress = SILENT,
) -> RankComparison:
    """Measure variants of a reranker against the model they were made from.

    Args:
        variants: GGUF files.
        against: The full-precision model, or its GGUF of F32, BF16 or F16.
        text: A UTF-8 file that paragraphs are taken from; a bundled corpus if None.
        corpus: Name of the bundled corpus; its held-out half is used.
        threads: Threads of the engine; 0 for one per core.
        progress: Told of the pairs read.

    Raises:
        EngineError: The engine fails on a file.
        UnsupportedModelError: A model is no reranker.
        ValueRangeError: The text has too few paragraphs.
    """
    threads, model = threads or cores(), _checked(opened(against, progress=progress))
    used = measured_text(text, corpus)
    asked = questions(pairs_to_measure(used))
    models = [_checked(open_model(path)) for path in variants]
    base_file, identity = f32_file(model, progress=progress)
    original = _scores(base_file, model, asked, threads, progress)
    return RankComparison(
        base=str(model.path), base_identity=identity, text=used.label, text_sha256=used.sha256, engine=engine_name(),
        scores=tuple(
            RankedVariant(
                name=made.path.stem, path=str(made.path), size_bytes=sum(file.stat().st_size for file in made.files),
                bpw=8 * made.tensor_bytes / max(1, made.n_weights),
                score=compare_scores(original, _scores(made.files[0], made, asked, threads, progress)),
            )
            for made in models
        ),
    )  # fmt: skip


def _checked(model: Model) -> Model:
    if not reranks(model):
        raise UnsupportedModelError(f"{model.path}: is no reranker. Measure it with: kvant evaluate")
    return model


def _scores(
    path: Path, model: Model, asked: Sequence[tuple[str, tuple[str, ...]]], threads: int, progress: Progress
) -> np.ndarray:
    """Scores of every query's passages, float32 [queries, documents]: the first that the model's head gives."""
    task, context = f"scores of {path.stem}", min(LONGEST_TOKENS, model.hyper("context_length", LONGEST_TOKENS))
    progress.start(task, sum(len(documents) for _, documents in asked), "pairs")
    rows = []
    with EngineProcess() as engine:
        engine.open(path, n_ctx=context, n_threads=threads, embeddings=True, ranking=True)
        for query, documents in asked:
            rows.append([float(engine.rank(query, document)[0]) for document in documents])
            progress.advance(task, len(documents))
    progress.finish(task)
    return np.array(rows, np.float32)
