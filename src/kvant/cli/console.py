"""Printing for people and for machines: results on standard output, progress and errors on standard error."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kvant.files import is_text, printable
from kvant.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# Control characters and direction marks of a hostile file must not reach the terminal.
_MARKS = [*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_PRINTABLE = {i: f"\\x{i:02x}" for i in [*range(32), *range(127, 160)] if i not in (9, 10)}
_PRINTABLE |= {i: f"\\u{i:04x}" for i in _MARKS}


def clean(text: str) -> str:
    """Return text with control characters, and bytes that are no UTF-8, made visible."""
    return (text if is_text(text) else printable(text)).translate(_PRINTABLE)


def fail(message: str) -> None:
    """Print an error on standard error."""
    sys.stderr.write(f"kvant: {clean(message)}\n")


def say(message: str) -> None:
    """Print a line for people on standard output."""
    sys.stdout.write(clean(message) + "\n")


def notes(remarks: Sequence[str]) -> None:
    """Print what was left out or taken otherwise than it looks, a line each."""
    for remark in remarks:
        say(f"Note: {remark}")


def print_json(value: Any) -> None:
    """Print a document as indented JSON on standard output."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> None:
    """Print a table on standard output; the first `left` columns are text, the others align right.

    Written to a pipe it is as wide as its content, so that nothing is cut.
    """
    import rich.box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=220)
    grid = Table(
        title=Text(clean(title)) if title else None,
        title_justify="left",
        box=rich.box.SIMPLE_HEAD if any(columns) else None,
        show_header=any(columns),
    )
    for index, name in enumerate(columns):
        grid.add_column(name, justify="left" if index < left else "right", no_wrap=index >= left)
    for row in rows:
        grid.add_row(*(Text(clean(str(cell))) for cell in row))
    console.print(grid)


class _Bars:
    """Progress as bars with rate and time left, on standard error."""

    def __init__(self, bars: "RichProgress") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def start(self, task: str, total: float, unit: str) -> None:
        self._tasks[task] = self._bars.add_task(clean(task), total=total, unit=unit)

    def advance(self, task: str, amount: float) -> None:
        self._bars.advance(self._tasks[task], amount)

    def finish(self, task: str) -> None:
        self._bars.remove_task(self._tasks.pop(task))

    def say(self, message: str) -> None:
        self._bars.console.print(clean(message), markup=False, highlight=False)


def _rate(speed: float | None, unit: str) -> str:
    if not speed:
        return ""
    return f"{speed / 1e6:.0f} MB/s" if unit == "B" else f"{speed:.0f} {unit}/s" if speed >= 10 else ""


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Show progress while the block runs; only messages, and no bars, where standard error is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.finished_speed or task.speed, str(task.fields.get("unit", ""))))

    console = Console(stderr=True, quiet=quiet)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), TaskProgressColumn(), RateColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        yield _Bars(bars)
