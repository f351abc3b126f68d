"""Long work told as lines of JSON."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from starlette.responses import StreamingResponse

from kvant.errors import KvantError
from kvant.serve.api.ollama import progress
from kvant.serve.gate import Gate


def test_long_work_shows_signs_of_life_between_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BEAT_S", 0.0)
    release = asyncio.Event()
    loop = asyncio.new_event_loop()
    gate = Gate(1)

    def work(telling: progress.Telling) -> None:
        telling.status("first")
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result(60)
        telling.status("second")
        raise KvantError("third")

    async def run() -> list[bytes]:
        response = await progress.answer(work, gate, "somebody", stream=True)
        assert isinstance(response, StreamingResponse)
        parts: list[bytes] = []
        body: AsyncIterator[bytes] = response.body_iterator  # type: ignore[assignment]
        async for part in body:
            parts.append(part)
            if parts.count(b" ") == 3:
                release.set()
        return parts

    parts = loop.run_until_complete(run())
    gate.close()
    loop.close()

    lines = b"".join(parts).splitlines()
    assert [json.loads(line) for line in lines] == [{"status": "first"}, {"status": "second"}, {"error": "third"}]
    assert lines[1].startswith(b"   ")
