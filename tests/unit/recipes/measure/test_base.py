from pathlib import Path

from kvant.formats.open import open_model
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.base import f32_file
from kvant.testing.tiny_models import write_tiny_model


def test_a_gguf_of_f32_is_its_own_base_whatever_it_is_called(tmp_path: Path) -> None:
    convert(write_tiny_model("llama", tmp_path / "hf"), tmp_path / "one.gguf", to="gguf", type="F32")
    named = (tmp_path / "one.gguf").rename(tmp_path / "weights.bin")
    file, identity = f32_file(named)
    assert file == named
    assert f32_file(open_model(named)) == (file, identity)
