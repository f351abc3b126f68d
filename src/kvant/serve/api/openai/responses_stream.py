"""Events of /v1/responses: what a stream tells, in the order that OpenAI tells it.

Source: OpenAI's API reference, "Streaming events" of responses.
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from kvant.generate.chunks import Piece, ToolDelta, Whole, add_call
from kvant.serve.api.ids import new_id
from kvant.serve.api.openai.responses_tools import Item, Offers, custom_input

_encode = msgspec.json.Encoder().encode


class ResponseEvents:
    """Turns pieces into events and gathers the items that the whole response holds.

    Args:
        response: Makes the response object of a status and its items.
        offers: The tools that may be called.
    """

    def __init__(self, response: Any, offers: Offers) -> None:
        self._response, self._offers = response, offers
        self._number = 0
        self.items: list[Item] = []
        self.whole = Whole()
        self._open: Item | None = None
        self._texts: list[str] = []

    def broken(self, code: str | None, message: str, param: str | None) -> bytes:
        """Return the end of a stream that failed: the event `error`, and the response that did."""
        error = {"code": code or "server_error", "message": message}
        response = self._response("failed", self.items, self.whole.usage) | {"error": error}
        told = self._event("error", code=code, message=message, param=param)
        return told + self._event("response.failed", response=response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number} | fields
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + _encode(event) + b"\n\n"

    async def events(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
        """Yield all events of an answer."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress", [], None))
        async for piece in pieces:
            self.whole.finish = piece.finish or self.whole.finish
            self.whole.usage = piece.usage or self.whole.usage
            for kind, text in (("reasoning", piece.reasoning), ("message", piece.text)):
                if text:
                    for event in self._add_text(kind, text):
                        yield event
            for part in piece.tools:
                for event in self._add_call(part):
                    yield event
        status = "incomplete" if self.whole.finish == "length" else "completed"
        for event in self._close(status):
            yield event
        yield self._event(f"response.{status}", response=self._response(status, self.items, self.whole.usage))

    def _add_text(self, kind: str, text: str) -> list[bytes]:
        events = []
        if self._open is None or self._open["type"] != kind:
            events += self._close()
            events += self._begin(message_item("in_progress") if kind == "message" else reasoning_item())
            if kind == "message":
                events.append(self._part("response.content_part.added", part=text_part("")))
            else:
                events.append(self._part("response.content_part.added", part=_thought("")))
        self._texts.append(text)
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        more: Item = {"logprobs": []} if kind == "message" else {}
        return [*events, self._part(name, delta=text, **more)]

    def _add_call(self, part: ToolDelta) -> list[bytes]:
        events = []
        new = all(call.index != part.index for call in self.whole.calls)
        add_call(self.whole.calls, part)
        if new:
            events += self._close()
            events += self._begin(self._offers.call_item(part, status="in_progress"))
        if part.function.arguments and self._open is not None:
            self._texts.append(part.function.arguments)
            if self._open["type"] == "function_call":
                events.append(self._call("response.function_call_arguments.delta", delta=part.function.arguments))
        return events

    def _call(self, kind: str, **fields: Any) -> bytes:
        assert self._open is not None
        return self._event(kind, item_id=self._open["id"], output_index=len(self.items), **fields)

    def _begin(self, item: Item) -> list[bytes]:
        self._open, self._texts = item, []
        return [self._event("response.output_item.added", output_index=len(self.items), item=item)]

    def _part(self, kind: str, **fields: Any) -> bytes:
        assert self._open is not None
        return self._event(kind, item_id=self._open["id"], output_index=len(self.items), content_index=0, **fields)

    def _close(self, status: str = "completed") -> list[bytes]:
        """Finish the item that is open."""
        item, text = self._open, "".join(self._texts)
        if item is None:
            return []
        if item["type"] == "message":
            part = text_part(text)
            events = [
                self._part("response.output_text.done", text=text, logprobs=[]),
                self._part("response.content_part.done", part=part),
            ]
            item = item | {"content": [part], "status": status}
        elif item["type"] == "reasoning":
            events = [
                self._part("response.reasoning_text.done", text=text),
                self._part("response.content_part.done", part=_thought(text)),
            ]
            item = item | {"content": [_thought(text)]}
        elif item["type"] == "custom_tool_call":  # the text is known when the JSON that holds it is whole
            text = custom_input(text)
            events = [
                self._call("response.custom_tool_call_input.delta", delta=text),
                self._call("response.custom_tool_call_input.done", input=text),
            ]
            item = item | {"input": text, "status": status}
        else:
            events = [self._call("response.function_call_arguments.done", name=item["name"], arguments=text)]
            item = item | {"arguments": text, "status": status}
        events.append(self._event("response.output_item.done", output_index=len(self.items), item=item))
        self.items.append(item)
        self._open = None
        return events


def text_part(text: str) -> Item:
    """Return the text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _thought(text: str) -> Item:
    return {"type": "reasoning_text", "text": text}


def message_item(status: str, *parts: Item) -> Item:
    """Return an item that is a message."""
    return {"type": "message", "id": new_id("msg"), "status": status, "role": "assistant", "content": list(parts)}


def reasoning_item(*texts: str) -> Item:
    """Return an item that is thinking."""
    return {"type": "reasoning", "id": new_id("rs"), "summary": [], "content": [_thought(text) for text in texts]}
