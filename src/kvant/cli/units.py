"""Sizes as people write them."""

import re

from kvant.errors import ValueRangeError

_FACTORS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
            "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "K": 10**3, "M": 10**6, "G": 10**9}  # fmt: skip


def parse_bytes(text: str) -> int:
    """Return a size in bytes: `100MB` (decimal), `1.5GiB` (binary), `1024`.

    Raises:
        ValueRangeError: Not a positive size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None or float(match[1]) <= 0:
        raise ValueRangeError(f"size: {text!r} is not a size. Write a number and a unit, such as 100MB or 1.5GiB.")
    return int(float(match[1]) * factor)


def counted(n: int, noun: str) -> str:
    """Return a number with its noun: `1 model`, `2 models`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def format_bytes(n: float) -> str:
    """Return a size for people, in decimal units as file managers and download pages use them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 999.5:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
