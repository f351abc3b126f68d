from pathlib import Path

import numpy as np
import pytest

from architectures import metadata, shapes
from kvant.dtypes import F32
from kvant.errors import UnsupportedModelError
from kvant.formats.open import open_model
from kvant.metadata import u32
from kvant.recipes.convert.convert import convert
from kvant.recipes.convert.loadable import check_loads, is_checked
from kvant.tensors import LazyTensor, Tensor
from kvant.testing.tiny_models import write_tiny_model

pytestmark = pytest.mark.heavy


def tensors(name: str) -> list[Tensor]:
    """The tensors of an architecture; their values are not to be read."""

    def refuse(_start: int, _stop: int) -> np.ndarray:
        raise AssertionError("a value was read")

    return [LazyTensor(name=n, shape=s, block_type=kind, read=refuse) for n, s, kind in shapes(name)]


def test_what_the_engine_loads_passes_unread(tmp_path: Path) -> None:
    check_loads(metadata("gemma4"), tensors("gemma4"), tmp_path / "x.gguf", tmp_path)


@pytest.mark.parametrize("missing", ["output_norm.weight", "blk.2.ffn_up_exps.weight"])
def test_a_tensor_that_is_missing(missing: str, tmp_path: Path) -> None:
    found = [tensor for tensor in tensors("mixtral") if tensor.name != missing]
    with pytest.raises(UnsupportedModelError, match=f"'{missing}' not found"):
        check_loads(metadata("mixtral"), found, tmp_path / "x.gguf", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_nobody_reads(tmp_path: Path) -> None:
    odd = LazyTensor(name="blk.0.odd.weight", shape=(4,), block_type=F32, read=tensors("mixtral")[0].read_bytes)
    with pytest.raises(UnsupportedModelError, match="wrong number of tensors"):
        check_loads(metadata("mixtral"), [*tensors("mixtral"), odd], tmp_path / "x.gguf", tmp_path)


def test_a_hyperparameter_that_is_missing(tmp_path: Path) -> None:
    values = {key: value for key, value in metadata("mixtral").items() if not key.endswith("embedding_length")}
    with pytest.raises(UnsupportedModelError, match=r"x\.gguf: was not written: .*embedding_length"):
        check_loads(values, tensors("mixtral"), tmp_path / "x.gguf", tmp_path)


def test_a_conversion_that_would_not_load_leaves_nothing(tmp_path: Path) -> None:
    directory = write_tiny_model("llama", tmp_path / "model")
    model = open_model(directory)
    assert is_checked(model)
    broken = {**model.metadata, "llama.block_count": u32(5)}
    object.__setattr__(model, "metadata", broken)
    with pytest.raises(UnsupportedModelError, match=r"blk\.4"):
        convert(model, tmp_path / "out.gguf", to="gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_name_that_means_another_model_to_the_engine(tmp_path: Path) -> None:
    directory = write_tiny_model("phi4", tmp_path / "my-phi3-copy")
    convert(directory, tmp_path / "out.gguf", to="gguf")
    assert (tmp_path / "out.gguf").is_file()
