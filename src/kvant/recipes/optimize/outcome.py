"""What the searches found."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvant.recipes.goal import Goal
from kvant.recipes.measure.sample import Samples
from kvant.recipes.optimize.search import Search
from kvant.recipes.optimize.variant import Variant
from kvant.recipes.optimize.yardstick import Yardstick
from kvant.recipes.targets.base import Material


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the searches found.

    Attributes:
        material: What everything was made from.
        yardstick: What it was measured against.
        goal: What is best.
        searches: Formats that have a variant, in the order asked for; the first one's is the pick.
        best: The best of all formats.
        left_out: Why other formats have none.
        samples: What the original and variants say to the same prompt.
    """

    material: Material
    yardstick: Yardstick
    goal: Goal
    searches: Sequence[Search]
    best: Variant
    left_out: Sequence[str]
    samples: Samples | None = None

    @property
    def first(self) -> Search:
        """The search whose pick the report is about."""
        return self.searches[0]
