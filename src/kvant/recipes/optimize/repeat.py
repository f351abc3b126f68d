"""The commands that repeat a search."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from kvant.recipes.goal import Budget
from kvant.recipes.measure.calibration import BUNDLED, SELF
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.optimize.request import Request
from kvant.recipes.output import beside
from kvant.recipes.rebuild.lock import LOCK_SUFFIX
from kvant.units import format_bytes


def other_commands(request: Request, outcome: Outcome, places: Sequence[Path]) -> list[str]:
    """Write the commands that make the best of other formats, and measure them side by side."""
    if not places:
        return []
    made = []
    for search, place in zip(outcome.searches[1:], places, strict=True):
        words = search.target.command(search.taken.candidate, request.source, place, request.imatrix)
        if outcome.calibration:
            words = ["kvant", "rebuild", beside(place, LOCK_SUFFIX).name, "--source", str(request.source)]
            words += own_text(request)
        made.append(words)
    check = ["kvant", "evaluate", *(place.name for place in places), "--against", str(request.source)]
    return [shlex.join(words) for words in (*made, check)]


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


def own_text(request: Request) -> list[str]:
    """Name the calibration text where it is no bundled one."""
    return ["--text", request.calibrate] if request.calibrate not in (None, BUNDLED, SELF) else []


def commands(request: Request, outcome: Outcome, out: Path) -> tuple[str, ...]:
    """Write the commands that repeat the search, the file and the measurement."""
    budget, preset = request.budget, outcome.taken.candidate.preset
    limits = {
        "--max-size": budget.max_size_bytes, "--max-ram": budget.max_ram_bytes, "--min-speed": budget.min_speed_tok_s,
        "--max-kld": budget.max_kld, "--device": budget.device,
    }  # fmt: skip
    text = ["--text", str(request.text)] if request.text else ["--corpus", request.corpus]
    imatrix = ["--imatrix", str(request.imatrix)] if request.imatrix else []
    search = ["kvant", "optimize", str(request.source)]
    search += [word for name, value in limits.items() if value for word in (name, f"{value}")]
    search += ["--context", str(request.context), *text, "--chunks", str(request.chunks), *imatrix]
    search += ["--formats", ",".join(request.formats)] if len(request.formats) > 1 else []
    search += ["--candidates", ",".join(request.presets)] if request.presets else []
    search += ["--all"] if request.measure_all else []
    search += ["--calibrate", request.calibrate] if request.calibrate else []
    make = ["kvant", "quantize", str(request.source), "-t", preset, "-o", out.name, *imatrix]
    if outcome.calibration:
        lock = out.with_suffix(LOCK_SUFFIX).name
        make = ["kvant", "rebuild", lock, "--source", str(request.source), *own_text(request)]
    check = ["kvant", "evaluate", out.name, "--against", str(request.source), *text, "--chunks", str(request.chunks)]
    return tuple(shlex.join(words) for words in (search, make, check))
