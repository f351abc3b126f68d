"""`kvant serve`, `kvant key` and `kvant top` from the outside: a process, its address, its end."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kvant.recipes.convert import convert
from tiny_models import write_tiny_model

KVANT = [sys.executable, "-m", "kvant.cli.main"]
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    convert(write_tiny_model("llama", tmp_path_factory.mktemp("hf")), root / "tiny.gguf", to="gguf", type="F16")
    return root


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KVANT, *arguments], capture_output=True, text=True, timeout=120, check=False)


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a gateway on a free port; yield its process and its address."""
    command = [*KVANT, "serve", "--port", "0", "--json", "--drain", "5", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(3)]
            yield process, json.loads("".join(lines))["url"]
        finally:
            process.kill()


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
