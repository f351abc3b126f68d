"""Command lines as kvant's own parser takes them, without running them."""

from collections.abc import Sequence
from typing import Any

import typer

from kvant.cli.main import app

COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def options_of(command: str) -> set[str]:
    """The options of a command, and those that every one has."""
    every = {"-h", "--help"}
    return every | {name for p in COMMANDS[command].params for name in (*p.opts, *p.secondary_opts)}


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Parse `kvant COMMAND ...` and return its parameters, as they were written.

    Raises:
        Exception: Typer's own, if the command line would be refused.
    """
    assert words[0] == "kvant", words
    found: dict[str, Any] = COMMANDS[words[1]].make_context(words[1], list(words[2:])).params
    return found
