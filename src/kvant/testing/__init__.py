"""What tests of kvant, and of what others add to it, are made of: contracts to subclass, and tiny models to run.

`EngineTests` is what every engine keeps, `TargetTests` what every format that models are made in keeps. The contracts
need pytest (`pip install 'kvant[testing]'`), the models do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvant.testing.engines import EngineTests as EngineTests
    from kvant.testing.targets import TargetTests as TargetTests

_HOMES = {"EngineTests": "kvant.testing.engines", "TargetTests": "kvant.testing.targets"}

__all__ = ["EngineTests", "TargetTests"]


def __getattr__(name: str) -> Any:
    """Import a contract when it is asked for: pytest need not be there for the models."""
    if name not in _HOMES:
        raise AttributeError(f"module 'kvant.testing' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
