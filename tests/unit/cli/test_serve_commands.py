"""Wrong use of `kvant serve`, `kvant key` and `kvant top`: one line that says what to do."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from serving import loggers_as_before


@pytest.fixture(autouse=True)
def own_loggers() -> Iterator[None]:
    with loggers_as_before():
        yield


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "--models", "{models}", "--host", "0.0.0.0"), "can be reached by others"),
        (("serve", "--models", "/nonexistent"), "/nonexistent: is not a directory"),
        (("serve", "--models", "{models}", "--parallel", "0"), "--parallel: 0 is below 1"),
        (("serve", "--models", "{models}", "--speculate", "magic"), "--speculate magic"),
        (("serve", "--models", "{models}", "--speculate", "draft"), "needs --draft"),
        (("serve", "--models", "{models}", "--port", "99999"), "cannot be listened on"),
        (("serve", "--models", "{models}", "--tls-cert", "/x.pem"), "TLS: needs a certificate and a key"),
        (("serve", "--models", "{models}", "--tls-cert", "/x.pem", "--tls-key", "/x.pem"), "TLS"),
        (("key", "steal", "x"), "key steal: is not"),
        (("key", "add", "x", "--expires", "soon"), "expiry: 'soon'"),
        (("top", "http://127.0.0.1:1"), "cannot be reached"),
        (("top", "file:///etc/passwd"), "is not the address of a gateway"),
    ],
)
def test_failures(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [argument.format(models=tmp_path) for argument in arguments])
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in " ".join(result.stderr.split())


def test_a_port_that_is_in_use_is_said_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "--models", str(tmp_path), "--port", str(port)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"kvant: 127.0.0.1:{port}: cannot be listened on (in use, perhaps by a gateway that is running). Stop that, or "
        "choose another with --port.\n"
    )


def test_keys_for_people() -> None:
    made = CliRunner().invoke(app, ["key", "add", "laptop"])
    assert made.stdout.startswith("kvant-")
    assert "the only time it is shown" in made.stdout
    listed = CliRunner().invoke(app, ["key", "list"])
    assert "laptop" in listed.stdout
    assert "never" in listed.stdout
    assert "laptop is revoked" in CliRunner().invoke(app, ["key", "revoke", "laptop"]).stdout
