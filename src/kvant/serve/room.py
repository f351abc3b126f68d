"""Bodies of requests: read whole before an API sees them, and bounded all together, not only each.

A body is held until its request is answered, and requests may wait in a queue. What is beyond `FREE_BYTES` of each
counts, so that usual requests pass while large ones fill the room; connections bound their number.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kvant.serve.refusal import Refusal, later

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

FREE_BYTES = 64 << 10
BODY_S = 60.0
BODY_BYTES_PER_S = 64 << 10
"""A body has `BODY_S` seconds, and one more for each of so many bytes of it that came."""

RETRY_S = 5
AT_ONCE = 4
"""Bodies of the greatest length that fit at the same time; a caller may hold half of them."""


class Room:
    """What bodies may take in memory, all together.

    Args:
        most_each: Longest body.
    """

    def __init__(self, most_each: int) -> None:
        self.most_each = most_each
        self.most, self.most_caller = AT_ONCE * most_each, AT_ONCE * most_each // 2
        self.held = 0
        self._callers: dict[str, int] = {}

    def left(self, caller: str) -> int:
        """Bytes that a caller may still hold."""
        return min(self.most - self.held, self.most_caller - self._callers.get(caller, 0))

    def take(self, caller: str, n_bytes: int) -> None:
        """Count bytes as held; negative ones as given back."""
        self.held += n_bytes
        own = self._callers.pop(caller, 0) + n_bytes
        if own:
            self._callers[caller] = own


class Body:
    """One request's body; use it as a context manager that lasts as long as the request.

    Args:
        room: Where it is counted.
        receive: Where it comes from.

    Attributes:
        receive: The same, for what comes after it.
    """

    def __init__(self, room: Room, receive: Receive) -> None:
        self._room, self.receive = room, receive
        self._caller, self._held = "", 0

    def __enter__(self) -> "Body":
        return self

    def __exit__(self, *_: object) -> None:
        self._room.take(self._caller, -self._held)

    async def read(self, caller: str, announced: int | None) -> bytes:
        """Read it whole.

        Args:
            caller: Whose it is.
            announced: Its length, if that was told.

        Raises:
            Refusal: It is too long, does not end in time, there is no room for it, or the client went away.
        """
        self._caller = caller
        self._check(announced or 0)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_S) as limit:
                end = limit.when() or 0.0
                while True:
                    message = await self.receive()
                    if message["type"] != "http.request":
                        raise Refusal(400, "disconnect", "The body is not whole.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._check(size)
                    self._hold(size)
                    limit.reschedule(end + size / BODY_BYTES_PER_S)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(
                408, "slow_body",
                f"After {BODY_S:.0f} s the body came slower than {BODY_BYTES_PER_S} bytes a second. Shorten it.",
            ) from None  # fmt: skip

    def _check(self, size: int) -> None:
        if size > self._room.most_each:
            raise too_long(self._room.most_each)
        if size - FREE_BYTES - self._held > self._room.left(self._caller):
            raise later(503, "bodies", "Long bodies of other requests fill the memory there is for them.", RETRY_S)

    def _hold(self, size: int) -> None:
        more = max(0, size - FREE_BYTES) - self._held
        self._room.take(self._caller, more)
        self._held += more


def too_long(limit: int) -> Refusal:
    """Return the error of a body that is too long."""
    return Refusal(413, "size", f"The body is above the limit of {limit} bytes.")


def announced(headers: dict[bytes, bytes], limit: int) -> int | None:
    """Return the length that a request tells of its body.

    Raises:
        Refusal: It is above the limit.
    """
    length = headers.get(b"content-length")
    if length is None:
        return None
    if not length.isdigit() or int(length[:20]) > limit:
        raise too_long(limit)
    return int(length)


def counted(receive: Receive, limit: int) -> Receive:
    """Pass a long upload on piece by piece; one that grows above the limit breaks off."""
    size = 0

    async def count() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return {"type": "http.disconnect"} if size > limit else message

    return count


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a source that gives a whole body once more."""
    left: list[bytes] = [body]

    async def replay() -> MutableMapping[str, Any]:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return replay
