"""What distributions offer to kvant through entry points: the built-in ones come through the same door."""

import functools
from collections.abc import Iterator
from importlib import metadata
from typing import Generic, TypeVar

from kvant.errors import KvantError

OfferT = TypeVar("OfferT")


class Registry(Generic[OfferT]):
    """The objects of one group of entry points, by name; looked up once per process, each loaded when it is asked for.

    Args:
        group: The group, `kvant.engines`.
        what: What they are, in the plural, for errors.
    """

    def __init__(self, group: str, what: str) -> None:
        self._group, self._what = group, what
        self._loaded: dict[str, OfferT] = {}

    @functools.cached_property
    def _offers(self) -> dict[str, metadata.EntryPoint]:
        found: dict[str, metadata.EntryPoint] = {}
        for offer in sorted(metadata.entry_points(group=self._group), key=lambda offer: offer.name):
            before = found.setdefault(offer.name, offer)
            if before.value != offer.value:
                raise KvantError(
                    f"{self._group}: {_giver(before)} and {_giver(offer)} both offer {offer.name!r}. Uninstall one."
                )
        if not found:
            raise KvantError(
                f"kvant: its installation knows no {self._what} (no entry points {self._group}). Reinstall it."
            )
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Names on offer, sorted; nothing is loaded for them.

        Raises:
            KvantError: There are none, or two distributions offer one name.
        """
        return tuple(self._offers)

    def get(self, name: str) -> OfferT:
        """Return what a name stands for.

        Raises:
            LookupError: Nobody offers it.
            KvantError: It cannot be loaded.
        """
        if name not in self._loaded:
            offer = self._offers[name]
            try:
                self._loaded[name] = offer.load()
            except (ImportError, AttributeError) as error:
                raise KvantError(
                    f"{self._group}: {name} of {_giver(offer)} cannot be loaded ({error}). Mend or uninstall it."
                ) from error
        return self._loaded[name]

    def __iter__(self) -> Iterator[OfferT]:
        """Load and yield all of them, by name."""
        return map(self.get, self.names)

    def look_again(self) -> None:
        """Forget what was found, for a process whose `sys.path` has changed."""
        self.__dict__.pop("_offers", None)
        self._loaded.clear()


def _giver(offer: metadata.EntryPoint) -> str:
    return f"{offer.dist.name} ({offer.value})" if offer.dist else offer.value
