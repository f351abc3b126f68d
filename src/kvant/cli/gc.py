"""`kvant gc`: free space in the store, and limit it."""

from typing import Annotated

import typer

from kvant.cli import console
from kvant.units import format_bytes, parse_bytes


def gc(
    pack: Annotated[
        bool, typer.Option("--pack", help="Keep models that share bytes in parts, until they are used again.")
    ] = False,
    quota: Annotated[
        str | None, typer.Option(help="Most the store may take from now on: 50GB, or none.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Remove what no model in the store needs: remains of interrupted work, and objects that are kept twice.

    \b
    Examples:
      kvant gc
      kvant gc --pack
      kvant gc --quota 50GB
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.hub.jobs import gc as run

    done = run(pack=pack, quota=None if quota is None else "none" if quota.lower() == "none" else parse_bytes(quota))
    limit = done.quota_bytes
    if as_json:
        console.print_json(done)
        return
    for name in done.packed:
        console.say(f"{name} is kept in parts now.")
    of = f" of {format_bytes(limit)}" if limit is not None else ""
    console.say(
        f"Freed {format_bytes(max(done.freed_bytes, 0))}; the store takes {format_bytes(done.usage_bytes)}{of}."
    )
