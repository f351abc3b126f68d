"""Put what an optimization found into the local store, with what was measured of it."""

from pathlib import Path
from typing import Any

import msgspec

from kvant.errors import OutputExistsError
from kvant.hub.manifest import ModelSettings
from kvant.hub.names import ModelName
from kvant.hub.store import Store, StoredModel
from kvant.progress import SILENT, Progress
from kvant.recipes.report.report import Report


def check_name(name: str, *, overwrite: bool) -> None:
    """Refuse a name before hours of work, not after.

    Raises:
        ModelNameError: It is not a name for a new model.
        OutputExistsError: Another model has it, and `overwrite` is false.
    """
    store = Store.open()
    if store.has(store.checked_name(name)) and not overwrite:
        raise OutputExistsError(f"{name}: is in the store already. Choose another name or pass --overwrite.")


def keep(report: Report, name: str, *, progress: Progress = SILENT) -> StoredModel:
    """Store the file of a report under a name, with its passport."""
    settings = ModelSettings(source=report.model.name, passport=passport(report))
    return Store.open().import_file(Path(report.path), ModelName.parse(name), settings, progress=progress)


def passport(report: Report) -> dict[str, Any]:
    """Return the passport that lies beside the file of a report, as plain values."""
    found: dict[str, Any] = msgspec.json.decode(Path(report.path).with_suffix(".passport.json").read_bytes())
    return found
