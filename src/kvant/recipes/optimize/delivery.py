"""Write the winner under its name, with a passport and a report that say how it was found."""

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvant.errors import KvantError, OutputExistsError
from kvant.files import atomic_write, sha256_file
from kvant.model import Model
from kvant.recipes.formats import FormatVariant, best, deliver_format
from kvant.recipes.measure.base import measured_text
from kvant.recipes.measure.parity import Parity, Truth
from kvant.recipes.measure.selftext import write_tokens
from kvant.recipes.optimize.facts import make_report
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.optimize.passport import make_passport
from kvant.recipes.optimize.request import Request
from kvant.recipes.rebuild.lock import LOCK_SUFFIX, LockedOutput, is_written_by_model, make_lock, token_file, write_lock
from kvant.recipes.report.report import (
    Report,
    write_report,
)
from kvant.recipes.targets.gguf import kept


def deliver(outcome: Outcome, request: Request, file: Path) -> Report:
    """Write the file, its lock, its passport and the report, in this order; each appears whole or not at all.

    Where the model wrote its calibration text, its tokens come before the lock. The best of every other format comes
    before the report.

    Raises:
        OutputExistsError: A file of that name with other content exists, and overwriting was not asked for.
    """
    name = model_name(outcome.model)
    directory = request.out or Path(f"{name}-kvant")
    make_directory(directory)
    out = directory / f"{name}-{outcome.taken.candidate.preset}.gguf"
    digest = sha256_file(file)
    if out.exists() and not request.overwrite and sha256_file(out) != digest:
        raise OutputExistsError(
            f"{out}: exists with other content. Choose another directory with -o or pass --overwrite."
        )
    kept.deliver(file, out)
    lock = make_lock(
        outcome.model, outcome.taken.candidate.plan, outcome.calibration, outcome.importance,
        LockedOutput(file=out.name, size_bytes=file.stat().st_size, sha256=digest),
        is_fitted=outcome.taken.candidate.is_fitted,
    )  # fmt: skip
    if lock.calibration and outcome.calibration and is_written_by_model(outcome.calibration):
        write_tokens(out.with_name(token_file(out.name)), outcome.calibration.text, outcome.calibration.windows)
    write_lock(out.with_suffix(LOCK_SUFFIX), lock)
    others = [(found, directory / f"{name}-{found.format}-{found.type}") for found in best_of_formats(outcome)]
    for variant, place in others:
        deliver_format(variant, outcome.others, place, overwrite=request.overwrite)
    report = make_report(outcome, request, out, digest, others)
    report = msgspec.structs.replace(report, tokenizers=read_alike(outcome, request, [out, *(p for _, p in others)]))
    with atomic_write(out.with_suffix(".passport.json")) as passport:
        passport.write(msgspec.json.format(msgspec.json.encode(make_passport(outcome, report)), indent=2) + b"\n")
    write_report(report, directory)
    return report


def read_alike(outcome: Outcome, request: Request, files: Sequence[Path]) -> tuple[Parity, ...]:
    """Compare how the engine of every file reads and prompts with the source's own tokenizer."""
    truth = Truth(outcome.model.path, measured_text(request.text, request.corpus))
    return tuple(msgspec.structs.replace(truth.try_compare(file), path=file.name) for file in files)


def model_name(model: Model) -> str:
    """A file name for a model, from the name of its own file or directory: letters, digits, `.`, `_` and `-`."""
    path = model.path.resolve()
    stem = path.name if path.is_dir() else path.stem
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    stem = re.sub(r"[-._](f32|f16|bf16)$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80] or "model"


def make_directory(directory: Path) -> None:
    """Make the output directory.

    Raises:
        KvantError: It cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KvantError(f"{directory}: {error.strerror}. Choose another directory with -o.") from error


def best_of_formats(outcome: Outcome) -> list[FormatVariant]:
    """Return the variant to take of every other format that has one."""
    names = dict.fromkeys(variant.format for variant in outcome.format_variants)
    taken = (best([v for v in outcome.format_variants if v.format == name], outcome.others) for name in names)
    return [variant for variant in taken if variant is not None]
