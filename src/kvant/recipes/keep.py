"""Put what an optimization found into the local store, with what was measured of it."""

from pathlib import Path
from typing import Any

from kvant.errors import OutputExistsError
from kvant.hub.manifest import ModelSettings
from kvant.hub.names import ModelName
from kvant.hub.store import Store, StoredModel
from kvant.progress import SILENT, Progress
from kvant.recipes.report import Report


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
    """Return what a report says of the variant it took, as plain values."""
    taken = next(v for v in report.variants if v.is_pick and v.format == "gguf")
    score = taken.score
    return {
        "variant": report.pick, "reason": report.reason, "asked": report.asked, "sha256": report.sha256,
        "created": report.created, "base": report.model.name, "text": report.text.name,
        "text_tokens": report.text.tokens, "size_bytes": taken.size_bytes, "bpw": taken.bpw,
        "kld_mean": score.kld_mean, "kld_se": score.kld_se, "kld_p99": score.kld_p99, "top1": score.top1,
        "ppl_ratio": score.ppl_ratio, "tg_tok_s": score.tg_tok_s, "context": report.context,
        "ram_bytes": taken.memory_bytes, "cost": taken.cost, "versions": dict(report.versions),
    }  # fmt: skip
