"""What was measured of a model, read from whichever form it comes in: a passport, or the report of a search.

Both are somebody's JSON: every value is checked before it is shown, and what is not as it should be is left out.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kvant.documents import check_version
from kvant.evaluate.loss import MEASURES, Measure
from kvant.formats.gguf.spec import SHARD_NAME

PASSPORT_SUFFIX = ".passport.json"
PASSPORT_FORM = REPORT_FORM = 1
"""The fields `passport` and `report` of either document."""
MAX_BYTES = 8 << 20
MAX_CHARACTERS = 200
_COUNTS = ("rss_bytes", "n_positions", "n_threads")
_NUMBERS = (
    "kld_mean", "kld_se", "kld_p99", "top1", "ppl", "ppl_ratio", "distance_mean", "distance_se", "distance_p99",
    "overlap", "found", "tg_tok_s", "pp_tok_s",
)  # fmt: skip


class Measured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured of a model; None where it was not.

    Attributes:
        kld_mean: Mean KL divergence from the full-precision model, nats; of a model that writes text.
        kld_se: Its standard error.
        kld_p99: What 99 % of positions stay below.
        top1: Share of positions with the same most likely token, 0 to 1.
        ppl: Perplexity.
        ppl_ratio: Perplexity over the full-precision model's.
        distance_mean: Mean cosine distance to its vectors; of a model that makes vectors of texts.
        distance_se: Its standard error.
        distance_p99: What 99 % of texts stay below.
        overlap: Share of its 10 passages nearest to a query that are found, too, 0 to 1.
        found: Share of queries whose own passage is the nearest.
        tg_tok_s: Generated tokens per second.
        pp_tok_s: Prompt tokens per second.
        rss_bytes: Peak resident memory.
        n_positions: Positions scored.
        n_threads: Threads used.
        machine: Processor it was measured on.
        base: Name of the full-precision model.
        base_sha256: Its identity.
        text: Name of the text measured on.
        text_sha256: Its hash.
        sha256: Hash of the measured file.
    """

    kld_mean: float | None = None
    kld_se: float | None = None
    kld_p99: float | None = None
    top1: float | None = None
    ppl: float | None = None
    ppl_ratio: float | None = None
    distance_mean: float | None = None
    distance_se: float | None = None
    distance_p99: float | None = None
    overlap: float | None = None
    found: float | None = None
    tg_tok_s: float | None = None
    pp_tok_s: float | None = None
    rss_bytes: int | None = None
    n_positions: int | None = None
    n_threads: int | None = None
    machine: str | None = None
    base: str | None = None
    base_sha256: str | None = None
    text: str | None = None
    text_sha256: str | None = None
    sha256: str | None = None

    @property
    def measure(self) -> Measure | None:
        """What its loss is measured in; None if it has none."""
        return next((measure for measure in MEASURES.values() if measure.mean_of(self) is not None), None)


def check_form(document: Mapping[str, Any], subject: object) -> None:
    """Refuse a passport or report of a newer form.

    Raises:
        FormatError: It is, or says of no form that it has it.
    """
    check_version(document, "passport", PASSPORT_FORM, subject=subject)
    check_version(document, "report", REPORT_FORM, subject=subject)


def read(document: Mapping[str, Any], subject: object = "passport") -> Measured | None:
    """Return what a passport or a report says; None if it holds no loss.

    Raises:
        FormatError: It is of a newer form, named with `subject`, where it is from.
    """
    check_form(document, subject)
    score = _score(document)
    values: dict[str, Any] = {name: _number(score.get(name)) for name in _NUMBERS}
    values |= {name: _count(score.get(name)) for name in _COUNTS}
    found = Measured(**values, **_origin(document))
    return found if found.measure else None


def beside(path: Path, size_bytes: int) -> dict[str, Any] | None:
    """Return the passport beside a file of a size, as `kvant optimize` writes it; None if there is none for it.

    Raises:
        FormatError: It is of a newer form.
    """
    stem = path.with_suffix("")
    match = SHARD_NAME.fullmatch(path.name)
    passport = stem.with_name((match["stem"] if match else stem.name) + PASSPORT_SUFFIX)
    try:
        with passport.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        document = json.loads(data) if len(data) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    check_form(document, passport)
    if _score(document).get("size_bytes") != size_bytes:
        return None
    return document


def _score(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the measurements: a passport's, or those of a report's pick."""
    variants = document.get("variants")
    if isinstance(variants, list):
        picked = [v for v in variants if isinstance(v, dict) and v.get("preset") == document.get("pick")]
        document = picked[0] if picked else {}
    score = document.get("score")
    return score if isinstance(score, dict) else {}


def _origin(document: Mapping[str, Any]) -> dict[str, Any]:
    text, model, machine = document.get("text"), document.get("model"), document.get("machine")
    return {
        "machine": _words(machine.get("cpu") if isinstance(machine, dict) else machine),
        "base": _words(model.get("name") if isinstance(model, dict) else model),
        "base_sha256": _words(document.get("base_sha256")),
        "text": _words(text.get("name") if isinstance(text, dict) else text),
        "text_sha256": _words(text.get("sha256") if isinstance(text, dict) else document.get("text_sha256")),
        "sha256": _words(document.get("sha256")),
    }


def _words(value: object) -> str | None:
    return value[:MAX_CHARACTERS] if isinstance(value, str) and value else None


def _number(value: object) -> float | None:
    """Return a number that can be shown and plotted; divergences and speeds are not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and value > 1 << 53:
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else None
