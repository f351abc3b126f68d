"""Measure variants of a model that makes vectors of texts against the model they were made from.

against ── F32 GGUF (cached) ── vectors of queries and passages ──┐
variants ────────────────────── vectors of the same texts ────────┴── distance and overlap ── VectorComparison
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvant.devices.limits import cores
from kvant.errors import UnsupportedModelError
from kvant.evaluate.embeddings import VectorScore
from kvant.evaluate.vectors import BaseVectors, base_vectors, pairs_to_measure, score_vectors
from kvant.formats.gguf.kinds import makes_vectors
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.measure.base import f32_file, measured_text
from kvant.recipes.source import opened


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
    pairs = pairs_to_measure(used)
    base_file, identity = f32_file(model, progress=progress)
    base = base_vectors(base_file, identity, model, used, pairs, threads=threads, progress=progress)
    return VectorComparison(
        base=str(model.path), base_identity=identity, text=used.label, text_sha256=used.sha256,
        pairs=len(pairs.queries), width=base.vectors.shape[1], engine=base.engine,
        scores=tuple(_measured(path, base, threads, progress) for path in variants),
    )  # fmt: skip


def _measured(path: Path, base: BaseVectors, threads: int, progress: Progress) -> VariantVectors:
    found = score_vectors(path, base, threads=threads, speed=False, progress=progress)
    return VariantVectors(
        name=found.name, path=found.path, size_bytes=found.size_bytes, bpw=found.bpw,
        score=VectorScore(**{name: getattr(found, name) for name in VectorScore.__struct_fields__}),
    )  # fmt: skip
