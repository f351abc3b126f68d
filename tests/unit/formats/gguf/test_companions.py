from pathlib import Path

import pytest

from kvant.errors import FormatError
from kvant.formats.gguf.companions import projector_for, read_projector
from kvant.formats.gguf.reader import read_gguf
from kvant.recipes.convert.convert import convert
from kvant.recipes.inspect.inspect import inspect
from kvant.testing.pictures import write_tiny_projector
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    write_tiny_model("llama", root / "model")
    convert(root / "model", root / "tiny-Q4_K_M.gguf", to="gguf")
    return root / "tiny-Q4_K_M.gguf"


def _chosen(text: Path, root: Path, *names: str, width: int = 256) -> str | None:
    for name in names:
        write_tiny_projector(root / name, width=width)
    found = projector_for(root / "tiny-Q4_K_M.gguf", read_gguf(text).hyper("embedding_length"))
    return found.path.name if found else None


def test_what_a_projector_tells(tmp_path: Path) -> None:
    found = read_projector(write_tiny_projector(tmp_path / "mmproj.gguf", hidden=64, side=64))
    assert (found.kind, found.width, found.patches, found.hidden) == ("idefics3", 256, 16, 128)
    assert found.abilities == ["vision"]
    assert found.size_bytes == (tmp_path / "mmproj.gguf").stat().st_size


def test_a_model_is_no_projector(text: Path) -> None:
    with pytest.raises(FormatError, match="is a llama model, no projector"):
        read_projector(text)


def test_of_several_types_half_precision_is_chosen(text: Path, tmp_path: Path) -> None:
    names = ("mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf")
    assert _chosen(text, tmp_path, *names) == "mmproj-F16.gguf"


def test_the_name_decides_between_models(text: Path, tmp_path: Path) -> None:
    names = ("mmproj-other-F16.gguf", "mmproj-tiny-F16.gguf", "mmproj-F16.gguf")
    assert _chosen(text, tmp_path, *names) == "mmproj-tiny-F16.gguf"


@pytest.mark.parametrize("mix", ["kvant-4.25", "kvant-12.50-3"])
def test_a_mix_of_optimize_has_its_model_s(mix: str, tmp_path: Path) -> None:
    for name in ("mmproj-tiny-F16.gguf", "mmproj-other-F16.gguf"):
        write_tiny_projector(tmp_path / name, width=64)
    found = projector_for(tmp_path / f"tiny-{mix}.gguf", 64)
    assert found is not None
    assert found.path.name == "mmproj-tiny-F16.gguf"


def test_other_models_projectors_are_not_guessed_among(text: Path, tmp_path: Path) -> None:
    assert _chosen(text, tmp_path, "mmproj-one-F16.gguf", "mmproj-two-F16.gguf") is None
    assert _chosen(text, tmp_path, "mmproj-tiny-F16.gguf", width=128) is None


def test_a_damaged_projector_is_passed_over(text: Path, tmp_path: Path) -> None:
    (tmp_path / "mmproj-tiny-F16.gguf").write_bytes(b"GGUF" + bytes(100))
    assert _chosen(text, tmp_path, "mmproj-F16.gguf") == "mmproj-F16.gguf"


def test_what_inspect_says_of_a_projector(tmp_path: Path) -> None:
    found = inspect(write_tiny_projector(tmp_path / "mmproj.gguf"))
    assert [warning for warning in found.warnings if "engine" in warning or "tokenizer" in warning] == []
    assert any("(idefics3) models of width 256 have vision" in warning for warning in found.warnings)
