"""`kvant top`: what a gateway is doing, in the terminal."""

import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.errors import KvantError, ValueRangeError
from kvant.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

TIMEOUT_S = 10.0
MAX_BYTES = 1 << 24
_MODEL_NAME = re.compile(r'(?:^|,)model_name="((?:[^"\\]|\\.)*)"')


def top(
    options: typer.Context,
    url: Annotated[str, typer.Argument(envvar="KVANT_URL", help="The gateway's address.")] = "http://127.0.0.1:11500",
    key: Annotated[
        str | None,
        typer.Option(envvar="KVANT_API_KEY", help="A key for metrics, where one is asked for.", show_default=False),
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one look as JSON.")] = False,
) -> None:
    """Show a gateway's models, requests, speed and memory, until Ctrl-C.

    \b
    Examples:
      kvant top
      kvant top http://server:11500 --key "$KEY" --every 5
      kvant top --json
    """  # noqa: D301 - \b keeps the lines of the examples apart
    import time

    if not url.startswith(("http://", "https://")) or every <= 0:
        raise ValueRangeError(f"{url}: is not the address of a gateway. Write one such as http://127.0.0.1:11500")
    if once or as_json:
        refuse(options, ("every",), "is for looking more than once")
    look = _look(url.rstrip("/"), key)
    if as_json:
        console.print_json(look)
        return
    if once or not sys.stdout.isatty():
        from rich.console import Console

        Console().print(_table(look, None, every))
        return
    from rich.live import Live

    try:
        with Live(_table(look, None, every), screen=False, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                before, look = look, _look(url.rstrip("/"), key)
                live.update(_table(look, before, every), refresh=True)
    except KeyboardInterrupt:
        return


def _look(url: str, key: str | None) -> dict[str, Any]:
    """Return the gateway's status, with counters of its metrics by model."""
    import msgspec

    status: dict[str, Any] = msgspec.json.decode(_fetch(f"{url}/kvant/status", key))
    counters = _counters(_fetch(f"{url}/metrics", key).decode("utf-8", "replace"))
    for model in status["models"]:
        model.update(counters.get(model["name"], {"prompt_tokens": 0.0, "generation_tokens": 0.0, "answers": 0.0}))
    return status


def _counters(text: str) -> dict[str, dict[str, float]]:
    """Return what is counted of every model: tokens read, tokens made, answers."""
    names = {
        "kvant_prompt_tokens_total": "prompt_tokens", "kvant_generation_tokens_total": "generation_tokens",
        "kvant_request_success_total": "answers",
    }  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        labels, _, value = rest.rpartition("} ")
        named = _MODEL_NAME.search(labels)
        if name in names and named:
            model = found.setdefault(named[1], dict.fromkeys(names.values(), 0.0))
            model[names[name]] += float(value)
    return found


def _fetch(url: str, key: str | None) -> bytes:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - the scheme is checked
            body: bytes = answer.read(MAX_BYTES)
            return body
    except urllib.error.HTTPError as error:
        hint = "Give a key for metrics with --key." if error.code in (401, 403) else "Is it a gateway of kvant's?"
        raise KvantError(f"{url}: answered {error.code}. {hint}") from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise KvantError(f"{url}: cannot be reached ({reason}). Start it with: kvant serve") from None


def _table(look: dict[str, Any], before: dict[str, Any] | None, every: float) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    old = {model["name"]: model for model in (before or {"models": []})["models"]}
    own = look.get("resident_bytes")
    title = f"models {format_bytes(look['predicted_bytes'])} of {format_bytes(look['limit_bytes'])}" + (
        f", gateway {format_bytes(own)}" if own else ""
    )
    lacks = "; ".join(map(console.clean, look.get("unconfined", {}).values()))
    caption = f"On this machine {lacks}." if lacks else None
    grid = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD)
    for name in ("model", "run", "wait", "tok/s", "answers", "context", "memory", "predicted", "unloads"):
        grid.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for model in look["models"]:
        made = model["generation_tokens"] - old.get(model["name"], model)["generation_tokens"]
        cells = (
            model["name"], model["running"], model["waiting"], f"{made / every:.1f}", f"{model['answers']:.0f}",
            model["context"] or "", format_bytes(model["resident_bytes"]) if model["resident_bytes"] else "loading",
            format_bytes(model["predicted_bytes"]), _left(model["expires_at"]),
        )  # fmt: skip
        grid.add_row(*(Text(console.clean(str(cell))) for cell in cells))
    return grid


def _left(expires_at: str | None) -> str:
    if expires_at is None:
        return "never"
    return f"{max(0.0, (datetime.fromisoformat(expires_at) - datetime.now(UTC)).total_seconds()):.0f} s"
