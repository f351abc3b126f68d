"""Tiny models as GGUF files, and a hub that offers them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import Hub, Repo, serving
from kvant.recipes.convert.convert import convert
from kvant.recipes.targets.gguf.write import quantize
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny Hugging Face model `tiny`, and `tiny-Q4_K_M.gguf` and others made from it."""

    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_model("llama", directory / "tiny")
    for preset in ("Q4_K_M", "Q8_0", "F16"):
        quantize(directory / "tiny", preset, directory / f"tiny-{preset}.gguf")
    quantize(directory / "tiny", "Q8_0", directory / "split-Q8_0.gguf", max_file_bytes=1_200_000)
    return directory


def gguf_repo(tiny: Path) -> "Repo":
    from hub_server import Repo

    files = {path.name: path.read_bytes() for path in sorted(tiny.glob("*.gguf")) if path.name.startswith("tiny-")}
    return Repo({**files, "README.md": b"---\nlicense: apache-2.0\n---\n", "imatrix-tiny.gguf": b"GGUF not a model"})


@pytest.fixture
def hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """A hub with `kv/tiny-GGUF`, and the environment that points to it."""

    with serving() as hub:
        hub.repos["kv/tiny-GGUF"] = gguf_repo(tiny)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_HOME", str(tiny / "hf-home"))
        yield hub


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with two tiny models, one in a directory of its own, and a file that is no model."""
    root = tmp_path_factory.mktemp("models")
    (root / "family").mkdir()
    source = write_tiny_model("llama", tmp_path_factory.mktemp("hf"))
    convert(source, root / "tiny.gguf", to="gguf", type="F16")
    (root / "family" / "other.gguf").write_bytes((root / "tiny.gguf").read_bytes())
    (root / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
    return root
