"""What a hub that lies or breaks says: every answer ends in an error with a remedy, and nothing is written."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kvant.errors import KvantError
from kvant.files import home
from kvant.hub.pull import pull
from kvant.hub.sources.search import search
from kvant.hub.store import Store

FINE: dict[str, Any] = {"id": "a/b", "sha": "0" * 40, "siblings": [], "tags": [], "cardData": {"license": "mit"}}
FILE = {
    "rfilename": "a.gguf",
    "size": 10,
    "blobId": "0" * 40,
    "lfs": {"sha256": "0" * 64, "size": 10, "pointerSize": 1},
}


def with_file(**changes: Any) -> dict[str, Any]:
    return {**FINE, "siblings": [{**FILE, **changes}]}


ANSWERS: list[object] = [
    b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe", {}, {"id": 3},
    {**FINE, "sha": "../../x"}, {**FINE, "sha": None}, {**FINE, "siblings": "x"}, {**FINE, "siblings": [1]},
    {**FINE, "siblings": [{}]}, {**FINE, "tags": 5}, {**FINE, "cardData": "x"}, {**FINE, "cardData": {"license": {}}},
    {**FINE, "siblings": [FILE] * 20_001}, {**FINE, "id": "../../x"},
    with_file(rfilename="/etc/passwd.gguf"), with_file(rfilename="a/../../b.gguf"), with_file(rfilename="C:\\x.gguf"),
    with_file(rfilename=""), with_file(rfilename="a\n.gguf"), with_file(rfilename=None), with_file(rfilename=".gguf"),
    with_file(lfs={"sha256": "x", "size": 1, "pointerSize": 1}), with_file(lfs={"size": -1}), with_file(lfs=[]),
    with_file(size=-5, lfs=None), with_file(size="x", lfs=None), with_file(size=1 << 62, lfs=None, blobId="zz"),
    with_file(rfilename="a" * 5000 + ".gguf"), with_file(),
]  # fmt: skip


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """A server that answers all API questions with one document, and all others with 404."""
    answer: list[object] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raw = answer[0] if isinstance(answer[0], bytes) else json.dumps(answer[0]).encode()
            body = raw if self.path.startswith("/api/") else b""
            self.send_response(200 if body or not raw else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield answer
        server.shutdown()


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_pull_refuses(liar: list[object], number: int) -> None:
    liar.append(ANSWERS[number])
    with pytest.raises(KvantError):
        pull("hf:a/b")
    assert Store.open().list() == []
    kept = [p for p in home().rglob("*.gguf*") if p.suffix not in (".lock", ".json")]
    assert kept == []


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_search_refuses_or_shows(liar: list[object], number: int) -> None:
    answer = ANSWERS[number]
    liar.append(answer if isinstance(answer, bytes) else [answer])
    try:
        found = search("a")
    except KvantError:
        return
    assert all(".." not in one.id for one in found)
