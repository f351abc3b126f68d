"""Bounds of many length-prefixed strings in one buffer."""

import struct

import numpy as np


def string_bounds(data: np.ndarray, n: int, limit: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Walk `n` strings, each a uint64 length followed by that many bytes.

    Args:
        data: The bytes, uint8 [any]; the first length stands at 0.
        n: How many strings; 8 * n bytes are known to be there.
        limit: Longest string taken, in bytes.

    Returns:
        Offsets of first bytes and past last bytes, int64 [n] each; None if a string is longer than `limit` or than
        what is left.
    """
    starts, position, size = np.empty(n, np.int64), 0, len(data)
    ends = np.empty(n, np.int64)
    view, unpack = data.data, struct.Struct("<Q").unpack_from
    for index in range(n):
        if position + 8 > size:
            return None
        length = unpack(view, position)[0]
        position += 8
        if length > limit or length > size - position:
            return None
        starts[index] = position
        position += length
        ends[index] = position
    return starts, ends
