"""Token buckets by name: how often something may happen, in memory that no number of names makes grow."""

import time
from collections.abc import Callable

MOST = 4096


class Buckets:
    """One bucket for every name; each begins full and fills up steadily.

    Args:
        size: What a full bucket holds.
        per_s: What flows in each second.
        most: Names that are remembered; beyond, full buckets are forgotten, then those used longest ago.
        clock: Seconds that only grow.
    """

    def __init__(
        self, size: float, per_s: float, *, most: int = MOST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.size, self.per_s = size, per_s
        self._most, self._clock = most, clock
        self._levels: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, name: str, amount: float = 1.0) -> float:
        """Take from a bucket if it holds enough (a full one is always enough).

        Returns:
            0.0 if it was taken, else the seconds until it could be.
        """
        now = self._clock()
        level, since = self._levels.pop(name, (self.size, now))
        level = min(self.size, level + (now - since) * self.per_s)
        missing = min(amount, self.size) - level
        self._levels[name] = (level if missing > 0 else level - amount, now)
        if len(self._levels) > self._most:
            self._forget(now)
        return max(0.0, missing / self.per_s)

    def _forget(self, now: float) -> None:
        """Drop full buckets, and half of all where that is not enough: rare, so that it costs little per call."""
        kept = [(n, v) for n, v in self._levels.items() if v[0] + (now - v[1]) * self.per_s < self.size]
        self._levels = dict(kept[-self._most // 2 :])
