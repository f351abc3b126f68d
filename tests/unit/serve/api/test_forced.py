"""A call that the engine writes as JSON, told as a call while it is written."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from kvant.generate.chunks import Piece, Whole, gather
from kvant.serve.api.forced import forced_call


async def _written(text: str, size: int, finish: str) -> AsyncIterator[Piece]:
    for start in range(0, len(text), size):
        yield Piece(text=text[start : start + size])
    yield Piece(finish=finish)


def _pieces(text: str, *, size: int = 3, finish: str = "stop", names: tuple[str, ...] = ("f",)) -> list[Piece]:
    async def collect() -> list[Piece]:
        return [piece async for piece in forced_call(_written(text, size, finish), list(names))]

    return asyncio.run(collect())


def _whole(text: str, *, size: int = 3, finish: str = "stop", names: tuple[str, ...] = ("f",)) -> Whole:
    return asyncio.run(gather(forced_call(_written(text, size, finish), list(names))))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "arguments", [{}, {"x": 1}, {"deep": {"er": [{}]}}, {"text": 'a "}" and } } \\ \n'}, {"emoji": "\U0001f600"}]
)
def test_the_arguments_are_those_that_were_written(size: int, arguments: object) -> None:
    whole = _whole(json.dumps({"name": "f", "arguments": arguments}), size=size)

    assert (whole.text, whole.finish) == ("", "tool_calls")
    assert whole.calls[0].function.name == "f"
    assert whole.calls[0].function.arguments == json.dumps(arguments)


def test_they_come_in_pieces_and_the_name_once() -> None:
    pieces = _pieces(json.dumps({"name": "f", "arguments": {"story": "once upon a time there was"}}))

    parts = [part for piece in pieces for part in piece.tools]
    assert len(parts) > 5
    assert [part.function.name for part in parts] == ["f"] + [None] * (len(parts) - 1)
    assert [part.id is None for part in parts] == [False] + [True] * (len(parts) - 1)
    assert not any(piece.text for piece in pieces)


def test_a_call_that_was_cut_is_the_call_as_far_as_it_came() -> None:
    cut = _whole('{"name": "f", "arguments": {"s": "abc', finish="length")

    assert (cut.text, cut.finish, cut.calls[0].function.arguments) == ("", "length", '{"s": "abc')


def test_a_cut_before_the_arguments_leaves_the_name_where_there_is_but_one() -> None:
    one = _whole('{"name": "', finish="length")
    assert (one.text, one.finish, one.calls[0].function.name, one.calls[0].function.arguments) == (
        "",
        "length",
        "f",
        "",
    )

    several = _whole('{"name": "', finish="length", names=("f", "g"))
    assert (several.text, several.finish, several.calls) == ("", "length", [])


def test_a_call_that_ends_right_at_the_limit_is_whole() -> None:
    assert _whole('{"name": "f", "arguments": {"x": {}}}', finish="length").finish == "tool_calls"
    assert _whole('{"name": "f", "arguments": {"x": {}}', finish="length").finish == "length"
