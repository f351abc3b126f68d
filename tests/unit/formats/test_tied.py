"""Tied models that store their head: once where it equals the embedding, as the model's own where it does not."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kvant.dtypes import F16, F32, BlockType
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.open import open_as_stored, open_model
from kvant.formats.tied import same_values
from kvant.model import Model
from kvant.quant.presets import plan_preset
from kvant.recipes.convert.convert import convert
from kvant.recipes.targets.gguf.write import predict_size, quantize
from kvant.recipes.targets.mlx.write import to_mlx
from kvant.tensors import LazyTensor, array_tensor, n_rows
from kvant.testing.tiny_models import write_tiny_model

HEAD, EMBEDDING = "output.weight", "token_embd.weight"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tied") / "once", dtype="F32", num_hidden_layers=1)


@pytest.fixture(scope="module", params=["equal", "equal in another type", "different"])
def stored(request: pytest.FixtureRequest, once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """A tied model that stores its head, and whether it equals the embedding."""
    directory = Path(shutil.copytree(once, tmp_path_factory.mktemp("stored") / "model"))
    weights = load_file(directory / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].astype(np.float16)
    head = embedding.copy()
    if request.param == "different":
        head[-1, -1] += 1
    if request.param == "equal in another type":
        head = head.astype(np.float32)
    save_file(weights | {"lm_head.weight": head}, directory / "model.safetensors")
    return directory, request.param != "different"


def assert_said(model: Model, is_equal: bool) -> None:
    assert (HEAD in model.tensors) != is_equal
    assert any(("written once" if is_equal else "what is written says false") in said for said in model.remarks)


def test_gguf(stored: tuple[Path, bool], once: Path, tmp_path: Path) -> None:
    model = open_model(stored[0])
    assert_said(model, stored[1])
    plan = plan_preset(model, "Q4_K_M")
    made = quantize(model, plan, tmp_path / "out.gguf")
    assert made.size_bytes == predict_size(model, plan)
    plain = quantize(once, "Q4_K_M", tmp_path / "once.gguf")
    assert (made.types == plain.types) == stored[1]
    assert (HEAD in open_model(tmp_path / "out.gguf").tensors) != stored[1]


def flag(directory: Path) -> object:
    return json.loads((directory / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("type_", [None, "4bit"])
def test_mlx(type_: str | None, stored: tuple[Path, bool], tmp_path: Path) -> None:
    out = tmp_path / "mlx"
    to_mlx(stored[0], out, type=type_, dtype="F16")
    names = load_file(out / "model.safetensors")
    assert any(name.startswith("lm_head") for name in names) != stored[1]
    assert flag(out) == stored[1]
    assert open_model(out).remarks == ()


def test_huggingface_and_back(stored: tuple[Path, bool], tmp_path: Path) -> None:
    convert(stored[0], tmp_path / "model.gguf", to="gguf", type="F32")
    convert(tmp_path / "model.gguf", tmp_path / "hf", to="hf", type="F32")
    assert ("lm_head.weight" in load_file(tmp_path / "hf" / "model.safetensors")) != stored[1]
    assert flag(tmp_path / "hf") == stored[1]


def test_an_mlx_directory_that_stores_its_head_twice_is_read_once(once: Path, tmp_path: Path) -> None:
    to_mlx(once, tmp_path / "mlx", type="4bit", dtype="F16")
    path = tmp_path / "mlx" / "model.safetensors"
    weights = load_file(path)
    copies = {f"lm_head.{part}": weights[f"model.embed_tokens.{part}"] for part in ("weight", "scales", "biases")}
    save_file(weights | copies, path, {"format": "mlx"})
    model = open_model(tmp_path / "mlx")
    assert_said(model, True)
    assert HEAD not in model.stored


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_gguf_that_holds_its_embedding_twice(is_equal: bool, once: Path, tmp_path: Path) -> None:
    model = open_model(once)
    embedding = model.tensors[EMBEDDING]
    values = embedding.read_bytes(0, n_rows(embedding)).view(np.float32).copy()
    values[7, 7] += 0 if is_equal else 1
    path = tmp_path / "twice.gguf"
    write_gguf(path, model.metadata, [*model.tensors.values(), array_tensor(HEAD, values, F32)])
    found = open_model(path)
    assert (HEAD in found.tensors) != is_equal
    assert bool(found.remarks) == is_equal
    assert HEAD in open_as_stored(path).tensors
    to_mlx(path, tmp_path / "mlx", dtype="F32")
    assert flag(tmp_path / "mlx") == is_equal


def test_a_head_of_its_own_is_told_by_a_sample_of_its_rows() -> None:
    rows, read = 70_000, [0]
    values = np.zeros((rows, 64), np.float32)
    other = values.copy()
    other[rows // 2 :] = 1  # a vocabulary that was extended, or trained further in part

    def counted(name: str, values: np.ndarray) -> LazyTensor:
        def rows_of(start: int, stop: int) -> np.ndarray:
            read[0] += stop - start
            return tensor.read_bytes(start, stop)

        tensor = array_tensor(name, values, F32)
        return dataclasses.replace(tensor, read=rows_of)

    assert not same_values(counted("a", values), counted("b", other))
    assert read[0] < 2 * 200


@pytest.mark.parametrize("kind", [F32, F16])
@pytest.mark.parametrize("rows", [1, 17, 70_000])
def test_the_last_weight_of_all_counts(rows: int, kind: BlockType) -> None:
    values = np.zeros((rows, 64), np.float16)
    other = values.astype(np.float32 if kind is F32 else np.float16)
    one, same = array_tensor("a", values, F16), array_tensor("b", other.copy(), kind)
    assert same_values(one, same)
    other[-1, -1] = 1
    assert not same_values(one, array_tensor("b", other, kind))
    assert not same_values(one, array_tensor("b", other[:, :32].copy(), kind))
