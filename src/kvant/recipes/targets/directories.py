"""Artifacts that are directories, kept between runs; those used longest ago make room for new ones.

A directory is there whole or not at all. It can be deleted at any time: what it was made from makes it again.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kvant.files import cache_dir, commit_file, partial_path, trim_directories

MAX_BYTES = 24 << 30


def made(key: str, write: Callable[[Path], object]) -> Path:
    """Return the directory of a key, written unless the cache has it.

    Args:
        key: Digest of all that decides its bytes, letters and digits alone.
        write: Writes it to a place where nothing is.
    """
    place = _place(key)
    if not place.is_dir():
        fresh = partial_path(place)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            write(fresh)
            commit_file(fresh, place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        trim_directories(place.parent, MAX_BYTES, keep=place)
    os.utime(place)
    return place


def forget(key: str) -> None:
    """Remove the directory of a key from the cache, if it is there."""
    shutil.rmtree(_place(key), ignore_errors=True)


def _place(key: str) -> Path:
    return cache_dir("formats") / key
