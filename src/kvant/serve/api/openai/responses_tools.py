"""Tools of /v1/responses as functions for a model, and its calls as the items that the client knows.

A `namespace` is unpacked. A `custom` tool, which takes any text, is a function of one text. Tools that run on OpenAI's
servers (`web_search`, `file_search` and so on) are left out: a model that is not told of them does not call them.

Source: OpenAI's API reference, "Responses", `tools`.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.generate.chunks import ToolDelta
from kvant.serve.api.ids import new_id
from kvant.serve.api.openai.responses_types import Tool
from kvant.serve.api.schemas import check_tools

Item = dict[str, Any]
INPUT = "input"
"""The one argument of a custom tool's function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A tool as a model sees it.

    Attributes:
        name: The function's name: the tool's, after its namespace's where two have the same.
        tool: What the client sent.
        namespace: Where it sent it, if in one.
    """

    name: str
    tool: Tool
    namespace: str | None = None

    @property
    def is_custom(self) -> bool:
        """Whether it takes text rather than arguments."""
        return self.tool.type == "custom"

    def function(self) -> dict[str, Any]:
        """Return it in the form that the engine takes."""
        tool = self.tool
        made: dict[str, Any] = {"name": self.name, "description": tool.description, "parameters": tool.parameters}
        if tool.strict:
            made["strict"] = True
        if self.is_custom:
            told = [tool.description or ""]
            if isinstance(tool.format, dict) and isinstance(tool.format.get("definition"), str):
                told.append(
                    f"The text follows this grammar ({tool.format.get('syntax')}):\n{tool.format['definition']}"
                )
            text = {"type": "string", "description": "The text that the tool takes."}
            made["description"] = "\n\n".join(filter(None, told)) or None
            made["parameters"] = {
                "type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False
            }  # fmt: skip
        return {"type": "function", "function": {name: value for name, value in made.items() if value is not None}}


class Offers:
    """The tools of one request.

    Args:
        tools: What the client sent.

    Attributes:
        left_out: Names of those that cannot be offered, for the header that tells them.

    Raises:
        ApiError: They are too many.
    """

    def __init__(self, tools: list[Tool]) -> None:
        self.left_out: list[str] = []
        flat: list[tuple[str | None, Tool]] = [(None, tool) for tool in tools if tool.type != "namespace"]
        flat += [(space.name, tool) for space in tools if space.type == "namespace" for tool in space.tools or []]
        check_tools(len(flat))
        found = []
        for namespace, tool in flat:
            if tool.type in ("function", "custom") and tool.name:
                found.append((namespace, tool))
            else:
                self.left_out.append(f"tools.{tool.type}")
        names = Counter(tool.name for _, tool in found)
        offers = [
            Offer(
                name=f"{namespace}__{tool.name}" if namespace and names[tool.name] > 1 else tool.name,
                tool=tool, namespace=namespace,
            )
            for namespace, tool in found
        ]  # fmt: skip
        self._by_name = {offer.name: offer for offer in offers}
        self._model_names = {(offer.tool.name, offer.namespace): offer.name for offer in reversed(offers)}

    def functions(self) -> list[dict[str, Any]]:
        """Return all in the form that the engine takes."""
        return [offer.function() for offer in self._by_name.values()]

    def named(self, name: str | None) -> Offer | None:
        """Return the tool that a model calls by a name."""
        return self._by_name.get(name or "")

    def model_name(self, name: str, namespace: str | None) -> str:
        """Return what a model calls a tool that the client calls by a name."""
        return self._model_names.get((name, namespace), name)

    def call_item(self, call: ToolDelta, *, status: str = "completed") -> Item:
        """Return a model's call as an item; one in progress has no arguments yet."""
        offer = self.named(call.function.name)
        name = offer.tool.name if offer else call.function.name or ""
        arguments = "" if status == "in_progress" else call.function.arguments
        head: Item = {"id": new_id("fc"), "call_id": call.id or new_id("call"), "status": status, "name": name}
        if offer is not None and offer.namespace is not None:
            head["namespace"] = offer.namespace
        if offer is not None and offer.is_custom:
            return head | {"type": "custom_tool_call", "id": new_id("ctc"), "input": custom_input(arguments)}
        return head | {"type": "function_call", "arguments": arguments}


def custom_input(arguments: str) -> str:
    """Return the text in the arguments of a custom tool's function; of a call that was cut, the JSON that there is."""
    try:
        value = msgspec.json.decode(arguments)
    except JSON_ERRORS:
        return arguments
    text = value.get(INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments
