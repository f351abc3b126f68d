"""Conversations for templates that take few forms: many refuse instructions in the middle, or two turns of one role.

Coding clients send both. A conversation is changed only where the model's template refused it as it is.
"""

from typing import Any

from kvant.generate.media import Media, content_of

Message = dict[str, Any]


def plainer(messages: list[Message]) -> list[Message] | None:
    """Return a conversation in a form that more templates take; None if there is none.

    First the instructions go to the front as one message, and neighbours of one role become one; where that was refused
    too, instructions become the beginning of the first turn.
    """
    joined = _joined(messages)
    if joined != messages:
        return joined
    if len(messages) > 1 and messages[0]["role"] == "system" and messages[1]["role"] == "user":
        return _joined([messages[0] | {"role": "user"}, *messages[1:]])
    return None


def _joined(messages: list[Message]) -> list[Message]:
    instructions = [message["content"] for message in messages if message["role"] == "system" and message["content"]]
    made: list[Message] = [{"role": "system", "content": _content(instructions)}] if instructions else []
    for message in messages:
        role = message["role"]
        if role == "system":
            continue
        if made and made[-1]["role"] == role and role in ("user", "assistant"):
            last = made[-1]
            made[-1] = last | message | {"content": _content([last["content"], message["content"]])}
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            if calls:
                made[-1]["tool_calls"] = calls
        else:
            made.append(message)
    return made


def _content(contents: list[str | list[dict[str, Any]]]) -> str | list[dict[str, Any]]:
    """Return the contents of several messages as that of one."""
    parts: list[str | Media] = []
    for content in contents:
        if isinstance(content, str):
            parts += [content] * bool(content)
        else:
            parts += [part if isinstance(part, Media) else part["text"] for part in content]
    return content_of(parts, between="\n\n")
