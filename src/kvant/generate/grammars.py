"""The grammar of a JSON schema, for the engine.

Source: llguidance's docs/syntax.md.
"""

from typing import Any

import msgspec

LLGUIDANCE = "%llguidance"


def lark(schema: dict[str, Any], before: str = "") -> str:
    """Return the grammar of a JSON text under a schema, in llguidance's language.

    Args:
        schema: JSON schema.
        before: Rules of what comes before it, of which one is named `before`; empty for nothing.
    """
    start = "start: before answer\n" if before else "start: answer\n"
    return f"{LLGUIDANCE} {{}}\n{start}{before}answer: %json {msgspec.json.encode(schema).decode()}"
