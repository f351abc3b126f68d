"""A candidate that was made and measured."""

import msgspec

from kvant.evaluate.score import VariantScore
from kvant.recipes.targets.candidate import Candidate


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that was made and measured.

    Attributes:
        candidate: What was made.
        score: What was measured of it.
        memory_bytes: Memory that it takes at the context asked for.
    """

    candidate: Candidate
    score: VariantScore
    memory_bytes: int

    @property
    def kld(self) -> float:
        """Mean KL divergence from the full-precision model, nats per token."""
        return self.score.kld_mean
