"""`kvant export`: stored models in one file, for machines without a network."""

from pathlib import Path
from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.stored import complete_name
from kvant.units import counted, format_bytes


def export(
    names: Annotated[
        list[str], typer.Argument(help="Stored models.", autocompletion=complete_name, show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write stored models and all they need to one file that `kvant import` reads on another machine.

    It is a plain tar of an OCI image layout; bytes that the models share are in it once.

    \b
    Examples:
      kvant export smollm2:q4_k_m -o smollm2.tar
      kvant export smollm2:q4_k_m smollm2:q4_k_s -o both.tar
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.hub.jobs import export as run

    with console.progress(quiet=as_json) as progress:
        run([name.removeprefix("store:") for name in names], out, overwrite=overwrite, progress=progress)
    size = out.stat().st_size
    if as_json:
        console.print_json({"path": str(out), "size_bytes": size, "models": names})
        return
    console.say(f"{out}: {counted(len(set(names)), 'model')}, {format_bytes(size)}.")
