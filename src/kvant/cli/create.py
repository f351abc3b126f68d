"""`kvant create`: make a stored model from a Modelfile."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.errors import ModelfileError
from kvant.units import format_bytes

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
    from kvant.hub.modelfile import parse_modelfile
    from kvant.hub.sources.names import is_remote, is_short_name
    from kvant.hub.store import Store
    from kvant.recipes import create as recipe

    if quantize is None:
        refuse(options, ("imatrix",), "is for quantizing, which --quantize asks for")
    modelfile = parse_modelfile(_read(file), subject=str(file))
    store = Store.open()
    making = recipe.Making(quantize=quantize, imatrix=imatrix, allow_requantize=allow_requantize, threads=threads)
    with console.progress(quiet=json) as progress:
        if is_remote(modelfile.base) or (is_short_name(modelfile.base) and not store.has(modelfile.base)):
            from kvant.hub.pull import Wish, pull

            got = pull(modelfile.base, Wish(accepted=accept_licence or ()), store=store, progress=progress)
            base = store.find(got.name) if got.name else Path(got.path)
        else:
            directory = Path() if str(file) == "-" else file.parent
            base = recipe.find_base(modelfile, directory, store)
        made = recipe.create(name, modelfile, base, making, store=store, progress=progress)
    if json:
        console.print_json(as_document(made) | {"ignored": modelfile.ignored})
        return
    for what in modelfile.ignored:
        console.say(f"{what} has no meaning here and is passed over.")
    console.say(f"{made.name}: {format_bytes(made.size_bytes)}, sha256:{made.digest[:12]}")
    console.say(f"Next: kvant run {made.name}")


def _read(file: Path) -> str:
    from kvant.hub.modelfile import MAX_CHARACTERS

    if str(file) == "-":
        raw = sys.stdin.buffer.read(4 * MAX_CHARACTERS + 1)
    else:
        with file.open("rb") as opened:
            raw = opened.read(4 * MAX_CHARACTERS + 1)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelfileError(
            f"{file}: is not UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
