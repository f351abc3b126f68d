import errno
from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from kvant.cli.main import COMMANDS, CONTINUED, app, guarded
from kvant.errors import FormatError


def run_raising(error: BaseException) -> tuple[int, str]:
    def command() -> None:
        raise error

    return run(command)


def run(command: Callable[[], None]) -> tuple[int, str]:
    small = typer.Typer()
    small.command()(guarded(command))
    result = CliRunner().invoke(small, [])
    return result.exit_code, result.stderr


def test_an_error_of_kvant_is_one_line_and_exit_status_1() -> None:
    assert run_raising(FormatError("a.gguf: 3 bytes are no GGUF.")) == (1, "kvant: a.gguf: 3 bytes are no GGUF.\n")


def test_control_characters_of_hostile_names_do_not_reach_the_terminal() -> None:
    assert run_raising(FormatError("\x1b]0;owned\x07"))[1] == "kvant: \\x1b]0;owned\\x07\n"
    assert run_raising(FormatError("\u202egpj.exe"))[1] == "kvant: \\u202egpj.exe\n"


def test_an_interrupted_command_exits_with_130() -> None:
    status, text = run_raising(KeyboardInterrupt())
    assert status == 130
    assert text == "kvant: interrupted; nothing is left half-written.\n"


def test_an_interrupted_command_that_goes_on_says_so() -> None:
    def optimize() -> None:
        raise KeyboardInterrupt

    assert {command.__name__ for command in COMMANDS} >= CONTINUED
    status, text = run(optimize)
    assert status == 130
    assert text.endswith("half-written. Run the same command again to continue.\n")


def test_an_error_of_the_system_names_its_file() -> None:
    status, text = run_raising(OSError(errno.EACCES, "Permission denied", "model.gguf"))
    assert (status, text) == (1, "kvant: model.gguf: Permission denied.\n")


def test_a_defect_keeps_its_traceback() -> None:
    small = typer.Typer()

    def command() -> None:
        raise ZeroDivisionError

    small.command()(guarded(command))
    assert isinstance(CliRunner().invoke(small, []).exception, ZeroDivisionError)


@pytest.mark.parametrize("arguments", [["no-such-command"], ["--no-such-option"]])
def test_wrong_use_exits_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_version() -> None:
    from kvant import __version__

    assert CliRunner().invoke(app, ["--version"]).stdout == f"kvant {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["quantize", "malli-\udce4", "-t", "Q8_0"], ["quantize", "m", "-t", "Q8_0", "-o", "malli-\udce4"],
        ["evaluate", "malli-\udce4.gguf", "--against", "m"], ["convert", "malli-\udce4"], ["inspect", "malli-\udce4"],
        ["import", "malli-\udce4"], ["optimize", "m", "--imatrix", "malli-\udce4"], ["run", "m", "malli-\udce4"],
    ],
)  # fmt: skip
def test_what_is_not_text_is_refused_by_every_command(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert r"malli-\xe4" in result.stderr
    assert "not UTF-8" in result.stderr
