"""Memory bandwidth, measured: generating a token reads every weight once, so this bounds tokens per second."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Above the last-level cache of common machines, small enough to fill in a few milliseconds.
BYTES_PER_THREAD = 64 << 20
ROUNDS = 4


def read_bandwidth(threads: int, *, bytes_per_thread: int = BYTES_PER_THREAD) -> float:
    """Read memory with every thread at once and return the best rate of a few rounds, bytes per second.

    A reduction with OR reads each 8-byte word once and writes nothing, as generating does; NumPy releases the lock
    while it runs.
    """
    buffers = [np.ones(bytes_per_thread // 8, np.uint64) for _ in range(threads)]
    best_s = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, buffers))
            best_s = min(best_s, time.perf_counter() - start)
    return threads * bytes_per_thread / best_s
