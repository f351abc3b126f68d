"""`kvant inspect` as a user types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raw_files as raw
from kvant.cli.main import app


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(raw.small_gguf())
    return path


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def test_tables(small: Path) -> None:
    output = run(small)
    assert "By role" in output
    assert "By type" in output
    assert "a.weight" not in output
    assert "n.u64" not in output
    assert "warning: there is no tokenizer" in output


def test_lists(small: Path) -> None:
    output = run(small, "--tensors", "--metadata")
    assert "b.weight" in output
    assert "3 x 32" in output
    assert "9223372036854775808" in output
    assert "string[]" in output


def test_json(small: Path) -> None:
    document = json.loads(run(small, "--json"))
    assert document["architecture"] == "llama"
    assert document["tensors"][1]["type"] == "Q8_0"


def test_a_damaged_file_is_one_line_and_status_1(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(raw.small_gguf()[:200])
    output = run(path, status=1)
    assert output.count("\n") == 1
    assert "cut.gguf" in output


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = [
        raw.key("general.architecture", raw.STRING, "\x1b]0;owned\x07"),
        raw.key("general.name", raw.STRING, "[red]\x1b[2J\x9b1m\r\x08\u202e\nwarning: none"),
        raw.key("\x1b[31mkey", raw.STRING, "\x1b[31mvalue"),
        raw.array_key("list", raw.STRING, ["\x1b[5m"]),
    ]
    path.write_bytes(raw.gguf(keys, [raw.tensor("\x1b[31mtensor", [4])], bytes(16)))
    output = run(path, "--tensors", "--metadata")
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in output)
    assert "[red]\\x1b[2J\\x9b1m\\r\\x08\\u202e\\nwarning: none" in output
