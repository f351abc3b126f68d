"""Printing for people and for machines: results on standard output, progress and errors on standard error."""

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

from kvant.files import is_text, printable
from kvant.progress import Progress
from kvant.units import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID
    from rich.table import Table as RichTable

_TEXT = 12  # columns of a terminal that a text has at least; below that a table is turned on its side

# Control characters and direction marks of a hostile file must not reach the terminal.
_MARKS = [*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_PRINTABLE = {i: f"\\x{i:02x}" for i in [*range(32), *range(127, 160)] if i not in (9, 10)}
_PRINTABLE |= {i: f"\\u{i:04x}" for i in _MARKS}


def clean(text: str) -> str:
    """Return text with control characters, and bytes that are no UTF-8, made visible."""
    return (text if is_text(text) else printable(text)).translate(_PRINTABLE)


def fail(message: str) -> None:
    """Print an error on standard error."""
    sys.stderr.write(_wrapped(f"kvant: {clean(message)}", sys.stderr) + "\n")


def ask(question: str) -> None:
    """Print a question on standard error; the answer is typed behind it."""
    sys.stderr.write(_wrapped(clean(question), sys.stderr) + " ")
    sys.stderr.flush()


def say(message: str) -> None:
    """Print a line for people on standard output; on a terminal that is narrower it goes on between two words."""
    sys.stdout.write(_wrapped(clean(message), sys.stdout) + "\n")


def _columns(stream: TextIO) -> int:
    """Return how wide the terminal is that a stream leads to; 0 if it leads to none, or to one that does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _wrapped(text: str, stream: TextIO) -> str:
    """Break lines that are wider than the terminal between words; never inside one, since it may be a path."""
    width = _columns(stream)
    lines = text.split("\n")
    return "\n".join(_wrapped_line(line, width) if 0 < width < len(line) else line for line in lines)


def _wrapped_line(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )


def notes(remarks: Sequence[str]) -> None:
    """Print what was left out or taken otherwise than it looks, a line each."""
    for remark in remarks:
        say(f"Note: {remark}")


def print_json(value: Any) -> None:
    """Print a document as indented JSON on standard output."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1, prose: Sequence[str] = ()
) -> None:
    """Print a table on standard output; the first `left` columns are text, the others align right.

    Nothing is ever cut. Written to a pipe it is as wide as its content. On a terminal that is narrower, gaps shrink,
    then text (the first columns, and those that `prose` names) goes on in the next line; a table of figures that still
    does not fit is turned on its side.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(width=_columns(sys.stdout) or 10**4)
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    if title:
        console.print(Text(clean(title), style="italic"))
    wraps = {i for i, name in enumerate(columns) if i < left or name in prose}
    texts = {i for i in range(len(columns)) if i < left}
    widest = [_widest(columns, cells, i) for i in range(len(columns))]
    least = [min(_TEXT, width) if i in wraps else width for i, width in enumerate(widest)]
    if any(columns) and sum(least) + 2 * len(least) > console.width:
        for header, part in _turned(columns, cells, console.width):
            console.print(_grid(header, part, {0}, {0}, is_tight=True))
        return
    wide = _grid(columns, cells, texts, wraps)
    is_tight = any(columns) and Console(width=10**4).measure(wide).maximum > console.width
    console.print(_grid(columns, cells, texts, wraps, is_tight=True) if is_tight else wide)


def _grid(
    columns: Sequence[str], cells: Sequence[Sequence[str]], texts: set[int], wraps: set[int], *, is_tight: bool = False
) -> "RichTable":
    import rich.box
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        box=rich.box.SIMPLE_HEAD if any(columns) else None,
        show_header=any(columns),
        collapse_padding=is_tight,
        pad_edge=not is_tight,
    )
    for index, name in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index in texts else "right"
        grid.add_column(name, justify=justify, no_wrap=index not in wraps, overflow="fold")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def _widest(columns: Sequence[str], cells: Sequence[Sequence[str]], index: int) -> int:
    return max(len(text) for text in (columns[index], *(row[index] for row in cells)))


def _turned(
    columns: Sequence[str], cells: Sequence[Sequence[str]], width: int
) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield a table with a line for each column and a column for each row, in parts that are at most `width` wide."""
    room = width - max(map(len, columns)) - 2
    start = 0
    while start < len(cells):
        end, used = start, 0
        while end < len(cells) and (end == start or used + max(map(len, cells[end])) + 2 <= room):
            used += max(map(len, cells[end])) + 2
            end += 1
        part = cells[start:end]
        yield (
            [columns[0], *(row[0] for row in part)],
            [[name, *(row[i] for row in part)] for i, name in enumerate(columns) if i],
        )
        start = end


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
    return f"{format_bytes(speed)}/s" if unit == "B" else f"{speed:.0f} {unit}/s" if speed >= 10 else ""


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
