"""`kvant copy`: a second name for a stored model."""

from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.stored import complete_name


def copy(
    source: Annotated[str, typer.Argument(help="A stored model.", autocompletion=complete_name, show_default=False)],
    target: Annotated[str, typer.Argument(help="Its second name.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take a name that another model has.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the copy as JSON.")] = False,
) -> None:
    """Give a stored model a second name. Its bytes are kept once.

    \b
    Examples:
      kvant copy smollm2:q4_k_m assistant
      kvant copy hf.co/org/model:Q4_K_M me/model:stable --overwrite
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.cli.stored import as_document
    from kvant.hub.jobs import copy as run

    model = run(source.removeprefix("store:"), target, overwrite=overwrite)
    if as_json:
        console.print_json(as_document(model))
        return
    console.say(f"{model.name.tagged} is sha256:{model.digest[:12]}.")
