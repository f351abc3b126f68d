"""Measure variants of a model that makes vectors of texts against the model they were made from.

against ── F32 GGUF (cached) ── vectors of queries and passages ──┐
variants ────────────────────── vectors of the same texts ────────┴── distance and overlap ── VectorComparison
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from kvant.devices.limits import cores
from kvant.errors import UnsupportedModelError, ValueRangeError
from kvant.evaluate.baselogits import engine_name
from kvant.evaluate.embeddings import Pairs, VectorScore, compare_vectors, pairs_of
from kvant.formats.gguf.kinds import makes_vectors
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.measure.base import f32_file, measured_text
from kvant.recipes.source import opened
from kvant.runtime.process import EngineProcess

LONGEST_TOKENS = 512
LEAST_PAIRS = 20


class VariantVectors(msgspec.Struct, frozen=True, kw_only=True):
    """A variant's vectors: how large its file is and how far they are."""

    name: str
    path: str
    size_bytes: int
    bpw: float
    score: VectorScore


class VectorComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Variants side by side, and what the figures depend on.

    Attributes:
        base: The full-precision model.
        base_identity: SHA-256 over its files.
        text: Label of the text that queries and passages come from.
        text_sha256: Its hash.
        pairs: Pairs of a query and a passage.
        width: Numbers in a vector.
        engine: Engine and version.
        scores: One per variant, in the order given.
    """

    base: str
    base_identity: str
    text: str
    text_sha256: str
    pairs: int
    width: int
    engine: str
    scores: tuple[VariantVectors, ...]


def evaluate_embeddings(
    variants: Sequence[Path],
    *,
    against: Model | Path,
    text: Path | None = None,
    corpus: str = "default",
    threads: int = 0,
    progress: Progress = SILENT,
) -> VectorComparison:
    """Measure variants of an embedding model against the model they were made from.

    Args:
        variants: GGUF files.
        against: The full-precision model, or its GGUF of F32, BF16 or F16.
        text: A UTF-8 file that paragraphs are taken from; a bundled corpus if None.
        corpus: Name of the bundled corpus; its held-out half is used.
        threads: Threads of the engine; 0 for one per core.
        progress: Told of the texts read.

    Raises:
        EngineError: The engine fails on a file.
        UnsupportedModelError: The model makes no vectors.
        ValueRangeError: The text has too few paragraphs, or a variant's vectors have another width.
    """
    threads, model = threads or cores(), opened(against, progress=progress)
    if not makes_vectors(model):
        raise UnsupportedModelError(f"{model.path}: makes no vectors of texts. Measure it with: kvant evaluate")
    used = measured_text(text, corpus)
    pairs = pairs_of("\n\n".join(part.text for part in used.parts))
    if len(pairs.queries) < LEAST_PAIRS:
        raise ValueRangeError(
            f"{used.label}: {len(pairs.queries)} paragraphs of a sentence and {LEAST_PAIRS} are needed at least to "
            "search in. Give a longer text, with an empty line between paragraphs."
        )
    base_file, identity = f32_file(model, progress=progress)
    original = _vectors(base_file, pairs, model, threads, progress)
    found = []
    for path in variants:
        variant = open_model(path)
        vectors = _vectors(variant.files[0], pairs, variant, threads, progress)
        if vectors.shape != original.shape:
            raise ValueRangeError(
                f"{path}: its vectors have {vectors.shape[1]} numbers, the original's {original.shape[1]}. Compare "
                "variants with the model they were made from."
            )
        found.append(_report(variant, vectors, original))
    return VectorComparison(
        base=str(model.path), base_identity=identity, text=used.label, text_sha256=used.sha256,
        pairs=len(pairs.queries), width=original.shape[1], engine=engine_name(), scores=tuple(found),
    )  # fmt: skip


def _report(variant: Model, vectors: np.ndarray, original: np.ndarray) -> VariantVectors:
    return VariantVectors(
        name=variant.path.stem, path=str(variant.path), size_bytes=sum(f.stat().st_size for f in variant.files),
        bpw=8 * variant.tensor_bytes / max(1, variant.n_weights), score=compare_vectors(original, vectors),
    )  # fmt: skip


def _vectors(path: Path, pairs: Pairs, model: Model, threads: int, progress: Progress) -> np.ndarray:
    """Vectors of all queries and then of all passages, float32 [2 n, width]; longer texts are cut."""
    longest = min(LONGEST_TOKENS, model.hyper("context_length", LONGEST_TOKENS))
    task, texts = f"vectors of {path.stem}", (*pairs.queries, *pairs.passages)
    progress.start(task, len(texts), "texts")
    rows = []
    with EngineProcess() as engine:
        engine.open(path, n_ctx=longest, n_threads=threads, embeddings=True)
        for text in texts:
            rows.append(engine.embed(_cut(engine.tokenize(text, add_special=True), longest)))
            progress.advance(task, 1)
    progress.finish(task)
    return np.stack(rows)


def _cut(ids: np.ndarray, longest: int) -> np.ndarray:
    """The token that ends a text, which some models read its vector from, is kept."""
    return ids if len(ids) <= longest else np.concatenate([ids[: longest - 1], ids[-1:]])
