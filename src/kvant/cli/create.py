"""`kvant create`: make a stored model from a Modelfile."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.units import format_bytes

if TYPE_CHECKING:
    from kvant.hub.modelfile import Modelfile

# fmt: off
Name = Annotated[str, typer.Argument(help="Name for it in the store.", show_default=False)]
File = Annotated[Path, typer.Option("-f", "--file", help="The Modelfile; - reads standard input.")]
Quantize = Annotated[str | None, typer.Option("-q", "--quantize", help="Preset to quantize to: Q4_K_M, ...", show_default=False)]  # noqa: E501
Imatrix = Annotated[Path | None, typer.Option(help="Importance file to quantize with.", show_default=False)]
Requantize = Annotated[bool, typer.Option("--allow-requantize", help="Accept a quantized source, at a loss.")]
Accept = Annotated[list[str] | None, typer.Option("--accept-licence", help="Accept this licence of what FROM pulls.", show_default=False)]  # noqa: E501
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 for one per core.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# fmt: on


def create(
    options: typer.Context,
    name: Name,
    file: File = Path("Modelfile"),
    quantize: Quantize = None,
    imatrix: Imatrix = None,
    allow_requantize: Requantize = False,
    accept_licence: Accept = None,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Make a stored model from a Modelfile: a base, and how it is to be used.

    FROM names a GGUF file, a Hugging Face directory, a stored model, or hf:org/name. From a stored model without
    --quantize no weights are copied. Templates may be Jinja or simple Go templates.

    \b
    Examples:
      kvant create pirate -f Modelfile
      kvant create small -f Modelfile --quantize Q4_K_M
      echo "FROM ./model.gguf" | kvant create mymodel:v1 -f -
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.cli.stored import as_document
    from kvant.recipes import create as recipe

    if quantize is None:
        refuse(options, ("imatrix",), "is for quantizing, which --quantize asks for")
    modelfile = _read(file)
    making = recipe.Making(quantize=quantize, imatrix=imatrix, allow_requantize=allow_requantize, threads=threads)
    with console.progress(quiet=json) as progress:
        made = recipe.create(
            name, modelfile, making=making, directory=Path() if str(file) == "-" else file.parent,
            accepted=accept_licence or (), progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(as_document(made) | {"ignored": modelfile.ignored})
        return
    for what in modelfile.ignored:
        console.say(f"{what} has no meaning here and is passed over.")
    console.say(f"{made.name}: {format_bytes(made.size_bytes)}, sha256:{made.digest[:12]}")
    console.say(f"Next: kvant run {made.name}")


def _read(file: Path) -> "Modelfile":
    """Read a Modelfile from a file, or from standard input."""
    from kvant.hub.modelfile import MAX_BYTES, decode_modelfile, parse_modelfile, read_modelfile

    if str(file) != "-":
        return read_modelfile(file)
    return parse_modelfile(decode_modelfile(sys.stdin.buffer.read(MAX_BYTES + 1), subject="-"), subject="-")
