"""Put codes and scales into the bytes of a block, for encoders that find them by a search of their own.

Source of the layouts: ggml-common.h `block_*`; parity in tests/twins/test_fitting_twins.py: what is packed decodes
to scale times level plus offset.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvant.dtypes import BY_GGML_ID, BlockType
from kvant.errors import UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Blocks as numbers.

    Attributes:
        codes: Levels counted from the lowest, uint8 [rows, n]; codebook types: the magnitude's, plus 128 where the
            weight is negative; IQ1: the level's, plus 128 where it is shifted down.
        d: Scale of a block, or the one its integer scales are multiplied with, float16 bits, uint16 [rows, blocks];
            MXFP4: its exponent's byte; NVFP4: the E4M3 bytes of its four runs, [rows, 4 blocks].
        dmin: Offset of a block (minimum, in types of one scale), or what its integer minimums are multiplied with,
            uint16 [rows, blocks]; unused where the type has none.
        scales: Integer scale of each run of weights, int8 [rows, runs]; unused where a block is one run.
        minimums: Integer minimum of each run, uint8 [rows, runs]; likewise.
    """

    codes: np.ndarray
    d: np.ndarray
    dmin: np.ndarray
    scales: np.ndarray
    minimums: np.ndarray


def pack(parts: Parts, kind: BlockType) -> np.ndarray:
    """Return the blocks' bytes, uint8 [rows, bytes per row].

    Raises:
        BlockShapeError: The codes of a row are no whole blocks.
        UnsupportedFormatError: The type is not one of `PACKABLE`.
        ValueRangeError: An array of another type or shape, or codes that the type does not have.
    """
    if kind.name not in _LAYOUTS:
        raise UnsupportedFormatError(f"pack: {kind} has no parts. Use one of {', '.join(sorted(PACKABLE))}.")
    codes = arguments.array("codes", parts.codes, np.uint8, "rows", "n")
    rows, n = len(codes), arguments.row_length("codes", codes.shape[1], kind)
    blocks = n // kind.block_length
    d = arguments.array("d", parts.d, np.uint16, rows, blocks * _SCALES[kind.name])
    _check_range("d", d, 0, _HIGHEST_SCALE_BYTE.get(kind.name, 0xFFFF), kind)
    d, dmin = _bytes(d), np.empty((0, 2), np.uint8)
    if kind.name in _WITH_OFFSET:
        dmin = _bytes(arguments.array("dmin", parts.dmin, np.uint16, rows, blocks))
    if not rows:
        return np.empty((0, blocks * kind.block_bytes), np.uint8)
    highest, lowest_scale, highest_scale = _RANGES[kind.name]
    _check_range("codes", codes, 0, highest, kind)
    codes = codes.reshape(-1, kind.block_length)
    scales, minimums = parts.scales, parts.minimums
    if runs := _RUNS[kind.name]:
        scales = arguments.array("scales", scales, np.int8, rows, blocks * runs).reshape(len(codes), runs)
        _check_range("scales", scales, lowest_scale, highest_scale, kind)
    if runs and kind.name in _WITH_MINIMUMS:
        minimums = arguments.array("minimums", minimums, np.uint8, rows, blocks * runs).reshape(len(codes), runs)
        _check_range("minimums", minimums, 0, highest_scale, kind)
    packed: np.ndarray = np.concatenate(_LAYOUTS[kind.name](codes, d, dmin, scales, minimums), axis=-1)
    return packed.reshape(rows, blocks * kind.block_bytes)


def _check_range(name: str, values: np.ndarray, low: int, high: int, kind: BlockType) -> None:
    if values.size and not (low <= values.min() and values.max() <= high):
        raise ValueRangeError(
            f"{name}: {values.min()} to {values.max()} is not {low} to {high}, as {kind} has. Clip it."
        )


def _bytes(halves: np.ndarray) -> np.ndarray:
    """Little-endian bytes of float16 bits, one row per block."""
    return np.ascontiguousarray(halves.reshape(-1, 1).astype("<u2")).view(np.uint8)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Two four-bit codes a byte: the low halves of a block first, [blocks, 2k] -> [blocks, k]."""
    low, high = np.split(codes, 2, axis=-1)
    packed: np.ndarray = low | high << 4
    return packed


def _planes(codes: np.ndarray, width: int) -> np.ndarray:
    """Fields of `width` bits: [..., 8 // width, k] -> [..., k], field i in bits i * width on."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    packed: np.ndarray = np.bitwise_or.reduce(codes << shifts, axis=-2)
    return packed


def _base_3(codes: np.ndarray) -> np.ndarray:
    """Base-3 digits of a byte, the most significant first: [..., digits, k] -> [..., k], ceil(number * 256 / 243)."""
    powers = (81 // 3 ** np.arange(codes.shape[-2])).astype(np.uint16)[:, None]
    number = (codes * powers).sum(axis=-2, dtype=np.uint16)
    return np.asarray(((number * np.uint32(256) + 242) // 243).astype(np.uint8))


def _e2m1(codes: np.ndarray) -> np.ndarray:
    """Sign and magnitude of four bits, from levels counted from the lowest."""
    return np.asarray(np.where(codes < 7, 15 - codes, codes - 7).astype(np.uint8))


def _bits(codes: np.ndarray) -> np.ndarray:
    """Fifth bits of 32 codes as four bytes."""
    return np.asarray(np.packbits(codes >> 4, axis=-1, bitorder="little"))


def _six_bit(scales: np.ndarray, minimums: np.ndarray) -> np.ndarray:
    """Eight scales and eight minimums of six bits in twelve bytes."""
    s, m = scales.astype(np.uint8), minimums
    parts = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4]
    return np.concatenate(parts, axis=-1)


Fields = list[np.ndarray]


def _q2_k(q: np.ndarray, d: np.ndarray, dmin: np.ndarray, sc: np.ndarray, m: np.ndarray) -> Fields:
    return [sc.astype(np.uint8) | m << 4, _planes(q.reshape(-1, 2, 4, 32), 2).reshape(-1, 64), d, dmin]


def _q3_k(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    stored = (sc.astype(np.int16) + 32).astype(np.uint8)
    low, high = _planes(q.reshape(-1, 2, 4, 32) & 3, 2).reshape(-1, 64), _planes(q.reshape(-1, 8, 32) >> 2, 1)
    return [high, low, _nibbles(stored & 15), _planes((stored >> 4).reshape(-1, 4, 4), 2), d]


def _q4_k(q: np.ndarray, d: np.ndarray, dmin: np.ndarray, sc: np.ndarray, m: np.ndarray) -> Fields:
    return [d, dmin, _six_bit(sc, m), _nibbles(q.reshape(-1, 4, 64)).reshape(-1, 128)]


def _q5_k(q: np.ndarray, d: np.ndarray, dmin: np.ndarray, sc: np.ndarray, m: np.ndarray) -> Fields:
    fifth, low = _planes(q.reshape(-1, 8, 32) >> 4, 1), _nibbles((q & 15).reshape(-1, 4, 64)).reshape(-1, 128)
    return [d, dmin, _six_bit(sc, m), fifth, low]


def _q6_k(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    low = _nibbles((q & 15).reshape(-1, 2, 128)).reshape(-1, 128)
    high = _planes((q >> 4).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return [low, high, sc.view(np.uint8), d]


def _iq4_xs(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    stored = (sc.astype(np.int16) + 32).astype(np.uint16)
    high = ((stored >> 4) << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=-1, dtype=np.uint16)
    pairs = (stored & 15).astype(np.uint8).reshape(-1, 4, 2)
    low = pairs[..., 0] | pairs[..., 1] << 4
    return [d, _bytes(high), low, _nibbles(q.reshape(-1, 8, 32)).reshape(-1, 128)]


def _points(codes: np.ndarray, name: str, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices into a codebook, uint16 [blocks, 256 / group], and sign bits, uint8 [blocks, 32]."""
    bits = 3 if group == 4 else 2
    shifts = np.arange(0, bits * group, bits, dtype=np.uint16)
    points = np.bitwise_or.reduce((codes & 127).reshape(len(codes), -1, group).astype(np.uint16) << shifts, axis=-1)
    book = np.frombuffer(_CODEBOOKS[name], np.uint16)
    index = np.asarray(np.searchsorted(book, points)).astype(np.uint16)
    if not np.array_equal(book[np.minimum(index, len(book) - 1)], points):
        raise ValueRangeError(f"codes: {group} in a row are no point of the codebook {name}. Encode them again.")
    return index, np.packbits(codes >> 7, axis=-1, bitorder="little")


def _low(values: np.ndarray) -> np.ndarray:
    """Low bytes of 16-bit values."""
    return np.asarray((values & 255).astype(np.uint8))


def _pairs(scales: np.ndarray) -> np.ndarray:
    """Two four-bit scales a byte, neighbours together."""
    return np.asarray(_planes(scales.view(np.uint8).reshape(len(scales), -1, 2, 1), 4)[..., 0])


def _signs_and_scales(signs: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """32-bit words of four times seven sign bits and a scale, uint32 [blocks, 8]."""
    shifts = np.array([0, 7, 14, 21], np.uint32)
    packed = np.bitwise_or.reduce((signs & 127).reshape(-1, 8, 4).astype(np.uint32) << shifts, axis=-1)
    return np.asarray(packed | scales.view(np.uint8).astype(np.uint32) << np.uint32(28))


def _iq2_xxs(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    index, signs = _points(q, "iq2xxs_codes", 8)
    words = _signs_and_scales(signs, sc).astype("<u4").reshape(-1, 8, 1).view(np.uint8)
    return [d, np.concatenate([_low(index).reshape(-1, 8, 4), words], axis=-1).reshape(-1, 64)]


def _iq2_xs(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    index, signs = _points(q, "iq2xs_codes", 8)
    words = index | (signs & 127).astype(np.uint16) << np.uint16(9)
    return [d, words.astype("<u2").view(np.uint8), _pairs(sc)]


def _iq2_s(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    index, signs = _points(q, "iq2s_codes", 8)
    high = _planes(_low(index >> 8).reshape(-1, 8, 4, 1), 2)[..., 0]
    return [d, _low(index), signs, high, _pairs(sc)]


def _iq3_xxs(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    index, signs = _points(q, "iq3xxs_codes", 4)
    return [d, _low(index), _signs_and_scales(signs, sc).astype("<u4").view(np.uint8)]


def _iq3_s(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    index, signs = _points(q, "iq3s_codes", 4)
    high = np.packbits(_low(index >> 8), axis=-1, bitorder="little")
    return [d, _low(index), high, signs, _pairs(sc)]


def _tq1_0(q: np.ndarray, d: np.ndarray, *_: np.ndarray) -> Fields:
    runs = ((0, 160, 5), (160, 240, 5), (240, 256, 4))
    return [*(_base_3(q[:, first:end].reshape(len(q), digits, -1)) for first, end, digits in runs), d]


def _nvfp4(q: np.ndarray, d: np.ndarray, *_: np.ndarray) -> Fields:
    return [d[:, 0].reshape(-1, 4), _nibbles(_e2m1(q).reshape(-1, 4, 16)).reshape(-1, 32)]


def _iq1_s(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    index, down = _points(q, "iq1s_codes", 8)
    high = _sum_of_fields((index >> 8).reshape(-1, 8, 4), 3) | sc.astype(np.uint16) << np.uint16(12)
    words = high | (down.reshape(-1, 8, 4)[..., 0] & 1).astype(np.uint16) << np.uint16(15)
    return [d, _low(index), words.astype("<u2").view(np.uint8)]


def _iq1_m(q: np.ndarray, d: np.ndarray, _: np.ndarray, sc: np.ndarray, __: np.ndarray) -> Fields:
    index, down = _points(q, "iq1s_codes", 8)
    nibbles = _low(index >> 8) | (down & 1) << 3
    parts = d.view("<u2") >> np.arange(0, 16, 4, dtype=np.uint16) & np.uint16(15)
    words = _sum_of_fields(sc.astype(np.uint16).reshape(-1, 4, 4), 3) | parts << np.uint16(12)
    return [_low(index), nibbles[:, ::2] | nibbles[:, 1::2] << 4, words.astype("<u2").view(np.uint8)]


def _sum_of_fields(values: np.ndarray, width: int) -> np.ndarray:
    """Words of four fields, [..., 4] -> uint16 [...]."""
    packed: np.ndarray = np.bitwise_or.reduce(values << np.arange(0, 4 * width, width, dtype=np.uint16), axis=-1)
    return packed


_CODEBOOKS: dict[str, bytes] = _ext.codebooks()

_LAYOUTS: dict[str, Callable[..., Fields]] = {
    "Q4_0": lambda q, d, *_: [d, _nibbles(q)],
    "Q4_1": lambda q, d, dmin, *_: [d, dmin, _nibbles(q)],
    "Q5_0": lambda q, d, *_: [d, _bits(q), _nibbles(q & 15)],
    "Q5_1": lambda q, d, dmin, *_: [d, dmin, _bits(q), _nibbles(q & 15)],
    "Q8_0": lambda q, d, *_: [d, q ^ np.uint8(128)],
    "IQ4_NL": lambda q, d, *_: [d, _nibbles(q)],
    "Q1_0": lambda q, d, *_: [d, np.packbits(q, axis=-1, bitorder="little")],
    "Q2_0": lambda q, d, *_: [d, _planes(q.reshape(-1, 16, 4, 1), 2)[..., 0]],
    "TQ1_0": _tq1_0, "TQ2_0": lambda q, d, *_: [_planes(q.reshape(-1, 2, 4, 32), 2).reshape(-1, 64), d],
    "MXFP4": lambda q, d, *_: [d[:, :1], _nibbles(_e2m1(q))], "NVFP4": _nvfp4,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs,
    "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
}  # fmt: skip

_RANGES = {
    **dict.fromkeys(("Q4_0", "Q4_1", "IQ4_NL"), (15, 0, 0)), **dict.fromkeys(("Q5_0", "Q5_1"), (31, 0, 0)),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), (2, 0, 0)), **dict.fromkeys(("MXFP4", "NVFP4"), (14, 0, 0)),
    "Q1_0": (1, 0, 0), "Q2_0": (3, 0, 0), "Q8_0": (255, 0, 0),
    "Q2_K": (3, 0, 15), "Q3_K": (7, -32, 31), "Q4_K": (15, 0, 63), "Q5_K": (31, 0, 63),
    "Q6_K": (63, -128, 127), "IQ4_XS": (15, -32, 31),
    "IQ1_S": (255, 0, 7), "IQ1_M": (255, 0, 7),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (255, 0, 15)),
}  # fmt: skip
"""Highest code, lowest and highest scale of a run; minimums go from 0 to the highest scale. Codebooks check codes."""

_WITH_MINIMUMS = frozenset({"Q2_K", "Q4_K", "Q5_K"})
_WITH_OFFSET = _WITH_MINIMUMS | {"Q4_1", "Q5_1"}
_RUNS = {
    BY_GGML_ID[ggml_id].name: block // run if run < block else 0 for ggml_id, run, block in _ext.fit_types()
}  # fmt: skip
"""Runs of a block that have a scale of their own; 0 where a block is one run."""

_SCALES = {BY_GGML_ID[i].name: BY_GGML_ID[i].block_length // block for i, _, block in _ext.fit_types()}
"""Scales that a block stores as they are, side by side."""

_HIGHEST_SCALE_BYTE = {"MXFP4": 254, "NVFP4": 0x7E}
"""Where a scale is a byte; the one above is not a number."""

PACKABLE = frozenset(_LAYOUTS)
