"""A JSON body looked at before it is decoded: how deep it is nested, and of how many parts it is made.

One pass over the bytes, whatever they are, without memory of its own: the quantifiers are possessive, so nothing that
was read is ever read again, and a text that is never closed ends with the body.
"""

import re

MAX_PARTS = 1 << 20
"""Texts, brackets and commas in a body: a value costs the decoder some 60 bytes, however short it is."""

_MARKS = (b'"', b"]", b"}", b",")
_PART = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]|,', re.DOTALL)


def fault(body: bytes, max_depth: int, max_parts: int = MAX_PARTS) -> str | None:
    """Return what is wrong with the shape of a JSON text, as a sentence for its sender; None where nothing is.

    Args:
        body: The text; it need not be valid.
        max_depth: Most levels of arrays and objects.
        max_parts: Most texts, brackets and commas.
    """
    if body.count(b"[") + body.count(b"{") <= max_depth and sum(map(body.count, _MARKS)) <= max_parts:
        return None
    depth = 0
    for part, match in enumerate(_PART.finditer(body), 1):
        first = body[match.start()]
        if part > max_parts:
            return f"The JSON body has over {max_parts} texts, brackets and commas. Send less at once."
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                return f"The JSON body is nested deeper than {max_depth} levels. Send a flatter one."
        elif first in b"]}":
            depth -= 1
    return None
