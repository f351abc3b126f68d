"""A candidate that was made and measured."""

import msgspec

from kvant.evaluate.score import VariantScore
from kvant.recipes.targets.candidate import Candidate


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that was made and measured."""

    candidate: Candidate
    score: VariantScore

    @property
    def kld(self) -> float:
        """Mean KL divergence from the full-precision model, nats per token."""
        return self.score.kld_mean
