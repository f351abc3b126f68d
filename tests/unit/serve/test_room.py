import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from kvant.serve import room as module
from kvant.serve.refusal import Refusal
from kvant.serve.room import AT_ONCE, FREE_BYTES, Body, Receive, Room

MOST = 10 * FREE_BYTES


def pieces(*parts: bytes) -> Receive:
    left = list(parts)

    async def receive() -> MutableMapping[str, Any]:
        if not left:
            return {"type": "http.disconnect"}
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return receive


def read(room: Room, body: Body, caller: str = "a", announced: int | None = None) -> bytes:  # noqa: ARG001
    return asyncio.run(body.read(caller, announced))


def test_a_body_is_counted_while_its_request_lasts() -> None:
    room = Room(MOST)
    with Body(room, pieces(bytes(MOST // 2), bytes(MOST // 2))) as body:
        assert len(read(room, body)) == MOST
        assert room.held == MOST - FREE_BYTES
    assert (room.held, room.left("a")) == (0, room.most_caller)


def test_bodies_are_bounded_in_sum_and_for_each_caller() -> None:
    room = Room(MOST)
    held = []
    for index in range(AT_ONCE + 1):
        body = Body(room, pieces(bytes(MOST)))
        if index < AT_ONCE:
            read(room, body, caller=str(index // (AT_ONCE // 2)))
            held.append(body)
        else:
            with pytest.raises(Refusal, match="fill the memory") as error:
                read(room, body, caller="other", announced=MOST)
            assert (error.value.status, error.value.headers["Retry-After"]) == (503, "5")
    small = Body(room, pieces(bytes(FREE_BYTES)))
    assert len(read(room, small, caller="other")) == FREE_BYTES  # usual requests pass all the same
    for body in held:
        body.__exit__()
    assert room.held == 0


def test_one_caller_cannot_hold_it_all() -> None:
    room = Room(MOST)
    for _ in range(AT_ONCE // 2):
        read(room, Body(room, pieces(bytes(MOST))))
    with pytest.raises(Refusal, match="fill the memory"):
        read(room, Body(room, pieces(bytes(MOST))))
    read(room, Body(room, pieces(bytes(MOST))), caller="b")


@pytest.mark.parametrize(
    ("parts", "announced", "status"),
    [((b"x" * (MOST + 1),), None, 413), ((b"",), MOST + 1, 413), ((b"x" * MOST, b"x"), None, 413), ((), 3, 400)],
)
def test_what_is_refused_is_held_no_longer(parts: tuple[bytes, ...], announced: int | None, status: int) -> None:
    room = Room(MOST)
    with pytest.raises(Refusal) as error, Body(room, pieces(*parts)) as body:
        read(room, body, announced=announced)
    assert (error.value.status, room.held) == (status, 0)


@pytest.mark.parametrize(("rate", "is_slow"), [(1, False), (1 << 30, True)])
def test_a_body_has_more_time_the_more_of_it_came(rate: int, is_slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_S", 0.01)
    monkeypatch.setattr(module, "BODY_BYTES_PER_S", rate)
    parts = [bytes(100), bytes(100)]

    async def receive() -> MutableMapping[str, Any]:
        if len(parts) == 1:
            await asyncio.sleep(3600 if is_slow else 0.1)
        return {"type": "http.request", "body": parts.pop(), "more_body": bool(parts)}

    with Body(Room(MOST), receive) as body:
        if is_slow:
            with pytest.raises(Refusal, match="came slower than"):
                read(Room(MOST), body)
        else:
            assert len(read(Room(MOST), body)) == 200
