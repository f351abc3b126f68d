"""Encoded GGUF variants, kept between runs: a killed run takes up where it stopped."""

import contextlib
from pathlib import Path

import msgspec

from kvant._version import __version__
from kvant.files import atomic_write, cache_dir
from kvant.kernels.fitting import ENCODING
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import Curvatures
from kvant.quant.importance import Importance
from kvant.quant.plan import Plan
from kvant.recipes.cache import digest, source_key
from kvant.recipes.targets.gguf.write import quantize


class Stamp(msgspec.Struct, frozen=True):
    """How a finished file looked when it was finished."""

    size: int
    mtime_ns: int


def variant_key(model: Model, plan: Plan, importance: Importance | None, curvatures: Curvatures | None = None) -> str:
    """Digest of all that decides a variant's bytes."""
    measured = [known.sha256 if known else "" for known in (importance, curvatures)]
    measured += [str(ENCODING)] if curvatures else []
    return digest("variant", __version__, source_key(model), plan.sha256, *measured)


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
        with atomic_write(_stamp_path(path), is_shared=True) as file:
            file.write(msgspec.json.encode(_stamp(path)))
    return path


def forget(
    model: Model, plan: Plan, importance: Importance | None = None, curvatures: Curvatures | None = None
) -> None:
    """Remove a variant's file from the cache; its score stays."""
    path = _path(model, plan, importance, curvatures)
    _stamp_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


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
