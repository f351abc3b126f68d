from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.recipes.report.pareto import front

Point = tuple[float, float]
POINTS = st.lists(st.tuples(st.integers(0, 50).map(float), st.integers(0, 50).map(float)), max_size=40)


def cost(point: Point) -> float:
    return point[0]


def loss(point: Point) -> float:
    return point[1]


def beats(a: Point, b: Point) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@settings(max_examples=50, deadline=None)
@given(POINTS)
def test_no_point_of_the_front_is_beaten(points: list[Point]) -> None:
    for kept in front(points, cost=cost, loss=loss):
        assert not any(beats(other, kept) for other in points)


@settings(max_examples=50, deadline=None)
@given(POINTS)
def test_every_point_off_the_front_is_beaten_or_equal(points: list[Point]) -> None:
    line = front(points, cost=cost, loss=loss)
    for point in points:
        assert point in line or any(beats(kept, point) for kept in line)


@settings(max_examples=50, deadline=None)
@given(POINTS)
def test_the_front_rises_in_cost_and_falls_in_loss(points: list[Point]) -> None:
    line = front(points, cost=cost, loss=loss)
    assert line == sorted(line)
    assert [loss(p) for p in line] == sorted({loss(p) for p in line}, reverse=True)


@settings(max_examples=50, deadline=None)
@given(POINTS, st.randoms())
def test_order_does_not_matter(points: list[Point], random: object) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert front(points, cost=cost, loss=loss) == front(shuffled, cost=cost, loss=loss)
