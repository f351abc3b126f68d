"""Who asks, and what for: the seam where other ways to prove an identity fit in."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from kvant.serve.endpoints import PUBLIC, Endpoints
from kvant.serve.keys import SCOPES, Keys

NOBODY = "nobody"
"""Kind of a principal who did not prove anything."""

UNROUTED: tuple[tuple[str, str, str], ...] = (
    # methods, how a path begins, scope
    ("GET HEAD", "/ui/", PUBLIC),
    ("GET HEAD POST", "/api/", "inference"),
    ("GET HEAD POST DELETE", "/v1/", "inference"),
)
"""Who is told that there is nothing at a path, and what to do: clients whose base URL is nearly right."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks.

    Attributes:
        name: A name for logs and for taking turns.
        scopes: What they may do; see `keys.SCOPES`.
        kind: How they proved who they are: `nobody` or `key`; others may follow.
    """

    name: str
    scopes: frozenset[str]
    kind: str = "key"

    def may(self, scope: str) -> bool:
        """Whether a scope is theirs."""
        return scope == PUBLIC or scope in self.scopes or "admin" in self.scopes


class Authenticator(Protocol):
    """Tells who asks from a request's headers."""

    def authenticate(self, headers: Mapping[bytes, bytes], client: str) -> Principal | None:
        """Return who asks; None if the request does not prove it.

        Args:
            headers: Names in lower case.
            client: Address of the other side.
        """
        ...


class KeyAuthenticator:
    """A key in `Authorization: Bearer` or `x-api-key`.

    Args:
        keys: The keys there are.
        required: Whether a request without a valid key is nobody's; else it is anybody's, who may do everything.
    """

    def __init__(self, keys: Keys, *, required: bool) -> None:
        self._keys, self._required = keys, required

    def authenticate(self, headers: Mapping[bytes, bytes], client: str) -> Principal | None:  # noqa: ARG002
        """See `Authenticator.authenticate`."""
        token = given_key(headers)
        key = self._keys.find(token) if token else None
        if key is not None:
            return Principal(name=key.name, scopes=frozenset(key.scopes))
        return None if self._required else Principal(name="anybody", scopes=frozenset(SCOPES), kind=NOBODY)


def needed_scope(endpoints: Endpoints, method: str, path: str) -> str:
    """Return the scope that a request needs; where there is nothing, `admin` outside of the APIs."""
    found = endpoints.find(method, path)
    if found is not None:
        return found.scope
    for methods, start, scope in UNROUTED:
        if path.startswith(start) and method in methods.split():
            return scope
    return "admin"


def given_key(headers: Mapping[bytes, bytes]) -> str:
    """Return the key that a request sends; empty if it sends none."""
    kind, _, token = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer" and token.strip():
        return token.strip().decode("latin-1")
    return headers.get(b"x-api-key", b"").strip().decode("latin-1")
