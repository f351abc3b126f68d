"""GGUF's constants, and the limits kvant reads it under.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; limits marked (ggml) are those of ggml's own reader.
"""

import re

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # read; 3 is written. They differ only in that 3 may be big-endian, which is refused.
VERSION = 3
DEFAULT_ALIGNMENT = 32

KEY_ALIGNMENT = "general.alignment"
KEY_ARCHITECTURE = "general.architecture"
KEY_SPLIT_NO = "split.no"
KEY_SPLIT_COUNT = "split.count"
KEY_SPLIT_TENSORS = "split.tensors.count"
SPLIT_KEYS = frozenset({KEY_SPLIT_NO, KEY_SPLIT_COUNT, KEY_SPLIT_TENSORS})

SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)

MAX_DIMS = 4  # (ggml) GGML_MAX_DIMS
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17  # the largest published models hold a few thousand
MAX_KEY_BYTES = (1 << 16) - 1  # the specification's limit
MAX_NAME_BYTES = 255  # read; other ggml programs raised their limit, llama.cpp itself takes 63
MAX_WRITTEN_NAME_BYTES = 63  # (ggml) GGML_MAX_NAME with its terminator is 64
MAX_STRING_BYTES = 1 << 30  # (ggml) GGUF_MAX_STRING_LENGTH
MAX_ARRAY_ITEMS = 1 << 30  # (ggml) GGUF_MAX_ARRAY_ELEMENTS
MAX_ALIGNMENT = 1 << 20
MAX_EMPTY_SHAPE = 1 << 24  # product of the axes above 0 of a tensor without weights, which no bytes bound
MAX_SHARDS = 99_999  # five digits in a shard's name

# Least bytes that one of each takes, so that a count is refused before anything is allocated for it.
MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, one letter, type, one byte of value
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # length, number of dimensions, type, offset
