"""Plain NumPy twins of the native kernels: what a kernel must compute, to the bit, in a form that can be read.

`decode` knows every block type, `encode` every one with a native encoder. Tests hold the native kernels and ggml
against them.
"""

from collections.abc import Callable

import numpy as np

from kvant.dtypes import BlockType, block_type
from kvant.kernels.reference import (
    binary,
    codebook,
    codebook_search,
    floats,
    iq4,
    kquants,
    legacy,
    microscaled,
    searched,
    ternary,
    ternary_search,
)  # fmt: skip

Codec = Callable[[np.ndarray], np.ndarray]

DECODERS: dict[str, Codec] = {
    "F32": floats.decode_f32, "F16": floats.decode_f16, "BF16": floats.decode_bf16,
    "Q4_0": legacy.decode_q4_0, "Q4_1": legacy.decode_q4_1, "Q5_0": legacy.decode_q5_0, "Q5_1": legacy.decode_q5_1,
    "Q8_0": legacy.decode_q8_0,
    "Q2_K": kquants.decode_q2_k, "Q3_K": kquants.decode_q3_k, "Q4_K": kquants.decode_q4_k, "Q5_K": kquants.decode_q5_k,
    "Q6_K": kquants.decode_q6_k,
    "IQ4_NL": iq4.decode_iq4_nl, "IQ4_XS": iq4.decode_iq4_xs,
    "IQ1_S": codebook.decode_iq1_s, "IQ1_M": codebook.decode_iq1_m, "IQ2_XXS": codebook.decode_iq2_xxs,
    "IQ2_XS": codebook.decode_iq2_xs, "IQ2_S": codebook.decode_iq2_s, "IQ3_XXS": codebook.decode_iq3_xxs,
    "IQ3_S": codebook.decode_iq3_s,
    "TQ1_0": ternary.decode_tq1_0, "TQ2_0": ternary.decode_tq2_0,
    "MXFP4": microscaled.decode_mxfp4, "NVFP4": microscaled.decode_nvfp4,
    "Q1_0": binary.decode_q1_0, "Q2_0": binary.decode_q2_0,
}  # fmt: skip

# Encoders that take no importance.
ENCODERS: dict[str, Codec] = {
    "F32": floats.encode_f32, "F16": floats.encode_f16, "BF16": floats.encode_bf16,
    "Q4_0": legacy.encode_q4_0, "Q4_1": legacy.encode_q4_1, "Q5_0": legacy.encode_q5_0, "Q5_1": legacy.encode_q5_1,
    "Q8_0": legacy.encode_q8_0,
    "TQ1_0": ternary.encode_tq1_0, "TQ2_0": ternary.encode_tq2_0,
    "MXFP4": microscaled.encode_mxfp4, "NVFP4": microscaled.encode_nvfp4,
    "Q1_0": binary.encode_q1_0, "Q2_0": binary.encode_q2_0,
}  # fmt: skip

# Encoders that search a scale, with or without importance of the blocks' shape; IQ1_S, IQ2_XXS and IQ2_XS need it.
SEARCHING_ENCODERS: dict[str, Callable[[np.ndarray, np.ndarray | None], np.ndarray]] = {
    "Q2_K": searched.encode_q2_k,
    "Q3_K": searched.encode_q3_k,
    "Q4_K": searched.encode_q4_k,
    "Q5_K": searched.encode_q5_k,
    "Q6_K": searched.encode_q6_k,
    "IQ4_NL": iq4.encode_iq4_nl,
    "IQ4_XS": iq4.encode_iq4_xs,
    "IQ1_S": ternary_search.encode_iq1_s,
    "IQ1_M": ternary_search.encode_iq1_m,
    "IQ2_XXS": codebook_search.encode_iq2_xxs,
    "IQ2_XS": codebook_search.encode_iq2_xs,
    "IQ2_S": codebook_search.encode_iq2_s,
    "IQ3_XXS": codebook_search.encode_iq3_xxs,
    "IQ3_S": codebook_search.encode_iq3_s,
}

# Encoders that search only with importance, and need whole rows for it.
WEIGHTED_ROWS = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1"})


def decode(data: np.ndarray, kind: str | BlockType, n: int) -> np.ndarray:
    """Decode blocks, uint8 of whole rows, into float32 [rows, n]."""
    source = block_type(kind)
    blocks = np.ascontiguousarray(data, np.uint8).reshape(-1, source.block_bytes)
    return DECODERS[source.name](blocks).reshape(-1, n)


def encode(x: np.ndarray, kind: str | BlockType, importance: np.ndarray | None = None) -> np.ndarray:
    """Encode float32 [rows, n] into uint8 [rows, bytes_per_row]; importance float32 [n] where the type searches."""
    target = block_type(kind)
    x = np.ascontiguousarray(x, np.float32)
    blocks = x.reshape(-1, target.block_length)
    if importance is not None and target.name in WEIGHTED_ROWS:
        encoded = searched.encode_weighted_legacy(x, importance, target.name)
    elif target.name in SEARCHING_ENCODERS:
        tiled = None
        if importance is not None:
            tiled = np.broadcast_to(importance, x.shape).astype(np.float32).reshape(blocks.shape)
        encoded = SEARCHING_ENCODERS[target.name](blocks, tiled)
    else:
        encoded = ENCODERS[target.name](blocks)
    return encoded.reshape(len(x), target.row_bytes(x.shape[-1]))
