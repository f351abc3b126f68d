"""Streams that are never silent for long."""

import asyncio
from typing import Any

import pytest

from kvant.serve.api import answer
from kvant.serve.api.answer import Output
from kvant.serve.endpoints import NDJSON, SSE
from kvant.serve.wording import ANTHROPIC, OLLAMA, OPENAI

STEPS = 10


def _sent(media_type: str, ping: bytes) -> list[bytes]:
    """Return the parts of a body whose writer is silent for some steps, writes, and ends."""
    parts: list[bytes] = []

    async def send(message: Any) -> None:
        parts.append(message.get("body", b""))

    async def run() -> None:
        out = Output(send, ping=ping, headers={"x-more": "1"})
        await out.start(media_type)
        for _ in range(STEPS):
            await asyncio.sleep(0)
        await out.write(b"text")
        await out.end()
        ended = len(parts)
        for _ in range(STEPS):
            await asyncio.sleep(0)
        assert len(parts) == ended

    asyncio.run(run())
    return parts


@pytest.mark.parametrize("media_type", [SSE, NDJSON])
def test_a_silent_stream_shows_signs_of_life_until_it_ends(media_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "BEAT_S", 0.0)

    parts = _sent(media_type, b"p")

    assert parts.count(b"p") > STEPS // 4
    assert parts[-2:] == [b"text", b""]


def test_an_answer_that_is_one_value_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "BEAT_S", 0.0)

    assert b"p" not in _sent("application/json", b"p")


def test_twice_the_beat_is_less_than_what_is_promised() -> None:
    assert 2 * answer.BEAT_S <= 15


def test_each_api_has_a_sign_that_its_readers_pass_over() -> None:
    assert OPENAI.ping == b": ping\n\n"
    assert ANTHROPIC.ping == b'event: ping\ndata: {"type": "ping"}\n\n'
    assert OLLAMA.ping == b" "
