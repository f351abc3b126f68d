"""Searching a hub on loopback through its real client."""

import json

import pytest
from typer.testing import CliRunner

from hub_server import Hub, Repo
from kvant.cli.main import app
from kvant.errors import TransferError, ValueRangeError
from kvant.hub.sources.search import search

pytestmark = pytest.mark.heavy


@pytest.fixture
def many(hub: Hub) -> Hub:
    hub.repos |= {
        "kv/tiny-coder-instruct": Repo(
            {"model.safetensors": b"x" * 100, "config.json": b"{}"}, tags=("safetensors",), license="llama3.2",
            base_model="kv/tiny", downloads=900,
        ),
        "kv/tiny-onnx": Repo({"onnx/model.onnx": b"x" * 50}, tags=("onnx",), license=None, downloads=50),
        "kv/tiny-mlx-4bit": Repo({"model.safetensors": b"x"}, tags=("mlx", "safetensors"), license="mit", downloads=70),
        "kv/other": Repo({}, downloads=10_000),
    }  # fmt: skip
    return hub


@pytest.mark.usefixtures("many")
def test_what_is_found_and_said_of_it() -> None:
    found = {one.id: one for one in search("tiny", usable_bytes=10**9)}
    assert list(found) == ["kv/tiny-coder-instruct", "kv/tiny-GGUF", "kv/tiny-mlx-4bit", "kv/tiny-onnx"]
    coder = found["kv/tiny-coder-instruct"]
    assert (coder.kind, coder.domains, coder.base_models) == ("instruct", ("code",), ("kv/tiny",))
    assert (coder.licence, coder.is_allowed, coder.size_bytes) == ("llama3.2", False, 100)
    gguf = found["kv/tiny-GGUF"]
    assert (gguf.formats, gguf.kind, gguf.n_variants, gguf.variant, gguf.fits) == (("gguf",), "base", 3, "F16", True)
    assert gguf.pull == "kvant pull hf:kv/tiny-GGUF:F16"
    assert found["kv/tiny-mlx-4bit"].formats == ("mlx", "safetensors")
    assert found["kv/tiny-onnx"].licence == "unknown"
    assert found["kv/tiny-onnx"].pull == found["kv/tiny-mlx-4bit"].pull == ""


@pytest.mark.usefixtures("many")
def test_filters() -> None:
    assert [one.id for one in search("tiny", format="onnx")] == ["kv/tiny-onnx"]
    assert [one.id for one in search("tiny", licences=["MIT"])] == ["kv/tiny-mlx-4bit"]
    assert [one.id for one in search("tiny", limit=1)] == ["kv/tiny-coder-instruct"]
    assert search("tiny", fits=True, usable_bytes=1000) == []
    with pytest.raises(ValueRangeError, match="Use one of gguf"):
        search("tiny", format="exe")
    with pytest.raises(ValueRangeError):
        search(" ")


@pytest.mark.usefixtures("many")
def test_the_command() -> None:
    result = CliRunner().invoke(app, ["search", "tiny", "--json", "--limit", "2"])
    assert [one["id"] for one in json.loads(result.stdout)] == ["kv/tiny-coder-instruct", "kv/tiny-GGUF"]
    shown = CliRunner().invoke(app, ["search", "tiny"]).stdout
    assert "(llama3.2)" in shown
    assert "Next: kvant pull hf:kv/" in shown
    assert "Nothing found" in CliRunner().invoke(app, ["search", "zzz"]).stdout


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(TransferError, match="does not answer"):
        search("tiny")


def test_nothing_but_repositories_is_asked(many: Hub) -> None:
    search("tiny", usable_bytes=10**9)
    assert all(asked.path.startswith("/api/models") for asked in many.asked)
