"""`kvant rm`: remove models from the store."""

from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.stored import complete_name
from kvant.units import format_bytes


def rm(
    names: Annotated[
        list[str], typer.Argument(help="Stored models.", autocompletion=complete_name, show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was removed as JSON.")] = False,
) -> None:
    """Remove models from the store, and the bytes that no other model there needs.

    Nothing is removed if one of the names is not there. A name with a digest is removed only if it has that digest.

    \b
    Examples:
      kvant rm smollm2:q4_k_m
      kvant rm smollm2:q4_k_m smollm2:q4_k_s
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.hub.jobs import rm as run

    done = run([name.removeprefix("store:") for name in names])
    if as_json:
        console.print_json({"removed": [m.name.tagged for m in done.models], "freed_bytes": done.freed_bytes})
        return
    for model in done.models:
        console.say(f"Removed {model.name.tagged}.")
    console.say(f"Freed {format_bytes(max(done.freed_bytes, 0))}.")
