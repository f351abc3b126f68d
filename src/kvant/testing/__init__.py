"""What tests of kvant, and of what others add to it, are made of: contracts to subclass, and tiny models to run.

`EngineTests` is what every engine keeps. The contracts need pytest (`pip install 'kvant[testing]'`), the models do not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvant.testing.engines import EngineTests as EngineTests

__all__ = ["EngineTests"]


def __getattr__(name: str) -> Any:
    """Import a contract when it is asked for: pytest need not be there for the models."""
    if name not in __all__:
        raise AttributeError(f"module 'kvant.testing' has no attribute {name!r}")
    from kvant.testing.engines import EngineTests

    return EngineTests
