"""Geometry of the picture of a plan: one row per role, one cell per layer, shaded by bits per weight."""

import re
from collections.abc import Sequence

import msgspec

WIDTH, LEFT, CELL_HEIGHT, GAP, FOOT = 736.0, 118.0, 20.0, 4.0, 22.0
# Upper ends of the shades in bits per weight, coarse to fine; what lies above the last one has the last shade.
SHADE_BPW = (2.2, 3.0, 4.0, 4.6, 5.1, 5.8, 7.0, 9.0)
MAX_ROWS, MAX_LAYERS = 40, 512
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


class TensorType(msgspec.Struct, frozen=True, kw_only=True):
    """How a weight matrix is stored, in `bpw` bits per weight."""

    name: str
    type: str
    size_bytes: int
    bpw: float


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor."""

    x: float
    width: float
    shade: int
    title: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """All layers of one role."""

    name: str
    y: float
    cells: tuple[Cell, ...]


class LegendItem(msgspec.Struct, frozen=True, kw_only=True):
    """A block type that occurs, with its share of the bytes."""

    name: str
    bpw: float
    shade: int
    share: float


class Strip(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a template needs to draw."""

    width: float
    height: float
    left: float
    cell_height: float
    rows: tuple[Row, ...]
    legend: tuple[LegendItem, ...]


def strip(tensors: Sequence[TensorType]) -> Strip:
    """Lay the weight matrices of a plan out: roles down, layers across; tensors outside the layers span the width."""
    layers = 1 + max((int(m[1]) for t in tensors if (m := _LAYER.fullmatch(t.name))), default=0)
    by_role: dict[str, list[tuple[int | None, TensorType]]] = {}
    for tensor in tensors:
        match = _LAYER.fullmatch(tensor.name)
        role = match[2] if match else tensor.name
        by_role.setdefault(role.removesuffix(".weight"), []).append((int(match[1]) if match else None, tensor))
    cell = (WIDTH - LEFT) / min(layers, MAX_LAYERS)
    rows = tuple(
        Row(
            name=role[:16],
            y=index * (CELL_HEIGHT + GAP),
            cells=tuple(
                Cell(
                    x=LEFT if layer is None else LEFT + layer * cell,
                    width=WIDTH - LEFT if layer is None else cell,
                    shade=shade(tensor.bpw),
                    title=f"{tensor.name}: {tensor.type}, {tensor.bpw:.2f} bits per weight",
                )
                for layer, tensor in members
                if layer is None or layer < MAX_LAYERS
            ),
        )
        for index, (role, members) in enumerate(list(by_role.items())[:MAX_ROWS])
    )
    height = len(rows) * (CELL_HEIGHT + GAP) + FOOT
    return Strip(width=WIDTH, height=height, left=LEFT, cell_height=CELL_HEIGHT, rows=rows, legend=_legend(tensors))


def shade(bpw: float) -> int:
    """Number of the shade of so many bits per weight."""
    return sum(bpw > limit for limit in SHADE_BPW)


def _legend(tensors: Sequence[TensorType]) -> tuple[LegendItem, ...]:
    total = sum(t.size_bytes for t in tensors) or 1
    kinds: dict[str, list[TensorType]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.type, []).append(tensor)
    items = [
        LegendItem(
            name=name, bpw=same[0].bpw, shade=shade(same[0].bpw), share=sum(t.size_bytes for t in same) / total
        )
        for name, same in kinds.items()
    ]  # fmt: skip
    return tuple(sorted(items, key=lambda item: item.bpw))
