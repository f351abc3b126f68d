"""safetensors' element types, and the limits kvant reads it under.

Source: https://github.com/huggingface/safetensors#format.
"""

from kvant.dtypes import BLOCK_TYPES, BlockType, Family

MAX_HEADER_BYTES = 1 << 25  # the format allows 100 MB; published headers have a few
MAX_TENSORS = 1 << 17
MAX_DIMS = 8
MAX_NAME_BYTES = 1 << 10
MAX_EMPTY_SHAPE = 1 << 24  # product of the axes above 0 of a tensor without weights, which no bytes bound
MAX_INDEX_BYTES = 1 << 25
MAX_VALUES = 16 * MAX_TENSORS  # JSON values in a header or index, counted before they are made
LENGTH_BYTES = 8

KEY_METADATA = "__metadata__"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SUFFIX = ".safetensors"

_ONLY_HERE = {"BOOL": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}


def _only_here(name: str, n_bytes: int) -> BlockType:
    """A type that no GGUF file can hold: it opens, so that other tensors of the file can be read."""
    return BlockType(
        name=name, ggml_id=-1, block_length=1, block_bytes=n_bytes, family=Family.INTEGER,
        formats=frozenset({"safetensors"}),
    )  # fmt: skip


DTYPES: dict[str, BlockType] = {
    **{name: kind for name, kind in BLOCK_TYPES.items() if "safetensors" in kind.formats},
    **{name: _only_here(name, n_bytes) for name, n_bytes in _ONLY_HERE.items()},
}
