"""`kvant list`: the models in the store."""

from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.units import counted, format_bytes

if TYPE_CHECKING:
    from datetime import datetime


def list_(as_json: Annotated[bool, typer.Option("--json", help="Print the models as JSON.")] = False) -> None:
    """Show the models in the store, which is in `$KVANT_HOME/store` (~/.kvant/store).

    A model that is "in parts" shares bytes with others; its file is put together when it is first used.

    \b
    Examples:
      kvant list
      kvant list --json
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.cli.stored import as_document
    from kvant.hub.jobs import list_ as run

    held = run()
    models, usage = held.models, held.usage_bytes
    if as_json:
        console.print_json(
            {"models": [as_document(m) for m in models], "usage_bytes": usage, "quota_bytes": held.quota_bytes}
        )
        return
    if not models:
        console.say("The store is empty. Put a model in: kvant import FILE")
        return
    rows = [
        (m.name.tagged, m.digest[:12], "file" if m.path.exists() else "in parts", format_bytes(m.size_bytes),
         age(m.modified_at))
        for m in models
    ]  # fmt: skip
    console.table("", ("name", "digest", "kept as", "size", "modified"), rows, left=3)
    total = sum(m.size_bytes for m in models)
    takes = "takes" if len(models) == 1 else "take"
    console.say(f"{counted(len(models), 'model')} of {format_bytes(total)} {takes} {format_bytes(usage)}.")


def age(then: "datetime") -> str:
    """Return how long ago something was, for people."""
    from datetime import UTC, datetime

    seconds = (datetime.now(UTC) - then).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            n = int(seconds // length)
            return f"{n} {unit}{'s' if n > 1 else ''} ago"
    return "just now"
