"""`kvant serve`, `kvant key` and `kvant top` from the outside: a process, its address, its end."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from commands import run, serving
from kvant.recipes.convert.convert import convert
from kvant.testing.tiny_models import write_tiny_model
from served import write_gguf

ASK = [{"role": "user", "content": "Hello"}]
LONG = 100_000
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    convert(write_tiny_model("llama", tmp_path_factory.mktemp("hf")), root / "tiny.gguf", to="gguf", type="F16")
    return root


def get(url: str, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    with contextlib.closing(connection):
        return answer.status, answer.read()


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(models: Path, number: signal.Signals) -> None:
    with serving("--models", str(models)) as (process, url):
        assert get(url, "/health")[0] == 200
        status, body = get(url, "/v1/models")
        assert (status, json.loads(body)["data"][0]["id"].partition(":")[0]) == (200, "tiny")
        top = run("top", url, "--json")
        assert json.loads(top.stdout)["limit_bytes"] > 0
        process.send_signal(number)
        _, log = process.communicate(timeout=60)
        assert process.returncode in (0, -number)
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["path"] for line in lines if line["event"] == "request"} >= {"/health", "/v1/models", "/kvant/status"}
    assert "Traceback" not in log


STREAMS: dict[str, tuple[dict[str, Any], bytes]] = {
    "/v1/chat/completions": ({"messages": ASK, "stream": True, "max_tokens": LONG}, b'data: {"error":{'),
    "/v1/messages": ({"messages": ASK, "stream": True, "max_tokens": LONG}, b"event: error\ndata: {"),
    "/v1/responses": ({"input": "Hello", "stream": True, "max_output_tokens": LONG}, b'"status":"failed"'),
    "/api/chat": ({"messages": ASK, "options": {"num_predict": LONG}}, b'\n{"error":"'),
}


@contextlib.contextmanager
def streaming(url: str, paths: Iterable[str]) -> Iterator[dict[str, http.client.HTTPResponse]]:
    """Begin long answers; yield them once tokens come."""
    with contextlib.ExitStack() as stack:
        answers = {}
        for path in paths:
            connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            stack.callback(connection.close)
            connection.request("POST", path, json.dumps({"model": "long", **STREAMS[path][0]}))
            answers[path] = connection.getresponse()
            text = b""
            while text.count(b"\n") < 20:
                text += answers[path].read1(4096)
            assert answers[path].status == 200
        yield answers


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("long")
    write_gguf(root / "long.gguf", context=1 << 17)
    return root


def has_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody took note of it yet."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@linux
def test_streams_that_outlast_the_drain_end_as_their_api_says_that_one_failed(long_model: Path) -> None:
    options = ["--models", str(long_model), "--drain", "0", "--threads", "1", "--context", str(LONG)]
    with serving(*options) as (process, url), streaming(url, STREAMS) as answers:
        workers = workers_of(process)
        process.send_signal(signal.SIGTERM)
        for path, answer in answers.items():
            assert STREAMS[path][1] in (end := b"\n" + answer.read()[-2000:]), path
            assert b"is shutting down" in end
            assert b"[DONE]" not in end
        _, log = process.communicate(timeout=60)
    assert "Traceback" not in log
    assert all(map(has_gone, workers))


@linux
def test_a_second_ctrl_c_ends_it_and_its_workers_at_once(long_model: Path) -> None:
    options = ["--models", str(long_model), "--drain", "600", "--threads", "1", "--context", str(LONG)]
    with serving(*options) as (process, url), streaming(url, ["/api/chat"]):
        workers = workers_of(process)
        process.send_signal(signal.SIGINT)
        while not refuses(url):  # it has begun to end
            pass
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in log) == (130, False)
        told = [json.loads(line) for line in log.splitlines()]
        assert [line["answers"] for line in told if line["event"] == "draining"] == [1]
        while not all(map(has_gone, workers)):
            pass


def refuses(url: str) -> bool:
    """Whether nobody listens there any more."""
    try:
        get(url, "/health")
    except ConnectionError:
        return True
    return False


@linux
def test_connections_that_do_nothing_stop_nothing_and_fill_no_disk(models: Path) -> None:
    import resource

    def few_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    with (
        serving("--models", str(models), preexec_fn=few_descriptors) as (process, url),
        contextlib.ExitStack() as stack,
    ):
        host, port = urlsplit(url).netloc.split(":")
        for index in range(400):
            idle = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            idle.sendall(b"" if index % 2 else b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            if index % 50 == 0:
                assert get(url, "/health")[0] == 200
        assert get(url, "/health")[0] == 200
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 128
        metrics = get(url, "/metrics")[1].decode()
        assert 'kvant_door_refusals_total{reason="connections"}' in metrics
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    events = Counter(json.loads(line)["event"] for line in log.splitlines())
    assert (events["fewer_connections"], events["request"]) == (1, 10)
    assert events.total() < 20


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_tls(models: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key),
         "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving("--models", str(models), "--tls-cert", str(certificate), "--tls-key", str(key)) as (_, url):
        assert url.startswith("https://")
        trust = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPSConnection(urlsplit(url).netloc, timeout=60, context=trust)
        connection.request("GET", "/health")
        with contextlib.closing(connection):
            assert connection.getresponse().status == 200


def test_headers_that_are_too_long_are_refused(models: Path) -> None:
    with serving("--models", str(models)) as (_, url):
        assert get(url, "/health", X="y" * 10_000)[0] == 200
        assert get(url, "/health", X="y" * 100_000)[0] in (400, 431)


def test_keys_from_making_to_revoking(models: Path) -> None:
    made = json.loads(run("key", "add", "laptop", "--scope", "inference", "--expires", "30d", "--json").stdout)
    with serving("--models", str(models), "--require-keys") as (_, url):
        assert get(url, "/health")[0] == 200
        assert get(url, "/v1/models")[0] == 401
        assert get(url, "/v1/models", Authorization=f"Bearer {made['key']}")[0] == 200
        assert get(url, "/metrics", Authorization=f"Bearer {made['key']}")[0] == 403
        refused = run("top", url, "--key", made["key"])
        assert (refused.returncode, "Give a key for metrics" in refused.stderr) == (1, True)
        listed = json.loads(run("key", "list", "--json").stdout)
        assert (listed[0]["name"], listed[0]["valid"], made["key"] in str(listed)) == ("laptop", True, False)
        assert run("key", "revoke", "laptop").returncode == 0
        assert get(url, "/v1/models", Authorization=f"Bearer {made['key']}")[0] == 401
