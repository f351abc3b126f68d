"""The Pareto front: points that no other point beats on both axes."""

from collections.abc import Callable, Iterable
from typing import TypeVar

PointT = TypeVar("PointT")


def front(
    points: Iterable[PointT], *, cost: Callable[[PointT], float], loss: Callable[[PointT], float]
) -> list[PointT]:
    """Return the points for which no other has at most their cost and loss and less of one of them.

    Args:
        points: Anything.
        cost: What a point costs, e.g. bytes.
        loss: What it loses, e.g. KL divergence.

    Returns:
        The front by rising cost and falling loss; of equal points the first one given.
    """
    best = float("inf")
    kept = []
    for point in sorted(points, key=lambda p: (cost(p), loss(p))):
        if loss(point) < best:
            best = loss(point)
            kept.append(point)
    return kept
