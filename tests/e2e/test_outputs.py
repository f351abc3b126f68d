"""Where a writing command may write: not over what it reads, not in the place of another kind of thing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.evaluate.base import identity
from kvant.files import cache_dir
from kvant.formats.open import open_model
from kvant.recipes.convert.convert import convert
from kvant.testing.onnx_decoders import export_tiny
from kvant.testing.tiny_models import write_tiny_model
from onnx_files import two_layers

FILES = (
    "convert m.gguf -t F16 -o", "convert src -o", "convert mlx --to gguf -o", "quantize m.gguf -t Q8_0 -o",
    "quantize src -t Q8_0 -o", "quantize x.onnx -t int8-dynamic -o", "quantize m.gguf -t Q8_0 --dry-run --write-plan",
)  # fmt: skip
DIRECTORIES = (
    "convert m.gguf --to hf -o", "convert src --to mlx -o", "convert src --to hf -o",
    "quantize mlx --to mlx -t 4bit -o",
    "quantize src --to onnx -t int4 -o", "convert src --to onnx -o",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    tiny = write_tiny_model("llama", place / "src")
    convert(tiny, place / "m.gguf", to="gguf", type="F16")
    convert(tiny, place / "mlx", to="mlx", type="F16")
    two_layers(place / "x.onnx")
    return place


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def contents(path: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def refused(command: str, place: Path, words: str) -> None:
    before = contents(place)
    done = CliRunner().invoke(app, [*command.split(), "--overwrite"])
    assert done.exit_code == 1, done.output
    assert words in " ".join(done.stderr.split())
    assert contents(place) == before


@pytest.mark.parametrize("command", [c for c in (*FILES, *DIRECTORIES) if " --to onnx" not in c])
def test_what_is_read_is_not_written_over(command: str, place: Path) -> None:
    source = command.split()[1]
    said = "is a directory" if command in FILES and Path(source).is_dir() else "is what is read"
    refused(f"{command} {source}", place, said)


def test_nor_by_another_name(place: Path) -> None:
    link = place / "link.gguf"
    link.symlink_to("m.gguf")
    refused("quantize m.gguf -t Q8_0 -o link.gguf", place, "link.gguf: is what is read")
    link.unlink()


def test_a_directory_of_other_things_does_not_become_an_onnx_model(place: Path) -> None:
    """A repository of a model often has an `onnx` folder beside its weights; it is not all replaced."""
    export_tiny(place / "src", cache_dir("onnx") / identity(open_model(place / "src").files)[:32])
    (place / "src" / "onnx").mkdir()
    for command in ("quantize src --to onnx -t int4", "convert src --to onnx"):
        refused(f"{command} -o src", place, "src: is no directory that was made so, and is not replaced")
    (place / "src" / "onnx").rmdir()


@pytest.mark.parametrize("command", FILES)
def test_a_directory_does_not_become_a_file(command: str, place: Path) -> None:
    (place / "full").mkdir(exist_ok=True)
    (place / "full" / "note.txt").write_text("mine")
    refused(f"{command} full", place, "full: is a directory, and a file is to be written. Give the name of a file.")


@pytest.mark.parametrize("command", DIRECTORIES)
def test_a_file_does_not_become_a_directory(command: str, place: Path) -> None:
    (place / "note.txt").write_text("mine")
    refused(f"{command} note.txt", place, "note.txt: is ")


@pytest.mark.parametrize("command", [*FILES, *DIRECTORIES])
def test_a_missing_directory_is_named(command: str, place: Path) -> None:
    refused(f"{command} none/out", place, "none: is not a directory. Create it first.")
