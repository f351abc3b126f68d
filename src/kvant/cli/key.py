"""`kvant key`: who may use a gateway."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.errors import ValueRangeError

if TYPE_CHECKING:
    from kvant.serve.keys import Key


def key(
    options: typer.Context,
    action: Annotated[str, typer.Argument(help="add, list or revoke.", show_default=False)],
    name: Annotated[str | None, typer.Argument(help="Name of the key.", show_default=False)] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="inference (the default), manage, metrics, admin; repeat it.", show_default=False),
    ] = None,
    expires: Annotated[str, typer.Option(help="30d, 12h, ... or never.")] = "never",
    file: Annotated[
        Path | None, typer.Option(help="Where keys are kept; default: keys.json in KVANT_HOME.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make, list and revoke the API keys of `kvant serve`.

    A key is shown once, when it is made; its hash alone is kept. A running gateway heeds changes at once.

    \b
    Examples:
      kvant key add laptop
      kvant key add prometheus --scope metrics --expires 90d
      kvant key list
      kvant key revoke laptop
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.serve.keys import Keys, parse_expiry

    if action in ("list", "revoke"):
        refuse(options, ("scope", "expires"), "is for a new key (key add NAME)")
    keys = Keys(file)
    if action == "list" and name is None:
        _list(keys.list(), as_json=as_json)
        return
    if action not in ("add", "revoke") or name is None:
        raise ValueRangeError(f"key {action}: is not `add NAME`, `list` or `revoke NAME`. Write one of those.")
    if action == "revoke":
        keys.revoke(name)
        console.print_json({"revoked": name}) if as_json else console.say(f"{name} is revoked.")
        return
    scopes = tuple(scope or ("inference",))
    token = keys.add(name, scopes, parse_expiry(expires))
    if as_json:
        console.print_json({"name": name, "key": token, "scopes": scopes})
    else:
        console.say(f"{token}\nThis is the only time it is shown. It is for: {', '.join(scopes)}.")


def _list(keys: "tuple[Key, ...]", *, as_json: bool) -> None:
    now = datetime.now(UTC)
    if as_json:
        console.print_json(
            [{"name": k.name, "scopes": k.scopes, "created": k.created, "expires": k.expires, "valid": k.is_valid(now)}
             for k in keys]
        )  # fmt: skip
        return
    rows = [[k.name, ", ".join(k.scopes), f"{k.created:%Y-%m-%d}", _when(k.expires, now)] for k in keys]
    console.table("", ["name", "scopes", "created", "expires"], rows, left=4)


def _when(expires: datetime | None, now: datetime) -> str:
    if expires is None:
        return "never"
    return f"{expires:%Y-%m-%d %H:%M}" + ("" if now < expires else " (expired)")
