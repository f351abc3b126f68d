"""How long a search takes, told before it starts, and how much of it fits a time.

    survey of the model in the engine ─┐
    some rows fitted here ─────────────┴─► Schedule ─► seconds of every step ─► what `--time` has room for

It decides how much text is read, and how many mixes are refined at most; whether there is time for one more is decided
by the clock (`Clock`).
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvant.calibrate.statistics import is_whole
from kvant.calibrate.survey import Survey, survey
from kvant.devices.limits import cores, spare_bytes
from kvant.dtypes import block_type
from kvant.errors import BudgetError, KvantError, ValueRangeError
from kvant.files import cache_dir
from kvant.kernels import fitting
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.measure.base import f32_file
from kvant.recipes.measure.calibration import directory_of, read_text
from kvant.recipes.measure.rounding import SAMPLE_ROWS, SWEEPS
from kvant.recipes.measure.textname import BUNDLED, NONE, SELF
from kvant.recipes.optimize.clock import Clock
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.yardstick import WINDOW_TOKENS
from kvant.tensors import n_rows, row_length
from kvant.units import counted, format_bytes, format_time

TIMED_ROWS = 32
TIMED_COLUMNS = (512, 1536)
TIMED_TYPE = "Q4_0"

SMALLER_TOKEN = 0.7
"""Time of a token in a quantized file over that in F32, on two cores."""

LONG_TEXT = 40
"""Windows of a text that is measured to its end."""

SPEED_S = 8.0
"""What timing a variant takes, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much a search does.

    Attributes:
        windows: Windows of calibration text.
        refinements: Mixes that are measured after the predictions were corrected.
        variants: Variants that are measured before, at least: the best by prediction, and some for a picture.
    """

    windows: int
    refinements: int
    variants: int


EFFORTS = (
    Effort(windows=4, refinements=0, variants=1), Effort(windows=8, refinements=0, variants=1),
    Effort(windows=16, refinements=0, variants=1), Effort(windows=16, refinements=0, variants=2),
    Effort(windows=16, refinements=1, variants=3), Effort(windows=32, refinements=1, variants=3),
    Effort(windows=32, refinements=2, variants=3), Effort(windows=64, refinements=2, variants=3),
    Effort(windows=64, refinements=4, variants=3),
)  # fmt: skip
"""From little to much, in the order in which they pay; what text is worth: docs/explanation/fitting.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of a search: what it is, in words, and its seconds."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What every step of a search takes.

    Attributes:
        survey: What measuring the model takes.
        shapes: Rows and columns of every matrix that is weighed.
        rounding: How fast rows are fitted here.
        measured_tokens: Tokens that every variant is measured on.
        ram_bytes: Memory for sums.
        windows: Windows that the text has, at most as many as are asked for.
        kept_windows: Numbers of windows of which statistics are kept from before.
    """

    survey: Survey
    shapes: tuple[tuple[int, int], ...]
    rounding: "Rounding"
    measured_tokens: int
    ram_bytes: int
    windows: int
    kept_windows: frozenset[int] = frozenset()

    def steps(self, effort: Effort) -> list[Step]:
        """Return the steps of a search, in their order."""
        windows, survey = effort.windows, self.survey
        count, is_kept = effort.variants + effort.refinements, windows in self.kept_windows
        base_s = self.measured_tokens * survey.token_s
        each_s = self.encode_s + SMALLER_TOKEN * base_s + SPEED_S
        read_s = 0.0 if is_kept else survey.statistics_s(windows, self.ram_bytes)
        tried_s = 0.0 if is_kept else survey.probes_s(windows)
        return [
            Step(what=f"reading {windows * survey.window_tokens:,} tokens", seconds=read_s),
            Step(what=f"trying errors in {len(survey.parts)} matrices", seconds=tried_s),
            Step(what="weighing block types", seconds=self.weigh_s),
            Step(what="running the original", seconds=base_s * (1 + SMALLER_TOKEN)),
            Step(what=f"making and measuring {count} variants", seconds=count * each_s),
        ]

    def seconds(self, effort: Effort) -> float:
        """Seconds of a search."""
        return sum(step.seconds for step in self.steps(effort))

    @property
    def weigh_s(self) -> float:
        """Seconds that weighing every block type takes."""
        return sum(
            n_types(columns) * self.rounding.rows_s(min(rows, SAMPLE_ROWS), columns, SWEEPS)
            + self.rounding.factor_s(columns)
            for rows, columns in self.shapes
        )

    @property
    def encode_s(self) -> float:
        """Seconds that encoding one variant takes."""
        return sum(
            self.rounding.rows_s(rows, columns, fitting.SWEEPS) + self.rounding.factor_s(columns)
            for rows, columns in self.shapes
        )

    def fit(self, seconds: float, most: Effort) -> Effort:
        """Return the most that fits a time, of what is asked for.

        Raises:
            BudgetError: Not even the least does.
        """
        able = [e for e in EFFORTS if e.windows <= most.windows and e.refinements <= most.refinements]
        able += [most] if self.seconds(most) > max((self.seconds(e) for e in able), default=0.0) else []
        fitting_ones = [effort for effort in able if self.seconds(effort) <= seconds]
        if not fitting_ones:
            least = able[0]
            raise BudgetError(
                f"time: calibrating on as little as {least.windows} windows takes about "
                f"{format_time(self.seconds(least))} here, above the {format_time(seconds)} that are left. Allow that, "
                "measure on fewer --chunks, or pass --calibrate none."
            )
        return fitting_ones[-1]

    def in_words(self, effort: Effort) -> str:
        """Say what will be done, how long it takes, and what memory and disk."""
        told = [step for step in self.steps(effort) if step.seconds >= 1]
        steps = ", ".join(f"{step.what} {format_time(step.seconds)}" for step in told)
        n, disk = self.survey.n_passes(self.ram_bytes), format_bytes(self.survey.disk_bytes)
        passes = f"the text is read {n} times, " if n > 1 else ""
        ram = format_bytes(min(self.survey.disk_bytes, max(self.ram_bytes, self.survey.largest_bytes)))
        return (
            f"About {format_time(self.seconds(effort))}: {steps}. Sums take {ram} of memory ({passes}--calibrate-ram) "
            f"and {disk} of disk."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How fast this machine fits rows and factors Hessians.

    Attributes:
        weight_s: Seconds per weight at the lengths `TIMED_COLUMNS`, by passes of descent.
        cube_s: Seconds of factoring a Hessian over the cube of its columns.
    """

    weight_s: dict[int, tuple[float, float]]
    cube_s: float

    def rows_s(self, rows: int, columns: int, sweeps: int) -> float:
        """Seconds of fitting so many rows."""
        (short, long), (first, last) = self.weight_s[sweeps], TIMED_COLUMNS
        slope = max(0.0, (long - short) / (last - first))
        return rows * columns * max(short / 2, short + slope * (columns - first))

    def factor_s(self, columns: int) -> float:
        """Seconds of making a Hessian ready."""
        return self.cube_s * columns**3


def time_rounding(threads: int) -> Rounding:
    """Fit some rows of random numbers, and see how long that takes."""
    random = np.random.default_rng(0)
    weight_s: dict[int, list[float]] = {SWEEPS: [], fitting.SWEEPS: []}
    cube_s = 0.0
    for columns in TIMED_COLUMNS:
        x = random.standard_normal((TIMED_ROWS * max(1, threads), columns), dtype=np.float32)
        start = time.perf_counter()
        curvature = fitting.prepare(np.cov(x[:TIMED_ROWS].T) + np.eye(columns), damping=0.1, threads=threads)
        cube_s = (time.perf_counter() - start) / columns**3
        for sweeps, found in weight_s.items():
            start = time.perf_counter()
            fitting.fit(x, TIMED_TYPE, curvature, sweeps=sweeps, threads=threads)
            found.append((time.perf_counter() - start) / x.size)
    return Rounding(weight_s={sweeps: (found[0], found[1]) for sweeps, found in weight_s.items()}, cube_s=cube_s)


def in_time(request: Request, model: Model, variants: int, clock: Clock, progress: Progress = SILENT) -> Request:
    """Say how long a search takes; return what of it fits the time that is given.

    Args:
        request: What is asked for.
        model: The full-precision model.
        variants: Variants that are measured at least.
        clock: Told what is predicted, and what was left out.
        progress: Told the same.

    Raises:
        BudgetError: Not even the least fits.
        KvantError: The disk cannot hold what is measured; and as of `schedule_of`.
    """
    schedule = schedule_of(request, model, progress=progress)
    if schedule is None:
        return request
    effort = asked = Effort(windows=schedule.windows, refinements=request.refinements, variants=variants)
    if clock.limit_s is not None:
        effort = schedule.fit(clock.limit_s - clock.elapsed_s, asked)
    if effort.windows != asked.windows:
        clock.left_out.append(f"calibrated on {effort.windows} of {counted(asked.windows, 'window')} of text")
    if effort.refinements != asked.refinements:
        clock.left_out.append(f"at most {effort.refinements} of {asked.refinements} mixes refined")
    if effort.windows not in schedule.kept_windows:
        check_room(cache_dir("statistics"), schedule.survey.disk_bytes)
    clock.predicted_s = schedule.seconds(effort) + clock.elapsed_s
    progress.say(schedule.in_words(effort))
    windows = request.calibrate_windows if effort.windows == asked.windows else effort.windows
    return msgspec.structs.replace(request, calibrate_windows=windows, refinements=effort.refinements)


def check_room(directory: Path, n_bytes: int) -> None:
    """Refuse to begin what a disk cannot hold.

    Raises:
        KvantError: It has fewer bytes free.
    """
    free = shutil.disk_usage(directory).free
    if n_bytes > free:
        raise KvantError(
            f"{directory}: has {format_bytes(free)} free, and what calibration measures takes {format_bytes(n_bytes)}. "
            "Free space there, set KVANT_HOME to another disk, or pass --calibrate none."
        )


def schedule_of(request: Request, model: Model, *, progress: Progress = SILENT) -> Schedule | None:
    """Look at a model and this machine, for seconds; None where nothing is measured of the model, or by gradients.

    Args:
        request: What is asked for.
        model: The full-precision model.
        progress: Told of what is made on the way.

    Raises:
        EngineError, UnsupportedModelError: llama.cpp cannot run the model, or shows no product of its matrices.
        ValueRangeError: A time or memory is asked for of gradients, which keep neither.
    """
    if request.calibrate == NONE:
        return None
    if request.statistics != "engine":
        for option, value, what in (
            ("--time", request.time_s, "how long they take is not predicted"),
            ("--calibrate-ram", request.calibrate_ram_bytes, "they take what one layer needs"),
        ):
            if value is not None:
                raise ValueRangeError(
                    f"{option}: is not for --statistics {request.statistics}: {what}. Leave one of them out."
                )
        return None
    threads = request.threads or cores()
    base_file, base = f32_file(model, progress=progress)
    source = BUNDLED if request.calibrate == SELF else request.calibrate  # what is yet to be written takes as long
    _, _, windows = read_text(model, source, windows=request.calibrate_windows, threads=threads, progress=progress)
    counts = {len(windows.tokens), *(effort.windows for effort in EFFORTS)}
    found = survey(base_file, model, windows.tokens[0], threads=threads)
    names = dict.fromkeys(part.name for part in found.parts)
    return Schedule(
        survey=found, shapes=tuple((n_rows(model.tensors[n]), row_length(model.tensors[n])) for n in names),
        rounding=time_rounding(threads),
        measured_tokens=(request.chunks or LONG_TEXT) * WINDOW_TOKENS,
        ram_bytes=request.calibrate_ram_bytes or spare_bytes(), windows=len(windows.tokens),
        kept_windows=frozenset(
            n for n in counts if is_whole(directory_of(base, windows.head(n), request.statistics))
        ) if request.calibrate != SELF else frozenset(),
    )  # fmt: skip


def n_types(columns: int) -> int:
    """Count the block types that are weighed for rows of a length."""
    return sum(columns % block_type(name).block_length == 0 for name in fitting.WORTH_WEIGHING)
