"""TQ1_0 and TQ2_0: 256 weights of -d, 0 or d.

Source: ggml-common.h `block_tq1_0`, `block_tq2_0`; ggml-quants.c `quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref`.
"""

import numpy as np

from kvant.kernels.reference import bits

# TQ1_0: a run of bytes and how many trits (base-3 digits) each of its bytes holds; digits lie a run's length apart.
_RUNS = ((0, 32, 5), (32, 48, 5), (48, 52, 4))


def _trits(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    d = bits.running_max(np.abs(x))
    q = bits.to_int(bits.round_away(bits.scaled(x, bits.inverse(d)))).astype(np.uint8) + np.uint8(1)
    return d, q


def decode_tq1_0(blocks: np.ndarray) -> np.ndarray:
    """Weight = (t - 1) * d; a byte b holds the trits t_i = (b * 3**i mod 256) * 3 >> 8; bytes: trits 52, d 2."""
    parts = []
    for start, stop, digits in _RUNS:
        powers = (3 ** np.arange(digits)).astype(np.uint8)
        turned = blocks[:, None, start:stop] * powers[:, None]
        parts.append((turned.astype(np.uint16) * 3 >> 8).reshape(len(blocks), -1))
    t = np.concatenate(parts, axis=-1).astype(np.float32) - np.float32(1)
    return bits.scaled(t, bits.half(blocks[:, 52:54]))


def encode_tq1_0(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_tq1_0`: b = ceil(base-3 number * 256 / 243)."""
    d, q = _trits(x)
    parts, at = [], 0
    for start, stop, digits in _RUNS:
        run = q[:, at : at + digits * (stop - start)].reshape(len(x), digits, -1)
        powers = (81 // 3 ** np.arange(digits)).astype(np.uint8)
        number = (run * powers[:, None]).sum(axis=1, dtype=np.uint8)
        parts.append(((number.astype(np.uint16) * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8))
        at += digits * (stop - start)
    return np.concatenate([*parts, bits.to_half(d)], axis=-1)


def decode_tq2_0(blocks: np.ndarray) -> np.ndarray:
    """Weight = (t - 1) * d, t of two bits; bytes: codes 64, d 2."""
    t = bits.bit_planes(blocks[:, :64].reshape(-1, 2, 32), 2).reshape(-1, 256).astype(np.float32) - np.float32(1)
    return bits.scaled(t, bits.half(blocks[:, 64:66]))


def encode_tq2_0(x: np.ndarray) -> np.ndarray:
    """Inverse of `decode_tq2_0`."""
    d, q = _trits(x)
    planes = (q & 3).reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.concatenate([np.bitwise_or.reduce(planes, axis=2).reshape(-1, 64), bits.to_half(d)], axis=-1)
