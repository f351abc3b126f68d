"""Quantities in words, one rule for all that kvant prints; where a byte counts, errors give the exact number beside it.

`serve/page/units.js` says the same for the gateway's page; one table of tests holds both.
"""

import math
import re

from kvant.errors import ValueRangeError

_FACTORS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
            "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "K": 10**3, "M": 10**6, "G": 10**9}  # fmt: skip
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
_UNITS = (("kB", 1e3, 1), ("MB", 1e6, 1), ("GB", 1e9, 2))


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


def format_bytes(n: float) -> str:
    """Return a size for people, decimal as file managers have it: `512 bytes`, `1.5 kB`, `105.5 MB`, `1.50 GB`."""
    if abs(n) < 999.5:
        return counted(round(n), "byte")
    for unit, factor, digits in _UNITS:
        text = f"{n / factor:.{digits}f}"
        if abs(float(text)) < 1000:
            return f"{text} {unit}"
    return f"{n / 1e12:.2f} TB"


def parse_time(text: str) -> float:
    """Return a time in seconds: `90s`, `10min`, `1.5h`.

    Raises:
        ValueRangeError: Not a positive time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    factor = _SECONDS.get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) <= 0:
        raise ValueRangeError(f"time: {text!r} is not a time. Write a number and a unit: 90s, 10min or 1.5h.")
    return float(match[1]) * factor


def format_time(seconds: float) -> str:
    """Return a time for people: `40 s`, `6 min 50 s`, `25 min`, `1 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(1, whole)} s"
    if whole < 600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def asked_bytes(n: int) -> str:
    """Return a size to ask for that has room for so many bytes, as `parse_bytes` reads it: `97.6MB`."""
    return f"{math.ceil(n / 1e5) / 10:.1f}MB" if n < 10**9 else f"{math.ceil(n / 1e7) / 100:.2f}GB"


def axis_bytes(n: float, largest: float) -> str:
    """Return a round size on an axis that ends at `largest`: `80 MB`, in one unit along the axis."""
    return f"{n / 1e9:.3g} GB" if largest >= 2e9 else f"{n / 1e6:.4g} MB"


def format_weights(n: int) -> str:
    """Return a number of weights for people: `35,136`, `134.5 M`, `1.54 B`."""
    if n < 1_000_000:
        return f"{n:,}"
    return f"{n / 1e6:.1f} M" if n < 999_950_000 else f"{n / 1e9:.2f} B"


def format_speed(tok_s: float | None) -> str:
    """Return tokens per second in three digits: `118`, `72.4`, `6.10`; a dash if they were not measured."""
    if tok_s is None:
        return "–"
    digits = next(digits for digits in (2, 1, 0) if digits == 0 or float(f"{tok_s:.{digits}f}") < 10 ** (3 - digits))
    return f"{tok_s:.{digits}f}"


def counted(n: int, noun: str) -> str:
    """Return a number with its noun: `1 model`, `2 models`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
