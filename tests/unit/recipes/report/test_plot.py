import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.recipes.report.plot import CHARACTER_WIDTH, Frame, Placed, Point, layout
from kvant.recipes.report.report import NARROW, WIDE
from kvant.recipes.report.strip import SHADE_BPW, TensorType, shade, strip

PRESETS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "Q3_K_M", "IQ3_XXS", "Q2_K")


def point(name: str, size: float, loss: float, **flags: bool) -> Point:
    return Point(
        name=name, size=size, loss=loss, tone="s0", is_pick=flags.get("pick", False), on_front=flags.get("front", False)
    )


def box(placed: Placed) -> tuple[float, float, float, float]:
    width = len(placed.point.name) * CHARACTER_WIDTH
    left = placed.label_x - {"start": 0.0, "middle": width / 2, "end": width}[placed.anchor]
    return left, placed.label_y - 12, left + width, placed.label_y + 3


def covers(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(1e6, 1e10), st.floats(0, 10)), min_size=1, max_size=25))
def test_everything_stays_inside(points: list[tuple[float, float]]) -> None:
    for frame in (WIDE, NARROW):
        plot = layout([point(f"p{i}", s, k) for i, (s, k) in enumerate(points)], frame)
        for p in plot.points:
            assert frame.left <= p.x <= frame.width - frame.right
            assert frame.top - 0.1 <= p.y <= frame.height - frame.bottom + 0.1
            assert p.tip_x >= 0
            assert p.tip_x + p.tip_width <= frame.width


def test_smaller_is_left_and_closer_is_lower() -> None:
    a, b = sorted(layout([point("a", 1e8, 0.2), point("b", 2e8, 0.1)], WIDE).points, key=lambda p: p.point.name)
    assert a.x < b.x
    assert a.y < b.y


def test_labels_of_a_usual_curve_do_not_cover_each_other() -> None:
    sizes = (145e6, 138e6, 112e6, 105e6, 91.7e6, 93.5e6, 87e6, 88.2e6)
    losses = (0.0047, 0.0084, 0.0226, 0.048, 0.127, 0.121, 0.2385, 0.279)
    points = [point(n, s, k, front=True) for n, s, k in zip(PRESETS, sizes, losses, strict=True)]
    for frame in (WIDE, NARROW):
        boxes = [box(p) for p in layout(points, frame).points]
        assert not any(covers(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_ticks_are_round_and_inside() -> None:
    plot = layout([point("a", 88e6, 0.28), point("b", 145e6, 0.005)], Frame(width=860, height=440))
    assert [t.text for t in plot.loss_ticks] == ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]
    assert [t.text for t in plot.size_ticks][:2] == ["90 MB", "100 MB"]


def test_limits_are_drawn_inside() -> None:
    plot = layout([point("a", 88e6, 0.28)], WIDE, size_limit=100e6, loss_limit=0.05)
    assert plot.limit_x is not None
    assert plot.limit_x < WIDE.width - WIDE.right
    assert plot.limit_y is not None


def test_the_strip_has_a_row_per_role_and_a_cell_per_layer() -> None:
    tensors = [TensorType(name="token_embd.weight", type="Q8_0", size_bytes=300, bpw=8.5)]
    tensors += [TensorType(name=f"blk.{i}.attn_q.weight", type="Q4_K", size_bytes=50, bpw=4.5) for i in range(4)]
    drawn = strip(tensors)
    assert [(row.name, len(row.cells)) for row in drawn.rows] == [("token_embd", 1), ("attn_q", 4)]
    assert [(item.name, item.share) for item in drawn.legend] == [("Q4_K", 0.4), ("Q8_0", 0.6)]
    edges = [(cell.x, cell.x + cell.width) for cell in drawn.rows[1].cells]
    assert all(abs(a[1] - b[0]) < 1e-9 for a, b in itertools.pairwise(edges))
    assert abs(edges[-1][1] - drawn.width) < 1e-9


def test_shades_rise_with_the_bits() -> None:
    assert [shade(bpw) for bpw in (1.5, 4.5, 8.5, 16.0)] == sorted(shade(bpw) for bpw in (1.5, 4.5, 8.5, 16.0))
    assert shade(32.0) == len(SHADE_BPW)


def test_a_hostile_number_of_layers_draws_a_bounded_picture() -> None:
    drawn = strip([TensorType(name=f"blk.{i}.attn_q.weight", type="F16", size_bytes=2, bpw=16) for i in range(2000)])
    assert len(drawn.rows[0].cells) == 512


def test_a_curve_is_drawn_inside_the_points_range_alone() -> None:
    points = [point("a", 1e6, 0.1), point("b", 2e6, 0.01)]
    curve = [(5e5, 3.0), (1e6, 0.1), (1.5e6, 0.03), (2e6, 0.01), (9e6, 1e-7)]
    plot = layout(points, WIDE, curve=curve)
    a, b = plot.points
    assert plot.curve_path.startswith(f"M{a.x:.1f} {a.y:.1f} L")
    assert plot.curve_path.endswith(f"L{b.x:.1f} {b.y:.1f}")
    assert plot.curve_path.count("L") == 2
    assert layout(points, WIDE).curve_path == ""
