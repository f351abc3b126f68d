"""The engine's events as pieces; the events are ones that it sent."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvant.errors import ContextExceededError, EngineError
from kvant.generate.chunks import (
    FunctionDelta,
    Piece,
    ToolDelta,
    chat_piece,
    gather,
    is_progress,
    refusal,
    text_piece,
)
from kvant.serve.failure import describe

CHAT = b'{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hello"}}],"created":1,"model":"m"}'
END = (
    b'{"choices":[{"finish_reason":"length","index":0,"delta":{}}],"timings":{"prompt_ms":1.5,"predicted_ms":2.5},'
    b'"__verbose":{"prompt":"p","stopping_word":"lo"}}'
)
USAGE = b'{"choices":[],"usage":{"completion_tokens":4,"prompt_tokens":31,"total_tokens":35}}'
TEXT_END = (
    b'{"content":"","tokens":[],"stop":true,"tokens_predicted":3,"tokens_evaluated":5,"stop_type":"word",'
    b'"stopping_word":"x","prompt":"p","timings":{"cache_n":2,"prompt_ms":1,"predicted_ms":2}}'
)


def test_a_chats_events() -> None:
    assert chat_piece(CHAT).text == "Hello"
    end = chat_piece(END)
    assert (end.finish, end.stop_word, end.prompt) == ("length", "lo", "p")
    assert end.timings is not None
    assert end.timings.predicted_ms == 2.5
    usage = chat_piece(USAGE).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (31, 4)


def test_the_end_of_a_text() -> None:
    end = text_piece(TEXT_END)

    assert (end.finish, end.stop_word) == ("stop", "x")
    assert end.usage is not None
    assert (end.usage.total_tokens, end.usage.prompt_tokens_details.cached_tokens) == (8, 2)


@pytest.mark.parametrize("payload", [b"", b"{", b'{"choices": 3}', b"\xff"])
def test_what_is_not_understood_is_an_error(payload: bytes) -> None:
    with pytest.raises(EngineError):
        chat_piece(payload)


async def _of(*pieces: Piece) -> AsyncIterator[Piece]:
    for piece in pieces:
        yield piece


def test_parts_of_tool_calls_come_together() -> None:
    parts = [
        Piece(tools=[ToolDelta(0, "a", FunctionDelta("f", ""))]),
        Piece(tools=[ToolDelta(0, None, FunctionDelta(None, '{"x"'))]),
        Piece(tools=[ToolDelta(1, "b", FunctionDelta("g", "{}"))]),
        Piece(tools=[ToolDelta(0, None, FunctionDelta(None, ":1}"))], finish="tool_calls"),
    ]

    whole = asyncio.run(gather(_of(*parts)))

    assert [(call.id, call.function.name, call.function.arguments) for call in whole.calls] == [
        ("a", "f", '{"x":1}'),
        ("b", "g", "{}"),
    ]


def test_how_far_a_prompt_is_read() -> None:
    told = (
        b'{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"model":"m",'
        b'"prompt_progress":{"total":921,"cache":9,"processed":512,"time_ms":5007}}'
    )
    piece = chat_piece(told)
    assert is_progress(told)
    assert piece.progress is not None
    assert (piece.progress.total, piece.progress.cache, piece.text) == (921, 9, "")
    text = text_piece(b'{"content":"","stop":false,"prompt_progress":{"total":8,"cache":0,"processed":0,"time_ms":0}}')
    assert text.progress is not None
    said = b'{"choices":[{"delta":{"content":",\\"prompt_progress\\":{\\"total\\":1}}"}}]}'
    assert not is_progress(said)
    assert not is_progress(CHAT)


def test_the_engines_errors() -> None:
    full = {"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 2031, "n_ctx": 512}}
    error = refusal(400, full)
    assert isinstance(error, ContextExceededError)
    assert (error.n_tokens, error.n_context, describe(error).overflow) == (2031, 512, error)
    assert refusal(501, {"error": {"code": 501, "message": "no."}}).status == 400
    assert refusal(400, {"error": {"code": 400, "message": "bad"}}).status == 400
    assert refusal(500, {"error": "boom"}).status == 500
    assert refusal(503, {}).status == 503
