"""The loop of an engine's process: requests on standard input, replies on standard output, until its owner goes."""

import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from kvant.errors import KvantError
from kvant.runtime import messages


class Answerer(Protocol):
    """Answers requests, and keeps what is open between them."""

    def answer(self, request: Any) -> msgspec.Struct:
        """Do what is asked."""
        ...


def serve(start: Callable[[int], Answerer], requests: Any, remedy: str) -> None:
    """Serve requests until standard input ends.

    Args:
        start: Loads the engine at the first request, given the file of the memory shared with the owner.
        requests: Type of all requests.
        remedy: What to do where memory runs out.
    """
    shared_fd = int(sys.argv[1])
    asked = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not look like a reply
    worker: Answerer | None = None
    while (body := messages.read_body(asked)) is not None:
        reply: msgspec.Struct
        try:
            worker = worker or start(shared_fd)
            reply = worker.answer(msgspec.msgpack.decode(body, type=requests))
        except KvantError as error:
            reply = messages.Failed(str(error), isinstance(error, ValueError))
        except MemoryError:
            reply = messages.Failed(f"engine process: out of memory. {remedy}")
        messages.write(replies, reply)
