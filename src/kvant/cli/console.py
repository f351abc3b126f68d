"""Printing for people and for machines: results on standard output, everything else on standard error."""

import sys
from typing import Any


def fail(message: str) -> None:
    """Print an error on standard error."""
    print(f"kvant: {message}", file=sys.stderr)  # noqa: T201


def print_json(value: Any) -> None:
    """Print a document as indented JSON on standard output."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
