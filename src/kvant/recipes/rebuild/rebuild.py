"""Make a file again from its lock, and prove that it has the same bytes.

lock ── version, encoder settings ── equal to this kvant's?
source ── hashes of its files ── equal?                    a difference anywhere ends the work
text ── hash ── equal? ── statistics ── digest ── equal?   with an error that names it
plan ── write in its format ── hash ── equal? ── the file appears under its name
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kvant._version import __version__
from kvant.devices.detect import detect
from kvant.devices.profiles import device_for
from kvant.errors import LockError, OutputExistsError
from kvant.evaluate.corpora import Corpus
from kvant.files import check_apart, check_output, commit_file, partial_path
from kvant.formats.imatrix import read_imatrix
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.importance import Importance
from kvant.recipes.measure.calibration import TOKENS_SUFFIX, Calibration, calibrate, calibration_text
from kvant.recipes.measure.selftext import load_tokens, token_hash
from kvant.recipes.measure.textname import BUNDLED, name_of
from kvant.recipes.output import beside, digest_of, hashes, put_directory, remove, size_bytes
from kvant.recipes.rebuild import lock as locks
from kvant.recipes.rebuild.lock import STATISTICS_SUFFIX, Lock, LockedCalibration, LockedImportance, present_encoder
from kvant.recipes.source import open_model
from kvant.recipes.targets.base import Material, Workshop
from kvant.recipes.targets.registry import find_target

DIGEST_LETTERS = 64
"""Of a SHA-256 in hex."""


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
    statistics: Path | None = None, threads: int = 0, overwrite: bool = False, progress: Progress = SILENT,
) -> Rebuilt:  # fmt: skip
    """Make the file of a lock again.

    Args:
        lock: The lock, or the path of one.
        source: The full-precision model, whatever its directory is called.
        out: File to write; by default the lock's name in the working directory.
        text: The calibration text, if it was a file; of tokens that the model wrote, by default those beside the lock.
        imatrix: The importance file, if one was used.
        statistics: Directory of what calibration measured; by default that beside the lock, if it was kept there.
        threads: Threads; 0 for one per core. Their number does not change a bit.
        overwrite: Replace an existing file.
        progress: Told of every step.

    Raises:
        LockError: The version, model, text, importance, statistics or bytes are not the lock's.
        OutputExistsError: The file exists and `overwrite` is false.
        KvantError: The lock, the model or the text cannot be read; see `open_model` and `calibrate`.
    """
    started = time.monotonic()
    place, lock = (lock.parent, locks.read_lock(lock)) if isinstance(lock, Path) else (Path(), lock)
    target = find_target(lock.target)
    _check_given(lock, text, imatrix, statistics)
    if text is None and lock.calibration and (lock.calibration.text or "").endswith(TOKENS_SUFFIX):
        text = place / str(lock.calibration.text)
    statistics = statistics or kept_beside(place, lock)
    out = out or Path(lock.output.file)
    check_place(lock, out, overwrite=overwrite)
    check_version(lock)
    model = open_model(source, known_as=lock.source.name, progress=progress)
    check_apart(out, (model.path, *model.files))
    check_source(lock, model)
    importance = locked_importance(lock.importance, imatrix) if lock.importance else None
    calibration = None
    if lock.calibration:
        calibration = locked_statistics(lock, lock.calibration, model, text, statistics, threads, progress)
        importance = calibration.importance
    machine = detect(measure=False)
    material = Material(
        model=model, machine=machine, device=device_for(None, machine), importance=importance, calibration=calibration,
        threads=threads, progress=progress,
    )  # fmt: skip
    workshop = target.open(material)
    check_provenance(lock, workshop)
    write_checked(lock, workshop, out, threads, progress)
    return Rebuilt(
        path=str(out), size_bytes=lock.output.size_bytes, sha256=lock.output.sha256, preset=lock.plan.preset,
        wall_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


def check_place(lock: Lock, out: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists; a directory is replaced only if it holds nothing but files of that name.

    Raises:
        OutputExistsError: There is one.
    """
    if not (lock.output.files and out.is_dir()):
        check_output(out, overwrite=overwrite)
        return
    others = sorted(set(hashes(out)) - set(lock.output.files))
    if others or not overwrite:
        what = f"holds {others[0]}, which is not of the lock" if others else "exists already"
        remedy = "Choose another name" if others else "Choose another name or pass --overwrite"
        raise OutputExistsError(f"{out}: {what}. {remedy}.")


def kept_beside(directory: Path, lock: Lock) -> Path | None:
    """Return the statistics that were kept beside a lock; None if there are none."""
    kept = beside(directory / lock.output.file, STATISTICS_SUFFIX)
    return kept if lock.calibration and kept.is_dir() else None


def _check_given(lock: Lock, text: Path | None, imatrix: Path | None, statistics: Path | None) -> None:
    """Refuse a text or an importance file that the lock's file was made without.

    Raises:
        LockError: One is given.
    """
    if text is not None and (lock.calibration is None or lock.calibration.text is None):
        what = "without calibration" if lock.calibration is None else "on kvant's bundled text"
        raise LockError(f"{text}: the lock's file was made {what}. Leave --text out.")
    if statistics is not None and lock.calibration is None:
        raise LockError(f"{statistics}: the lock's file was made without calibration. Leave --statistics out.")
    if statistics is not None and not statistics.is_dir():
        raise LockError(f"{statistics}: no such directory. Give the one that optimize --keep-statistics wrote.")
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
    lock: Lock, section: LockedCalibration, model: Model, path: Path | None, kept: Path | None, threads: int,
    progress: Progress,
) -> Calibration:  # fmt: skip
    """Measure the model on the text of the lock, or take what was measured before from the cache.

    Raises:
        LockError: The text or the statistics are others.
    """
    text = locked_text(section, path)
    found = calibrate(
        model, text, windows=section.windows, seed=section.seed, way=section.way, kept=kept, threads=threads,
        progress=progress,
    )  # fmt: skip
    if found.sha256 != section.statistics_sha256 and kept is not None:
        raise LockError(f"{kept}: are not the statistics of the lock. Give those that were kept beside it.")
    if found.sha256 != section.statistics_sha256 and section.way == "engine":
        raise LockError(
            "statistics: their digest is not the lock's. llama.cpp measured them, and what it sums up depends on the "
            "machine's instructions. Rebuild where the file was made, or keep what was measured there: kvant optimize "
            f"--keep-statistics.{_other_versions(lock.versions)}"
        )
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
    text = str(path) if is_tokens else calibration_text(BUNDLED if path is None else name_of(path))
    digest = token_hash(load_tokens(Path(text))[0]) if isinstance(text, str) else text.sha256
    if digest != section.text_sha256:
        raise LockError(
            f"{path or 'bundled text'}: SHA-256 {digest} is not that of the lock's calibration text "
            f"{section.text or ''} ({section.text_sha256}). Give that text."
        )
    if isinstance(text, str) or section.text is None:
        return text
    return dataclasses.replace(text, name=section.text)


def check_provenance(lock: Lock, workshop: Workshop) -> None:
    """Check what else decides the bytes: the export of a graph.

    Raises:
        LockError: It is another.
    """
    here = workshop.provenance()
    for name in sorted({*here, *lock.provenance}):
        ours, theirs = here.get(name, "absent"), lock.provenance.get(name, "absent")
        if ours != theirs:
            makers = [f"{what} {value}" for what, value in lock.provenance.items() if len(value) != DIGEST_LETTERS]
            raise LockError(
                f"{name}: {ours} is not the lock's {theirs}, so the bytes differ although the model is the same. "
                f"It must be as when the lock was written{': ' if makers else ''}{', '.join(makers)}."
            )


def write_checked(lock: Lock, workshop: Workshop, out: Path, threads: int, progress: Progress) -> None:
    """Write to a temporary name; the output gets its own when its bytes are the lock's.

    Raises:
        LockError: They are not.
    """
    fresh = partial_path(out.with_name(f"{out.name}.rebuilt"))
    remove(fresh)
    try:
        workshop.write(
            lock.plan.plan(), fresh, is_fitted=lock.encoder is not None, threads=threads, progress=progress
        )  # fmt: skip
        files = hashes(fresh)
        digest = digest_of(fresh, files)
        if digest != lock.output.sha256:
            odd = [
                name for name in sorted({*files, *lock.output.files}) if files.get(name) != lock.output.files.get(name)
            ]
            which = f" It differs in {', '.join(odd)}." if odd else ""
            raise LockError(
                f"{out.name}: its SHA-256 {digest} ({size_bytes(fresh)} bytes) is not the lock's "
                f"{lock.output.sha256} ({lock.output.size_bytes} bytes), although all it is made from is the same: "
                f"encoding differs.{which}{_other_versions(lock.versions)} Report this."
            )
        if (files, size_bytes(fresh)) != (lock.output.files, lock.output.size_bytes):
            raise LockError(
                f"output: the lock's sizes or hashes of files are not those of its own SHA-256, {digest}. Take the "
                f"lock as kvant wrote it."
            )
        if fresh.is_dir():
            put_directory(fresh, out)
        else:
            commit_file(fresh, out)
    finally:
        remove(fresh)


def _other_versions(locked: Mapping[str, str]) -> str:
    """Name the packages whose versions are not the lock's; empty if there are none."""
    here = locks.versions()
    pairs = [f"{name} {here.get(name, 'absent')} in place of {theirs}" for name, theirs in sorted(locked.items())
             if here.get(name) != theirs]  # fmt: skip
    return f" Here is {', '.join(pairs)}." if pairs else ""
