"""The gateway below a path of a reverse proxy: a real one, small, that takes its prefix off or leaves it on."""

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from commands import run, serving

PREFIX = "/kvant"
PUBLIC = "ai.example"


@contextlib.contextmanager
def proxy(gateway: str, *, strips: bool) -> Iterator[str]:
    """Run a proxy for `http://ai.example/kvant/`; yield where it listens."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self.path.startswith(PREFIX):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
            path = self.path.removeprefix(PREFIX) or "/" if strips else self.path
            inner = http.client.HTTPConnection(urlsplit(gateway).netloc, timeout=60)
            forwarded = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Host": PUBLIC, "X-Forwarded-Proto": "https"}
            with contextlib.closing(inner):
                inner.request(self.command, path, body, kept | forwarded)
                answer = inner.getresponse()
                text = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET  # noqa: N815 - the name that is looked for

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(base: str, path: str, body: Any = None, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=60)
    with contextlib.closing(connection):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), names)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a gateway behind a proxy on this machine, and a key."""
    home, models = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVANT_HOME", str(home))
        key = json.loads(run("key", "add", "team", "--json").stdout)["key"]
        options = ["--root-path", PREFIX, "--trust-proxy", "127.0.0.1", "--allow-host", PUBLIC]
        with serving("--models", str(models), *options) as (_, url):
            yield url, key


@pytest.mark.parametrize("strips", [True, False])
def test_page_and_apis_below_a_prefix(gateway: tuple[str, str], strips: bool) -> None:
    url, key = gateway
    with proxy(url, strips=strips) as outside:
        for path in (PREFIX, f"{PREFIX}/", f"{PREFIX}/ui"):
            status, headers, _ = ask(outside, path, accept="text/html")
            assert (status, headers["location"]) == (307, f"{PREFIX}/ui/")
        status, _, page = ask(outside, f"{PREFIX}/ui/")
        assert status == 200
        for link in re.findall(r'(?:src|href)="([^"#]+)"', page.decode()):
            assert ask(outside, urlsplit(urljoin(f"{outside}{PREFIX}/ui/", link)).path)[0] == 200
        assert json.loads(ask(outside, f"{PREFIX}/openapi.json")[2])["servers"] == [{"url": PREFIX}]
        assert ask(outside, f"{PREFIX}/v1/models")[0] == 401  # keys are needed behind a proxy, though on loopback
        assert ask(outside, f"{PREFIX}/v1/models", authorization=f"Bearer {key}")[0] == 200
        own = {"origin": f"https://{PUBLIC}", "authorization": f"Bearer {key}", "content_type": "application/json"}
        status, _, error = ask(outside, f"{PREFIX}/api/chat", {"model": "none"}, **own)
        assert (status, b"none" in error) == (404, True)
        assert (
            ask(outside, f"{PREFIX}/api/chat", {"model": "none"}, **own | {"origin": "https://evil.example"})[0] == 403
        )


def test_who_is_no_named_proxy_is_not_believed(tmp_path: Path) -> None:
    with serving("--models", str(tmp_path)) as (_, url):
        assert ask(url, "/health", x_forwarded_host="evil.example", x_forwarded_for="192.0.2.7")[0] == 200
        assert ask(url, "/v1/models", x_forwarded_host="ai.example", origin="https://ai.example")[0] == 403
