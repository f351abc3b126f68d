import pytest

from kvant.errors import AccessError
from kvant.serve.addresses import LOOPBACK, Proxies, Seen, client_of, is_loopback


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("127.0.0.1", LOOPBACK), ("127.9.9.9", LOOPBACK), ("::1", LOOPBACK), ("::ffff:127.0.0.1", LOOPBACK),
        ("10.0.0.7", "10.0.0.7"), ("::ffff:10.0.0.7", "10.0.0.7"), ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1:2:3", "2001:db8::/64"), ("2001:db8:0:1::1", "2001:db8:0:1::/64"), ("odd", "odd"),
    ],
)  # fmt: skip
def test_what_counts_as_one_client(address: str, client: str) -> None:
    assert client_of(address) == client


def test_loopback() -> None:
    assert [host for host in ("localhost", "127.0.0.1", "[::1]", "0.0.0.0", "::", "box") if is_loopback(host)] == [
        "localhost", "127.0.0.1", "[::1]",
    ]  # fmt: skip


FORWARDED = [
    (b"host", b"127.0.0.1:11500"), (b"x-forwarded-for", b"6.6.6.6, 9.9.9.9"), (b"x-forwarded-for", b"10.0.0.3"),
    (b"x-forwarded-host", b"AI.example"), (b"x-forwarded-proto", b"https"),
]  # fmt: skip


def test_a_named_proxy_is_believed_and_its_clients_chain_is_not() -> None:
    proxies = Proxies(("10.0.0.0/24", "::1"))
    assert proxies.seen("10.0.0.2", "http", FORWARDED) == Seen("9.9.9.9", "ai.example", "https")
    assert proxies.seen("::1", "http", FORWARDED).address == "9.9.9.9"
    assert proxies.seen("10.0.0.2", "http", [(b"host", b"x"), (b"x-forwarded-proto", b"gopher")]) == Seen(
        "10.0.0.2", "x", "http"
    )


@pytest.mark.parametrize("chain", [b"", b"unknown", b"1.2.3.4, _hidden", b"1.2.3.4,"])
def test_a_chain_that_cannot_be_read_is_the_proxys_own_address(chain: bytes) -> None:
    assert Proxies(("10.0.0.2",)).seen("10.0.0.2", "http", [(b"x-forwarded-for", chain)]).address == "10.0.0.2"


@pytest.mark.parametrize("chain", [b"1.2.3.4:5555", b"10.0.0.2, 1.2.3.4", b"1.2.3.4, 10.0.0.2"])
def test_ports_and_own_proxies_in_a_chain(chain: bytes) -> None:
    assert Proxies(("10.0.0.2",)).seen("10.0.0.2", "http", [(b"x-forwarded-for", chain)]).address == "1.2.3.4"


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.1.2", "", "testclient"])
def test_nobody_else_is_believed(peer: str) -> None:
    assert Proxies(("10.0.0.0/24",)).seen(peer, "http", FORWARDED) == Seen(peer, "127.0.0.1:11500", "http")
    assert Proxies(()).seen(peer, "https", FORWARDED) == Seen(peer, "127.0.0.1:11500", "https")


@pytest.mark.parametrize("named", ["*", "proxy.lan", "10.0.0.5/8", "10.0.0", ""])
def test_what_is_no_address_is_said(named: str) -> None:
    with pytest.raises(AccessError, match="no address or network"):
        Proxies((named,))
