"""Every native encoder against ggml's own, byte for byte, at every instruction-set level this machine can run.

The oracle is `ggml_quantize_chunk` of the pinned engine, and libgguf, another and older build of the same code, whose
IQ1_M adds up in another order. Not checked: NaNs that carry a payload or a negative sign next to others (which NaN
survives an addition depends on the order in which a compiler puts its operands), and in codebook types what kvant
refuses, because ggml ends the process. On ARM, builds of ggml fuse multiplications into additions and disagree with x86
and with each other, so the oracle there is tests/golden/encoders.json.
"""

import ctypes
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import libgguf
import numpy as np
import pytest
import xllamacpp

import kvant
from kvant.dtypes import BLOCK_TYPES, BlockType, Family
from kvant.errors import BlockShapeError, UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, isa

Array = np.ndarray
IN_LIBGGUF = set(libgguf.GGMLQuantizationType.__members__) - {"IQ1_M"}
HELD = np.float32(5e4)  # what every codebook type holds, whatever the fit
CODEBOOK = {t.name for t in BLOCK_TYPES.values() if t.family == Family.CODEBOOK}


def _params(names: list[str]) -> list[object]:
    """ggml sorts the codebooks of the smaller ones for seconds before it encodes."""
    slow = {name for name in CODEBOOK if not name.startswith("IQ3")}
    known = [name for name in names if name in IN_LIBGGUF or platform.system() != "Windows"]
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in known]


NATIVE = [name for name, _, _, _, plain, _, _ in _ext.types() if plain]
WEIGHTED = [name for name, _, _, _, _, weighted, _ in _ext.types() if weighted]
on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ggml's bytes are those of x86-64")
# Odd numbers of blocks and rows, so that the last vector is not full.
SHAPES = [(19, 512), (3, 256), (5, 768)]


@cache
def _engine() -> ctypes.CDLL | None:
    """The engine's library, or None on Windows, where its wheel exports nothing."""
    for path in Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"):
        library = ctypes.CDLL(str(path))
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]  # fmt: skip
        return library
    return None


def libgguf_encode(x: Array, target: BlockType, importance: Array | None = None) -> Array:
    kind = libgguf.GGMLQuantizationType[target.name]
    return np.asarray(libgguf.quantize_rows(x, kind, imatrix=importance)).view(np.uint8)


def ggml_encode(x: Array, target: BlockType, importance: Array | None = None) -> Array:
    library = _engine()
    if library is None:
        return libgguf_encode(x, target, importance)
    rows, n = x.shape
    out = np.zeros((rows, target.row_bytes(n)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    written = library.ggml_quantize_chunk(target.ggml_id, x.ctypes.data, out.ctypes.data, 0, rows, n, weights)
    assert written == out.nbytes
    return out


def distributions(rows: int, n: int) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(rows * n)
    shape = (rows, n)

    def normal(scale: float = 1.0) -> Array:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def sprinkled(*values: float) -> Array:
        x = normal()
        for value in values:
            x[rng.random(shape) < 0.003] = value
        return x

    yield "normal", normal(0.02)
    yield "student t, 2 degrees", rng.standard_t(2, shape).astype(np.float32)
    yield "student t, 1 degree", rng.standard_t(1, shape).astype(np.float32)
    yield "constant", np.full(shape, 0.37, np.float32)
    yield "negative constant", np.full(shape, -0.37, np.float32)
    yield "zero", np.zeros(shape, np.float32)
    yield "negative zero", -np.zeros(shape, np.float32)
    yield "denormal", normal(1e-41)
    yield "scale underflows", normal(1e-7)
    yield "tiny", normal(1e-15)
    yield "large", normal(1e5)
    yield "huge", normal(1e18)
    yield "overflowing", normal(1e37)
    yield "sparse", np.where(rng.random(shape) < 0.98, np.float32(0), normal())
    yield "positive", np.abs(normal())
    yield "negative", -np.abs(normal())
    yield "far from zero", normal(0.001) + np.float32(1)
    yield "on a grid", np.round(normal(4)) / np.float32(4)
    yield "magnitudes mixed", normal() * np.float32(10) ** rng.integers(-8, 8, shape).astype(np.float32)
    yield (
        "finite bit patterns",
        np.nan_to_num(rng.integers(0, 2**32, shape, np.uint32).view(np.float32), nan=0, posinf=0, neginf=0),
    )
    yield "NaN", sprinkled(np.nan)
    yield "infinity", sprinkled(np.inf)
    yield "NaN and infinities", sprinkled(np.nan, np.inf, -np.inf)
    yield "all NaN", np.full(shape, np.nan, np.float32)


def importances(n: int) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(n)
    squares = rng.standard_normal(n).astype(np.float32) ** 2
    yield "squares", squares
    yield "half zero", np.where(rng.random(n) < 0.5, np.float32(0), squares)
    yield "zero", np.zeros(n, np.float32)
    yield "wide", (10 ** rng.uniform(-30, 30, n)).astype(np.float32)
    yield "less wide", (10 ** rng.uniform(-6, 6, n)).astype(np.float32)


@cache
def _expected(name: str, weighted: bool) -> list[tuple[str, Array, Array | None, Array]]:
    target = BLOCK_TYPES[name]
    cases: list[tuple[str, Array, Array | None, Array]] = []
    for rows, n in SHAPES:
        for kind, x in distributions(rows, n):
            if name in CODEBOOK:
                if not np.isfinite(x).all():
                    continue
                x = np.clip(x, -HELD, HELD)
            if not weighted:
                cases.append((f"{kind} {x.shape}", x, None, ggml_encode(x, target)))
                continue
            for label, importance in importances(n):
                if name in CODEBOOK and label == "wide":
                    continue
                expected = ggml_encode(x, target, importance)
                cases.append((f"{kind} {x.shape}, importance {label}", x, importance, expected))
    return cases


def _check(name: str, weighted: bool, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_ISA", level)
    for case, x, importance, expected in _expected(name, weighted):
        found = kvant.encode(x, name, importance=importance, threads=1)
        assert np.array_equal(found, expected), f"{name} at {level}: {case}"


@on_x86
@pytest.mark.parametrize("level", isa.levels())
@pytest.mark.parametrize("name", _params(NATIVE))
def test_bytes_equal_ggml(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _check(name, False, level, monkeypatch)


@on_x86
@pytest.mark.parametrize("level", isa.levels())
@pytest.mark.parametrize("name", _params(WEIGHTED))
def test_bytes_with_importance_equal_ggml(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _check(name, True, level, monkeypatch)


@on_x86
@pytest.mark.parametrize("name", _params(sorted({"Q8_0", *NATIVE} - set(WEIGHTED))))
def test_importance_without_effect_equals_ggml(name: str) -> None:
    target = BLOCK_TYPES[name]
    x = np.random.default_rng(5).standard_normal((9, 512)).astype(np.float32)
    importance = x[0] ** 2
    assert np.array_equal(kvant.encode(x, name, importance=importance), ggml_encode(x, target, importance))


@on_x86
@pytest.mark.parametrize("name", _params(sorted({*NATIVE, *WEIGHTED} & IN_LIBGGUF)))
def test_bytes_equal_libgguf(name: str) -> None:
    x = np.random.default_rng(6).standard_normal((19, 768)).astype(np.float32)
    target = BLOCK_TYPES[name]
    if name in NATIVE:
        assert np.array_equal(kvant.encode(x, name), libgguf_encode(x, target))
    importance = x[3] ** 2
    assert np.array_equal(kvant.encode(x, name, importance=importance), libgguf_encode(x, target, importance))


@pytest.mark.parametrize("name", sorted(set(NATIVE) | set(WEIGHTED)))
def test_threads_and_memory_layout_do_not_change_bytes(name: str) -> None:
    x = np.random.default_rng(8).standard_normal((601, 512)).astype(np.float32)
    importance = x[1] ** 2
    one = kvant.encode(x, name, importance=importance, threads=1)
    assert np.array_equal(kvant.encode(x, name, importance=importance, threads=3), one)
    assert np.array_equal(kvant.encode(np.asfortranarray(x), name, importance=importance), one)
    assert np.array_equal(kvant.encode(x[::-1], name, importance=importance, threads=2)[::-1], one)


def test_types_of_the_table_are_those_of_dtypes() -> None:
    for name, ggml_id, length, size, *_ in _ext.types():
        known = BLOCK_TYPES[name]
        assert (known.ggml_id, known.block_length, known.block_bytes) == (ggml_id, length, size)


def test_refusals_name_the_value_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros((2, 256), np.float32)
    with pytest.raises(BlockShapeError, match=r"row length 300 is not a multiple of the Q4_K block length 256\. Use"):
        kvant.encode(np.zeros((2, 300), np.float32), "Q4_K")
    with pytest.raises(ValueRangeError, match=r"float64 \[2, 256\] is not float32 \[rows, n\]\. Convert"):
        kvant.encode(x.astype(np.float64), "Q4_K")
    with pytest.raises(ValueRangeError, match=r"float32 \[256\] is not"):
        kvant.encode(x[0], "Q4_K")
    with pytest.raises(ValueRangeError, match=r"float32 \[255\] is not float32 \[256\]"):
        kvant.encode(x, "Q4_K", importance=np.ones(255, np.float32))
    with pytest.raises(ValueRangeError, match=r"column 7 is -1\.0"):
        kvant.encode(x, "Q4_K", importance=np.where(np.arange(256) == 7, -1, 1).astype(np.float32))
    with pytest.raises(ValueRangeError, match="IQ2_XS is encoded only with it"):
        kvant.encode(x, "IQ2_XS")
    with pytest.raises(ValueRangeError, match="threads: -1"):
        kvant.encode(x, "Q4_K", threads=-1)
    with pytest.raises(UnsupportedFormatError, match="I8 is not a type for weights"):
        kvant.encode(x, "I8")
    monkeypatch.setenv("KVANT_ISA", "sse9")
    with pytest.raises(ValueRangeError, match=r"KVANT_ISA: 'sse9' is not a level this machine can run\. Use one of"):
        kvant.encode(x, "Q4_K")
