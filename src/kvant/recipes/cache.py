"""Encoded variants and their scores, kept between runs: a killed run takes up where it stopped.

Everything is keyed by digests of all that decides the result, versions included, and can be deleted at any time. An
encoded file counts only with its stamp, which is written last and holds the file's size and time of change: a file that
was cut short or edited is made anew.
"""

import hashlib
from contextlib import AbstractContextManager

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.evaluate.scores import Score
from kvant.files import atomic_write, cache_dir, exclusive
from kvant.model import Model


def source_key(model: Model) -> str:
    """Digest of a model's files as they are on disk: path, size and time of change of each."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in model.files]
    return digest("source", stats)


def digest(*facts: object) -> str:
    """SHA-256 of facts, as hex."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def alone(what: str, *facts: object) -> AbstractContextManager[None]:
    """Keep other processes from making the same thing meanwhile; whoever waited finds it made.

    Args:
        what: What is done, in words for those who wait: `measures a model`.
        facts: All that decides what is made.
    """
    return exclusive(cache_dir("locks") / f"{digest(what, *facts)[:32]}.lock", what)


def read_score(key: str) -> Score | None:
    """Return a score from the cache; None if it is not there or not readable."""
    try:
        return msgspec.json.decode((cache_dir("scores") / f"{key}.json").read_bytes(), type=Score)
    except (OSError, *JSON_ERRORS):
        return None


def write_score(key: str, score: Score) -> None:
    """Keep a score."""
    with atomic_write(cache_dir("scores") / f"{key}.json", is_shared=True) as file:
        file.write(msgspec.json.encode(score))
