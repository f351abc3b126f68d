"""Rotary position embedding: pairs of channels turned by position times a rate of their own.

Angles, sines and cosines come from single float64 operations and `decimal`, not from the system's mathematical library,
whose last bit depends on the processor.
"""

import math
from decimal import Context, Decimal

import numpy as np
import torch

from kvant.kernels import decode
from kvant.model import Model
from kvant.tensors import n_rows, row_length

NEIGHBOURS = frozenset({"llama"})
"""Architectures whose rotary pairs are neighbouring channels (2i, 2i + 1); for the others, channels of two halves."""

_PRECISE = Context(prec=30)
_QUARTER_HIGH = float(np.float32(math.pi / 2))  # 24 bits: times a whole number of quarter turns it is exact
_QUARTER_LOW = math.pi / 2 - _QUARTER_HIGH
_SINE = [(-1) ** i / math.factorial(2 * i + 1) for i in range(8)]
_COSINE = [(-1) ** i / math.factorial(2 * i) for i in range(9)]


def rotary_rates(model: Model, head_dim: int) -> np.ndarray:
    """Return radians per position by pair of channels, float64 [head_dim / 2].

    base^(-2i / head_dim) / (factor * factor_i)
    """
    base = Decimal(float(str(model.get(f"{model.architecture}.rope.freq_base", 10000.0))))
    exponents = [_PRECISE.divide(Decimal(-2 * i), Decimal(head_dim)) for i in range(head_dim // 2)]
    rates = np.array([float(_PRECISE.power(base, exponent)) for exponent in exponents])
    factors = model.tensors.get("rope_freqs.weight")
    if factors is not None:
        values = decode(factors.read_bytes(0, n_rows(factors)), factors.block_type, row_length(factors))
        rates = rates / values.reshape(-1).astype(np.float64)
    return rates / float(str(model.get(f"{model.architecture}.rope.scaling.factor", 1.0)))


def cos_sin(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine, float32, of angles from 0 on, float64 radians, of like shape.

    An angle is whole quarter turns and a rest of at most pi / 4, for which Taylor's polynomials err by 5e-17.
    """
    turns = np.rint(angles * (2 / math.pi))
    rest = (angles - turns * _QUARTER_HIGH) - turns * _QUARTER_LOW
    square = rest * rest
    sine, cosine = (np.full_like(rest, terms[-1]) for terms in (_SINE, _COSINE))
    for term in _SINE[-2::-1]:
        sine = sine * square + term
    for term in _COSINE[-2::-1]:
        cosine = cosine * square + term
    sine *= rest
    quarter = turns.astype(np.int64) % 4
    return (
        np.choose(quarter, (cosine, -sine, -cosine, sine)).astype(np.float32),
        np.choose(quarter, (sine, cosine, -sine, -cosine)).astype(np.float32),
    )


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, neighbours: bool) -> torch.Tensor:
    """Turn each pair of channels of x, float32 [..., tokens, head_dim]; cos and sin are [tokens, head_dim / 2]."""
    if neighbours:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
