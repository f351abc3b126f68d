import json

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


def test_progress_in_a_pipe_says_messages_and_draws_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress() as progress:
        progress.start("encode", 10, "B")
        progress.advance("encode", 10)
        progress.say("fallback: [a] b")
        progress.finish("encode")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fallback: [a] b\n"
