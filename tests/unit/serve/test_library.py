import os
from pathlib import Path

import pytest

from kvant.errors import ModelNotFoundError
from kvant.serve.library import DirectoryLibrary, Library


def test_models_of_a_directory(models: Path) -> None:
    library: Library = DirectoryLibrary(models)
    assert [file.name for file in library.list()] == ["family/other", "tiny"]
    file = library.find("tiny")
    assert (file.path, file.size_bytes) == (models / "tiny.gguf", (models / "tiny.gguf").stat().st_size)
    assert library.find("tiny:latest") == file
    facts = file.facts
    assert (facts.architecture, facts.quantization, facts.context_length) == ("llama", "F16", 2048)
    assert facts.parameters > 1_000_000
    assert sum(facts.types.values()) > 30
    assert "completion" in facts.capabilities
    assert facts.metadata["llama.block_count"] == 4
    assert len(facts.metadata["tokenizer.ggml.tokens"]) == 16


@pytest.mark.parametrize("name", ["", "broken", "../tiny", "/tiny", "tiny.gguf", "TINY", "tiny\0", "x" * 10_000])
def test_what_is_not_there(models: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="is not there"):
        DirectoryLibrary(models).find(name)


def test_a_changed_file_has_another_digest(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes((models / "tiny.gguf").read_bytes())
    library = DirectoryLibrary(tmp_path)
    before = library.find("m").digest
    assert library.find("m").digest == before
    os.utime(path, ns=(1, 1))
    assert library.find("m").digest != before
    path.unlink()
    assert library.list() == []


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_a_link_out_of_the_directory_is_not_followed(models: Path, tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(models / "tiny.gguf")
    assert DirectoryLibrary(tmp_path).list() == []
