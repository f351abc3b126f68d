import subprocess
import sys
from pathlib import Path

import pytest

from kvant.errors import FormatError, UnsupportedFormatError
from kvant.formats.gguf.reader import read_gguf
from kvant.recipes.convert.convert import convert
from kvant.recipes.targets.gguf.write import quantize
from kvant.runtime.artifacts import ENGINES, engine_of, open_artifact
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "hf")


def test_the_built_in_engines_come_through_the_door() -> None:
    assert set(ENGINES.names) >= {"gguf", "mlx", "onnx"}
    assert all(ENGINES.get(name).name == name for name in ENGINES.names)


def test_a_split_gguf_whatever_it_is_called(tiny: Path, tmp_path: Path) -> None:
    quantize(tiny, "Q8_0", tmp_path / "split.gguf", max_file_bytes=1_200_000)
    shards = sorted(tmp_path.glob("split-*.gguf"))
    assert len(shards) > 1
    found = open_artifact(shards[1])
    assert (found.engine.name, found.path, found.entry, found.files) == ("gguf", shards[1], shards[0], tuple(shards))
    assert found.model is not None
    convert(tiny, tmp_path / "one.gguf", to="gguf", type="F16")
    (tmp_path / "one.gguf").rename(tmp_path / "weights.bin")
    found = open_artifact(tmp_path / "weights.bin")
    assert (found.engine.name, found.files, found.name) == ("gguf", (tmp_path / "weights.bin",), "weights")
    assert open_artifact(found) is found


def test_directories_are_told_apart_by_what_they_hold(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "mlx", to="mlx", type="F16")
    found = open_artifact(tmp_path / "mlx")
    assert (found.engine.name, found.entry, found.name) == ("mlx", tmp_path / "mlx", "mlx")
    assert [file.suffix for file in found.files] == [".safetensors"]
    for name in ("config.json", "genai_config.json"):
        (tmp_path / name).write_text("{}")
    assert engine_of(tmp_path).name == "onnx"


def test_what_no_engine_runs_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="there is no such file"):
        engine_of(tmp_path / "absent.gguf")
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(UnsupportedFormatError, match=r"notes\.txt"):
        open_artifact(tmp_path / "notes.txt")
    with pytest.raises(UnsupportedFormatError):
        open_artifact(tmp_path)


def test_no_engine_is_imported_to_find_which_one_it_is(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "a.gguf", to="gguf", type="F16")
    assert read_gguf(tmp_path / "a.gguf").tensors
    code = (
        "import sys; from kvant.runtime.artifacts import open_artifact; from pathlib import Path\n"
        "open_artifact(Path(sys.argv[1]))\n"
        "sys.exit(bool({'onnx', 'onnxruntime', 'mlx', 'xllamacpp', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.gguf")], check=False).returncode == 0
