"""How much a request needs of a worker: context, and the longest text that is read in one batch."""

from typing import NamedTuple


class Extent(NamedTuple):
    """What a worker is started with, or a request asks for.

    Attributes:
        context: Tokens of context of one request.
        batch: Tokens that are read at once, which a vector of a text needs; 0 for the engine's own choice.
    """

    context: int
    batch: int = 0

    def covers(self, other: "Extent") -> bool:
        """Whether it does for what another one does."""
        return self.context >= other.context and self.batch >= other.batch

    def with_(self, other: "Extent") -> "Extent":
        """Return what does for both."""
        return Extent(max(self.context, other.context), max(self.batch, other.batch))
