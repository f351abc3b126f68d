"""Encoded variants and their scores, kept between runs: a killed run takes up where it stopped.

Everything is keyed by digests of all that decides the result, versions included, and can be deleted at any time. An
encoded file counts only with its stamp, which is written last and holds the file's size and time of change: a file that
was cut short or edited is made anew.
"""

import contextlib
import hashlib
from pathlib import Path

import msgspec

from kvant._version import __version__
from kvant.documents import JSON_ERRORS
from kvant.evaluate.score import VariantScore
from kvant.files import atomic_write, cache_dir, sync_directory
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import Curvatures
from kvant.quant.importance import Importance
from kvant.quant.plan import Plan
from kvant.recipes.quantize import quantize


class Stamp(msgspec.Struct, frozen=True):
    """How a finished file looked when it was finished."""

    size: int
    mtime_ns: int


def source_key(model: Model) -> str:
    """Digest of a model's files as they are on disk: path, size and time of change of each."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in model.files]
    return digest("source", stats)


def variant_key(model: Model, plan: Plan, importance: Importance | None, curvatures: Curvatures | None = None) -> str:
    """Digest of all that decides a variant's bytes."""
    measured = [known.sha256 if known else "" for known in (importance, curvatures)]
    return digest("variant", __version__, source_key(model), plan.sha256, *measured)


def digest(*facts: object) -> str:
    """SHA-256 of facts, as hex."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def encoded(
    model: Model,
    plan: Plan,
    *,
    importance: Importance | None = None,
    curvatures: Curvatures | None = None,
    threads: int = 0,
    progress: Progress = SILENT,
) -> Path:
    """Return a variant's file, encoding it unless it is in the cache; an interrupted one is continued."""
    path = _path(model, plan, importance, curvatures)
    if _stamp(path) != _read_stamp(path):
        quantize(
            model,
            plan,
            path,
            importance=importance,
            curvatures=curvatures,
            threads=threads,
            resume=True,
            overwrite=True,
            progress=progress,
        )
        with atomic_write(_stamp_path(path)) as file:
            file.write(msgspec.json.encode(_stamp(path)))
    return path


def forget(
    model: Model, plan: Plan, importance: Importance | None = None, curvatures: Curvatures | None = None
) -> None:
    """Remove a variant's file from the cache; its score stays."""
    path = _path(model, plan, importance, curvatures)
    _stamp_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def read_score(key: str) -> VariantScore | None:
    """Return a score from the cache; None if it is not there or not readable."""
    try:
        return msgspec.json.decode((cache_dir("scores") / f"{key}.json").read_bytes(), type=VariantScore)
    except (OSError, *JSON_ERRORS):
        return None


def write_score(key: str, score: VariantScore) -> None:
    """Keep a score."""
    with atomic_write(cache_dir("scores") / f"{key}.json") as file:
        file.write(msgspec.json.encode(score))


def deliver(path: Path, out: Path) -> None:
    """Give a cached file its final name: a second name for the same bytes where the disk can, else a copy.

    The name appears only when it is whole. Whoever edits the delivered file changes its stamp, so the cache notices.
    """
    partial = out.with_name(out.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(path)
    except OSError:
        _copy(path, out)
        return
    partial.replace(out)
    partial.unlink(missing_ok=True)  # renaming a name of a file over another of its names leaves both
    sync_directory(out.parent)


def _copy(path: Path, out: Path) -> None:
    with path.open("rb") as source, atomic_write(out) as target:
        while chunk := source.read(1 << 24):
            target.write(chunk)


def _path(model: Model, plan: Plan, importance: Importance | None, curvatures: Curvatures | None) -> Path:
    return cache_dir("variants") / f"{variant_key(model, plan, importance, curvatures)}.gguf"


def _stamp_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _stamp(path: Path) -> Stamp | None:
    with contextlib.suppress(OSError):
        stat = path.stat()
        return Stamp(stat.st_size, stat.st_mtime_ns)
    return None


def _read_stamp(path: Path) -> Stamp | object:
    """A file's stamp; something that equals no stamp if there is none."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(_stamp_path(path).read_bytes(), type=Stamp)
    return object()
