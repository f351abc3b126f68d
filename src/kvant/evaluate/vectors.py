"""The vectors of a full-precision model, kept on disk, and variants measured against them in the engine."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from kvant.devices.limits import cores
from kvant.errors import ValueRangeError
from kvant.evaluate.base import CONVERSION
from kvant.evaluate.baselogits import engine_name, trim
from kvant.evaluate.corpora import Corpus
from kvant.evaluate.embeddings import Pairs, VectorScore, compare_vectors, pairs_of
from kvant.evaluate.loss import DISTANCE, Lossy, Measure
from kvant.files import atomic_write, cache_dir
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.runtime.engines.base import SPEED
from kvant.runtime.messages import Measured
from kvant.runtime.process import EngineProcess

FORMAT = 1
"""Raised when the file's layout, the pairs' making or an option of the engine changes."""
MAX_CACHE_BYTES = 1 << 30
LONGEST_TOKENS = 512
LEAST_PAIRS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseVectors:
    """What every variant is compared with.

    Attributes:
        base: Identity of the base, SHA-256.
        text: Label of the text that queries and passages come from.
        text_sha256: Its hash.
        engine: Engine and version.
        pairs: Queries and passages.
        vectors: The base's of all queries and then of all passages, float32 [2 n, width].
        n_tokens: Tokens of all texts, each at most `longest`.
        longest: Tokens after which a text is cut.
        key: Hash of everything it depends on.
    """

    base: str
    text: str
    text_sha256: str
    engine: str
    pairs: Pairs
    vectors: np.ndarray
    n_tokens: int
    longest: int
    key: str


class EmbeddingScore(Lossy, VectorScore, frozen=True, kw_only=True, tag_field="measure", tag="distance"):
    """Everything measured of one variant of a model that makes vectors of texts.

    Attributes:
        name: File name without its ending.
        path: The file.
        size_bytes: Size of all its files, bytes.
        bpw: Bits per weight: 8 times the bytes of all tensors over their weights.
        load_s: Seconds to load and prepare a context.
        n_threads: Threads used.
        pp_tok_s: Tokens read per second in a text; None if speed was not measured, like the two after it.
        rss_bytes: Peak resident memory of the process that ran the model, bytes.
        rss_model_bytes: The part of it that came with the model: without interpreter and engine.
    """

    name: str
    path: str
    size_bytes: int
    bpw: float
    load_s: float
    n_threads: int
    pp_tok_s: float | None
    rss_bytes: int | None
    rss_model_bytes: int | None

    measure: ClassVar[Measure] = DISTANCE

    @property
    def parts(self) -> tuple[float, ...]:
        """Mean loss of each part of the text that all variants were measured on."""
        return self.pairs

    @property
    def speed_tok_s(self) -> float | None:
        """Tokens per second, as its measure calls them."""
        return self.pp_tok_s

    @property
    def effect(self) -> str:
        """What its loss does to a search, in words."""
        others = 100 * (1 - self.overlap)
        return f"of the original's {self.n_nearest} passages nearest to a query it misses {others:.0f} of 100"


def pairs_to_measure(text: Corpus) -> Pairs:
    """Cut a text into pairs of a query and a passage.

    Raises:
        ValueRangeError: It has too few paragraphs.
    """
    pairs = pairs_of("\n\n".join(part.text for part in text.parts))
    if len(pairs.queries) < LEAST_PAIRS:
        raise ValueRangeError(
            f"{text.label}: {len(pairs.queries)} paragraphs of a sentence and {LEAST_PAIRS} are needed at least to "
            "search in. Give a longer text, with an empty line between paragraphs."
        )
    return pairs


def base_vectors(
    base: Path, identity: str, model: Model, text: Corpus, pairs: Pairs, *, threads: int, progress: Progress = SILENT
) -> BaseVectors:
    """Return a model's vectors of the pairs of a text, from the cache if they are there.

    Args:
        base: A GGUF file with F32 weights.
        identity: Hash that stands for its weights.
        model: The model.
        text: What the pairs were cut from.
        pairs: Queries and passages.
        threads: Threads of the engine.
        progress: Told of the texts read.

    Raises:
        EngineError: The engine fails on the file.
    """
    longest = min(LONGEST_TOKENS, model.hyper("context_length", LONGEST_TOKENS))
    made = f"{FORMAT} {CONVERSION} {identity} {engine_name()} {longest} {pairs}"
    key = hashlib.sha256(made.encode()).hexdigest()
    path = cache_dir("vectors") / f"{key}.npz"
    found = _read(path)
    if found is None:
        with EngineProcess() as engine:
            engine.open(base, n_ctx=longest, n_threads=threads, embeddings=True)
            found = _vectors(engine, pairs, longest, progress)
        with atomic_write(path, is_shared=True) as file:
            np.savez(file, allow_pickle=False, vectors=found[0], n_tokens=np.int64(found[1]))
        trim(path.parent, MAX_CACHE_BYTES, keep=path)
    return BaseVectors(
        base=identity, text=text.label, text_sha256=text.sha256, engine=engine_name(), pairs=pairs, vectors=found[0],
        n_tokens=found[1], longest=longest, key=key,
    )  # fmt: skip


def score_vectors(
    variant: Path, base: BaseVectors, *, threads: int = 0, speed: bool = True, progress: Progress = SILENT
) -> EmbeddingScore:
    """Run a variant in a process of its own and measure it.

    Args:
        variant: A GGUF file.
        base: What to compare with.
        threads: Threads of the engine; 0 for one per core.
        speed: Measure tokens per second and memory, too.
        progress: Told of the texts read.

    Raises:
        EngineError: The engine fails on the file.
        FormatError: It is damaged.
        ValueRangeError: Its vectors have another width than the base's.
    """
    model, threads = open_model(variant), threads or cores()
    measured: Measured | None = None
    with EngineProcess() as engine:
        opened = engine.open(model.files[0], n_ctx=base.longest, n_threads=threads, embeddings=True)
        if speed:
            measured = engine.speed(n_prompt=min(SPEED.n_prompt, base.longest), n_generate=0, repeats=SPEED.repeats)
        vectors, _ = _vectors(engine, base.pairs, base.longest, progress)
    if vectors.shape != base.vectors.shape:
        raise ValueRangeError(
            f"{variant}: its vectors have {vectors.shape[1]} numbers, the original's {base.vectors.shape[1]}. Compare "
            "variants with the model they were made from."
        )
    return EmbeddingScore(
        **msgspec.structs.asdict(compare_vectors(base.vectors, vectors)),
        name=model.path.stem, path=str(model.path), size_bytes=sum(file.stat().st_size for file in model.files),
        bpw=8 * model.tensor_bytes / max(1, model.n_weights), load_s=opened.load_s, n_threads=threads,
        pp_tok_s=measured.pp_tok_s if measured else None, rss_bytes=measured.rss_bytes if measured else None,
        rss_model_bytes=measured.rss_bytes - measured.rss_before_bytes if measured else None,
    )  # fmt: skip


def _vectors(engine: EngineProcess, pairs: Pairs, longest: int, progress: Progress) -> tuple[np.ndarray, int]:
    """Vectors of all queries and then of all passages, float32 [2 n, width], and their tokens; longer texts are cut."""
    task, texts = f"vectors of {Path(engine.path).stem}", (*pairs.queries, *pairs.passages)
    progress.start(task, len(texts), "texts")
    rows, n_tokens = [], 0
    for text in texts:
        ids = _cut(engine.tokenize(text, add_special=True), longest)
        rows.append(engine.embed(ids))
        n_tokens += len(ids)
        progress.advance(task, 1)
    progress.finish(task)
    return np.stack(rows), n_tokens


def _cut(ids: np.ndarray, longest: int) -> np.ndarray:
    """The token that ends a text, which some models read its vector from, is kept."""
    return ids if len(ids) <= longest else np.concatenate([ids[: longest - 1], ids[-1:]])


def _read(path: Path) -> tuple[np.ndarray, int] | None:
    """Return what a file of the cache holds; None if it is not there or not readable."""
    try:
        with np.load(path, allow_pickle=False) as held:
            found = np.asarray(held["vectors"], np.float32), int(held["n_tokens"])
        path.touch()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found
