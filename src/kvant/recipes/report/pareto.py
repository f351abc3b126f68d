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


def knee(
    points: Iterable[PointT], *, cost: Callable[[PointT], float], loss: Callable[[PointT], float]
) -> PointT | None:
    """Return the point of the front after which more cost buys least: farthest below the line between its ends.

    Both axes are scaled to 0..1 over the front, so that units do not matter. None if there are no points.
    """
    line = front(points, cost=cost, loss=loss)
    if len(line) < 3:
        return line[0] if line else None
    costs, losses = [cost(p) for p in line], [loss(p) for p in line]
    span, drop = costs[-1] - costs[0], losses[0] - losses[-1]
    below = [1 - (c - costs[0]) / span - (x - losses[-1]) / drop for c, x in zip(costs, losses, strict=True)]
    return line[below.index(max(below))]
