"""`kvant search`: find models on the hub."""

from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.units import format_bytes

if TYPE_CHECKING:
    from kvant.hub.sources.search import Found

COLUMNS = ("model", "formats", "kind", "variant", "size", "licence", "fits", "downloads")

# fmt: off
Term = Annotated[str, typer.Argument(help="Words of a model's name.", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Most models to show.")]
Format = Annotated[str | None, typer.Option("--format", help="gguf, onnx, mlx or safetensors.", show_default=False)]
Fits = Annotated[bool, typer.Option("--fits", help="Only what fits the memory of this machine, by estimate.")]
Licence = Annotated[list[str] | None, typer.Option("--licence", help="Only this licence; can be repeated.", show_default=False)]  # noqa: E501
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# fmt: on


def search(
    term: Term,
    limit: Limit = 10,
    format: Format = None,  # noqa: A002 - as the option is called
    fits: Fits = False,
    licence: Licence = None,
    json: Json = False,
) -> None:
    """Find models on the hub, most downloaded first: GGUF, ONNX and MLX; base, instruct and domain versions.

    Of a repository with several variants, the largest one that fits this machine is shown. A licence in brackets is not
    on the allow-list, and is asked about before a download.

    \b
    Examples:
      kvant search smollm2
      kvant search "qwen3 coder" --format gguf --fits
      kvant search llama --licence apache-2.0 --licence mit --json
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.hub.sources.search import search as run

    with console.progress(quiet=json) as progress:
        found = run(term, limit=limit, format=format, fits=fits, licences=licence or (), progress=progress)
    if json:
        console.print_json(found)
    elif not found:
        console.say(f"Nothing found for {term!r}. Try fewer words, or leave --format, --fits and --licence out.")
    else:
        console.table("", COLUMNS, [_row(one) for one in found], left=4)
        pulls = [one.pull for one in found if one.pull]
        console.say(f"Next: {pulls[0]}" if pulls else "None of these is a format that kvant runs yet.")


def _row(one: "Found") -> tuple[str, ...]:
    kind = " ".join((one.kind, *one.domains))
    more = f" of {one.n_variants}" if one.n_variants > 1 else ""
    fits = "" if one.fits is None else "yes" if one.fits else "no"
    licence = one.licence if one.is_allowed else f"({one.licence})"
    size = format_bytes(one.size_bytes) if one.size_bytes else ""
    return (one.id, " ".join(one.formats), kind, one.variant + more, size, licence, fits, str(one.downloads))
