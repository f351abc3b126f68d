"""The base's logits: computed once, kept compactly on disk, found again by hashes.

A file in the cache is named by a hash of what the logits depend on: the identity of the base, the tokens of all
windows, the engine's version and this module's format. The directory is kept below `MAX_CACHE_BYTES` by deleting
what was used longest ago.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvant.documents import JSON_ERRORS
from kvant.errors import FormatError
from kvant.evaluate.base import CONVERSION
from kvant.evaluate.compact import SAMPLES, TOP, CompactRows, compact
from kvant.evaluate.corpora import Corpus
from kvant.evaluate.windows import Windows
from kvant.files import atomic_write, cache_dir
from kvant.progress import SILENT, Progress
from kvant.runtime import capi
from kvant.runtime.process import EngineProcess

FORMAT = 2
"""Raised when the file's layout or an option of the engine (llamacpp.py) changes."""
MAX_CACHE_BYTES = 2 << 30


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a cached file says of itself.

    Attributes:
        base: Identity of the base, SHA-256.
        text: Label of the text.
        text_sha256: Its hash.
        engine: Engine and version.
        domains: Domain of each window.
        top: Tokens kept exactly per position.
        n_vocab: Tokens in the vocabulary.
    """

    base: str
    text: str
    text_sha256: str
    engine: str
    domains: tuple[str, ...]
    top: int
    n_vocab: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLogits:
    """What every variant is compared with.

    Attributes:
        header: Where it comes from.
        windows: The tokens.
        rows: The base's distributions at the scored positions of each window.
        key: Hash of everything it depends on.
    """

    header: Header
    windows: Windows
    rows: tuple[CompactRows, ...]
    key: str

    @property
    def n_positions(self) -> int:
        """Scored positions."""
        return sum(len(row.labels) for row in self.rows)

    def head(self, count: int) -> "BaseLogits":
        """Return the first windows alone, for a quick look."""
        return BaseLogits(header=self.header, windows=self.windows.head(count), rows=self.rows[:count], key=self.key)


def engine_name() -> str:
    """Return the engine and its version."""
    return f"{capi.ENGINE} {capi.VERSION} (llama.cpp {capi.LLAMA_CPP_BUILD})"


def cache_key(identity: str, windows: Windows) -> str:
    """Return the hash under which the logits of these windows are kept."""
    made = f"{FORMAT} {CONVERSION} {TOP} {SAMPLES} {identity} {engine_name()} {windows.tokens.shape}"
    digest = hashlib.sha256(made.encode())
    digest.update(windows.tokens.astype("<i4").tobytes())
    return digest.hexdigest()


def base_logits(
    base: Path, identity: str, windows: Windows, text: Corpus, *, engine: EngineProcess, threads: int,
    progress: Progress = SILENT,
) -> BaseLogits:  # fmt: skip
    """Return the base's logits, from the cache if they are there.

    Args:
        base: A GGUF file with F32 weights.
        identity: Hash that stands for its weights.
        windows: The tokens to run.
        text: Where they come from.
        engine: The process that runs them, unless they are in the cache; what it has open is replaced then.
        threads: Threads of the engine.
        progress: Told of the tokens run.

    Raises:
        EngineError: The engine fails on the base.
    """
    key = cache_key(identity, windows)
    path = cache_dir("logits") / f"{key}.npz"
    if path.is_file():
        found = _load(path, windows, key)
        if found is not None:
            path.touch()
            return found
    opened = engine.open(base, n_ctx=windows.context, n_threads=threads, all_logits=True)
    rows = tuple(_compute(engine, windows, progress))
    header = Header(
        base=identity, text=text.label, text_sha256=text.sha256, engine=engine_name(), domains=windows.domains,
        top=rows[0].top, n_vocab=opened.n_vocab,
    )  # fmt: skip
    result = BaseLogits(header=header, windows=windows, rows=rows, key=key)
    _save(path, result)
    trim(path.parent, MAX_CACHE_BYTES, keep=path)
    return result


def _compute(engine: EngineProcess, windows: Windows, progress: Progress) -> Iterator[CompactRows]:
    task = "base logits"
    progress.start(task, windows.tokens.size, "tokens")
    for index, logits in enumerate(engine.logits(windows.tokens, first=windows.first)):
        yield compact(logits[:-1], windows.labels[index], seed=index)
        progress.advance(task, windows.context)
    progress.finish(task)


def _save(path: Path, base: BaseLogits) -> None:
    arrays = {name: np.stack([getattr(r, name) for r in base.rows]) for name in CompactRows.__slots__ if name != "top"}
    arrays["header"] = np.frombuffer(msgspec.json.encode(base.header), np.uint8)
    with atomic_write(path, is_shared=True) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _load(path: Path, windows: Windows, key: str) -> BaseLogits | None:
    """Read a cached file; None, and the file is gone, if it is damaged."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            header = msgspec.json.decode(file["header"].tobytes(), type=Header)
            arrays = {name: file[name] for name in CompactRows.__slots__ if name != "top"}
        _check(arrays, windows)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, *JSON_ERRORS):
        path.unlink(missing_ok=True)
        return None
    rows = tuple(
        CompactRows(**{name: array[i] for name, array in arrays.items()}, top=header.top)
        for i in range(len(windows.tokens))
    )
    return BaseLogits(header=header, windows=windows, rows=rows, key=key)


def _check(arrays: dict[str, np.ndarray], windows: Windows) -> None:
    expected = windows.labels.shape
    if any(array.shape[:2] != expected for array in arrays.values()) or not np.array_equal(
        arrays["labels"], windows.labels
    ):
        raise FormatError("cached logits: their shapes are not those of the windows. They are computed again.")


def trim(directory: Path, max_bytes: int, *, keep: Path) -> None:
    """Delete the files of a cache directory that were used longest ago until the rest fits; `keep` stays."""
    entries = [entry for entry in os.scandir(directory) if entry.is_file() and entry.path != str(keep)]
    room = max_bytes - keep.stat().st_size
    for entry in sorted(entries, key=lambda e: e.stat().st_mtime, reverse=True):
        room -= entry.stat().st_size
        if room < 0:
            Path(entry.path).unlink(missing_ok=True)
