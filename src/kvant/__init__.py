"""kvant makes the best small version of a language model for a given device, proves how good it is, and ships it.

The functions here are the commands of the same name; `recipes/optimize/pipeline.py` is the main path, top to bottom.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvant._version import __version__

if TYPE_CHECKING:
    from kvant.errors import KvantError as KvantError
    from kvant.formats.open import open_model as open_model
    from kvant.kernels import decode as decode
    from kvant.kernels import encode as encode
    from kvant.recipes.advise import advise as advise
    from kvant.recipes.convert import convert as convert
    from kvant.recipes.goal import Budget as Budget
    from kvant.recipes.inspect.inspect import inspect as inspect
    from kvant.recipes.measure.evaluate import evaluate as evaluate
    from kvant.recipes.optimize.pipeline import optimize as optimize
    from kvant.recipes.optimize.request import Request as Request
    from kvant.recipes.rebuild.rebuild import rebuild as rebuild
    from kvant.recipes.targets.gguf.write import quantize as quantize

_HOMES = {
    "Budget": "kvant.recipes.goal",
    "KvantError": "kvant.errors",
    "Request": "kvant.recipes.optimize.request",
    "advise": "kvant.recipes.advise",
    "convert": "kvant.recipes.convert",
    "decode": "kvant.kernels",
    "encode": "kvant.kernels",
    "evaluate": "kvant.recipes.measure.evaluate",
    "inspect": "kvant.recipes.inspect.inspect",
    "open_model": "kvant.formats.open",
    "optimize": "kvant.recipes.optimize.pipeline",
    "quantize": "kvant.recipes.targets.gguf.write",
    "rebuild": "kvant.recipes.rebuild.rebuild",
}

__all__ = [
    "Budget", "KvantError", "Request", "__version__", "advise", "convert", "decode", "encode", "evaluate", "inspect",
    "open_model", "optimize", "quantize", "rebuild",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import kvant` costs nothing."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kvant' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return list(__all__)
