"""What names a calibration text: a word for one that kvant has or the model writes, for none, or the path of a file.

A file that is called as such a word is named with its directory: `./self`.
"""

from pathlib import Path

BUNDLED, SELF, NONE = "bundled", "self", "none"
WORDS = (BUNDLED, SELF, NONE)


def file_named(name: str) -> Path | None:
    """Return the file that a name stands for; None if it is a word."""
    return None if name in WORDS else Path(name)


def name_of(file: Path) -> str:
    """Return how a file is named, so that `file_named` gives it again."""
    return f"./{file}" if str(file) in WORDS else str(file)
