"""Telling formats apart by their bytes, and opening either through one door."""

from pathlib import Path

import pytest

import raw_files as raw
from kvant.errors import FormatError, UnsupportedFormatError
from kvant.formats.base import sniff
from kvant.formats.open import open_model
from kvant.testing.tiny_models import write_tiny_model


def test_a_gguf_is_known_by_its_magic_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(raw.small_gguf())
    assert sniff(path) == "gguf"
    assert list(open_model(str(path)).tensors) == ["a.weight", "b.weight"]


def test_a_directory_with_a_configuration_is_hugging_face(tmp_path: Path) -> None:
    write_tiny_model("llama", tmp_path)
    assert sniff(tmp_path) == "huggingface"
    assert open_model(tmp_path).architecture == "llama"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("model.gguf", b"", FormatError, "is empty"),
        ("model.gguf", b"GGML....", UnsupportedFormatError, "starts with b'GGML'"),
        ("model.pt", b"PK\x03\x04rest", UnsupportedFormatError, "is a pickle, which can run code"),
        ("model.bin", b"\x80\x02rest", UnsupportedFormatError, "is a pickle, which can run code"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}", UnsupportedFormatError, "is one file of a model. Give the dir"),
        ("config.json", b"{}", UnsupportedFormatError, "is one file of a model. Give the directory"),
        ("a/model.gguf", b"GGUF", UnsupportedFormatError, r"a directory of GGUF files. Give one of them, e.g. .*gguf"),
        ("a/other", b"", UnsupportedFormatError, "holds no config.json"),
    ],
)
def test_what_is_no_model(tmp_path: Path, name: str, content: bytes, error: type[Exception], message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        sniff(path if path.parent == tmp_path else path.parent)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no such file or directory"):
        open_model(tmp_path / "gone.gguf")
