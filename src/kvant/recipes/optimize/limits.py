"""The limits a user asks for, as budgets of the allocator: bytes, seconds per token, bytes in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvant.allocate.options import Option
from kvant.devices.memory import OUTPUT, copied_bytes, predict_ram
from kvant.devices.profiles import Profile
from kvant.dtypes import block_type
from kvant.model import Model
from kvant.recipes.goal import Budget
from kvant.recipes.optimize.pace import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a file may take; None where there is no limit.

    Attributes:
        max_file_bytes: Bytes of the file.
        max_resident_bytes: Bytes of the file and of the engine's copies of its weights together.
        max_seconds: Seconds per token that the products of its matrices may take.
    """

    max_file_bytes: int | None = None
    max_resident_bytes: int | None = None
    max_seconds: float | None = None

    @property
    def are_plain(self) -> bool:
        """Whether the file's bytes are all that is limited."""
        return self.max_resident_bytes is None and self.max_seconds is None


def limits_of(budget: Budget, device: Profile, model: Model, context: int, pace: Pace | None) -> Limits:
    """Return the budgets that keep a user's limits; of memory, what the context and the engine take is off already."""
    of_device = (device.max_file_bytes, device.usable_bytes) if budget.device else (None, None)
    file = [limit for limit in (budget.max_size_bytes, of_device[0]) if limit]
    memory = [limit for limit in (budget.max_ram_bytes, of_device[1]) if limit]
    besides = predict_ram(model, 0, context).total_bytes
    return Limits(
        max_file_bytes=min(file, default=None),
        max_resident_bytes=min(memory) - besides if memory else None,
        max_seconds=pace.deadline(budget.min_speed_tok_s) if pace and budget.min_speed_tok_s else None,
    )


def on_device(
    options: Mapping[str, Sequence[Option]], model: Model, device: Profile, pace: Pace | None
) -> dict[str, tuple[Option, ...]]:
    """Return options with what a device makes of them: the engine's copies, and seconds per token by a pace."""
    is_tied = OUTPUT not in model.tensors

    def on(name: str, option: Option) -> Option:
        copies = copied_bytes(
            name, block_type(option.kind), model.tensors[name].shape, is_tied=is_tied, architecture=device.architecture
        )
        return replace(option, copy_bytes=copies, seconds=pace.seconds(model, name, option.kind) if pace else 0.0)

    return {name: tuple(on(name, option) for option in kinds) for name, kinds in options.items()}
