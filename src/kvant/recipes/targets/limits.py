"""The limits a user asks for, as budgets of the allocator: bytes, seconds per token, bytes in memory."""

from dataclasses import dataclass

from kvant.devices.memory import predict_ram
from kvant.devices.profiles import Profile
from kvant.model import Model
from kvant.recipes.companion import Companion
from kvant.recipes.goal import Budget


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


def limits_of(
    budget: Budget, device: Profile, model: Model, context: int, *, max_seconds: float | None = None,
    beside: Companion | None = None,
) -> Limits:  # fmt: skip
    """Return the budgets that keep a user's limits; of memory, what the context and the engine take is off already.

    Args:
        budget: What the user asks for.
        device: Its limits hold as well if the budget names it.
        model: The full-precision model.
        context: Tokens of context that memory is predicted for.
        max_seconds: Seconds per token that the products of matrices may take; None where that cannot be planned for.
        beside: The projector that goes with it, which takes its part of both.
    """
    of_device = (device.max_file_bytes, device.usable_bytes) if budget.device else (None, None)
    file = [budget.max_size_bytes - (beside.size_bytes if beside else 0)] if budget.max_size_bytes else []
    file += [of_device[0]] if of_device[0] else []
    memory = [limit for limit in (budget.max_ram_bytes, of_device[1]) if limit]
    besides = predict_ram(model, 0, context, projector=beside.memory_bytes if beside else 0).total_bytes
    return Limits(
        max_file_bytes=min(file, default=None),
        max_resident_bytes=min(memory) - besides if memory else None,
        max_seconds=max_seconds,
    )
