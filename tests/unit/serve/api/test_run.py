"""The head of a stream: sent once, whole, however many answers the stream holds and however late they begin."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvant.serve.api import answer, run
from kvant.serve.api.answer import Output
from kvant.serve.api.run import streaming
from kvant.serve.endpoints import SSE
from serving import turns

JOB: Any = None


class Sent:
    """What was sent; a send takes a few turns of the loop."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    async def __call__(self, message: Any) -> None:
        await turns(5)
        self.kinds.append(message["type"].rpartition(".")[2])


@contextlib.asynccontextmanager
async def late(_: Any) -> AsyncIterator[str]:
    """An answer that begins long after its head is due."""
    await turns(100)
    yield "answer"


@contextlib.asynccontextmanager
async def soon(_: Any) -> AsyncIterator[str]:
    """An answer that begins while its head is being sent."""
    await turns(4)
    yield "answer"


@pytest.mark.parametrize("begins", [late, soon])
def test_several_answers_have_one_head_and_one_beat(begins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "answering", begins)
    monkeypatch.setattr(run, "HEAD_S", 0.0)

    async def main() -> None:
        sent = Sent()
        out = Output(sent, ping=b"p")
        beats = []
        for _ in range(3):
            async with streaming(JOB, out, SSE):
                await out.write(b"text")
                beats.append(out._beating)
        await out.end()
        assert sent.kinds.count("start") == 1
        assert sent.kinds[0] == "start"
        assert len(set(beats)) == 1
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_an_answer_that_begins_at_once_sends_its_head_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "answering", soon)
    monkeypatch.setattr(answer, "BEAT_S", 3600.0)

    async def main() -> None:
        sent = Sent()
        out = Output(sent, ping=b"p")
        async with streaming(JOB, out, SSE):
            assert sent.kinds == ["start"]
        await out.end()
        assert sent.kinds == ["start", "body"]

    asyncio.run(main())
