"""Addresses: which are this machine, which belong to one client, and what trusted proxies say of theirs."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from kvant.errors import AccessError

LOOPBACK = "loopback"
IPV6_CLIENT_BITS = 64
"""An IPv6 client is usually given a network of that many bits: its addresses are one client's."""

Headers = Iterable[tuple[bytes, bytes]]
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parsed(text: str) -> _Address | None:
    """Return an address; None for anything else. An IPv4 address within IPv6 is the IPv4 address."""
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    address = parsed(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def client_of(address: str) -> str:
    """Return the name under which an address is counted: all of loopback is one client, so is an IPv6 /64."""
    found = parsed(address)
    if found is None:
        return address[:64]
    if found.is_loopback:
        return LOOPBACK
    if found.version == 6:
        return str(ipaddress.ip_network((int(found), IPV6_CLIENT_BITS), strict=False))
    return str(found)


@dataclass(frozen=True, slots=True)
class Seen:
    """Who a request comes from and what it was addressed to, as far as it can be believed.

    Attributes:
        address: The client's address.
        host: The Host header as the client sent it, lower case.
        scheme: `http` or `https`, as the client used it.
    """

    address: str
    host: str
    scheme: str


class Proxies:
    """The reverse proxies whose `X-Forwarded-*` headers are believed; those of anybody else are ignored.

    Args:
        named: Addresses or networks (`10.0.0.0/8`).

    Raises:
        AccessError: One is neither.
    """

    def __init__(self, named: Iterable[str]) -> None:
        networks: list[_Network] = []
        for text in named:
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise AccessError(
                    f"--trust-proxy {text[:80]}: is no address or network ({error}). Write 10.0.0.5 or 10.0.0.0/8."
                ) from None
        self._networks = tuple(networks)

    def __contains__(self, address: str) -> bool:
        found = parsed(address) if self._networks else None
        return found is not None and any(found in network for network in self._networks)

    def seen(self, peer: str, scheme: str, headers: Headers) -> Seen:
        """Return what to believe of a request that came from `peer`."""
        values: dict[bytes, str] = {}
        for name, value in headers:
            if name == b"host" or name.startswith(b"x-forwarded-"):
                text = value.decode("latin-1").strip()
                values[name] = f"{values[name]}, {text}" if name in values else text
        host = values.get(b"host", "")
        if peer in self:
            peer = self._client(peer, values.get(b"x-forwarded-for", ""))
            host = _last(values.get(b"x-forwarded-host", "")) or host
            told = _last(values.get(b"x-forwarded-proto", "")).lower()
            scheme = told if told in ("http", "https") else scheme
        return Seen(peer, host.lower(), scheme)

    def _client(self, peer: str, chain: str) -> str:
        """Each proxy adds whom it was called by at the end: the client is the last one that is no proxy of ours."""
        for text in reversed(chain.split(",")):
            address = parsed(_without_port(text.strip()))
            if address is None:
                break  # what a proxy of ours did not write is not worth more than the proxy's own address
            peer = str(address)
            if peer not in self:
                break
        return peer


def _last(values: str) -> str:
    return values.rpartition(",")[2].strip()


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
