from pathlib import Path

import pytest

from kvant.recipes.convert import convert
from tiny_models import write_tiny_model


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
