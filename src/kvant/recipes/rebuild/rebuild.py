"""Make a file again from its lock, and prove that it has the same bytes.

lock ── version, encoder settings ── equal to this kvant's?
source ── hashes of its files ── equal?                    a difference anywhere ends the work
text ── hash ── equal? ── statistics ── digest ── equal?   with an error that names it
plan ── encode ── hash ── equal? ── the file appears under its name
"""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kvant._version import __version__
from kvant.errors import LockError
from kvant.evaluate.corpora import Corpus
from kvant.files import check_apart, check_output, commit_file, partial_path, sha256_file
from kvant.formats.imatrix import read_imatrix
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import Curvatures
from kvant.quant.importance import Importance
from kvant.recipes.measure.calibration import BUNDLED, TOKENS_SUFFIX, Calibration, calibrate, calibration_text
from kvant.recipes.measure.selftext import load_tokens, token_hash
from kvant.recipes.rebuild import lock as locks
from kvant.recipes.rebuild.lock import Lock, LockedCalibration, LockedImportance, present_encoder
from kvant.recipes.targets.gguf.write import quantize


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What was made again.

    Attributes:
        path: The file.
        size_bytes: Its size.
        sha256: Its hash, the lock's.
        preset: Preset of its plan.
        wall_s: Seconds it took.
    """

    path: str
    size_bytes: int
    sha256: str
    preset: str
    wall_s: float


def rebuild(
    lock: Lock | Path, source: Path, *, out: Path | None = None, text: Path | None = None, imatrix: Path | None = None,
    threads: int = 0, overwrite: bool = False, progress: Progress = SILENT,
) -> Rebuilt:  # fmt: skip
    """Make the file of a lock again.

    Args:
        lock: The lock, or the path of one.
        source: The full-precision model, whatever its directory is called.
        out: File to write; by default the lock's name in the working directory.
        text: The calibration text, if it was a file; of tokens that the model wrote, by default those beside the lock.
        imatrix: The importance file, if one was used.
        threads: Threads; 0 for one per core. Their number does not change a bit.
        overwrite: Replace an existing file.
        progress: Told of every step.

    Raises:
        LockError: The version, model, text, importance, statistics or bytes are not the lock's.
        OutputExistsError: The file exists and `overwrite` is false.
        KvantError: The lock, the model or the text cannot be read; see `open_model` and `calibrate`.
    """
    started = time.monotonic()
    beside, lock = (lock.parent, locks.read_lock(lock)) if isinstance(lock, Path) else (Path(), lock)
    _check_given(lock, text, imatrix)
    if text is None and lock.calibration and (lock.calibration.text or "").endswith(TOKENS_SUFFIX):
        text = beside / str(lock.calibration.text)
    out = out or Path(lock.output.file)
    check_output(out, overwrite=overwrite)
    check_version(lock)
    model = open_model(source, known_as=lock.source.name)
    check_apart(out, (model.path, *model.files))
    check_source(lock, model)
    importance = locked_importance(lock.importance, imatrix) if lock.importance else None
    curvatures = None
    if lock.calibration:
        measured = locked_statistics(lock, lock.calibration, model, text, threads, progress)
        importance, curvatures = (None, measured.curvatures) if lock.encoder else (measured.importance, None)
    write_checked(lock, model, out, importance, curvatures, threads, progress)
    return Rebuilt(
        path=str(out), size_bytes=lock.output.size_bytes, sha256=lock.output.sha256, preset=lock.plan.preset,
        wall_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


def _check_given(lock: Lock, text: Path | None, imatrix: Path | None) -> None:
    """Refuse a text or an importance file that the lock's file was made without.

    Raises:
        LockError: One is given.
    """
    if text is not None and (lock.calibration is None or lock.calibration.text is None):
        what = "without calibration" if lock.calibration is None else "on kvant's bundled text"
        raise LockError(f"{text}: the lock's file was made {what}. Leave --text out.")
    if imatrix is not None and lock.importance is None:
        raise LockError(f"{imatrix}: the lock's file was made without an importance file. Leave --imatrix out.")


def check_version(lock: Lock) -> None:
    """Check that this kvant makes the lock's bytes.

    Raises:
        LockError: It does not.
    """
    if lock.kvant != __version__:
        raise LockError(
            f"kvant: the lock's file was made by {lock.kvant}, and this is {__version__}, whose bytes differ. "
            f"Install kvant=={lock.kvant}."
        )
    if lock.encoder not in (None, present_encoder()):
        raise LockError(
            f"encoder: the lock's settings {msgspec.to_builtins(lock.encoder)} are not this kvant's "
            f"{msgspec.to_builtins(present_encoder())}. Install the build of kvant that wrote the lock."
        )
    if lock.encoder and not lock.calibration:
        raise LockError("encoder: the lock names no calibration for it. Take the lock as kvant wrote it.")


def check_source(lock: Lock, model: Model) -> None:
    """Check that a model is the lock's, file by file.

    Raises:
        LockError: It is another.
    """
    found = locks.locked_source(model)
    for name in sorted({*found.files, *lock.source.files}):
        ours, theirs = found.files.get(name), lock.source.files.get(name)
        if ours != theirs:
            what = "is missing" if ours is None else "is not part of it" if theirs is None else "differs"
            raise LockError(
                f"{model.path}: is not the model of the lock, {lock.source.name}: file {name} {what}. "
                "Give the model as it was."
            )
    if found.metadata_sha256 != lock.source.metadata_sha256:
        raise LockError(
            f"{model.path}: its metadata are not those of the lock's model, {lock.source.name}: its card (README.md) "
            "or chat templates differ. Give the model as it was."
        )


def locked_importance(section: LockedImportance, path: Path | None) -> Importance:
    """Return the importance of the lock.

    Raises:
        LockError: No file was given, or another.
    """
    if path is None:
        raise LockError(f"imatrix: the lock's file was encoded with {section.file}. Pass it with --imatrix FILE.")
    found = dataclasses.replace(read_imatrix(path), source=section.file)
    if found.sha256 != section.sha256:
        raise LockError(f"{path}: is not the importance of the lock, {section.file}. Give that file.")
    return found


def locked_statistics(
    lock: Lock, section: LockedCalibration, model: Model, path: Path | None, threads: int, progress: Progress
) -> Calibration:
    """Measure the model on the text of the lock, or take what was measured before from the cache.

    Raises:
        LockError: The text or the statistics are others.
    """
    text = locked_text(section, path)
    found = calibrate(model, text, windows=section.windows, seed=section.seed, threads=threads, progress=progress)
    if found.sha256 != section.statistics_sha256:
        raise LockError(
            f"statistics: their digest {found.sha256} is not the lock's {section.statistics_sha256}, although model, "
            f"text and settings are the same: calibration differs.{_other_versions(lock.versions)} Report this."
        )
    return found


def locked_text(section: LockedCalibration, path: Path | None) -> Corpus | str:
    """Return the calibration text of the lock, or the path of the token file that holds it.

    Raises:
        LockError: No file was given, or another.
    """
    if section.text is not None and path is None:
        raise LockError(f"text: the lock's file was calibrated on {section.text}. Pass it with --text FILE.")
    is_tokens = section.text is not None and section.text.endswith(TOKENS_SUFFIX)
    text = str(path) if is_tokens else calibration_text(BUNDLED if section.text is None else str(path))
    digest = token_hash(load_tokens(Path(text))[0]) if isinstance(text, str) else text.sha256
    if digest != section.text_sha256:
        raise LockError(
            f"{path or 'bundled text'}: SHA-256 {digest} is not that of the lock's calibration text "
            f"{section.text or ''} ({section.text_sha256}). Give that text."
        )
    if isinstance(text, str) or section.text is None:
        return text
    return dataclasses.replace(text, name=section.text)


def write_checked(
    lock: Lock, model: Model, out: Path, importance: Importance | None, curvatures: Curvatures | None, threads: int,
    progress: Progress,
) -> None:  # fmt: skip
    """Encode to a temporary name; the file gets its own when its bytes are the lock's.

    Raises:
        LockError: They are not.
    """
    fresh = partial_path(out.with_name(f"{out.name}.rebuilt"))
    try:
        quantize(
            model, lock.plan.plan(), fresh, importance=importance, curvatures=curvatures, threads=threads,
            overwrite=True, progress=progress,
        )  # fmt: skip
        digest = sha256_file(fresh)
        if digest != lock.output.sha256:
            raise LockError(
                f"{out.name}: its SHA-256 {digest} ({fresh.stat().st_size} bytes) is not the lock's "
                f"{lock.output.sha256} ({lock.output.size_bytes} bytes), although all it is made from is the same: "
                f"encoding differs.{_other_versions(lock.versions)} Report this."
            )
        commit_file(fresh, out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()


def _other_versions(locked: Mapping[str, str]) -> str:
    """Name the packages whose versions are not the lock's; empty if there are none."""
    here = locks.versions()
    pairs = [f"{name} {here.get(name, 'absent')} in place of {theirs}" for name, theirs in sorted(locked.items())
             if here.get(name) != theirs]  # fmt: skip
    return f" Here is {', '.join(pairs)}." if pairs else ""
