"""A tool call that the engine writes under a schema, as JSON text, told to clients piece by piece as the call it is."""

import re
import secrets
from collections.abc import AsyncIterator

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.generate.chunks import FunctionDelta, Piece, ToolDelta

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
"""How such a text begins: the engine's grammar keeps the order of a schema's properties."""

MAX_HEAD_CHARACTERS = 4096
"""A call that begins later is none: the head is read anew with every piece."""


async def forced_call(pieces: AsyncIterator[Piece], names: list[str]) -> AsyncIterator[Piece]:
    """Yield an answer that is the JSON of one call as that call, its arguments as they come.

    One that is cut off is the call as far as it came, and its end stays `length`; where not even the name is whole, and
    there are several tools, it is nothing.

    Args:
        pieces: The answer.
        names: Names of the tools that may be called.
    """
    reader = _Reader()
    begun = False
    async for piece in pieces:
        added = reader.add(piece.text)
        piece.text = ""
        if piece.finish is not None:
            added += reader.rest()
            piece.finish = "tool_calls" if reader.whole else piece.finish
        name = reader.name or (names[0] if piece.finish is not None and len(names) == 1 else None)
        if name is not None and not begun:
            begun = True
            piece.tools = [ToolDelta(0, f"call_{secrets.token_hex(12)}", FunctionDelta(name, added))]
        elif added:
            piece.tools = [ToolDelta(0, None, FunctionDelta(None, added))]
        yield piece


class _Reader:
    """Finds the name and the arguments in `{"name": ..., "arguments": ...}` while it is written.

    Attributes:
        name: The tool's name, as soon as it is whole.
        whole: Whether all of it was there, told by `rest`.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.whole = False
        self._head = ""
        self._held = ""
        self._told: list[str] = []

    def add(self, text: str) -> str:
        """Take text and return what is certainly of the arguments: the last braces may be the call's own."""
        if self.name is None:
            if len(self._head) > MAX_HEAD_CHARACTERS:
                return ""
            self._head += text
            match = _HEAD.match(self._head)
            if match is None:
                return ""
            self.name = msgspec.json.decode(match["name"], type=str)
            text = self._head[match.end() :]
        text = self._held + (text if self._told else text.lstrip())
        sure = text.rstrip("} \t\r\n")
        self._held = text[len(sure) :]
        if sure:
            self._told.append(sure)
        return sure

    def rest(self) -> str:
        """Return the last of the arguments."""
        arguments = "".join(self._told) + self._held
        closed = arguments.rstrip().removesuffix("}")
        try:
            msgspec.json.decode(closed)
        except JSON_ERRORS:
            return self._held
        self.whole = self.name is not None
        return closed[len(arguments) - len(self._held) :]
