"""Write the winners under their names, with locks, passports and a report that say how they were found."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvant.errors import KvantError
from kvant.files import atomic_write, partial_path, sha256_file
from kvant.hub.passports import PASSPORT_SUFFIX
from kvant.model import Model
from kvant.recipes.companion import Beside
from kvant.recipes.measure.base import measured_text
from kvant.recipes.measure.parity import Parity, Truth
from kvant.recipes.measure.selftext import write_tokens
from kvant.recipes.optimize.facts import Delivered, make_report
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.optimize.passport import make_passport
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.search import Search
from kvant.recipes.output import beside, check_place, digest_of, hashes, place, put_directory, remove, size_bytes
from kvant.recipes.projectors import deliver as put_beside
from kvant.recipes.rebuild.lock import (
    LOCK_SUFFIX,
    STATISTICS_SUFFIX,
    LockedOutput,
    is_written_by_model,
    make_lock,
    token_file,
    write_lock,
)
from kvant.recipes.report.report import Report, write_report
from kvant.units import format_bytes


def deliver(outcome: Outcome, request: Request) -> Report:
    """Write what was taken of every format, each with its lock and passport, and the report.

    Each file and directory appears whole or not at all, a lock after what it is of.

    Raises:
        OutputExistsError: An output of that name with other content exists, and overwriting was not asked for; nothing
            is written then.
    """
    name = model_name(outcome.material.model)
    directory = request.out or Path(f"{name}-kvant")
    make_directory(directory)
    material = outcome.material
    made = [s.workshop.make(s.taken.candidate, threads=material.threads) for s in outcome.searches]
    outs = [directory / s.target.output_name(name, s.taken.candidate.preset) for s in outcome.searches]
    missing = [check_place(*pair, overwrite=request.overwrite) for pair in zip(made, outs, strict=True)]
    delivered = []
    for search, artifact, out, is_missing in zip(outcome.searches, made, outs, missing, strict=True):
        if is_missing:
            place(artifact, out)
        delivered.append(lock_beside(search, out, artifact, outcome, keeps_statistics=request.keep_statistics))
    beside_it = projector_beside(delivered, outcome, request)
    report = make_report(outcome, request, delivered, beside_it)
    report = msgspec.structs.replace(report, tokenizers=read_alike(outcome, request, outs))
    for one, tokenizer in zip(delivered, report.tokenizers, strict=True):
        with atomic_write(beside(one.path, PASSPORT_SUFFIX)) as file:
            passport = make_passport(one, outcome, report, tokenizer)
            file.write(msgspec.json.format(msgspec.json.encode(passport), indent=2) + b"\n")
    write_report(report, directory)
    return report


def projector_beside(delivered: Sequence[Delivered], outcome: Outcome, request: Request) -> Beside | None:
    """Put the model's projector beside the file of the format that takes it; None if there is none.

    Raises:
        OutputExistsError: Another file has its name, and overwriting was not asked for.
    """
    companion, material = outcome.material.companion, outcome.material
    taking = next((one.path for one in delivered if one.search.target.takes_projector), None)
    if companion is None or taking is None:
        return None
    name = taking.with_name(f"{model_name(material.model)}.gguf")
    path = put_beside(
        companion, name, overwrite=request.overwrite, threads=material.threads, progress=material.progress
    )
    return Beside(
        file=path.name, kind=companion.kind, type=companion.type, size_bytes=path.stat().st_size,
        memory_bytes=companion.memory_bytes, sha256=sha256_file(path),
    )  # fmt: skip


def lock_beside(search: Search, out: Path, artifact: Path, outcome: Outcome, *, keeps_statistics: bool) -> Delivered:
    """Write the lock of an output; where the model wrote its calibration text, that text's tokens come first."""
    material, files = outcome.material, hashes(artifact)
    digest = digest_of(artifact, files)
    taken = search.taken.candidate
    lock = make_lock(
        material.model, taken.plan, material.calibration, material.importance,
        LockedOutput(file=out.name, size_bytes=size_bytes(artifact), sha256=digest, files=files),
        is_fitted=taken.is_fitted, target=search.target.name, provenance=search.workshop.provenance(),
    )  # fmt: skip
    calibration = material.calibration
    if lock.calibration and calibration and is_written_by_model(calibration):
        write_tokens(out.with_name(token_file(out.name)), calibration.text, calibration.windows)
    write_lock(beside(out, LOCK_SUFFIX), lock)
    if keeps_statistics and lock.calibration and calibration:
        kept = beside(out, STATISTICS_SUFFIX)
        keep_statistics(calibration.directory, kept)
        material.progress.say(f"Statistics kept: {kept}, {format_bytes(size_bytes(kept))}.")
    return Delivered(search=search, path=out, sha256=digest)


def keep_statistics(measured: Path, out: Path) -> None:
    """Copy what calibration measured; the directory appears whole, and replaces one of that name."""
    fresh = partial_path(out)
    remove(fresh)
    shutil.copytree(measured, fresh, ignore=shutil.ignore_patterns("rounding-*"))
    put_directory(fresh, out)


def read_alike(outcome: Outcome, request: Request, files: Sequence[Path]) -> tuple[Parity, ...]:
    """Compare how the engine of every file reads and prompts with the source's own tokenizer."""
    truth = Truth(outcome.material.model, measured_text(request.text, request.corpus))
    return tuple(msgspec.structs.replace(truth.try_compare(file), path=file.name) for file in files)


def model_name(model: Model) -> str:
    """A file name for a model, from the name of its own file or directory: letters, digits, `.`, `_` and `-`."""
    path = model.path.resolve()
    stem = path.name if path.is_dir() else path.stem
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    stem = re.sub(r"[-._](f32|f16|bf16)$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80] or "model"


def check_directory(directory: Path | None) -> None:
    """Refuse an output directory that cannot be written to, before hours of work; nothing is made yet.

    Raises:
        KvantError: It is a file, or it or the place for it may not be written to.
    """
    place = Path() if directory is None else directory
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise KvantError(f"{place}: is a file, not a directory. Choose another directory with -o.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise KvantError(f"{place}: may not be written to. Choose another directory with -o.")


def make_directory(directory: Path) -> None:
    """Make the output directory.

    Raises:
        KvantError: It cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KvantError(f"{directory}: {error.strerror}. Choose another directory with -o.") from error
