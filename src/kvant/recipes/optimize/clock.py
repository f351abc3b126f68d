"""The time that a search takes, and what it may take."""

import statistics
import time
from dataclasses import dataclass, field

from kvant.units import format_time


@dataclass(slots=True, kw_only=True)
class Clock:
    """Time since a search began, and what it may take in all.

    Attributes:
        limit_s: Seconds; None for as long as it takes.
        predicted_s: What was predicted; None if nothing was.
        left_out: What was left out to keep the limit, in words.
        start: When it began, by the monotonic clock.
        each_s: What every variant took that was made and measured.
    """

    limit_s: float | None = None
    predicted_s: float | None = None
    left_out: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)
    each_s: list[float] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.start

    def rooms(self, most: int) -> int:
        """How many more variants can be made and measured in time, `most` at most; as the ones before took."""
        if self.limit_s is None:
            return most
        left, each = self.limit_s - self.elapsed_s, statistics.mean(self.each_s) if self.each_s else 0.0
        return most if each == 0 and left > 0 else max(0, min(most, int(left / each))) if each else 0

    def in_words(self) -> list[str]:
        """Say what was left out for time, and how long everything took beside what was predicted."""
        said = []
        if self.limit_s is not None and self.left_out:
            said.append(f"For --time {format_time(self.limit_s)}: {', '.join(self.left_out)}.")
        if self.predicted_s is not None:
            said.append(f"Took {format_time(self.elapsed_s)}; {format_time(self.predicted_s)} were predicted.")
        return said
