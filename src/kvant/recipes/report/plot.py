"""Geometry of the report's scatter plot: positions, ticks and labels that do not cover each other. No drawing here."""

import itertools
import math
from collections.abc import Sequence

import msgspec

from kvant.units import axis_bytes

CHARACTER_WIDTH = 7.0
LINE_HEIGHT = 15.0
LINE_STEP = 6.0
DOT_DISTANCE, RING_DISTANCE = 12.0, 16.0
# A label a step farther away is as bad as one that covers so many square units: it may seem to name another dot.
FAR_COST = 60.0
DOT_RADIUS = 7.0
# Decades below the largest loss that the axis shows; a lossless variant sits on its lower edge.
MAX_DECADES = 5
LOSSLESS = 1e-9


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Outer size of the plot and its margins, in SVG units."""

    width: float
    height: float
    left: float = 64
    right: float = 24
    top: float = 16
    bottom: float = 46


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What is plotted of one variant; `tone` is the class of style rules that colours it."""

    name: str
    size: float
    loss: float
    tone: str
    is_pick: bool
    on_front: bool
    notes: tuple[str, ...] = ()


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A point with its place, the place of its label and of its tooltip's box."""

    point: Point
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    tip_x: float
    tip_y: float
    tip_width: float
    tip_height: float


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """A mark on an axis."""

    at: float
    text: str


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a template needs to draw."""

    frame: Frame
    points: tuple[Placed, ...]
    size_ticks: tuple[Tick, ...]
    loss_ticks: tuple[Tick, ...]
    front_path: str
    curve_path: str
    limit_x: float | None
    limit_y: float | None


Box = tuple[float, float, float, float]


def layout(
    points: Sequence[Point], frame: Frame, *, size_limit: float | None = None, loss_limit: float | None = None,
    curve: Sequence[tuple[float, float]] = (),
) -> Plot:  # fmt: skip
    """Place points by size (linear) and loss (logarithmic), with ticks, labels, the front's line and a curve.

    Args:
        points: What to plot; sizes in bytes.
        frame: Size and margins.
        size_limit: A budget to draw as a vertical line.
        loss_limit: A bound to draw as a horizontal line.
        curve: Sizes and losses to draw as a line, by rising size; what lies outside the points' range is left out.
    """
    sizes = [p.size for p in points] + ([size_limit] if size_limit else [])
    low, high = _padded(min(sizes), max(sizes))
    positive = [p.loss for p in points if p.loss > LOSSLESS] + ([loss_limit] if loss_limit else [])
    bottom, top = _log_range(positive or [1e-3])

    def x_of(size: float) -> float:
        return frame.left + (size - low) / (high - low) * (frame.width - frame.left - frame.right)

    def y_of(loss: float) -> float:
        share = (math.log10(max(loss, 10**bottom)) - bottom) / (top - bottom)
        return frame.height - frame.bottom - share * (frame.height - frame.top - frame.bottom)

    places = [(p, x_of(p.size), y_of(p.loss)) for p in points]
    front = sorted((x, y) for p, x, y in places if p.on_front)
    return Plot(
        frame=frame,
        points=tuple(_placed(places, front, frame)),
        size_ticks=tuple(Tick(at=x_of(v), text=axis_bytes(v, high)) for v in _linear_ticks(low, high, frame)),
        loss_ticks=tuple(Tick(at=y_of(v), text=f"{v:g}") for v in _log_ticks(bottom, top)),
        front_path=_path(front),
        curve_path=_path(
            [(x_of(size), y_of(loss)) for size, loss in curve if low <= size <= high and 10**bottom <= loss <= 10**top]
        ),
        limit_x=x_of(size_limit) if size_limit else None,
        limit_y=y_of(loss_limit) if loss_limit else None,
    )


def _placed(
    places: Sequence[tuple[Point, float, float]], front: Sequence[tuple[float, float]], frame: Frame
) -> list[Placed]:
    """Give every point's label the first free place around it, off dots and the front's line, the pick's first."""
    dots = [(x - DOT_RADIUS, y - DOT_RADIUS, x + DOT_RADIUS, y + DOT_RADIUS) for _, x, y in places]
    taken = _along(front)
    placed = []
    for index in sorted(range(len(places)), key=lambda i: not places[i][0].is_pick):
        point, x, y = places[index]
        others = [box for i, box in enumerate(dots) if i != index]
        near = RING_DISTANCE if point.is_pick else DOT_DISTANCE
        label_x, label_y, anchor, box = _label(point.name, x, y, near, frame, others + taken)
        taken.append(box)
        tip_width = max(map(len, (*point.notes, point.name))) * CHARACTER_WIDTH + 20
        tip_height = (len(point.notes) + 1) * LINE_HEIGHT + 14
        placed.append(
            Placed(
                point=point,
                x=x,
                y=y,
                label_x=label_x,
                label_y=label_y,
                anchor=anchor,
                tip_x=min(max(4.0, x - tip_width / 2), frame.width - tip_width - 4),
                tip_y=y + 14 if y + 14 + tip_height < frame.height else max(2.0, y - 14 - tip_height),
                tip_width=tip_width,
                tip_height=tip_height,
            )
        )
    return placed


def _along(line: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along a line, so that labels keep off it."""
    boxes = []
    for (x1, y1), (x2, y2) in itertools.pairwise(line):
        steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / LINE_STEP))
        for i in range(steps + 1):
            x, y = x1 + (x2 - x1) * i / steps, y1 + (y2 - y1) * i / steps
            boxes.append((x - 2, y - 2, x + 2, y + 2))
    return boxes


def _label(
    name: str, x: float, y: float, near: float, frame: Frame, blocked: Sequence[Box]
) -> tuple[float, float, str, Box]:
    """Return the place of a label that covers least of what is there already: x, y, anchor and its box."""
    width = len(name) * CHARACTER_WIDTH
    best: tuple[float, tuple[float, float, str, Box]] | None = None
    for step, distance in enumerate((near, near + 12, near + 26)):
        for dx, dy, anchor in (
            (distance, 4, "start"), (-distance, 4, "end"), (0, -distance, "middle"), (0, distance + 9, "middle"),
            (distance * 0.8, -distance * 0.8, "start"), (-distance * 0.8, -distance * 0.8, "end"),
            (distance * 0.8, distance * 0.8 + 8, "start"), (-distance * 0.8, distance * 0.8 + 8, "end"),
        ):  # fmt: skip
            left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, y + dy - LINE_HEIGHT + 3, left + width, y + dy + 3)
            cost = FAR_COST * step + sum(_overlap(box, other) for other in blocked) + 10 * _outside(box, frame)
            if best is None or cost < best[0]:
                best = (cost, (x + dx, y + dy, anchor, box))
            if cost == 0:
                return best[1]
    assert best is not None
    return best[1]


def _overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, frame: Frame) -> float:
    left, right = max(0.0, frame.left + 2 - box[0]), max(0.0, box[2] - frame.width + 4)
    above, below = max(0.0, frame.top - box[1]), max(0.0, box[3] - (frame.height - frame.bottom) + 2)
    return (left + right) * LINE_HEIGHT + (above + below) * 40


def _path(corners: Sequence[tuple[float, float]]) -> str:
    """An SVG path from corner to corner."""
    return " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(corners))


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low or high or 1.0) * 0.08
    return max(0.0, low - margin), high + margin


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    """Exponents between which an axis runs: all values with a margin, at most `MAX_DECADES`."""
    top = math.log10(max(values)) + 0.12
    bottom = max(math.log10(min(values)) - 0.12, top - MAX_DECADES)
    return (bottom, top) if top - bottom > 0.5 else (bottom - 0.25, top + 0.25)


def _linear_ticks(low: float, high: float, frame: Frame) -> list[float]:
    wanted = max(2.0, (frame.width - frame.left - frame.right) / 90)
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    return [step * i for i in range(first, int(high / step) + 1)]


def _log_ticks(bottom: float, top: float) -> list[float]:
    factors = (1, 2, 5) if top - bottom < 3 else (1,)
    decades = range(math.floor(bottom), math.ceil(top) + 1)
    values = [round(factor * 10.0**d, 12) for d in decades for factor in factors]
    return [v for v in values if bottom <= math.log10(v) <= top]
