import asyncio
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kvant.errors import ApiError
from kvant.generate.media import MAX_BYTES, Media, picture
from kvant.serve import fetch
from kvant.testing.pictures import disc

PICTURE = disc((1, 2, 3))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1/")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            if self.path == "/slow":
                for _ in range(100):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    threading.Event().wait(0.05)
            else:
                self.wfile.write(bytes(MAX_BYTES["image"] + 9) if self.path == "/large" else PICTURE)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on loopback, which counts as public here."""
    monkeypatch.setattr(fetch, "_is_public", lambda _: True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _fetched(url: str, *, allowed: bool = True) -> Media:
    part = picture(url, "messages[0]")
    part.read()
    asyncio.run(fetch.fetched(part, allowed=allowed))
    return part


def test_a_picture_is_fetched(address: str) -> None:
    part = _fetched(f"{address}/x.png?size=1")
    assert part["image_url"]["url"].startswith("data:image/png;base64,")
    assert part.pixels == 96 * 64


@pytest.mark.parametrize(("path", "words"), [("/moved", "status 302"), ("/large", "more than")])
def test_an_answer_that_is_not_taken(address: str, path: str, words: str) -> None:
    with pytest.raises(ApiError, match=words):
        _fetched(address + path)


def test_a_slow_answer_ends_in_time(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SECONDS", 0.3)
    with pytest.raises(ApiError, match="TimeoutError"):
        _fetched(f"{address}/slow")


def test_addresses_are_not_fetched_unless_allowed(address: str) -> None:
    with pytest.raises(ApiError, match="--allow-media-urls"):
        _fetched(f"{address}/x.png", allowed=False)


@pytest.mark.parametrize(
    "ip",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "::1", "fe80::1", "fd00::1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::",
     "2001:0:4136:e378::1", "ff02::1"],
)  # fmt: skip
def test_what_is_not_public(ip: str) -> None:
    assert not fetch._is_public(ip)


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700:4700::1111"])
def test_what_is_public(ip: str) -> None:
    assert fetch._is_public(ip)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://user:pw@host/",
        "http://host:99999/",
        "http://a b/",
        "http://h\u00f6st/",
        "http://" + "a" * 3000,
    ],
)
def test_what_is_no_plain_address(url: str) -> None:
    with pytest.raises(ApiError, match=r"no plain address|is no address|cannot be fetched"):
        _fetched(url)


def test_a_look_up_that_does_not_end_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def never(*_: Any, **__: Any) -> list[Any]:
        done.wait()
        raise OSError

    monkeypatch.setattr(fetch, "SECONDS", 0.05)
    monkeypatch.setattr(fetch, "LOOK_UPS", threading.BoundedSemaphore(1))
    monkeypatch.setattr("socket.getaddrinfo", never)
    try:
        for _ in range(2):  # the second one waits for the first one's thread
            with pytest.raises(ApiError, match="cannot be fetched \\(TimeoutError\\)"):
                _fetched("http://nobody.example/x.png")
    finally:
        done.set()
