"""A candidate that was made and measured."""

import msgspec

from kvant.evaluate.scores import Score
from kvant.recipes.targets.candidate import Candidate


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that was made and measured.

    Attributes:
        candidate: What was made.
        score: What was measured of it.
        memory_bytes: Memory that it takes at the context asked for.
    """

    candidate: Candidate
    score: Score
    memory_bytes: int

    @property
    def loss(self) -> float:
        """Mean of what it loses, in its score's measure."""
        return self.score.loss
