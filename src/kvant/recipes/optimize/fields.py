"""What `optimize` can be asked: one table, which the request, its recipe and its command line follow.

request ── recipe document ── request (schema.py)
request ── words of the command line (repeat.py) ── request (cli/optimize.py)

Defaults stand in `Request` alone. This module imports nothing, since the command line reads it before it is known
whether any work is to be done.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

ABSENT = (None, "none")
"""Values of a field that another one needs, without which that has no use."""

LARGEST = 1 << 31
"""Bound of counts that have none of their own."""


class Kind(Enum):
    """What a value is, and so how it is written."""

    BYTES = auto()  # int; with a unit on the command line
    TIME = auto()  # float, seconds; with a unit on the command line
    COUNT = auto()  # int
    NUMBER = auto()  # float
    FLAG = auto()  # bool; given or not on the command line
    WORD = auto()  # str
    LIST = auto()  # tuple[str, ...]; joined by commas on the command line
    EACH = auto()  # tuple[str, ...]; an option for every one
    PATH = auto()  # Path; relative to its directory in a recipe
    TEXT = auto()  # str; names a calibration text, see measure/textname.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of what is asked.

    Attributes:
        name: In `Request`; `budget.` is before the limits' names.
        option: On the command line; a name without dashes is the argument.
        kind: What its value is.
        place: In a recipe, `group.name` within a group; None for what belongs to one machine or one run.
        low: Least count.
        high: Largest count.
        is_stated: Written down at its default, too.
        needs: Name of the field without which this one has no use.
        unless: Name of the field beside which it has none.
        why: What is said to who gives it without use.
        of_text: Why it has none of a model that makes vectors of texts; empty if it has.
        repeats: When the command that repeats a search gives it: at other values than its default, only if a speed is
            asked for (which others might then not reach), or never.
    """

    name: str
    option: str
    kind: Kind
    place: str | None = None
    low: int = 0
    high: int = LARGEST
    is_stated: bool = False
    needs: str | None = None
    unless: str | None = None
    why: str = ""
    of_text: str = ""
    repeats: Literal["changed", "timed", "never"] = "changed"

    @property
    def is_argument(self) -> bool:
        """Whether it has no option's name on the command line, only its position."""
        return not self.option.startswith("-")


_TEXT = "is of the calibration text, which --calibrate gives"
_FITTED = "is for fitted variants, which need --calibrate"

# fmt: off
FIELDS: tuple[Field, ...] = (
    Field(name="source", option="model", kind=Kind.PATH, place="source", is_stated=True),
    Field(name="budget.max_size_bytes", option="--max-size", kind=Kind.BYTES, place="budget.max_size_bytes"),
    Field(name="budget.max_ram_bytes", option="--max-ram", kind=Kind.BYTES, place="budget.max_ram_bytes"),
    Field(name="budget.min_speed_tok_s", option="--min-speed", kind=Kind.NUMBER, place="budget.min_speed_tok_s"),
    Field(name="budget.max_kld", option="--max-kld", kind=Kind.NUMBER, place="budget.max_kld"),
    Field(name="budget.max_distance", option="--max-distance", kind=Kind.NUMBER, place="budget.max_distance"),
    Field(name="budget.device", option="--device", kind=Kind.WORD, place="budget.device"),
    Field(name="calibrate", option="--calibrate", kind=Kind.TEXT, place="calibrate.text", is_stated=True,
          of_text="measures what a model writes"),
    Field(name="statistics", option="--statistics", kind=Kind.WORD, place="calibrate.statistics",
          needs="calibrate", why="is how calibration measures, which --calibrate none leaves out"),
    Field(name="calibrate_windows", option="--calibrate-windows", kind=Kind.COUNT, place="calibrate.windows",
          is_stated=True, needs="calibrate", why=_TEXT),
    Field(name="calibrate_seed", option="--calibrate-seed", kind=Kind.COUNT, place="calibrate.seed",
          is_stated=True, needs="calibrate", why=_TEXT),
    Field(name="imatrix", option="--imatrix", kind=Kind.PATH, place="imatrix"),
    Field(name="formats", option="--formats", kind=Kind.LIST, place="formats", is_stated=True),
    Field(name="presets", option="--candidates", kind=Kind.LIST, place="candidates"),
    Field(name="refinements", option="--refine", kind=Kind.COUNT, place="refine", high=10,
          needs="calibrate", why=_FITTED),
    Field(name="projector", option="--mmproj", kind=Kind.WORD, place="mmproj"),
    Field(name="context", option="--context", kind=Kind.COUNT, place="context", low=16, is_stated=True),
    Field(name="corpus", option="--corpus", kind=Kind.WORD, place="measure.corpus", unless="text",
          why="is a bundled text, and --text gives another"),
    Field(name="text", option="--text", kind=Kind.PATH, place="measure.text"),
    Field(name="chunks", option="--chunks", kind=Kind.COUNT, place="measure.chunks",
          of_text="counts windows of text that a model goes on with"),
    Field(name="measure_all", option="--all", kind=Kind.FLAG, place="measure.all"),
    Field(name="out", option="--out", kind=Kind.PATH, repeats="never"),
    Field(name="jobs", option="--jobs", kind=Kind.COUNT, low=1, repeats="timed"),
    Field(name="threads", option="--threads", kind=Kind.COUNT, repeats="timed"),
    Field(name="keep_statistics", option="--keep-statistics", kind=Kind.FLAG, needs="calibrate",
          why="is what calibration measured", repeats="never"),
    Field(name="overwrite", option="--overwrite", kind=Kind.FLAG, repeats="never"),
    Field(name="time_s", option="--time", kind=Kind.TIME, repeats="never"),
    Field(name="calibrate_ram_bytes", option="--calibrate-ram", kind=Kind.BYTES, needs="calibrate",
          why="is for what calibration sums up", repeats="never"),
    Field(name="accepted_licences", option="--accept-licence", kind=Kind.EACH),
)
# fmt: on
