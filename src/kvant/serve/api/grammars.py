"""Grammars of clients as text: how deep they are.

Source: llama.cpp's grammars/README.md (GBNF).
"""

import re

# A token's text is bounded: every one of many `<` that nothing closes would be read on to the end.
_PART = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|\[[^\]\\]*+(?:\\.[^\]\\]*+)*+\]?|#[^\n]*+|<[^>\s]{1,128}+>|[()]', re.DOTALL
)  # fmt: skip


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
