"""Events of /v1/responses: a stream that fails in the middle goes on with its own numbers and its own response."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from kvant.generate.chunks import Piece
from kvant.serve.api.openai.responses_stream import ResponseEvents
from kvant.serve.api.openai.responses_tools import Offers


def _response(status: str, items: list[Any], usage: Any) -> dict[str, Any]:
    return {"id": "resp_1", "status": status, "output": items, "usage": usage, "error": None}


def _told(events: list[bytes]) -> list[Any]:
    return [
        msgspec.json.decode(line.removeprefix(b"data: "))
        for line in b"".join(events).splitlines() if line.startswith(b"data: ")
    ]  # fmt: skip


def test_a_stream_that_fails_keeps_its_numbers_and_its_response() -> None:
    async def pieces() -> AsyncIterator[Piece]:
        yield Piece(text="Half")
        raise RuntimeError

    async def main() -> list[bytes]:
        maker = ResponseEvents(_response, Offers([]))
        sent: list[bytes] = []
        with contextlib.suppress(RuntimeError):
            async for event in maker.events(pieces()):
                sent += [event]
        return [*sent, maker.broken(None, "It ended.", None)]

    told = _told(asyncio.run(main()))
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"] for event in told[-2:]] == ["error", "response.failed"]
    assert told[0]["response"]["id"] == told[-1]["response"]["id"] == "resp_1"
    assert told[-1]["response"]["status"] == "failed"
    assert told[-1]["response"]["error"] == {"code": "server_error", "message": "It ended."}
