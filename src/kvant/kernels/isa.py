"""Instruction-set levels: which one the native kernels run at. `KVANT_ISA` forces one."""

import os
from functools import cache

from kvant.errors import ValueRangeError
from kvant.kernels import _ext

ENVIRONMENT = "KVANT_ISA"


@cache
def levels() -> tuple[str, ...]:
    """Levels this machine can run, slowest first; the last one is the default."""
    return tuple(_ext.isa_levels())


def level() -> str:
    """The level in use: `KVANT_ISA` if set, else the fastest.

    Raises:
        ValueRangeError: `KVANT_ISA` names no level, or one this machine cannot run.
    """
    wanted = os.environ.get(ENVIRONMENT, "")
    if not wanted:
        return levels()[-1]
    if wanted not in levels():
        raise ValueRangeError(
            f"{ENVIRONMENT}: {wanted!r} is not a level this machine can run. Use one of {', '.join(levels())}."
        )
    return wanted
