"""The conversation of /v1/responses as messages of a chat.

Calls and their outputs are shown to the model, whoever made them; what a server elsewhere did by itself (a search, a
model's hidden thinking) leaves nothing that could be shown.

Source: OpenAI's API reference, "Responses", `input`.
"""

from typing import Any

import msgspec

from kvant.errors import ApiError
from kvant.serve.api.calls import arguments_text
from kvant.serve.api.openai.content import Content, content
from kvant.serve.api.openai.responses_tools import INPUT, Offers
from kvant.serve.api.openai.responses_types import InputItem
from kvant.serve.api.openai.types import Part
from kvant.serve.api.wire import check
from kvant.serve.library import ModelFile

LOST = frozenset({"item_reference", "compaction"})
"""Items that stand for what only another server holds."""

Message = dict[str, Any]


def messages_of(given: str | list[InputItem], file: ModelFile, offers: Offers) -> tuple[list[Message], list[str]]:
    """Return a conversation in the form of chat completions, and the items that are left out, for the header.

    Raises:
        ApiError: An item cannot be understood, or is no text.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}], []
    check(bool(given), "input: is empty. Send at least one item.", "input")
    answered = {item.call_id for item in given if item.type.endswith("_output")}
    messages: list[Message] = []
    left_out = []
    for i, item in enumerate(given):
        if item.type == "message" and item.role is not None:
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": content(item.content, file, f"input[{i}].content")})
        elif item.call_id and (
            item.type == "function_call" or (item.type.endswith("_call") and item.call_id in answered)
        ):
            _add_call(messages, item, f"input[{i}]", offers)
        elif item.call_id and item.type.endswith("_output"):
            text = _output(item.output, file, f"input[{i}].output")
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        else:
            check(item.type not in LOST and item.type != "message",
                  f"input[{i}]: an item of type {item.type[:100]!r} is not held here or lacks fields. Send its text.",
                  "input")  # fmt: skip
            left_out.append(f"input.{item.type}")
    check(bool(messages), "input: holds no message. Send at least one.", "input")
    return messages, [name for name in left_out if name != "input.reasoning"]


def _add_call(messages: list[Message], item: InputItem, where: str, offers: Offers) -> None:
    """Add a call to the answer before it, or to one of its own."""
    name = offers.model_name(item.name or item.type.removesuffix("_call"), item.namespace)
    if item.input is not None:
        arguments = msgspec.json.encode({INPUT: item.input}).decode()
    elif item.arguments is None and (item.action is not None or item.operation is not None):
        arguments = msgspec.json.encode({"action": item.action or item.operation}).decode()
    else:
        arguments = arguments_text(item.arguments, f"{where}.arguments")
    call = {"id": item.call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})


def _output(output: Any, file: ModelFile, where: str) -> Content:
    """Return what a tool gave, as text, with its pictures."""
    if output is None or isinstance(output, str):
        return output or ""
    if isinstance(output, list):
        try:
            parts = msgspec.convert(output, list[Part])
        except msgspec.ValidationError:
            raise ApiError("input: an output is neither text nor parts of it. Send text.", param="input") from None
        if all(part.type.endswith(("text", "image", "file", "audio")) for part in parts):
            return content(parts, file, where)
    return msgspec.json.encode(output).decode()
