import pytest

from kvant.cli.units import format_bytes, parse_bytes
from kvant.errors import ValueRangeError


@pytest.mark.parametrize(
    ("text", "size"),
    [("100MB", 100_000_000), ("1.5GiB", 1_610_612_736), ("1024", 1024), (" 2 kb ", 2000), ("3K", 3000), ("7B", 7)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "1e9", "ten MB", "5XB", "1 000 MB"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueRangeError, match="such as 100MB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (105_454_432, "105 MB"), (98_360_000, "98.4 MB"), (3.1e9, "3.1 GB"),
     (2e12, "2.0 TB")],
)  # fmt: skip
def test_sizes_for_people(size: float, text: str) -> None:
    assert format_bytes(size) == text
