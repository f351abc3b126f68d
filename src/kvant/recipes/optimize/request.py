"""What is asked of optimize."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kvant.errors import ValueRangeError
from kvant.recipes.goal import Budget
from kvant.recipes.measure.calibration import SEED, WINDOWS, Way
from kvant.recipes.measure.textname import BUNDLED
from kvant.recipes.optimize.fields import ABSENT, FIELDS, Field


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of `optimize`; `fields.py` says how each field is written elsewhere.

    Attributes:
        source: Hugging Face directory or GGUF of the full-precision model.
        budget: Limits to keep.
        out: Directory to write to, made if absent; by default one named after the model in the working directory.
        formats: Formats to search, by the names of `targets`; the first one's variant is the pick.
        presets: Presets to consider; every sensible one if empty.
        imatrix: Importance file that variants are encoded with.
        calibrate: Text to measure the model on, `bundled`, `self` for what it writes itself, or a file; adds
            candidates that are encoded under Hessians. `none` for no calibration.
        statistics: What measures it: `engine` for llama.cpp, whatever the architecture, or `gradients` for passes
            forward and backward with torch, whose bytes are the same on every machine.
        calibrate_windows: Most windows of 512 tokens of it.
        calibrate_seed: Of the labels drawn from the model's own predictions.
        refinements: Most mixes to measure for the size asked beyond the predicted best, each after the predictions were
            corrected by what was measured.
        projector: Type of the projector that goes with a model that sees or hears, or `none`; None for the usual one.
        context: Tokens of context that memory is predicted for.
        corpus: Bundled text to measure on.
        text: A file to measure on instead.
        chunks: Windows of 512 tokens to measure on; 0 for all the text holds.
        measure_all: Measure every variant that keeps the budget, not only those that may win.
        jobs: Variants made and measured at a time; more than one disturbs the speeds measured.
        threads: Threads in all; 0 for one per core.
        time_s: Seconds that the search may take. How much calibration text is read and how many mixes are refined is
            chosen to fit, at most what is asked for; None for as long as that takes.
        calibrate_ram_bytes: Memory that calibration's sums may take at a time; None for a third of what is free.
        keep_statistics: Put what calibration measured beside every fitted file, so that another machine can rebuild it.
        overwrite: Replace an output of the same name.
        accepted_licences: Licences that the person at the keyboard accepts, beside those the policy allows.
    """

    source: Path
    budget: Budget = Budget()
    out: Path | None = None
    formats: tuple[str, ...] = ("gguf",)
    presets: tuple[str, ...] = ()
    imatrix: Path | None = None
    calibrate: str = BUNDLED
    statistics: Way = "engine"
    calibrate_windows: int = WINDOWS
    calibrate_seed: int = SEED
    refinements: int = 4
    projector: str | None = None
    context: int = 4096
    corpus: str = "default"
    text: Path | None = None
    chunks: int = 16
    measure_all: bool = False
    jobs: int = 1
    threads: int = 0
    time_s: float | None = None
    calibrate_ram_bytes: int | None = None
    keep_statistics: bool = False
    overwrite: bool = False
    accepted_licences: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what nothing can keep."""
        for option, value in (("--time", self.time_s), ("--calibrate-ram", self.calibrate_ram_bytes)):
            if value is not None and not value > 0:
                raise ValueRangeError(f"{option}: {value} is not above 0. Give more.")


LIMITS = "budget."
"""Before the name of a limit, which is a field of the budget."""


def request_of(values: Mapping[str, Any]) -> Request:
    """Return the request of values by the names of their fields; absent ones are as a request has them."""
    limits = {name.removeprefix(LIMITS): value for name, value in values.items() if name.startswith(LIMITS)}
    others = {name: value for name, value in values.items() if not name.startswith(LIMITS)}
    return Request(budget=Budget(**limits), **others)


def value_of(request: Request, name: str) -> Any:
    """Return the value of the field of a name."""
    where = request.budget if name.startswith(LIMITS) else request
    return getattr(where, name.removeprefix(LIMITS))


def default_of(field: Field) -> Any:
    """Return what a field is where nothing is asked; of the source, which has no default, None."""
    return None if field.name == "source" else value_of(_NOTHING_ASKED, field.name)


def is_used(field: Field, request: Request) -> bool:
    """Whether a field says anything, beside what else is asked."""
    if field.needs is not None and value_of(request, field.needs) in ABSENT:
        return False
    return field.unless is None or value_of(request, field.unless) is None


def is_told(field: Field, request: Request) -> bool:
    """Whether a field is written where a request is written down: it is used, and not at its default unless stated."""
    value = value_of(request, field.name)
    return is_used(field, request) and value is not None and (field.is_stated or value != default_of(field))


def on_this_machine(asked: Request, given: Request) -> Request:
    """Return what is asked, with what belongs to one machine or one run as it is given."""
    own = {field.name: value_of(given, field.name) for field in FIELDS if field.place is None}
    return msgspec.structs.replace(asked, **own)


_NOTHING_ASKED = Request(source=Path())
