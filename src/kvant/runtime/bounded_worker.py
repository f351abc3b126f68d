"""The process behind `bounded.py`: reads requests on standard input, answers on standard output, keeps to its limits.

Every request may take so much processor time: the kernel ends the process that takes more. A stack that overflows ends
it as well, and its owner tells the client.
"""

import contextlib
import json
import os
import sys
import zlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from kvant.runtime import messages
from kvant.runtime.bounded import Inflate, Refused, Render, Reply, Request, Text, Tried, Try

FUEL = 2_000_000
MAX_TEXT_CHARACTERS = 1 << 24
MAX_REASON_CHARACTERS = 500
UNPACKED_BYTES = 1 << 20
"""Bytes of a picture's pixels that are held at a time."""


class _Refused(Exception):  # noqa: N818
    """A template refuses a conversation."""


def raise_exception(message: str) -> str:
    """Refuse a conversation; templates call it by this name."""
    raise _Refused(message)


def strftime_now(layout: str) -> str:
    """Return the time, as templates ask for it by this name."""
    return datetime.now().astimezone().strftime(layout)


def to_json(value: Any, indent: int | None = None, **more: Any) -> str:
    """Return JSON as transformers gives it to templates: letters and `<` as they are."""
    kept: dict[str, Any] = {"ensure_ascii": False}
    kept |= {name: more[name] for name in ("separators", "sort_keys", "ensure_ascii") if name in more}
    return json.dumps(value, indent=indent, **kept)


def render(template: str, values: Mapping[str, Any]) -> Text | Refused:
    """Render a template: it reaches nothing but the values, and its steps are counted."""
    import minijinja

    environment = minijinja.Environment(
        templates={"chat": template}, trim_blocks=True, lstrip_blocks=True, auto_escape_callback=lambda _: False,
        pycompat=True, fuel=FUEL, globals={"raise_exception": raise_exception, "strftime_now": strftime_now},
        filters={"tojson": to_json},
    )  # fmt: skip
    try:
        text = environment.render_template("chat", **values)
    except MemoryError:
        return Refused("takes too much memory")
    except Exception as error:  # whatever a template makes of the values and functions it is given
        said = str(error).strip().splitlines() or ["refuses this conversation"]
        return Refused(said[0][:MAX_REASON_CHARACTERS].rstrip("."))
    if len(text) > MAX_TEXT_CHARACTERS:
        return Refused(f"makes {len(text)} characters, above {MAX_TEXT_CHARACTERS}")
    return Text(text)


def tried(request: Try) -> Tried:
    """Try a grammar."""
    from kvant.runtime.grammar import gbnf_error, lark_error

    error = (lark_error if request.language == "lark" else gbnf_error)(request.grammar)
    return Tried(error and error[:MAX_REASON_CHARACTERS])


def inflated(request: Inflate) -> Text | Refused:
    """Unpack the pixels of a PNG chunk by chunk, keeping none."""
    data, at, unpacked = request.data, 8, 0
    unpacker = zlib.decompressobj()
    try:
        while at + 8 <= len(data):
            length = int.from_bytes(data[at : at + 4], "big")
            chunk = data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
            while chunk and not unpacker.eof:
                unpacked += len(unpacker.decompress(chunk, UNPACKED_BYTES))
                chunk = unpacker.unconsumed_tail
                if unpacked > request.most:
                    return Refused("is a PNG that unpacks to more than its size tells")
            at += 12 + length
    except zlib.error:
        return Refused("is a PNG that is damaged")
    return Text("")


def answer(request: Request) -> Reply:
    """Do what is asked."""
    if isinstance(request, Inflate):
        return inflated(request)
    if isinstance(request, Render):
        return render(request.template, request.values)
    return tried(request)


def _allow(cpu_s: int) -> None:
    """Let this process go on for so many seconds of processor time."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + cpu_s, hard))


def main() -> None:
    """Answer until standard input ends."""
    cpu_s = int(sys.argv[1])
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not look like an answer
    while (body := messages.read_body(requests)) is not None:
        _allow(cpu_s)
        messages.write(replies, answer(msgspec.msgpack.decode(body, type=Request)))


if __name__ == "__main__":
    main()
