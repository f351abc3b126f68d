"""Codebooks and level tables, read from the one place that holds them: native/include/kvant/codebooks.h."""

import numpy as np

from kvant.kernels import _ext

_RAW: dict[str, bytes] = _ext.codebooks()

IQ4NL_VALUES = np.frombuffer(_RAW["iq4nl_values"], np.int8).astype(np.float32)
E2M1_VALUES = np.frombuffer(_RAW["e2m1_values"], np.int8).astype(np.float32)
EVEN_SIGNS = np.frombuffer(_RAW["even_signs"], np.uint8)

# Points of a grid, float32 [points, weights].
IQ2_XXS = np.frombuffer(_RAW["iq2xxs"], np.uint8).reshape(256, 8).astype(np.float32)
IQ2_XS = np.frombuffer(_RAW["iq2xs"], np.uint8).reshape(512, 8).astype(np.float32)
IQ2_S = np.frombuffer(_RAW["iq2s"], np.uint8).reshape(1024, 8).astype(np.float32)
IQ3_XXS = np.frombuffer(_RAW["iq3xxs"], np.uint8).reshape(256, 4).astype(np.float32)
IQ3_S = np.frombuffer(_RAW["iq3s"], np.uint8).reshape(512, 4).astype(np.float32)
IQ1_S = np.frombuffer(_RAW["iq1s"], np.int8).reshape(2048, 8).astype(np.float32)

IQ1_DELTA = np.float32(0.125)
