"""Grammars as text: of a JSON schema for the engine, and how deep those of clients are.

Source: llguidance's docs/syntax.md; llama.cpp's grammars/README.md (GBNF).
"""

import re
from typing import Any

import msgspec

LLGUIDANCE = "%llguidance"
# A token's text is bounded: every one of many `<` that nothing closes would be read on to the end.
_PART = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|\[[^\]\\]*+(?:\\.[^\]\\]*+)*+\]?|#[^\n]*+|<[^>\s]{1,128}+>|[()]', re.DOTALL
)  # fmt: skip


def lark(schema: dict[str, Any], before: str = "") -> str:
    """Return the grammar of a JSON text under a schema, in llguidance's language.

    Args:
        schema: JSON schema.
        before: Rules of what comes before it, of which one is named `before`; empty for nothing.
    """
    start = "start: before answer\n" if before else "start: answer\n"
    return f"{LLGUIDANCE} {{}}\n{start}{before}answer: %json {msgspec.json.encode(schema).decode()}"


def depth_of(grammar: str) -> int:
    """Return how deep groups are nested in a grammar, read once; brackets in texts, classes and remarks are none."""
    depth = deepest = 0
    for match in _PART.finditer(grammar):
        if match[0] == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] == ")":
            depth -= 1
    return deepest


def without_tokens(grammar: str) -> str:
    """Return a GBNF grammar with texts in place of tokens: of the same shape, and read without a vocabulary."""
    return _PART.sub(lambda match: '"x"' if match[0].startswith("<") else match[0], grammar)
