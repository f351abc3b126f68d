"""Projectors in the store: imported beside their model under its name, found by `run` and the gateway."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvant.errors import ModelNotFoundError
from kvant.hub.jobs import import_, name_of_file
from kvant.hub.store import Store
from kvant.recipes.convert.convert import convert
from kvant.serve.storelibrary import StoreLibrary
from kvant.testing.pictures import disc, write_tiny_projector
from kvant.testing.tiny_models import write_tiny_model

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    ("file", "name"),
    [("mmproj-SmolVLM-500M-F16.gguf", "smolvlm-500m:mmproj-F16"), ("mmproj-tiny.gguf", "tiny:mmproj"),
     ("SmolVLM-500M-Q8_0.gguf", "smolvlm-500m:Q8_0"), ("mmproj.gguf", "mmproj:latest")],
)  # fmt: skip
def test_names_of_files(file: str, name: str) -> None:
    assert name_of_file(Path(file)) == name


def test_a_stored_model_sees_by_the_projector_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_HOME", str(tmp_path / "home"))
    write_tiny_model("llama", tmp_path / "model", tokenizer="pictures")
    convert(tmp_path / "model", tmp_path / "tiny-F16.gguf", to="gguf")
    (tmp_path / "red.png").write_bytes(disc((255, 0, 0)))
    import_(tmp_path / "tiny-F16.gguf")
    library = StoreLibrary(Store.open())
    blind = library.find("tiny:f16")
    assert "vision" not in blind.capabilities

    import_(write_tiny_projector(tmp_path / "mmproj-tiny-F16.gguf"))
    [file] = library.list()  # the projector is no model
    assert file.name == "tiny:F16"
    assert "vision" in file.capabilities
    assert file.identity != blind.identity
    with pytest.raises(ModelNotFoundError, match="is a projector"):
        library.find("tiny:mmproj-f16")

    command = [sys.executable, "-m", "kvant.cli.main", "run", "tiny:f16", "What is it?", "--json", "--max-tokens", "3"]
    made = subprocess.run([*command, "--image", str(tmp_path / "red.png")], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["n_prompt"] > 40
