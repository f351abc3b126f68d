"""`kvant import`: put a file into the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.units import format_bytes

if TYPE_CHECKING:
    from kvant.hub.jobs import Imported


def import_(
    options: typer.Context,
    file: Annotated[Path, typer.Argument(help="A GGUF file, any shard of one, or a bundle.", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(help="What to call it; by default what its file or bundle says.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take a name that another model has.")] = False,
    move: Annotated[bool, typer.Option("--move", help="Take the GGUF file away instead of copying it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the models as JSON.")] = False,
) -> None:
    """Put a GGUF file, or a bundle that `kvant export` wrote, into the store.

    Every byte is hashed. Tensors that are in the store already are not kept twice. Without a name, the file's name is
    taken: `SmolLM2-135M-Q4_K_M.gguf` becomes `smollm2-135m:Q4_K_M`. A passport that `kvant optimize` wrote beside the
    file comes with it.

    \b
    Examples:
      kvant import SmolLM2-135M-Q4_K_M.gguf
      kvant import model-00001-of-00003.gguf me/model:q8
      kvant import models.tar
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.cli.stored import as_document
    from kvant.hub.bundle import is_bundle
    from kvant.hub.jobs import import_ as run

    if file.is_file() and is_bundle(file):
        refuse(options, ("move",), "is for GGUF files, and this is a bundle, which is copied from")
    with console.progress(quiet=as_json) as progress:
        done = run(file, name, overwrite=overwrite, move=move, progress=progress)
    if as_json:
        console.print_json([as_document(model) for model in done.models])
        return
    _print(done)


def _print(done: "Imported") -> None:
    for model in done.models:
        console.say(f"{model.name.tagged} is sha256:{model.digest[:12]}, {format_bytes(model.size_bytes)}.")
    shared = sum(model.size_bytes for model in done.models) - done.grown_bytes
    if shared > 1 << 20:
        console.say(f"The store grew by {format_bytes(max(done.grown_bytes, 0))}; it had the rest already.")
