"""What codebook types (IQ1 to IQ3) can be encoded from: where ggml's searches overflow and it ends the process."""

import math

import numpy as np

LARGEST_WEIGHT = 2.0**25
"""No codebook type holds more: IQ3_XXS has 15.5 / 2 times its largest level, 62, times a scale of 65504: 3.15e7."""

BALANCED = (2.0**-40, 2.0**40)
"""Bounds of the largest importance as the encoders get it."""


def first_refused(x: np.ndarray) -> int:
    """Index of the first weight that is not finite or beyond every codebook, or -1.

    ggml's search for a neighbour finds none where its sums overflow, and reads and writes at index -1.
    """
    if not x.size or (x.max() <= LARGEST_WEIGHT and x.min() >= -LARGEST_WEIGHT):
        return -1
    return int(np.flatnonzero(~(np.abs(x) <= LARGEST_WEIGHT))[0])


def balanced(importance: np.ndarray) -> np.ndarray:
    """Bring the largest importance near 1 where it is so large or small that sums of squares would leave float32.

    Encoders compare errors, so that only ratios count; powers of four change no bit of these, nor of their roots.
    """
    largest = float(importance.max())
    if largest == 0 or BALANCED[0] <= largest <= BALANCED[1]:
        return importance
    return np.asarray(np.ldexp(importance, -2 * (math.frexp(largest)[1] // 2)))
