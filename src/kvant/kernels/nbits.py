"""ONNX Runtime's blocks of few bits: weight = (code - zero) * scale, for `MatMulNBits` and `GatherBlockQuantized`.

A row of a matrix [rows, n] is cut into blocks; the last one is padded. A block has one float32 scale and, where it is
not symmetric, a zero point of as many bits as a code; else the zero point is the middle code.

Source: onnxruntime docs/ContribOperators.md; rounding as in onnxruntime 1.32's default quantizer
(mlas/lib/q4_dq.cpp), parity in tests/parity/test_nbits.py.
"""

import re
from dataclasses import dataclass

import numpy as np

from kvant.errors import UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, arguments, isa
from kvant.kernels.fitting import MAX_SWEEPS, SWEEPS, Curvature

BITS, BLOCKS = (2, 4, 8), (16, 32, 64, 128, 256)

FITTED = frozenset(
    {(4, 32, True), (4, 64, True), (4, 128, True), (2, 32, False), (2, 64, False)}
    | {(bits, block, False) for bits in (4, 8) for block in (32, 64, 128)}
)
"""Types that can be encoded under a Hessian. Source: native/src/fit.cpp."""

SCALE_BYTES = 4
_NAME = re.compile(r"MatMulNBits([248])_b(16|32|64|128|256)(_sym)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class NBits:
    """A type of blocks.

    Attributes:
        bits: Bits of a code: 2, 4 or 8.
        block: Weights per block: a power of two from 16 to 256.
        symmetric: The zero point is the middle code and not stored.
    """

    bits: int
    block: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Refuse what ONNX Runtime does not have."""
        if self.bits not in BITS or self.block not in BLOCKS:
            raise UnsupportedFormatError(
                f"MatMulNBits: {self.bits} bits in blocks of {self.block} are not in ONNX Runtime. Use "
                f"{', '.join(map(str, BITS))} bits in blocks of {', '.join(map(str, BLOCKS))}."
            )

    @property
    def name(self) -> str:
        """Its name, e.g. `MatMulNBits4_b32_sym`."""
        return f"MatMulNBits{self.bits}_b{self.block}{'_sym' if self.symmetric else ''}"

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return 1 << (self.bits - 1)

    def blocks(self, n: int) -> int:
        """Blocks of a row of `n` weights."""
        return -(-n // self.block)

    def code_bytes(self, n: int) -> int:
        """Bytes of a row's codes."""
        return self.blocks(n) * self.block * self.bits // 8

    def row_bytes(self, n: int, scale_bytes: int = SCALE_BYTES) -> int:
        """Bytes of a row: codes, scales and zero points."""
        blocks = self.blocks(n)
        zeros = 0 if self.symmetric else -(-blocks * self.bits // 8)
        return self.code_bytes(n) + blocks * scale_bytes + zeros


def nbits_type(name: str) -> NBits:
    """Return the type of a name such as `MatMulNBits4_b32`, in any case.

    Raises:
        UnsupportedFormatError: There is none.
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise UnsupportedFormatError(f"block type: {name!r} is none of ONNX. Write for example MatMulNBits4_b32_sym.")
    return NBits(bits=int(found[1]), block=int(found[2]), symmetric=bool(found[3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Encoded rows.

    Attributes:
        kind: Their type.
        n: Weights per row.
        codes: uint8 [rows, blocks, block]; those beyond n are 0.
        scales: float32 [rows, blocks].
        zeros: Zero points, uint8 [rows, blocks]; the middle code where the type is symmetric.
    """

    kind: NBits
    n: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray

    def decode(self) -> np.ndarray:
        """Return the weights, float32 [rows, n]."""
        levels = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[..., None]
        rows, blocks, block = self.codes.shape
        return np.asarray((levels * self.scales[..., None]).reshape(rows, blocks * block)[:, : self.n])

    def packed_codes(self) -> np.ndarray:
        """Return `B` of MatMulNBits, uint8 [rows, blocks, block * bits / 8]: the first code in the lowest bits."""
        return _pack(self.codes, self.kind.bits, 0)

    def packed_zeros(self) -> np.ndarray:
        """Return its zero points, uint8 [rows, ceil(blocks * bits / 8)], filled up with the middle code."""
        return _pack(self.zeros, self.kind.bits, self.kind.middle)


def encode(x: np.ndarray, kind: NBits) -> Blocks:
    """Encode rows by rounding, bit for bit as ONNX Runtime's default quantizer.

    Symmetric: the scale sends the weight of largest magnitude to the lowest code. Otherwise the codes span the weights
    and zero.

    Args:
        x: Weights, float32 [rows, n].
        kind: Type of blocks.

    Raises:
        ValueRangeError: Not float32 rows, or weights that are NaN, infinite or too large for float32 scales.
    """
    x = _checked(x)
    padded = _padded(x, kind)
    low, high = padded.min(-1), padded.max(-1)
    top = np.float32((1 << kind.bits) - 1)
    if kind.symmetric:
        scales = np.where(np.abs(high) > np.abs(low), high, low) / np.float32(-kind.middle)
        zeros = np.full(scales.shape, kind.middle, np.uint8)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        with np.errstate(over="ignore"):
            scales = (high - low) / top
        if not np.isfinite(scales).all():
            row = int(np.flatnonzero(~np.isfinite(scales).all(axis=1))[0])
            raise ValueRangeError(f"x: row {row} spans more than float32 holds. Use a symmetric type, or keep F32.")
        zeros = np.clip(_half_away(-_over(low, scales)), 0, top).astype(np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):  # weights below 1e-38 have a scale without an inverse
        inverse = _over(np.float32(1), scales)[..., None]
    codes = np.clip(_half_away(padded * inverse + zeros[..., None].astype(np.float32)), 0, top).astype(np.uint8)
    return _blocks(codes, scales.astype(np.float32), zeros, kind, x.shape[1])


def fit(
    x: np.ndarray, kind: NBits, curvature: Curvature, *, sweeps: int = SWEEPS, threads: int = 0
) -> tuple[Blocks, np.ndarray]:
    """Encode rows so that e H eᵀ is small, e being what decoding gives minus x; see kernels/fitting.py.

    Args:
        x: Weights, float32 [rows, n]; n a multiple of the block.
        kind: One of `FITTED`.
        curvature: The Hessian of the rows' columns.
        sweeps: Passes of descent after the first rounding.
        threads: Threads over rows; 0 for one per core. Their number does not change a bit.

    Returns:
        Blocks, and the error e H eᵀ that is left, float32 [rows].

    Raises:
        UnsupportedFormatError: The type has no such encoder, or its blocks do not divide rows.
        ValueRangeError: A weight is NaN or infinite, or the arrays do not fit one another.
    """
    x = _checked(x)
    rows, n = x.shape
    n_threads, sweeps = arguments.threads(threads), arguments.count("sweeps", sweeps, most=MAX_SWEEPS)
    if (kind.bits, kind.block, kind.symmetric) not in FITTED or not n or n % kind.block:
        raise UnsupportedFormatError(
            f"{kind.name}: rows of {n} cannot be encoded under a Hessian. Use blocks of 32 that divide them."
        )
    if curvature.hessian.shape != (n, n):
        raise ValueRangeError(f"curvature: {curvature.hessian.shape} does not fit rows of {n}. Measure it again.")
    codes, blocks = np.empty((rows, n), np.uint8), kind.blocks(n)
    scales, loss = np.empty((rows, blocks), np.float32), np.empty(rows, np.float32)
    zeros = np.full((rows, blocks), kind.middle, np.uint8)
    _ext.fit_nbits(
        kind.bits, kind.block, kind.symmetric, isa.level(), x, curvature.hessian,
        curvature.feedback, curvature.cost, curvature.local, sweeps, codes, scales, zeros, loss, n_threads,
    )  # fmt: skip
    return Blocks(kind=kind, n=n, codes=codes.reshape(rows, blocks, kind.block), scales=scales, zeros=zeros), loss


def _blocks(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, kind: NBits, n: int) -> Blocks:
    if n % kind.block:
        codes[:, -1, n % kind.block :] = 0
    return Blocks(kind=kind, n=n, codes=codes, scales=scales, zeros=zeros)


def _checked(x: np.ndarray) -> np.ndarray:
    return arguments.finite("x", arguments.array("x", x, np.float32, "rows", "n"))


def _padded(x: np.ndarray, kind: NBits) -> np.ndarray:
    """Rows in blocks, float32 [rows, blocks, block], the last filled up with its last weight."""
    blocks = kind.blocks(x.shape[1])
    missing = blocks * kind.block - x.shape[1]
    whole = np.pad(x, ((0, 0), (0, missing)), "edge") if missing else x
    return whole.reshape(len(x), blocks, kind.block)


def _over(a: np.ndarray | np.float32, b: np.ndarray) -> np.ndarray:
    """A / b, and 0 where b is 0."""
    found: np.ndarray = np.divide(a, b, out=np.zeros_like(b), where=b != 0)
    return found


def _half_away(x: np.ndarray) -> np.ndarray:
    """Nearest integer, halves away from zero, as C's `roundf`."""
    found: np.ndarray = np.trunc(x + np.copysign(np.float32(0.5), x))
    return found


def _pack(values: np.ndarray, bits: int, fill: int) -> np.ndarray:
    """Pack values of few bits along the last axis, the first in the lowest bits."""
    per_byte = 8 // bits
    missing = -values.shape[-1] % per_byte
    if missing:
        values = np.concatenate([values, np.full((*values.shape[:-1], missing), fill, np.uint8)], axis=-1)
    parts = values.reshape(*values.shape[:-1], values.shape[-1] // per_byte, per_byte)
    packed = parts[..., 0].copy()
    for i in range(1, per_byte):
        packed |= parts[..., i] << np.uint8(i * bits)
    return packed
