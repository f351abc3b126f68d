"""What every scheme gives: layers that are decoded as their rows are read, and what their parts are read with."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvant.dtypes import BF16, F16, F32, BlockType
from kvant.errors import FormatError
from kvant.formats.safetensors.spec import DTYPES
from kvant.kernels import decode
from kvant.tensors import LazyTensor, Tensor, n_rows, row_length

Rows = Callable[[int, int], np.ndarray]
"""Gives rows start..stop of a layer as numbers, float32 [stop - start, any]."""

FLOATS = (F32, F16, BF16)
E8M0, E4M3, E5M2 = DTYPES["F8_E8M0"], DTYPES["F8_E4M3"], DTYPES["F8_E5M2"]
U8, I8, I32, I64 = DTYPES["U8"], DTYPES["I8"], DTYPES["I32"], DTYPES["I64"]

BITS, SIZES = frozenset({"bits", "w_bit", "wbits", "num_bits"}), frozenset({"group_size", "q_group_size"})
"""What tools call the bits of a code and the weights under one scale: AutoGPTQ, GPTQModel, AutoAWQ, AutoRound,
compressed-tensors, ModelOpt."""

OF_ACTIVATIONS = frozenset({"input_activations", "output_activations", "kv_cache_scheme"})

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of four-bit codes. Source: OCP Microscaling Formats 1.0, table of E2M1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A matrix that a checkpoint holds as codes and scales.

    Attributes:
        name: The name that it has in a plain checkpoint, `PATH.weight`.
        kind: The field's name for how it is stored, e.g. `GPTQ int4-g128`.
        shape: Shape of the matrix; leading axes count experts.
        parts: Names of the tensors that it is stored in.
        rows: Its weights.
        steps: Step of the even grid that its weights lie on, one per equal run of each row; None for other grids.
        packed: The same codes in the block type of that layout, where there is one.
        remark: What is to be said of it; empty if nothing.
        n_bytes: Bytes of its parts.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    rows: Rows
    steps: Rows | None = None
    packed: LazyTensor | None = None
    remark: str = ""
    n_bytes: int = 0

    def tensor(self) -> LazyTensor:
        """The matrix as F32, decoded as it is read."""
        return _numbers(self.name, self.shape, self.rows)

    def step_tensor(self) -> LazyTensor | None:
        """The steps as F32, one row for each row of the matrix; None if it has none."""
        if self.steps is None:
            return None
        return _numbers(self.name, (*self.shape[:-1], self.steps(0, 1).shape[1]), self.steps)


def _numbers(name: str, shape: tuple[int, ...], rows: Rows) -> LazyTensor:
    def read(start: int, stop: int) -> np.ndarray:
        if stop <= start:
            return np.empty((0, shape[-1] * F32.block_bytes), np.uint8)
        return np.ascontiguousarray(rows(start, stop), np.float32).view(np.uint8)

    return LazyTensor(name=name, shape=shape, block_type=F32, read=read)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors as they are saved, and what their configuration says of how they are quantized.

    Attributes:
        weights: Tensors by name.
        settings: The entry of config.json, or the content of the file that older tools write; maybe wrong or empty.
        subject: The directory, for messages.
    """

    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    subject: str = ""

    def part(self, path: str, *suffixes: str) -> Tensor | None:
        """Return the first tensor that there is of a path with a suffix."""
        return next((self.weights[path + s] for s in suffixes if path + s in self.weights), None)

    def ending(self, suffix: str) -> list[str]:
        """Return the paths that a suffix is found after."""
        return [name.removesuffix(suffix) for name in self.weights if name.endswith(suffix)]

    def check_said(self, name: str, codes: Tensor, *, bits: int, groups: int, n: int) -> None:
        """Refuse a matrix whose shapes are not what the configuration says, which may say it anew for some layers.

        Args:
            name: The matrix's name.
            codes: The tensor of its codes.
            bits: Bits of a code, by the shapes.
            groups: Scales of a row, by the shapes.
            n: Weights of a row.

        Raises:
            FormatError: It says other bits or groups everywhere.
        """
        said, sizes = set(_said(self.settings, BITS)), set(_said(self.settings, SIZES))
        if said and bits not in said:
            raise self._contradicted(name, codes, f"{bits} bits", f"{_words(said)} bits")
        if sizes and not any(groups == (-(-n // size) if size > 0 else 1) for size in sizes):
            raise self._contradicted(
                name, codes, f"{groups} groups in rows of {n}", f"groups of {_words(sizes)} (-1: whole rows)"
            )

    def _contradicted(self, name: str, codes: Tensor, found: str, said: str) -> FormatError:
        return FormatError(
            f"{self.subject}: {name}: {codes.name} {list(codes.shape)} and what goes with it are of {found}, but the "
            f"quantization's configuration says {said}. Take the configuration that belongs to these weights."
        )

    def misfit(self, name: str, found: Tensor, wanted: str) -> FormatError:
        """Return the error for a part that does not fit its layer."""
        return FormatError(
            f"{self.subject}: {name}: {found.name} of {found.block_type} {list(found.shape)} is not {wanted}. "
            f"Download the model again."
        )


def _said(settings: object, keys: frozenset[str]) -> Iterator[int]:
    """Whole numbers under some keys, wherever they are but among what is said of activations."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key in keys and isinstance(value, int) and not isinstance(value, bool):
                yield value
            elif key not in OF_ACTIVATIONS:
                yield from _said(value, keys)


def _words(numbers: Collection[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))


def floats(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Rows of scales as float32 [rows, n]; E8M0 are powers of two, and E4M3 and E5M2 small floats."""
    raw = np.ascontiguousarray(tensor.read_bytes(start, stop))
    if tensor.block_type in (E8M0, U8):
        return powers(raw)
    if tensor.block_type in (E4M3, E5M2):
        return np.asarray(small_floats(tensor.block_type)[raw])
    return decode(raw, tensor.block_type, row_length(tensor), threads=1)


def all_floats(tensor: Tensor) -> np.ndarray:
    """A whole tensor of scales, float32 of its shape."""
    return floats(tensor, 0, n_rows(tensor)).reshape(tensor.shape)


def powers(exponents: np.ndarray) -> np.ndarray:
    """2 ** (e - 127) of exponents, uint8 [...] -> float32 [...]; 255 is NaN. Source: OCP Microscaling 1.0, E8M0."""
    values = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).astype(np.float32)
    return np.where(exponents == 255, np.float32(np.nan), values)


def small_floats(kind: BlockType) -> np.ndarray:
    """The values of all codes of E4M3 (no infinities, NaN 0x7F and 0xFF) or E5M2, float32 [256].

    Source: OCP 8-bit Floating Point Specification 1.0.
    """
    code = np.arange(256)
    bits, bias = (3, 7) if kind == E4M3 else (2, 15)
    exponent, fraction = code >> bits & (0x7F >> bits), code & ((1 << bits) - 1)
    normal = np.ldexp(1 + fraction / (1 << bits), exponent - bias)
    value = np.where(exponent == 0, np.ldexp(fraction / (1 << bits), 1 - bias), normal)
    if kind == E4M3:
        value[code & 0x7F == 0x7F] = np.nan
    else:
        value = np.where(exponent == 31, np.where(fraction == 0, np.inf, np.nan), value)
    return np.where(code & 128, -value, value).astype(np.float32)


def words(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Rows of 32-bit words, uint32 [rows, n]."""
    return np.ascontiguousarray(tensor.read_bytes(start, stop)).view("<u4")


def columns(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    """Columns start..stop of a matrix as stored, of the NumPy type of their width, [rows, stop - start], a copy."""
    width = tensor.block_type.block_bytes
    raw = tensor.read_bytes(0, n_rows(tensor))[:, width * start : width * stop]
    kinds: dict[int, np.dtype] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
    return np.ascontiguousarray(raw).view(kinds[width])


def unpacked(packed: np.ndarray, bits: int, order: tuple[int, ...] = ()) -> np.ndarray:
    """Codes of words, lowest bits first, uint32 [..., n] -> uint8 [..., n * 32 // bits].

    Args:
        packed: The words.
        bits: Bits of a code; a divisor of 32.
        order: Place in the word of each code, where they do not come one after the other.
    """
    places = np.array(order or range(32 // bits), np.uint32) * np.uint32(bits)
    codes = (packed[..., None] >> places & np.uint32((1 << bits) - 1)).astype(np.uint8)
    return np.asarray(codes).reshape(*packed.shape[:-1], packed.shape[-1] * len(places))


def nibbles(packed: np.ndarray) -> np.ndarray:
    """Four-bit codes, two to a byte and the low one first, uint8 [..., n] -> [..., 2 * n]."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def spread(values: np.ndarray, n: int) -> np.ndarray:
    """Values of equal runs, one per weight, [rows, groups] -> [rows, n]."""
    return np.repeat(values, -(-n // values.shape[1]), axis=1)[:, :n]
