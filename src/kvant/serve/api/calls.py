"""Tools that a client offers, the one that it wants called, and the calls in its history: what all APIs have in common.

A tool is in the form that the engine takes: `{"type": "function", "function": {"name", "description", "parameters"}}`.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from kvant.errors import ApiError
from kvant.serve.api.wire import check

Tool = dict[str, Any]
_MODES = {"auto": "auto", "none": "none", "required": "required", "any": "required", "validated": "auto"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Whether tools are called.

    Attributes:
        mode: `auto`, `none` or `required`.
        names: The tools that may be called; None for all.
    """

    mode: str = "auto"
    names: frozenset[str] | None = None


def choice_of(given: Any, name: str | None = None) -> Choice:
    """Return a choice from the word or the type that an API has for it, and the name of the tool, if it has one.

    Raises:
        ApiError: It is a choice that nobody knows, or of a tool that the gateway cannot offer.
    """
    if given in ("function", "tool", "custom") and name:
        return Choice(mode="required", names=frozenset({name}))
    mode = _MODES.get(given or "auto")
    if mode is None:
        what = f"{str(given)[:100]!r} is neither auto, none, required, nor a function by its name. Use one of them."
        raise ApiError(f"tool_choice: {what}", param="tool_choice")
    return Choice(mode=mode)


def allowed(given: dict[str, Any]) -> Choice:
    """Return the choice that OpenAI's `allowed_tools` makes: a mode and a list of tools."""
    tools = given.get("tools")
    names = set()
    for tool in tools if isinstance(tools, list) else []:
        inner = tool.get("function", tool) if isinstance(tool, dict) else {}
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            names.add(inner["name"])
    check(bool(names), "tool_choice: allows no function. Name one, or choose none.", "tool_choice")
    mode = "required" if given.get("mode") == "required" else "auto"
    return Choice(mode=mode, names=frozenset(names))


def offered(tools: list[Tool], choice: Choice) -> tuple[list[Tool], str]:
    """Return the tools that are offered, and whether one may or must be called: `auto` or `required`.

    Raises:
        ApiError: A tool must be called, and there is none of that name, or none at all.
    """
    if choice.mode == "none":
        return [], "auto"
    names = choice.names
    if names is not None:
        missing = sorted(names - {tool["function"]["name"] for tool in tools})
        check(
            not missing,
            f"tool_choice: {', '.join(missing)[:100]!r} is not among the tools that can be offered here. Name another.",
            "tool_choice",
        )
        tools = [tool for tool in tools if tool["function"]["name"] in names]
    needless = bool(tools) or choice.mode != "required"
    check(needless, "tool_choice: a tool must be called, and none can be offered here. Send a function.", "tool_choice")
    return tools, choice.mode


def arguments_text(given: Any, where: str) -> str:
    """Return a call's arguments from a conversation's history as the text of a JSON object.

    Args:
        given: Text or object; none, an empty text and null are calls without arguments.
        where: Which field it is, for the error.

    Raises:
        ApiError: It is not a JSON object.
    """
    if given is None or isinstance(given, dict):
        return msgspec.json.encode(given or {}).decode()
    text = given.strip() or "{}"
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(f"{where}: is not JSON ({error}). Mend the call, or leave it out.", param=where) from None
    if value is None:
        return "{}"
    check(isinstance(value, dict), f"{where}: is no JSON object. Mend the call, or leave it out.", where)
    return str(text)
