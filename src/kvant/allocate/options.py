"""What a tensor may become: its block types with their bytes, predicted cost and decode time.

Costs come from above as numbers: Fisher times encoding error, measured sensitivities, anything that adds up.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvant.dtypes import F16, block_type
from kvant.errors import ValueRangeError
from kvant.formats.gguf.layout import TensorInfo, padded
from kvant.formats.gguf.spec import DEFAULT_ALIGNMENT
from kvant.quant.roles import is_quantizable


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One block type that a tensor may take, and what that means.

    Attributes:
        kind: Name of the block type.
        n_bytes: Bytes in the file, padded to its alignment.
        cost: Predicted KL divergence that it adds, in nats per token; at least 0.
        seconds: Time per generated token that it takes to read and decode.
        copy_bytes: Bytes that the engine keeps of it a second time, in a layout for its fastest kernels.
    """

    kind: str
    n_bytes: int
    cost: float
    seconds: float = 0.0
    copy_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be added up."""
        for name in ("n_bytes", "cost", "seconds", "copy_bytes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueRangeError(f"{self.kind}: {name} {value} is not a number from 0 up. Correct its estimate.")

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory: as mapped, and as copied."""
        return self.n_bytes + self.copy_bytes


def allowed_types(
    name: str, shape: tuple[int, ...], candidates: Iterable[str], *, architecture: str = ""
) -> tuple[str, ...]:
    """Return the block types that a tensor can take.

    Args:
        name: The tensor's name.
        shape: Lengths of its axes in NumPy order.
        candidates: Names of block types to choose from.
        architecture: llama.cpp's name for it; some leave more tensors alone.

    Returns:
        Those whose blocks divide a row, in the order given and each once; F16 where none does. Nothing for a tensor
        that stays as it is: a vector, a norm, a router.

    Raises:
        UnsupportedFormatError: A candidate is no block type.
    """
    if not is_quantizable(name, shape, architecture):
        return ()
    kinds = dict.fromkeys(block_type(candidate) for candidate in candidates)
    return tuple(kind.name for kind in kinds if shape[-1] % kind.block_length == 0) or (F16.name,)


def stored_bytes(name: str, shape: tuple[int, ...], kind: str, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """Return the bytes of a GGUF file that a tensor takes as `kind`, with the padding behind it."""
    return padded(TensorInfo(name, shape, block_type(kind)).n_bytes, alignment)


def undominated(options: Iterable[Option], *, seconds_matter: bool = True) -> tuple[Option, ...]:
    """Drop the options that another one beats or equals in bytes, cost and time; copies do not count.

    Args:
        options: Of one tensor, in any order.
        seconds_matter: Whether being faster saves an option that is larger and costs more.

    Returns:
        The others by rising bytes; of equal ones the first by name, so that the order given does not matter.
    """
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.n_bytes, o.cost, o.seconds, o.kind)):
        if not any(o.cost <= option.cost and (o.seconds <= option.seconds or not seconds_matter) for o in kept):
            kept.append(option)
    return tuple(kept)


def total_bytes(chosen: Iterable[Option]) -> int:
    """Bytes of a choice."""
    return sum(option.n_bytes for option in chosen)


def total_cost(chosen: Iterable[Option]) -> float:
    """Predicted cost of a choice, rounded once: the same whatever order it is in."""
    return math.fsum(option.cost for option in chosen)


def total_seconds(chosen: Iterable[Option]) -> float:
    """Decode time per token of a choice, rounded once."""
    return math.fsum(option.seconds for option in chosen)


def resident_bytes(chosen: Iterable[Option]) -> int:
    """Bytes of memory that a choice takes."""
    return sum(option.resident_bytes for option in chosen)


def picked(options: Sequence[Option], kind: str) -> Option:
    """Return the option of one block type; the caller knows that it is there."""
    return next(option for option in options if option.kind == kind)
