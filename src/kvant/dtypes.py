"""Block types: how a run of weights is stored. One table; every size, id and class is computed from it or read here.

Source of ids, block lengths and byte counts: ggml.h `enum ggml_type` and ggml-common.h `block_*` (ggml 0.26).
"""

from dataclasses import dataclass
from enum import Enum

from kvant.errors import UnsupportedFormatError


class PrecisionClass(Enum):
    """The class of a block type, or of a mix of them, by its bits per weight (bpw)."""

    ULTRA_LOW = "ultra-low"
    LOW = "low"
    MID = "mid"
    FULL = "full"


def precision_class(bpw: float) -> PrecisionClass:
    """Ultra-low below 3 bits per weight, low below 5, mid up to 9 (8 bits and their scale), full above."""
    if bpw < 3:
        return PrecisionClass.ULTRA_LOW
    if bpw < 5:
        return PrecisionClass.LOW
    return PrecisionClass.MID if bpw <= 9 else PrecisionClass.FULL


class Family(Enum):
    """How a block type codes its weights."""

    FLOAT = "float"
    INTEGER = "integer"
    LEGACY = "legacy"
    K_QUANT = "k-quant"
    IQ4 = "iq4"
    CODEBOOK = "codebook"
    TERNARY = "ternary"
    MICROSCALED = "microscaled"
    BINARY = "binary"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockType:
    """A storage type of tensors.

    Attributes:
        name: The field's name, e.g. `Q4_K`.
        ggml_id: Number in GGUF files and in ggml's C interface.
        block_length: Weights per block; a row is a whole number of blocks.
        block_bytes: Bytes per block.
        family: How weights are coded.
        formats: File formats that know this type.
    """

    name: str
    ggml_id: int
    block_length: int
    block_bytes: int
    family: Family
    formats: frozenset[str] = frozenset({"gguf"})

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.block_bytes / self.block_length

    @property
    def precision_class(self) -> PrecisionClass:
        """Its class by its bits per weight."""
        return precision_class(self.bpw)

    @property
    def is_quantized(self) -> bool:
        """Whether a block shares a scale: neither a float nor an integer array."""
        return self.family not in (Family.FLOAT, Family.INTEGER)

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` weights; `n` must be a multiple of the block length."""
        assert n % self.block_length == 0, (self.name, n)
        return n // self.block_length * self.block_bytes

    def __str__(self) -> str:
        return self.name


def _table() -> dict[str, BlockType]:
    f, i, legacy, k = Family.FLOAT, Family.INTEGER, Family.LEGACY, Family.K_QUANT
    iq4, codebook, ternary = Family.IQ4, Family.CODEBOOK, Family.TERNARY
    micro, binary = Family.MICROSCALED, Family.BINARY
    everywhere = frozenset({"gguf", "safetensors"})
    rows = [
        ("F32", 0, 1, 4, f), ("F16", 1, 1, 2, f), ("BF16", 30, 1, 2, f), ("F64", 28, 1, 8, f),
        ("I8", 24, 1, 1, i), ("I16", 25, 1, 2, i), ("I32", 26, 1, 4, i), ("I64", 27, 1, 8, i),
        ("Q4_0", 2, 32, 18, legacy), ("Q4_1", 3, 32, 20, legacy), ("Q5_0", 6, 32, 22, legacy),
        ("Q5_1", 7, 32, 24, legacy), ("Q8_0", 8, 32, 34, legacy),
        ("Q2_K", 10, 256, 84, k), ("Q3_K", 11, 256, 110, k), ("Q4_K", 12, 256, 144, k),
        ("Q5_K", 13, 256, 176, k), ("Q6_K", 14, 256, 210, k),
        ("IQ4_NL", 20, 32, 18, iq4), ("IQ4_XS", 23, 256, 136, iq4),
        ("IQ1_S", 19, 256, 50, codebook), ("IQ1_M", 29, 256, 56, codebook), ("IQ2_XXS", 16, 256, 66, codebook),
        ("IQ2_XS", 17, 256, 74, codebook), ("IQ2_S", 22, 256, 82, codebook), ("IQ3_XXS", 18, 256, 98, codebook),
        ("IQ3_S", 21, 256, 110, codebook),
        ("TQ1_0", 34, 256, 54, ternary), ("TQ2_0", 35, 256, 66, ternary),
        ("MXFP4", 39, 32, 17, micro), ("NVFP4", 40, 64, 36, micro),
        ("Q1_0", 41, 128, 18, binary), ("Q2_0", 42, 64, 18, binary),
    ]  # fmt: skip
    return {
        name: BlockType(
            name=name, ggml_id=ggml_id, block_length=length, block_bytes=size, family=family,
            formats=everywhere if family in (f, i) else frozenset({"gguf"}),
        )
        for name, ggml_id, length, size, family in rows
    }  # fmt: skip


BLOCK_TYPES = _table()
NEW_TYPES = frozenset({"NVFP4", "Q1_0", "Q2_0"})
"""Block types that llama.cpp of November 2025 (b7079) does not know: it refuses the whole file."""
BY_GGML_ID = {t.ggml_id: t for t in BLOCK_TYPES.values()}

F32, F16, BF16 = BLOCK_TYPES["F32"], BLOCK_TYPES["F16"], BLOCK_TYPES["BF16"]


def block_type(name: str | BlockType) -> BlockType:
    """Look a block type up by its name, in any case.

    Raises:
        UnsupportedFormatError: No such type.
    """
    if isinstance(name, BlockType):
        return name
    found = BLOCK_TYPES.get(name.upper()) if isinstance(name, str) else None
    if found is None:
        raise UnsupportedFormatError(f"block type: {name!r} is not known. Use one of {', '.join(BLOCK_TYPES)}.")
    return found
