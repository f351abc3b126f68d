"""What a stored model says about how to chat with it, under what the command line says."""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvant.errors import ApiError, ModelNameError, ModelNotFoundError, TransferError, ValueRangeError

if TYPE_CHECKING:
    from kvant.hub.store import StoredModel
    from kvant.progress import Progress


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
        ValueRangeError: One of the settings is not what its parameter takes.
    """

    def __init__(self, model: "StoredModel | None", options: typer.Context) -> None:
        self._options = options
        from kvant.generate.sampling import checked
        from kvant.runtime.plaintext import Trusted

        settings = model.settings if model else None
        try:  # a bundle or another program may have stored anything
            self._stored = checked(settings.parameters if settings else {})
        except ApiError as error:
            said = str(error).rstrip(".")
            raise ValueRangeError(f"{model.name if model else ''}: {said}. Set it again with kvant create.") from None
        self.template = settings.template if settings else None
        self._system = settings.system if settings else None
        self.messages: list[dict[str, Any]] = [
            Trusted(role=message.role, content=message.content) for message in (settings.messages if settings else [])
        ]

    def sampling(self, **given: float | None) -> dict[str, Any]:
        """Return how tokens are chosen.

        Args:
            given: Values of the command's options, by the names of `generate.sampling`.
        """
        from kvant.generate.sampling import PARAMETERS

        stored = {name: value for name, value in self._stored.items() if PARAMETERS[name].engine is not None}
        stored.pop("num_predict", None)
        return stored | {name: value for name, value in given.items() if self._is_given(name)}

    def threads(self, value: int) -> int:
        """Return the threads that hold."""
        return value if self._is_given("threads") else self._stored.get("num_thread", value)

    def max_tokens(self, value: int) -> int:
        """Return the most tokens of an answer; a stored -1 means no limit of its own."""
        stored = self._stored.get("num_predict", 0)
        return value if self._is_given("max_tokens") or stored <= 0 else stored

    def context(self, value: int | None) -> int | None:
        """Return the tokens of context that hold."""
        return value if self._is_given("context") else self._stored.get("num_ctx", value)

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
