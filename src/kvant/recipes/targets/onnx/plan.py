"""Which blocks every matrix of a decoder gets: from a type's name, or the best for a size by measured curvature."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from kvant.allocate.options import Option
from kvant.allocate.solver import solve
from kvant.devices.providers import Provider
from kvant.errors import BudgetError, UnsupportedFormatError
from kvant.formats.onnx.weights import EMBEDDING, HEAD, Weight
from kvant.kernels.nbits import BITS, BLOCKS, NBits, encode, fit, nbits_type
from kvant.progress import SILENT, Progress
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.targets.onnx.rows import Rows

TYPES: dict[str, tuple[NBits, NBits]] = {
    "int4": (NBits(bits=4, block=32), NBits(bits=8, block=32)),
    "int8": (NBits(bits=8, block=32), NBits(bits=8, block=32)),
    "int2": (NBits(bits=2, block=32), NBits(bits=8, block=32)),
}
"""Types by name: blocks of the layers' matrices, and of embedding and head."""

CANDIDATES = tuple(
    NBits(bits=bits, block=block)
    for bits, block in ((2, 32), (2, 64), (4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128))
)
ALL = tuple(NBits(bits=bits, block=block, symmetric=s) for bits in BITS for block in BLOCKS for s in (False, True))
Dtype = Literal["F32", "F16"]
SCALE_BYTES: dict[Dtype, int] = {"F32": 4, "F16": 2}
SAMPLE_ROWS = 48
FITTED_SWEEPS = 1


class DecoderPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Blocks of every matrix.

    Attributes:
        name: What was asked for.
        types: Name of the type, by initializer.
        predicted_kld: Sum of what the matrices are predicted to add, nats per token; None if it was not predicted.
    """

    name: str
    types: dict[str, str]
    predicted_kld: float | None = None


def named_plan(weights: Sequence[Weight], name: str) -> DecoderPlan:
    """Return the plan of a name: one of `TYPES`, or one type of blocks for every matrix.

    Raises:
        UnsupportedFormatError: There is no such type.
    """
    if name.lower() in TYPES:
        body, ends = TYPES[name.lower()]
    else:
        try:
            body = ends = nbits_type(name)
        except UnsupportedFormatError as error:
            raise UnsupportedFormatError(
                f"type: {name!r} is none for ONNX. Use {', '.join(TYPES)}, or blocks such as MatMulNBits4_b32_sym."
            ) from error
    types = {w.name: (ends if set(w.names) & {EMBEDDING, HEAD} else body).name for w in weights}
    return DecoderPlan(name=name, types=types)


def best_plan(
    weights: Sequence[Weight], rows: Rows, calibration: Calibration, max_bytes: int, *, runs: Provider | None = None,
    dtype: Dtype = "F32", other_bytes: int = 0, threads: int = 0, progress: Progress = SILENT,
) -> DecoderPlan:  # fmt: skip
    """Return the plan of the least predicted KL divergence whose files take at most `max_bytes`.

    `other_bytes` of them are not the matrices'.

    Raises:
        BudgetError: Even the smallest is larger.
    """
    options: dict[str, tuple[Option, ...]] = {}
    progress.start("weigh block types", len(weights), "matrices")
    for weight in weights:
        options[weight.name] = _options(weight, rows, calibration, runs, threads, dtype)
        progress.advance("weigh block types", 1)
    progress.finish("weigh block types")
    least = sum(min(o.n_bytes for o in kinds) for kinds in options.values())
    most = sum(max(o.n_bytes for o in kinds) for kinds in options.values())
    room = max_bytes - other_bytes
    if room < least:
        raise BudgetError(
            f"max size: {max_bytes} bytes are below {least + other_bytes}, the least possible. Allow at least that."
        )
    chosen = solve(options, most).at(min(room, most))
    return DecoderPlan(
        name="kvant", types={name: option.kind for name, option in chosen.items()},
        predicted_kld=sum(option.cost for option in chosen.values()),
    )  # fmt: skip


def fitting_plan(
    weights: Sequence[Weight], plan: DecoderPlan, runs: Provider | None
) -> tuple[DecoderPlan, tuple[str, ...]]:
    """Give matrices other blocks where theirs do not fit: shorter ones, or the smallest that a provider runs.

    Returns:
        The plan, and what was changed, for people.

    Raises:
        UnsupportedFormatError: The provider runs no blocks at all, or none as large.
    """
    if runs is not None and not runs.matmul_bits:
        raise UnsupportedFormatError(
            f"target: {runs.name} runs no weights of few bits. Use --target CPU, or for models that are no decoders "
            "-t int8-static."
        )
    types, said = dict(plan.types), []
    for weight in weights:
        kind = nbits_type(types[weight.name])
        reason = refusal(weight, kind, runs)
        if not reason:
            continue
        fits = [other for other in ALL if other.bits >= kind.bits and not refusal(weight, other, runs)]
        if not fits:
            raise UnsupportedFormatError(f"{weight.name}: {reason}, nor do other blocks. Use another type or --target.")
        best = min(fits, key=lambda k: (k.bits, abs(k.block - kind.block), k.symmetric != kind.symmetric))
        types[weight.name] = best.name
        said.append(f"{weight.name}: {reason}; {best.name} instead.")
    return msgspec.structs.replace(plan, types=types), tuple(said)


def refusal(weight: Weight, kind: NBits, runs: Provider | None) -> str:
    """Say why a matrix cannot be had in blocks of a type, or not be run by a provider so; empty if it can."""
    if weight.columns % kind.block:
        return f"rows of {weight.columns} are no whole blocks of {kind.block}"
    if runs is None:
        return ""
    bits = runs.matmul_bits if weight.product else runs.gather_bits
    if weight.product and weight.lookup:
        bits = bits & runs.gather_bits
    if kind.bits not in bits or kind.block not in runs.blocks or not (kind.symmetric or runs.asymmetric):
        return f"{runs.name} does not run {kind.name}{' in look-ups' if weight.lookup else ''}"
    return ""


def _options(
    weight: Weight, rows: Rows, calibration: Calibration, runs: Provider | None, threads: int, dtype: Dtype
) -> tuple[Option, ...]:
    """What a matrix may become; errors of samples of its rows, weighed as in recipes/measure/rounding.py."""
    samples = _samples(weight, rows, calibration, threads)
    found = []
    for kind in CANDIDATES:
        if refusal(weight, kind, runs):
            continue
        cost = sum(share * _cost(x, kind, ready, risk, threads) for x, ready, risk, share in samples)
        generalized = cost * (1 + weight.columns / calibration.curvatures.n_tokens)
        found.append(
            Option(
                kind=kind.name,
                n_bytes=weight.rows * kind.row_bytes(weight.columns, SCALE_BYTES[dtype]),
                cost=generalized,
            )
        )
    return tuple(found)


def _samples(weight: Weight, rows: Rows, calibration: Calibration, threads: int) -> list[tuple]:  # type: ignore[type-arg]
    """Rows, factored Hessian, risk and 1 of every tensor that a matrix holds."""
    found = []
    for part in rows.parts(weight):
        count = min(part.stop - part.start, SAMPLE_ROWS)
        chosen = np.unique(np.linspace(part.start, part.stop - 1, count).astype(np.int64))
        x = rows.read(weight, chosen)
        ready = calibration.curvatures.ready(part.name, threads=threads)
        found.append((x, ready, calibration.statistics.risk(part.name), 1.0))  # type: ignore[attr-defined]
    return found


def _cost(x: np.ndarray, kind: NBits, ready: object, risk: np.ndarray, threads: int) -> float:
    fitted = fit(x, kind, ready, sweeps=FITTED_SWEEPS, threads=threads)[0] if kind.bits < 8 else encode(x, kind)  # type: ignore[arg-type]
    error = fitted.decode() - x
    return max(0.0, 0.5 * float(np.sum((error @ risk) * error, dtype=np.float64)) / len(x))


def counts(types: Mapping[str, str]) -> dict[str, int]:
    """Matrices of each type."""
    return {name: list(types.values()).count(name) for name in sorted(set(types.values()))}
