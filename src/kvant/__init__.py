"""kvant makes the best small version of a language model for a given device, proves how good it is, and ships it.

The functions here are the commands of the same name; `recipes/pipeline.py` is the main path, top to bottom.
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
    from kvant.recipes.budget import Budget as Budget
    from kvant.recipes.convert import convert as convert
    from kvant.recipes.delivery import Request as Request
    from kvant.recipes.evaluate import evaluate as evaluate
    from kvant.recipes.inspect import inspect as inspect
    from kvant.recipes.pipeline import optimize as optimize
    from kvant.recipes.quantize import quantize as quantize
    from kvant.recipes.rebuild import rebuild as rebuild

_HOMES = {
    "Budget": "kvant.recipes.budget",
    "KvantError": "kvant.errors",
    "Request": "kvant.recipes.delivery",
    "advise": "kvant.recipes.advise",
    "convert": "kvant.recipes.convert",
    "decode": "kvant.kernels",
    "encode": "kvant.kernels",
    "evaluate": "kvant.recipes.evaluate",
    "inspect": "kvant.recipes.inspect",
    "open_model": "kvant.formats.open",
    "optimize": "kvant.recipes.pipeline",
    "quantize": "kvant.recipes.quantize",
    "rebuild": "kvant.recipes.rebuild",
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
