"""What is written here loads in the engine: shards, another alignment, and the same logits from all of them."""

from pathlib import Path

import numpy as np
import pytest

from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.metadata import u32
from kvant.recipes.convert.convert import convert
from kvant.runtime.llamacpp import LlamaCpp
from kvant.testing.tiny_models import write_tiny_model

TOKENS = np.arange(5, 25, dtype=np.int32)


def logits(path: Path) -> np.ndarray:
    with LlamaCpp(path, n_ctx=64, all_logits=True) as engine:
        return engine.logits(TOKENS).copy()  # it is a view of the engine's memory


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    source = write_tiny_model("llama", directory / "hf")
    convert(source, directory / "m.gguf", to="gguf", type="F16")
    return directory / "m.gguf"


def test_a_split_model(single: Path, tmp_path: Path) -> None:
    model = read_gguf(single)
    paths = write_gguf(tmp_path / "m.gguf", model.metadata, model.tensors.values(), max_file_bytes=1_000_000)
    assert len(paths) > 3
    np.testing.assert_array_equal(logits(paths[0]), logits(single))


@pytest.mark.parametrize("alignment", [8, 4096])
def test_another_alignment(single: Path, tmp_path: Path, alignment: int) -> None:
    model = read_gguf(single)
    path = tmp_path / "m.gguf"
    write_gguf(path, {**model.metadata, "general.alignment": u32(alignment)}, model.tensors.values())
    np.testing.assert_array_equal(logits(path), logits(single))
