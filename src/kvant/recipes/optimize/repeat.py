"""The commands that repeat a search, for the directory that it was run in."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvant.recipes.goal import Budget
from kvant.recipes.measure.textname import NONE, file_named
from kvant.recipes.optimize.fields import FIELDS, Field, Kind
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.optimize.request import Request, is_told, value_of
from kvant.recipes.output import beside
from kvant.recipes.rebuild.lock import LOCK_SUFFIX
from kvant.recipes.targets.base import Target
from kvant.units import format_bytes


def limits_in_words(budget: Budget, context: int) -> str:
    """Write the limits as a person would; empty if there are none."""
    words = []
    if budget.max_size_bytes:
        words.append(f"at most {format_bytes(budget.max_size_bytes)}")
    if budget.max_ram_bytes:
        words.append(f"at most {format_bytes(budget.max_ram_bytes)} of memory at {context} tokens of context")
    if budget.min_speed_tok_s:
        words.append(f"at least {budget.min_speed_tok_s:g} tokens/s")
    if budget.device:
        words.append(f"the device {budget.device}")
    return " and ".join(words)


def search_words(request: Request) -> list[str]:
    """Return the words of the command line that asks for the same search."""
    told = [field for field in FIELDS if is_told(field, request) and _repeats(field, request)]
    return ["kvant", "optimize", *(word for field in told for word in words_of(field, value_of(request, field.name)))]


def commands(request: Request, outcome: Outcome, places: Sequence[Path]) -> tuple[str, ...]:
    """Write the commands that repeat the search, make every output again, and measure them side by side."""
    made = [
        file_words(request, search.target, place, taken.preset, is_fitted=taken.is_fitted)
        for search, place, taken in zip(
            outcome.searches, places, (s.taken.candidate for s in outcome.searches), strict=True
        )
    ]
    text = ["--text", _path(request.text)] if request.text else ["--corpus", request.corpus]
    check = ["kvant", "evaluate", *(_path(place.name) for place in places), "--against", _path(request.source), *text]
    check += ["--chunks", str(request.chunks)] if outcome.yardstick.measure.writes else []
    return tuple(shlex.join(words) for words in (search_words(request), *made, check))


def file_words(request: Request, target: Target, out: Path, preset: str, *, is_fitted: bool) -> list[str]:
    """Return the words that make what was found again, in the working directory.

    A lock knows what was measured on which text; of a preset by itself, or with an importance file, nothing was.
    """
    if is_fitted or (request.calibrate != NONE and request.imatrix is None):
        return rebuild_words(request, out)
    imatrix = _path(request.imatrix) if request.imatrix else None
    return target.command(preset, _path(request.source), _path(out.name), imatrix)


def rebuild_words(request: Request, out: Path) -> list[str]:
    """Return the words that make an output again from the lock beside it."""
    return [
        "kvant", "rebuild", _path(beside(out, LOCK_SUFFIX)), "--source", _path(request.source), *own_text(request),
    ]  # fmt: skip


def own_text(request: Request) -> list[str]:
    """Name the calibration text where it is a file."""
    file = file_named(request.calibrate)
    return [] if file is None else ["--text", _path(file)]


def words_of(field: Field, value: Any) -> list[str]:
    """Return the words that give a field its value on the command line."""
    if field.kind is Kind.FLAG:
        return [field.option] if value else []
    if field.kind is Kind.EACH:
        return [word for one in value for word in _given(field.option, one)]
    if field.kind is Kind.LIST:
        return _given(field.option, ",".join(value))
    if field.kind in (Kind.PATH, Kind.TEXT):
        value = _path(value)
    return [value] if field.is_argument else _given(field.option, f"{value}")


def _given(option: str, value: str) -> list[str]:
    """Give an option its value; one that begins as options do cannot stand alone."""
    return [f"{option}={value}"] if value.startswith("-") else [option, value]


def _path(path: Path | str) -> str:
    """Write a path so that it is not taken for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _repeats(field: Field, request: Request) -> bool:
    """Whether a field decides what a search finds."""
    timed = field.repeats == "timed" and request.budget.min_speed_tok_s is not None
    return field.repeats == "changed" or timed
