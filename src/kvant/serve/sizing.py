"""How large a worker is made: tokens of context, and requests that it answers at a time.

Every request has a context of its own, so that no answer can be cut off by another one's, and memory grows with both
numbers. What was asked for is kept: a request's `num_ctx`, a model's PARAMETER, `--context`. Where nobody asks, a model
gets the context that it was trained for, as far as it fits into half of the memory, so that another model fits beside
it. Requests at a time give way before the context does: a request that waits is better than one that does not fit.
"""

from collections.abc import Callable

import msgspec

from kvant.serve.extent import Extent

CONTEXT_STEP = 256
UNKNOWN_CONTEXT = 4096
"""Tokens for a model that does not tell what it was trained for."""

ENOUGH_CONTEXT = 32768
"""Tokens for which requests at a time give way: a coding client's first prompt is 20,000."""

Predict = Callable[[Extent, int], int]
"""Predicted memory at an extent and a number of requests at a time, bytes."""

Need = Callable[[int, int], int]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a worker is.

    Attributes:
        extent: What one request may need.
        parallel: Requests answered at a time.
        size_bytes: Predicted memory.
    """

    extent: Extent
    parallel: int
    size_bytes: int


def size_for(
    wanted: int | None, *, batch: int = 0, trained: int, parallel: int, limit_bytes: int, predict: Predict
) -> Size:
    """Return the size of a worker.

    Args:
        wanted: Tokens of context asked for; None for what fits.
        batch: Tokens that must be read at once; 0 for the engine's own choice.
        trained: Tokens that the model was trained for, which is the most it gets; 0 if not told.
        parallel: Most requests at a time.
        limit_bytes: Memory of all models together.
        predict: Of the model.

    Returns:
        The size; one that is above the limit where even one request does not fit.
    """

    def need(context: int, slots: int) -> int:
        return predict(Extent(context, batch), slots)

    if wanted is not None:
        context = rounded(wanted, trained)
        slots = _most_parallel(context, parallel, limit_bytes, need) or 1
    else:
        most = trained or UNKNOWN_CONTEXT
        context, share = min(most, ENOUGH_CONTEXT), limit_bytes // 2
        slots = _most_parallel(context, parallel, share, need)
        if slots:
            context = _most_context(most, slots, share, need)
        else:
            context, slots = _most_context(context, 1, limit_bytes, need), 1
    return Size(extent=Extent(context, batch), parallel=slots, size_bytes=need(context, slots))


def rounded(wanted: int, trained: int) -> int:
    """Return the context that is given to who asks for so many tokens, of a model that was trained for so many."""
    context = -(-max(1, wanted) // CONTEXT_STEP) * CONTEXT_STEP
    return min(context, trained) if trained else context


def _most_parallel(context: int, parallel: int, limit_bytes: int, need: Need) -> int:
    """Return the most requests at a time that fit, at most `parallel`; 0 if not even one does."""
    return next((n for n in range(parallel, 0, -1) if need(context, n) <= limit_bytes), 0)


def _most_context(most: int, parallel: int, limit_bytes: int, need: Need) -> int:
    """Return the largest context that fits, at least the smaller of `most` and `UNKNOWN_CONTEXT`."""
    if need(most, parallel) <= limit_bytes:
        return most
    low, high = min(most, UNKNOWN_CONTEXT) // CONTEXT_STEP, most // CONTEXT_STEP
    while high - low > 1:
        middle = (low + high) // 2
        if need(middle * CONTEXT_STEP, parallel) <= limit_bytes:
            low = middle
        else:
            high = middle
    return low * CONTEXT_STEP if low else most
