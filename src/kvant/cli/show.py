"""`kvant show`: what is known about a stored model."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.cli.stored import complete_name
from kvant.units import format_bytes

_SHOWN = 400


def show(
    options: typer.Context,
    name: Annotated[str, typer.Argument(help="A stored model.", autocompletion=complete_name, show_default=False)],
    modelfile: Annotated[bool, typer.Option("--modelfile", help="Print the Modelfile that makes it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show a stored model: its digest, where it is from, its settings and its passport.

    What its file holds is shown by `kvant inspect`.

    \b
    Examples:
      kvant show smollm2:q4_k_m
      kvant show smollm2 --json
      kvant show smollm2 --modelfile > Modelfile
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if modelfile:
        refuse(options, ("as_json",), "is not used with --modelfile, which prints a Modelfile")
    import msgspec

    from kvant.cli.stored import as_document
    from kvant.hub.jobs import show as run

    model = run(name.removeprefix("store:"))
    if modelfile:
        from kvant.hub.modelfile import modelfile_of, write_modelfile

        sys.stdout.write(write_modelfile(modelfile_of(model.name.tagged, model.settings)))
        return
    settings: dict[str, Any] = msgspec.to_builtins(model.settings)
    if as_json:
        console.print_json(as_document(model) | {"settings": settings})
        return
    rows = [
        ("name", model.name.full),
        ("digest", f"sha256:{model.digest}"),
        ("size", f"{format_bytes(model.size_bytes)} ({model.size_bytes} bytes)"),
        ("modified", model.modified_at.astimezone().isoformat(" ", "seconds")),
        ("file", str(model.path) if model.path.exists() else "in parts; put together when it is first used"),
    ]
    passport = settings.pop("passport", None) or {}
    for key, value in settings.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        rows.append((key, text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"))
    rows += [(f"passport: {key}", str(value)) for key, value in _flat(passport)]
    console.table("", ("", ""), rows, left=2)


def _flat(passport: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a passport says, and the score in it, without lists and tables by domain."""
    score = passport.get("score")
    for key, value in {**passport, **(score if isinstance(score, dict) else {})}.items():
        if value not in (None, "") and not isinstance(value, dict | list):
            yield key, value
