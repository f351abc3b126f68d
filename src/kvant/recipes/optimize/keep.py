"""Put what an optimization found into the local store, with what was measured of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kvant.errors import OutputExistsError, UnsupportedFormatError
from kvant.hub.manifest import ModelSettings
from kvant.hub.names import ModelName
from kvant.hub.passports import PASSPORT_SUFFIX
from kvant.hub.projectors import keep_projector
from kvant.hub.store import Store, StoredModel
from kvant.progress import SILENT, Progress
from kvant.recipes.output import beside
from kvant.recipes.report.report import Report
from kvant.recipes.targets.registry import find_target

SUFFIX = ".gguf"


def check_name(name: str, formats: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a name before hours of work, not after.

    Raises:
        ModelNameError: It is not a name for a new model.
        OutputExistsError: Another model has it, and `overwrite` is false.
        UnsupportedFormatError: The first format makes no GGUF files, which is what the store holds.
    """
    first = find_target(formats[0])
    if Path(first.output_name("", "")).suffix != SUFFIX:
        raise UnsupportedFormatError(
            f"keep: the store holds GGUF files, and the pick will be {first.title}. Name a format of GGUF files first "
            f"(--formats gguf,{first.name}), or leave --keep out."
        )
    store = Store.open()
    if store.has(store.checked_name(name)) and not overwrite:
        raise OutputExistsError(f"{name}: is in the store already. Choose another name or pass --overwrite.")


def keep(report: Report, name: str, *, progress: Progress = SILENT) -> StoredModel:
    """Store the file of a report under a name, with its passport, and its projector as a tag of that name."""
    settings, store = ModelSettings(source=report.model.name, passport=passport(report)), Store.open()
    kept = store.import_file(Path(report.path), ModelName.parse(name), settings, progress=progress)
    if report.projector is not None:
        beside = Path(report.path).with_name(report.projector.file)
        keep_projector(store, beside, kept.name, source=report.model.name, progress=progress)
    return kept


def passport(report: Report) -> dict[str, Any]:
    """Return the passport that lies beside the file of a report, as plain values."""
    found: dict[str, Any] = msgspec.json.decode(beside(Path(report.path), PASSPORT_SUFFIX).read_bytes())
    return found
