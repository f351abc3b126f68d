import json
import os
import sys
from pathlib import Path

import msgspec
import pytest

from kvant.cli import console


class Point(msgspec.Struct):
    x: int
    label: str


def test_json_is_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json(Point(3, "größe"))
    assert json.loads(capsys.readouterr().out) == {"x": 3, "label": "größe"}


def test_a_table_in_a_pipe_cuts_nothing_and_shows_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("sizes", ["name", "bytes"], [["blk.0.attn_q.weight" * 5, 12], ["\x1b[31mred", 3]])
    text = capsys.readouterr().out
    assert "blk.0.attn_q.weight" * 5 in text
    assert "\\x1b[31mred" in text
    assert "\x1b" not in text


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take standard output for a terminal of 80 columns."""
    monkeypatch.setattr(console, "_columns", lambda _: 80)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
def test_a_terminal_says_how_wide_it_is_and_a_file_does_not(tmp_path: Path) -> None:
    import termios

    ours, theirs = os.openpty()
    termios.tcsetwinsize(ours, (40, 72))
    with os.fdopen(ours), os.fdopen(theirs, "w") as terminal, (tmp_path / "file").open("w") as file:
        assert (console._columns(terminal), console._columns(file)) == (72, 0)


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert not any("…" in line for line in lines)
    return [" ".join(line.split()) for line in lines if line.strip()]


@pytest.mark.usefixtures("narrow")
def test_gaps_of_a_table_shrink_before_anything_is_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("", ["name", *"abcdefg"], [["blk.0.attn_q", *["1234567"] * 6, "12"]])
    assert shown(capsys)[-1] == "blk.0.attn_q " + "1234567 " * 6 + "12"


@pytest.mark.usefixtures("narrow")
def test_texts_of_a_table_go_on_in_the_next_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("", ["name", "size", "fits"], [["n" * 70, 12, "needs more than there is"]], prose=["fits"])
    lines = shown(capsys)
    assert sum(line.count("n") for line in lines[2:]) == 70 + "needs more than there is".count("n")
    assert "12" in lines[2]
    assert lines[0] == "name size fits"


@pytest.mark.usefixtures("narrow")
def test_a_table_of_many_figures_is_turned_on_its_side(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["variant", *(f"figure {i}" for i in range(15))]
    rows = [[f"model-{r}", *(f"{r}.{i:04}" for i in range(15))] for r in range(9)]
    console.table("nine", columns, rows)
    lines = shown(capsys)
    assert lines[:2] == ["nine", "variant model-0 model-1 model-2 model-3 model-4 model-5 model-6"]
    assert lines[3] == "figure 0 " + " ".join(f"{r}.0000" for r in range(7))
    assert lines[-1] == "figure 14 7.0014 8.0014"


@pytest.mark.usefixtures("narrow")
def test_a_long_line_is_broken_between_words_and_never_inside_one(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a-long/path" * 8
    console.say("  two" + " words" * 16 + "\nshort  line")
    console.say(f"Written: {path} and more")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines[:2]] == ["  two wor", "  words w"]
    assert "short  line" in lines
    assert path in lines


def test_progress_in_a_pipe_says_messages_and_draws_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as progress:
        progress.start("encode", 10, "B")
        progress.advance("encode", 10)
        progress.say("fallback: [a] b")
        progress.finish("encode")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fallback: [a] b\n"
