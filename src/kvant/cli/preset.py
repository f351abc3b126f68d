"""What a stored model says about how to chat with it, under what the command line says."""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kvant.errors import ModelNameError, ModelNotFoundError, TransferError, ValueRangeError

if TYPE_CHECKING:
    from kvant.hub.store import StoredModel
    from kvant.progress import Progress

_OPTIONS = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "repeat_penalty": "repeat_penalty", "seed": "seed", "num_predict": "max_tokens", "num_ctx": "context",
    "num_thread": "threads",
}  # fmt: skip
"""Option of `kvant run` that a stored parameter stands for."""


def fetched(model: str, *, accepted: Collection[str], offline: bool, progress: "Progress") -> Path:
    """Return what an argument names, brought here if it lies on a server and is not here yet."""
    from kvant.hub.sources.names import is_remote, is_short_name

    if not is_remote(model) and not is_short_name(model):
        return Path(model)
    from kvant.cli.stored import PREFIX, stored_model
    from kvant.hub.pull import Wish, pull

    with contextlib.suppress(ModelNameError, ModelNotFoundError):
        found = stored_model(Path(PREFIX + model))  # the name that a pulled model has in the store
        if found is not None:
            return Path(PREFIX + str(found.name))
    try:
        got = pull(model, Wish(offline=True, accepted=accepted), progress=progress)
    except TransferError:
        if offline:
            raise
        got = pull(model, Wish(accepted=accepted), progress=progress)
    return Path(PREFIX + got.name if got.name else got.path)


class Preset:
    """Values for a chat: an option that was given, else the stored one, else the option's default.

    Args:
        model: A stored model; None for a file.
        options: The command's own, which knows what was given.

    Raises:
        ValueRangeError: One of the settings is not a number.
    """

    def __init__(self, model: "StoredModel | None", options: typer.Context) -> None:
        self._options = options
        from kvant.runtime.plaintext import Trusted

        settings = model.settings if model else None
        stored = settings.parameters if settings else {}
        self._numbers = {
            _OPTIONS[name]: _number(f"{name}: {value!r} of {model.name if model else ''}", name, value)
            for name, value in stored.items()
            if name in _OPTIONS
        }
        stop = stored.get("stop", [])
        self.stop = tuple(stop) if isinstance(stop, list) else (str(stop),)
        self.template = settings.template if settings else None
        self._system = settings.system if settings else None
        self.messages: list[dict[str, str]] = [
            Trusted(role=message.role, content=message.content) for message in (settings.messages if settings else [])
        ]

    def number(self, option: str, value: float) -> float:
        """Return the number that holds."""
        return value if self._is_given(option) else self._numbers.get(option, value)

    def seed(self, value: int | None) -> int | None:
        """Return the seed that holds; a stored -1 means none."""
        stored = self._numbers.get("seed", -1)
        return value if self._is_given("seed") or stored < 0 else int(stored)

    def max_tokens(self, value: int) -> int:
        """Return the most tokens of an answer; a stored -1 means no limit of its own."""
        number = int(self.number("max_tokens", value))
        return number if number > 0 else value

    def context(self, value: int | None) -> int | None:
        """Return the tokens of context that hold."""
        stored = self._numbers.get("context")
        return value if self._is_given("context") or stored is None else int(stored)

    def system(self, value: str | None) -> str | None:
        """Return what the model is told about its part."""
        return value if self._is_given("system") else self._system

    @property
    def has_own_system(self) -> bool:
        """Whether what the model is told about its part was stored with it."""
        return not self._is_given("system") and self._system is not None

    def _is_given(self, option: str) -> bool:
        source = self._options.get_parameter_source(option)
        return source is not None and source.name == "COMMANDLINE"


def _number(what: str, name: str, value: object) -> float:
    """Return a stored parameter's number; a bundle or another program may have stored anything."""
    is_whole = name not in ("temperature", "top_p", "min_p", "repeat_penalty")
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        raise ValueRangeError(f"{what} is not a number. Set it again with kvant create.")
    return value
