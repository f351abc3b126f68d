"""What the search found."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvant.devices.detect import Machine
from kvant.devices.profiles import Profile
from kvant.evaluate.baselogits import BaseLogits
from kvant.model import Model
from kvant.quant.importance import Importance
from kvant.recipes import formats
from kvant.recipes.formats import FormatVariant
from kvant.recipes.goal import Goal
from kvant.recipes.measure.base import Floor
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.measure.sample import Samples
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.targets.candidate import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the search found."""

    model: Model
    importance: Importance | None
    calibration: Calibration | None
    base: BaseLogits
    floors: Sequence[Floor]
    machine: Machine
    device: Profile
    goal: Goal
    candidates: Sequence[Candidate]
    fitting: Sequence[Candidate]
    measured: Sequence[Variant]
    keeping: Sequence[Variant]
    taken: Variant
    threads: int
    curve: Sequence[tuple[int, float]] = ()
    samples: Samples | None = None
    others: formats.Bench
    format_variants: Sequence[FormatVariant] = ()
    left_out: Sequence[str] = ()
