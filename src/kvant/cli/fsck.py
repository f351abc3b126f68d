"""`kvant fsck`: check and repair the store."""

from typing import Annotated

import typer

from kvant.cli import console
from kvant.units import counted, format_bytes


def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Hash every byte of the store and say what is wrong; exit status 1 if something is and stays so.

    Repair keeps every complete object: what is broken goes to the store's `quarantine`, and a model whose bytes are
    lost keeps its name until it is imported or pulled again, or removed.

    \b
    Examples:
      kvant fsck
      kvant fsck --repair
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.hub.jobs import fsck as run

    with console.progress(quiet=as_json) as progress:
        check = run(repair=repair, progress=progress)
    if as_json:
        console.print_json(check)
    else:
        if check.is_read_only:
            console.say("Read-only: looked at as it is; other processes may change it meanwhile.")
        if check.interrupted:
            done = "Interrupted, not put right" if check.is_read_only else "Put right what was interrupted"
            console.say(f"{done}: {check.interrupted}")
        if check.findings:
            rows = [(f.kind, f.what, f.detail, "yes" if f.repaired else "no") for f in check.findings]
            console.table("", ("kind", "what", "detail", "repaired"), rows, left=4)
        for name in check.lost:
            console.say(f"Lost: {name}")
        state = "clean" if check.is_clean else "damaged"
        held = f"{counted(check.models, 'model')}, {counted(check.objects, 'object')}"
        console.say(f"{state}: {held}, {format_bytes(check.bytes)} hashed.")
        if check.garbage_bytes:
            console.say(f"kvant gc would free {format_bytes(check.garbage_bytes)}.")
        if not check.is_clean and not repair:
            console.say("Run: kvant fsck --repair")
    if not check.is_clean:
        raise typer.Exit(1)
