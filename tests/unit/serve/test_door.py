"""The door, tried from outside through the whole application."""

import asyncio
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from kvant.errors import AccessError, KvantError, ModelNotFoundError, QueueFullError, WorkerError
from kvant.serve.access import Principal, needed_scope
from kvant.serve.api.wire import caller
from kvant.serve.app import make_app
from kvant.serve.door import WRONG_KEYS, check_safe
from kvant.serve.endpoints import Endpoint, Endpoints, Handler
from kvant.serve.keys import Keys
from kvant.serve.library import DirectoryLibrary
from kvant.serve.routes import ROUTES
from kvant.serve.settings import Settings
from kvant.serve.wording import guessed

ERRORS: dict[str, KvantError] = {
    "missing": ModelNotFoundError("model 'x': is not there."), "full": QueueFullError("queue: full.", retry_after_s=7),
    "crash": WorkerError("model 'x': crashed."),
}  # fmt: skip


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"bytes": len(body), "caller": caller(request), "id": request.state.request_id})


async def fail(request: Request) -> Response:
    kind = request.path_params["kind"]
    raise ERRORS.get(kind) or ZeroDivisionError(kind)


def row(method: str, path: str, handler: Handler = echo, **more: Any) -> Endpoint:
    given: dict[str, Any] = {"scope": "inference", "dialect": guessed(path), "heading": ""}
    return Endpoint(method, path, handler, **given | more)


TRIED = [
    row("POST", "/v1/echo"), row("POST", "/api/echo"), row("POST", "/v1/messages"), row("GET", "/v1/fail/{kind}", fail),
    row("POST", "/api/blobs/{digest}", scope="manage", is_upload=True), row("GET", "/api/fail/{kind}", fail),
    row("GET", "/forgotten", scope="admin"), *(found for found in ROUTES if found.heading == "kvant"),
]  # fmt: skip


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with make_client(tmp_path) as made:
        yield made


def make_client(directory: Path, host: str = "http://127.0.0.1:11500", **settings: Any) -> TestClient:
    settings = {"max_ram_bytes": 1, "drain_s": 0, "keys_file": directory / "keys.json", **settings}
    app = make_app(Settings(**settings), DirectoryLibrary(directory), routes=TRIED)
    return TestClient(app, base_url=host, raise_server_exceptions=False)


def test_health_readiness_and_request_ids(client: TestClient) -> None:
    for path, status in (("/health", "ok"), ("/ready", "ready")):
        answer = client.get(path, headers={"X-Request-Id": "mine-1"})
        assert (answer.status_code, answer.json()["status"]) == (200, status)
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["x-content-type-options"] == "nosniff"
    odd = client.get("/health", headers={"X-Request-Id": 'a"} {"event": "forged'})
    assert len(odd.headers["x-request-id"]) == 16


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_own_names_are_let_in(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": f"{host}:11500"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:11500", "", "10.0.0.1"]
)
def test_other_names_are_dns_rebinding(client: TestClient, host: str) -> None:
    answer = client.post("/v1/echo", json={}, headers={"Host": host})
    assert (answer.status_code, "is not this gateway" in answer.text) == (403, True)


def test_a_name_can_be_allowed(tmp_path: Path) -> None:
    with make_client(tmp_path, "http://box.lan:11500", allow_hosts=("box.lan",)) as client:
        assert client.post("/v1/echo", json={}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1.evil:11500"]
)
def test_pages_of_other_sites_may_neither_read_nor_do_anything(client: TestClient, origin: str) -> None:
    for method, path in (("POST", "/v1/echo"), ("GET", "/v1/models"), ("OPTIONS", "/v1/echo")):
        answer = client.request(method, path, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_own_pages_and_allowed_origins(tmp_path: Path) -> None:
    with make_client(tmp_path, allow_origins=("https://app.example",)) as client:
        own = client.post("/v1/echo", json={}, headers={"Origin": "http://127.0.0.1:11500"})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers
        other = client.post("/v1/echo", json={}, headers={"Origin": "https://app.example"})
        assert other.headers["access-control-allow-origin"] == "https://app.example"
        wanted = "x-api-key, x-stainless-os"
        asks = {
            "Origin": "https://app.example",
            "Access-Control-Request-Headers": wanted,
            "Access-Control-Request-Private-Network": "true",
        }
        before = client.options("/v1/echo", headers=asks)
        assert (before.status_code, before.headers["access-control-allow-headers"]) == (204, wanted)
        assert before.headers["access-control-allow-private-network"] == "true"
        program = client.post("/v1/echo", json={}, headers={"Origin": "vscode-webview://0a"})
        assert program.headers["access-control-allow-origin"] == "vscode-webview://0a"


def test_keys_and_scopes(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    tokens = {scope: keys.add(scope, (scope,)) for scope in ("inference", "manage", "metrics", "admin")}
    cases = {
        ("POST", "/v1/echo"): {"inference", "admin"},
        ("POST", "/api/echo"): {"inference", "admin"},
        ("POST", "/api/blobs/x"): {"manage", "admin"},
        ("GET", "/metrics"): {"metrics", "admin"},
        ("GET", "/kvant/status"): {"metrics", "admin"},
        ("GET", "/forgotten"): {"admin"},
        ("GET", "/health"): {*tokens, ""},
    }
    with make_client(tmp_path, require_keys=True) as client:
        for (method, path), allowed in cases.items():
            for scope in (*tokens, ""):
                headers = {"Authorization": f"Bearer {tokens[scope]}"} if scope else {}
                status = client.request(method, path, headers=headers).status_code
                assert status == (200 if scope in allowed else 403 if scope else 401), (path, scope)
        answer = client.post("/v1/echo", headers={"x-api-key": tokens["inference"]})
        assert answer.json()["caller"] == "inference"
        wrong = client.post("/v1/echo", headers={"Authorization": "Bearer kvant-wrong"})
        assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")
        keys.revoke("inference")
        assert client.post("/v1/echo", headers={"x-api-key": tokens["inference"]}).status_code == 401


def test_on_loopback_any_key_will_do_as_clients_send_one_always(client: TestClient) -> None:
    answer = client.post("/v1/echo", headers={"Authorization": "Bearer ollama"})
    assert (answer.status_code, answer.json()["caller"]) == (200, "anybody")


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/api/pull", "manage"), ("DELETE", "/api/delete", "manage"), ("DELETE", "/api/chat", "admin"),
        ("POST", "/metrics", "admin"), ("PUT", "/v1/chat/completions", "admin"), ("GET", "/", "public"),
        ("POST", "/", "admin"), ("GET", "//v1/models", "admin"), ("GET", "/api/version", "public"),
    ],
)  # fmt: skip
def test_the_scope_of_a_path(method: str, path: str, scope: str) -> None:
    assert needed_scope(Endpoints(ROUTES), method, path) == scope


def test_another_authenticator_fits_in(tmp_path: Path) -> None:
    class Sure:
        def authenticate(self, headers: Any, client: str) -> Principal | None:  # noqa: ARG002
            return Principal(name="sso", scopes=frozenset({"inference"}), kind="oidc")

    app = make_app(Settings(max_ram_bytes=1), DirectoryLibrary(tmp_path), authenticator=Sure(), routes=TRIED)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.post("/v1/echo").json()["caller"] == "sso"
        assert client.get("/metrics").status_code == 403


def test_bodies_that_are_too_long_too_deep_or_not_whole(tmp_path: Path) -> None:
    with make_client(tmp_path, max_body_bytes=1000, max_json_depth=8, max_blob_bytes=5000) as client:
        assert client.post("/v1/echo", content=b"x" * 1000).json()["bytes"] == 1000
        assert client.post("/v1/echo", content=b"x" * 1001).status_code == 413
        assert client.post("/v1/echo", content=iter([b"x" * 600] * 2)).status_code == 413  # without a length
        assert client.post("/v1/echo", content=b"[" * 8 + b"]" * 8).status_code == 200
        assert client.post("/v1/echo", content=b"[" * 9).status_code == 400
        assert client.post("/v1/echo", content=json.dumps(["[" * 100, {"a": "{{{{{{{{{{"}])).status_code == 200
        assert client.post("/api/blobs/x", content=b"x" * 5000).json()["bytes"] == 5000
        assert client.post("/api/blobs/x", content=b"x" * 5001).status_code == 413


def test_requests_a_minute(tmp_path: Path) -> None:
    with make_client(tmp_path, requests_per_minute=3) as client:
        statuses = [client.post("/v1/echo").status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        answer = client.post("/v1/echo")
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        for path in ("/health", "/ready"):  # an orchestrator that is told 429 ends the gateway
            assert [client.get(path).status_code for _ in range(9)] == [200] * 9


def test_strangers_do_not_use_up_the_rates_of_others(tmp_path: Path) -> None:
    token = Keys(tmp_path / "keys.json").add("laptop")
    proxied: dict[str, Any] = {"require_keys": True, "requests_per_minute": 3, "trust_proxies": ("10.0.0.1",)}
    told = Settings(max_ram_bytes=1, keys_file=tmp_path / "keys.json", **proxied)
    app = make_app(told, DirectoryLibrary(tmp_path), routes=TRIED)
    with TestClient(app, base_url="http://127.0.0.1", client=("10.0.0.1", 1)) as client:
        strange = {"X-Forwarded-For": "6.6.6.6"}
        assert [client.get("/ui/api.js", headers=strange).status_code for _ in range(5)][3:] == [429, 429]
        assert client.get("/ui/api.js", headers={"X-Forwarded-For": "7.7.7.7"}).status_code == 200
        for address in ("6.6.6.6", "7.7.7.7", "8.8.8.8"):
            headers = {"X-Forwarded-For": address, "Authorization": f"Bearer {token}"}
            assert client.post("/v1/echo", headers=headers).status_code == 200
        assert client.post("/v1/echo", headers=headers).status_code == 429  # a key has one bucket wherever it is used


def test_wrong_keys_are_limited_by_address_and_right_ones_are_not(tmp_path: Path) -> None:
    token = Keys(tmp_path / "keys.json").add("laptop")
    with make_client(tmp_path, require_keys=True) as client:
        guesses = [client.post("/v1/echo", headers={"x-api-key": f"kvant-{n}"}) for n in range(WRONG_KEYS + 5)]
        assert [answer.status_code for answer in guesses] == [401] * WRONG_KEYS + [429] * 5
        assert int(guesses[-1].headers["retry-after"]) >= 1
        assert client.post("/v1/echo").status_code == 401  # none is no guess
        assert client.post("/v1/echo", headers={"x-api-key": token}).status_code == 200


def test_a_damaged_list_of_keys_keeps_everybody_out(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    token = Keys(tmp_path / "keys.json").add("laptop")
    with make_client(tmp_path, require_keys=True) as client:
        (tmp_path / "keys.json").write_text("{broken")
        answer = client.post("/v1/echo", headers={"x-api-key": token})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "The list of keys cannot be read; the gateway's log says why."
        assert client.get("/health").status_code == 200
    assert "Traceback" not in capsys.readouterr().err


def test_no_answer_is_shown_within_another_site(client: TestClient) -> None:
    for path in ("/health", "/v1/nowhere", "/api/version", "/metrics", "/ui/", "/ui/main.js"):
        headers = client.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
        assert len(headers.get_list("content-security-policy")) == 1


def test_below_a_prefix(tmp_path: Path) -> None:
    with make_client(tmp_path, root_path="/kvant") as client:
        for prefix in ("", "/kvant"):  # proxies take it off, or leave it on
            assert client.post(f"{prefix}/v1/echo", json={}).status_code == 200
            assert client.get(f"{prefix}/ui/api.js").status_code == 200
            moved = client.get(f"{prefix}/ui", follow_redirects=False)
            assert moved.headers["location"] == "/kvant/ui/"
            assert isinstance(client.get(f"{prefix}/api/nowhere").json()["error"], str)
            assert client.get(f"{prefix}/v1/nowhere/", follow_redirects=False).status_code == 404
        assert client.get("/kvantum/v1/models").status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "shape"),
    [
        ("/v1/fail/missing", 404, "openai"), ("/api/fail/missing", 404, "ollama"), ("/v1/fail/full", 503, "openai"),
        ("/v1/fail/crash", 502, "openai"), ("/v1/fail/defect", 500, "openai"), ("/v1/nowhere", 404, "openai"),
        ("/api/nowhere", 404, "ollama"),
    ],
)  # fmt: skip
def test_errors_are_worded_as_the_api_words_them(client: TestClient, path: str, status: int, shape: str) -> None:
    answer = client.get(path, headers={"X-Request-Id": "r1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "r1")
    error = answer.json()["error"]
    assert isinstance(error, str) == (shape == "ollama")
    assert "ZeroDivision" not in answer.text
    if status in (502, 503):
        assert int(answer.headers["retry-after"]) >= 1


def test_the_log_has_ids_and_paths_but_no_words_of_requests(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="kvant.serve"):
        client.post("/v1/echo?q=hidden", json={"prompt": "secret words"}, headers={"X-Request-Id": "r9"})
    (record,) = [r for r in caplog.records if r.getMessage() == "request"]
    fields = record.fields  # type: ignore[attr-defined]
    assert (fields["id"], fields["path"], fields["status"], fields["caller"]) == ("r9", "/v1/echo", 200, "anybody")
    assert "secret" not in str(fields)
    assert "hidden" not in str(fields)


@pytest.mark.parametrize(
    ("settings", "has_keys", "message"),
    [
        ({"host": "0.0.0.0"}, False, r"host 0\.0\.0\.0: can be reached by others.*kvant key add"),
        ({"host": "192.168.1.2"}, False, "can be reached"),
        ({"host": "::"}, False, "can be reached"),
        ({"host": "box.lan"}, False, "can be reached"),
        ({"require_keys": True}, False, r"^--require-keys: there is no key.*kvant key add NAME, or leave it out"),
        ({"tls_cert": Path("c.pem")}, True, "TLS"),
        ({"trust_proxies": ("127.0.0.1",)}, False, r"through the proxy 127\.0\.0\.1.*kvant key add"),
        ({"trust_proxies": ("127.0.0.1",)}, True, None),
        ({"trust_proxies": ("*",)}, True, "no address or network"),
        ({"root_path": "kvant"}, True, "no path prefix"),
        ({"root_path": "//evil.example"}, True, "no path prefix"),
        ({"root_path": "/a/b"}, True, None),
        ({"host": "0.0.0.0"}, True, None),
        ({"host": "127.0.0.1"}, False, None),
        ({"host": "::1"}, False, None),
        ({"host": "localhost"}, False, None),
    ],
)
def test_a_gateway_that_would_stand_open_does_not_start(
    settings: dict[str, Any], has_keys: bool, message: str | None
) -> None:
    if message is None:
        check_safe(Settings(**settings), has_keys=has_keys)
    else:
        with pytest.raises(AccessError, match=message):
            check_safe(Settings(**settings), has_keys=has_keys)


def test_websockets_and_broken_uploads_reach_nothing(tmp_path: Path) -> None:
    app = make_app(Settings(max_ram_bytes=1), DirectoryLibrary(tmp_path), routes=TRIED)
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def gone() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    headers = [(b"host", b"127.0.0.1"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/v1/echo", "headers": headers, "query_string": b""}
    asyncio.run(app({"type": "websocket", "path": "/v1/echo", "headers": headers}, gone, send))
    assert sent == []
    asyncio.run(app(scope, gone, send))
    assert sent[0]["status"] == 400
