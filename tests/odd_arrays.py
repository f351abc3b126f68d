"""Every public kernel with arrays as people have them: a crash ends this process, which tests/unit/kernels looks at.

`python tests/odd_arrays.py [part]` prints a line for every call that neither gives what a plain copy gives nor raises
an error of ours, and at the end how many calls there were. What native code could not survive is all here: memory that
is shared, reversed, unaligned or read-only, no rows, endless rows of nothing, other types, NaN, infinity, huge numbers.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kvant.dtypes import BLOCK_TYPES, block_type
from kvant.errors import KvantError
from kvant.kernels import decode, encode, fitting, linalg, mlx, mlx_blocks, nbits, packing, rowwise, transcode
from kvant.kernels.codec import check_finite

N, ROWS = 256, 3
Call = Callable[..., Any]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((ROWS, N), dtype=np.float32)
IMPORTANCE = RNG.random(N, dtype=np.float32)
HESSIAN = (X.T @ X + np.eye(N)).astype(np.float32)
CURVATURE = fitting.prepare(HESSIAN, damping=0.1)
HUGE = (1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 70)
NUMBERS = (0, -1, -(1 << 63), -(1 << 70), *HUGE, 1.5, "256", None)


def unaligned(x: np.ndarray) -> np.ndarray:
    """A copy that begins one byte behind where its elements should."""
    memory = np.empty(x.nbytes + 1, np.uint8)
    copy = memory[1:].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def views(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The same values in other places of memory: a kernel gives the same for all of them, or refuses."""
    yield "read-only", read_only(x)
    yield "unaligned", unaligned(x)
    yield "Fortran order", np.asfortranarray(x)
    yield "every second row", np.repeat(x, 2, axis=0)[::2]
    yield "every second column", np.repeat(x, 2, axis=-1)[..., ::2]
    yield "reversed twice", x[..., ::-1].copy()[..., ::-1]
    yield "subclass", x.view(np.memmap) if x.size else x


def others(x: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Other values or none: a kernel takes them or refuses; what comes is not compared."""
    flat = x.reshape(-1)
    yield from (("float64", x.astype(np.float64)), ("float16", x.astype(np.float16)), ("int32", x.astype(np.int32)))
    yield from (("big-endian", x.astype(x.dtype.newbyteorder(">"))), ("bool", x > 0), ("object", x.astype(object)))
    yield from (("complex", x.astype(np.complex64)), ("masked", np.ma.masked_array(x, x > 0)), ("list", x.tolist()))
    yield from (("None", None), ("str", "x"), ("scalar", x.dtype.type(1)), ("0-D", np.array(1, x.dtype)))
    yield from (("1-D", flat), ("3-D", x.reshape(*x.shape, 1)), ("no rows", x[:0]), ("no columns", x[..., :0]))
    yield from (
        ("one column", x[..., :1]),
        ("odd row", flat[: flat.size - 1][None]),
        ("broadcast", np.broadcast_to(flat[:1], x.shape)),
    )
    yield "endless rows of nothing", np.empty((1 << 40, 0), x.dtype)
    yield "no endless rows", np.empty((0, 1 << 40), x.dtype)
    yield "endless copies of one", np.broadcast_to(x.dtype.type(1), (1 << 40, N))
    if x.dtype.kind == "f":
        for name, value in (
            ("NaN", np.nan),
            ("infinity", np.inf),
            ("largest", 3.4e38),
            ("subnormal", 1e-45),
            ("negative", -1),
        ):
            yield name, np.full_like(x, value)
            one = x.copy()
            one.reshape(-1)[7:8] = value
            yield f"one {name}", one
        yield "both infinities", np.where(x > 0, np.inf, -np.inf).astype(x.dtype)
        yield "1e30 mixed", (x * 1e30).astype(x.dtype)
        yield "magnitudes mixed", (x * 10.0 ** RNG.integers(-37, 37, x.shape)).astype(x.dtype)


def encoders(name: str) -> Iterator[tuple[str, Call, list[Any]]]:
    """Name, function and good arguments of everything that a block type can be asked for."""
    blocks = encode(X, name, importance=IMPORTANCE)
    yield "encode", lambda x: encode(x, name), [X]
    yield "encode with importance", lambda x, i: encode(x, name, importance=i), [X, IMPORTANCE]
    yield "decode", lambda data: decode(data, name, N), [blocks]
    yield "transcode to", lambda data: transcode(data, "F32", name, N), [X.view(np.uint8)]
    yield (
        "transcode with importance",
        lambda d, i: transcode(d, "F16", name, N, importance=i),
        [encode(X, "F16"), IMPORTANCE],
    )
    if not block_type(name).is_quantized:
        yield "check_finite", lambda data: check_finite(data, block_type(name), N), [blocks]
    yield "transcode from", lambda data: transcode(data, name, "Q8_0", N), [blocks]


def kernels() -> Iterator[tuple[str, Call, list[Any]]]:
    """The same for the other kernels."""
    for name in ("Q4_0", "Q4_K", "IQ4_NL", "IQ2_XXS"):
        yield f"fit {name}", lambda x, name=name: fitting.fit(x, name, CURVATURE, sweeps=1), [X]
    yield "fit_groups", lambda x: fitting.fit_groups(x, 4, 32, CURVATURE, sweeps=1), [X]
    yield "prepare", prepared, [HESSIAN]
    parts = [CURVATURE.hessian, CURVATURE.feedback, CURVATURE.cost, CURVATURE.local]
    yield (
        "curvature",
        lambda h, f, c, b: fitting.fit(X, "Q4_0", fitting.Curvature(hessian=h, feedback=f, cost=c, local=b), sweeps=1),
        parts,
    )
    for kind in (nbits.NBits(bits=4, block=32), nbits.NBits(bits=4, block=32, symmetric=True)):
        yield f"nbits.encode {kind.name}", lambda x, kind=kind: shown(nbits.encode(x, kind)), [X]
        yield f"nbits.fit {kind.name}", lambda x, kind=kind: shown(nbits.fit(x, kind, CURVATURE, sweeps=1)[0]), [X]
    yield "matmul", linalg.matmul, [X, HESSIAN]
    yield "matmul_nt", linalg.matmul_nt, [X, X]
    yield "matmul_tn", linalg.matmul_tn, [X, X]
    yield "matmul of stacks", linalg.matmul, [np.stack([X, X]), np.stack([HESSIAN, HESSIAN])]
    yield "gram", linalg.gram, [X]
    yield "gram into", lambda out: linalg.gram(X, out=out), [np.eye(N)]
    yield "cholesky", linalg.cholesky, [HESSIAN]
    yield "inverse_cholesky_upper", linalg.inverse_cholesky_upper, [HESSIAN]
    yield "row_dot", rowwise.row_dot, [X, X]
    yield "softmax", rowwise.softmax, [X]
    yield "sigmoid", rowwise.sigmoid, [X]
    for grouping in (mlx.Grouping(mode="affine", bits=4, group_size=32), *mlx.MICROSCALED.values()):
        made = mlx.quantize(X, grouping)
        yield f"mlx.quantize {grouping.mode}", lambda x, g=grouping: fields(mlx.quantize(x, g)), [X]
        yield (
            f"mlx.dequantize {grouping.mode}",
            restoring(grouping),
            [part for part in fields(made) if part is not None],
        )
    for bits in mlx.AFFINE_BITS:
        codes = (np.arange(ROWS * N, dtype=np.uint8) & ((1 << bits) - 1)).reshape(ROWS, N)
        yield f"mlx.pack {bits}", lambda c, b=bits: mlx.pack(c, b), [codes]
        yield f"mlx.unpack {bits}", lambda w, b=bits: mlx.unpack(w, b), [mlx.pack(codes, bits)]
    for name, grouping in mlx_blocks.SAME_VALUES.items():
        blocks, target = encode(X, name), block_type(name)
        yield f"from_blocks {name}", lambda d, k=target: fields(mlx_blocks.from_blocks(d, k)), [blocks]
        rows = fields(mlx_blocks.from_blocks(blocks, target))
        yield f"to_blocks {name}", blocking(grouping, name), [part for part in rows if part is not None]
    yield "packing.pack", packed, [np.zeros((ROWS, N), np.uint8), np.ones((ROWS, 1), np.uint16),
                                   np.ones((ROWS, 1), np.uint16), np.ones((ROWS, 8), np.int8),
                                   np.ones((ROWS, 8), np.uint8)]  # fmt: skip


def prepared(h: Any) -> list[np.ndarray]:
    found = fitting.prepare(h, damping=0.1)
    return [found.hessian, found.feedback, found.cost, found.local]


def restoring(grouping: mlx.Grouping) -> Call:
    return lambda w, s, b=None: mlx.dequantize(mlx.Quantized(words=w, scales=s, biases=b), grouping)


def blocking(grouping: mlx.Grouping, name: str) -> Call:
    return lambda w, s, b=None: mlx_blocks.to_blocks(
        mlx.Quantized(words=w, scales=s, biases=b), grouping, block_type("F16"), block_type(name)
    )


def packed(codes: Any, d: Any, dmin: Any, scales: Any, minimums: Any) -> np.ndarray:
    parts = packing.Parts(codes=codes, d=d, dmin=dmin, scales=scales, minimums=minimums)
    return packing.pack(parts, block_type("Q4_K"))


def fields(rows: mlx.Quantized) -> list[np.ndarray | None]:
    return [rows.words, rows.scales, rows.biases]


def shown(blocks: nbits.Blocks) -> list[np.ndarray]:
    return [blocks.decode(), blocks.packed_codes(), blocks.packed_zeros(), blocks.scales]


def numbers() -> Iterator[tuple[str, Call]]:
    """Lengths and counts that are none."""
    for number in NUMBERS:
        for name in ("F32", "Q4_0", "Q4_K", "IQ1_M"):
            for data in (encode(X, name, importance=IMPORTANCE), np.zeros((0, 0), np.uint8), np.zeros(0, np.uint8)):
                yield f"decode {name} n={number}", lambda d=data, t=name, n=number: decode(d, t, n)
                yield f"transcode {name} n={number}", lambda d=data, t=name, n=number: transcode(d, t, "Q8_0", n)
        yield f"kind {number}", lambda n=number: encode(X, n)
        yield f"bits {number}", lambda n=number: mlx.unpack(np.zeros((1, 8), np.uint32), n)
        yield f"period {number}", lambda n=number: rowwise.softmax(X.copy(), period=n)
        yield (
            f"sweeps {number}",
            lambda n=number: None if n in HUGE[:1] else fitting.fit(X, "Q4_0", CURVATURE, sweeps=n),
        )
        for function in (
            lambda n: encode(X, "Q4_K", threads=n), lambda n: decode(X.view(np.uint8), "F32", N, threads=n),
            lambda n: linalg.matmul(X, HESSIAN, threads=n), lambda n: linalg.gram(X, threads=n),
            lambda n: linalg.cholesky(HESSIAN, threads=n), lambda n: rowwise.sigmoid(X, threads=n),
            lambda n: rowwise.row_dot(X, X, threads=n), lambda n: rowwise.softmax(X.copy(), threads=n),
            lambda n: fitting.fit(X, "Q4_0", CURVATURE, sweeps=0, threads=n),
            lambda n: fitting.prepare(HESSIAN, damping=0.1, threads=n),
        ):  # fmt: skip
            yield f"threads {number}", lambda n=number, function=function: function(n)
    nothing = np.empty((1 << 40, 0), np.float32), np.empty((0, 0), np.float32)
    yield "endless product", lambda: linalg.matmul(*nothing)
    yield (
        "product too large",
        lambda: linalg.matmul(np.ones((1 << 22, 1), np.float32), np.ones((1, 1 << 22), np.float32)),
    )
    yield (
        "endless stack",
        lambda: linalg.matmul(np.empty((1 << 40, 0, 1), np.float32), np.empty((1 << 40, 1, 0), np.float32)),
    )
    yield "moments into themselves", lambda: linalg.gram(HESSIAN, out=HESSIAN)


def outcome(call: Call, *arguments: Any) -> tuple[str, Any]:
    """What a call gives, or the error that it raises: `refuses` if it is ours, else `fails`."""
    try:
        return "gives", call(*arguments)
    except KvantError as error:
        return "refuses", str(error)
    except Exception as error:
        return "fails", f"{type(error).__name__}: {str(error)[:100]}"


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple):
        return all(same(one, other) for one, other in zip(a, b, strict=True))
    return a is b or (a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def fresh(arguments: list[Any]) -> list[Any]:
    return [a.copy() for a in arguments]  # softmax and gram change what they are given


def tried(name: str, call: Call, arguments: list[Any]) -> Iterator[tuple[str, str]]:
    """Every argument in turn as something else; yields what was tried, and what is wrong with what came."""
    said, expected = outcome(call, *fresh(arguments))
    yield name, "" if said == "gives" else f"{said}: {expected}"
    for place, good in enumerate(arguments):
        for label, view in views(good):
            said, found = outcome(call, *fresh(arguments[:place]), view, *fresh(arguments[place + 1 :]))
            wrong = said == "fails" or (said == "gives" and not same(found, expected))
            yield f"{name}, {place}: {label}", f"{said} {found}" if wrong else ""
        with np.errstate(all="ignore"):
            odd = list(others(good))
        for label, other in odd:
            yield (
                f"{name}, {place}: {label}",
                failure(call, *fresh(arguments[:place]), other, *fresh(arguments[place + 1 :])),
            )


def failure(call: Call, *arguments: Any) -> str:
    said, found = outcome(call, *arguments)
    return found if said == "fails" else ""


def parts() -> dict[str, Iterator[tuple[str, Call, list[Any]]]]:
    types = [name for name, kind in BLOCK_TYPES.items() if kind.is_quantized or name in ("F32", "F16", "BF16")]
    return {"kernels": kernels(), **{name: encoders(name) for name in types}}


def main(chosen: list[str]) -> None:
    """Try everything, or the parts that are named."""
    steps = [
        tried(f"{part}: {name}", call, arguments)
        for part, calls in parts().items()
        if part in chosen or not chosen
        for name, call, arguments in calls
    ]
    if not chosen or "numbers" in chosen:
        steps.append((name, failure(call)) for name, call in numbers())
    n_calls = 0
    for name, wrong in itertools.chain.from_iterable(steps):
        n_calls += 1
        if wrong:
            sys.stdout.write(f"{name}: {wrong[:200]}\n")
    sys.stdout.write(f"{n_calls} calls\n")


if __name__ == "__main__":
    main(sys.argv[1:])
