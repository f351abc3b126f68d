"""Quantities in words."""


def megabytes(n: float) -> str:
    """A size for people, decimal."""
    if n < 50_000:  # 0.0 MB
        return f"{n:.0f} bytes"
    return f"{n / 1e9:.2f} GB" if n >= 999.5e6 else f"{n / 1e6:.1f} MB"
