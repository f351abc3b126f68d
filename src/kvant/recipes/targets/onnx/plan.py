"""Which blocks every matrix of a decoder gets by a type's name, and which blocks it can have at all."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from kvant.devices.providers import Provider
from kvant.errors import UnsupportedFormatError
from kvant.formats.onnx.weights import EMBEDDING, HEAD, Weight
from kvant.kernels.nbits import BITS, BLOCKS, NBits, nbits_type
from kvant.quant.plan import Plan

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


def named_plan(weights: Sequence[Weight], name: str) -> Plan:
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
    return Plan(preset=name, file_type=0, types=types)


def fitting_plan(weights: Sequence[Weight], plan: Plan, runs: Provider | None) -> tuple[Plan, tuple[str, ...]]:
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


def counts(types: Mapping[str, str]) -> dict[str, int]:
    """Matrices of each type."""
    return {name: list(types.values()).count(name) for name in sorted(set(types.values()))}
