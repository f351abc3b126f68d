"""Whole files against a real quantizer: every tensor's type and bytes, and all keys, on tiny models of every family.

The oracle is `model_quantize` of a prebuilt wheel, cyllama (llama.cpp with ggml 0.12), in an environment of its own.
It is older than b11434, whose rules kvant follows: it lacks Q1_0 and Q2_0, and gives the same files for all others.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from architectures import write_architecture
from kvant.formats.gguf.reader import read_gguf
from kvant.quant.plan import needs_importance
from kvant.quant.presets import PRESETS, plan_preset
from kvant.recipes.convert.convert import convert
from kvant.recipes.targets.gguf.write import quantize
from kvant.tensors import n_rows
from kvant.testing.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow

ORACLE = """
import json, sys
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
source, directory, presets = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for name, number in presets.items():
    params = LlamaModelQuantizeParams()
    params.nthread, params.ftype = 2, number
    if model_quantize(source, f"{directory}/{name}.gguf", params):
        sys.exit(f"{name} failed")
"""

UNKNOWN = {"Q1_0", "Q2_0"}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with cyllama."""
    directory = tmp_path_factory.mktemp("oracle")
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "cyllama==0.2.18", "numpy"], check=True)
    return python


@pytest.mark.parametrize("family", ["llama", "tinyllama", "qwen2", "qwen3", "gemma3", "phi3", "granite"])
def test_files_equal_model_quantize(oracle: Path, family: str, tmp_path: Path) -> None:
    directory = write_tiny_model(family, tmp_path / "model", num_hidden_layers=8, intermediate_size=256)
    convert(directory, tmp_path / "source.gguf", to="gguf", type="F16")
    check_presets(oracle, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["qwen3moe", "gptoss", "qwen35moe", "qwen3next", "gemma4", "granitehybrid", "deepseek2", "lfm2", "lfm2moe",
     "mamba2", "falconh1", "glm4moe", "mixtral", "cohere2"],
)  # fmt: skip
def test_files_of_every_kind_of_layer_equal_model_quantize(oracle: Path, name: str, tmp_path: Path) -> None:
    write_architecture(name, tmp_path / "source.gguf")
    check_presets(oracle, tmp_path)


def check_presets(oracle: Path, directory: Path) -> None:
    """Quantize `source.gguf` of a directory by every preset that needs no importance, here and there."""
    model = read_gguf(directory / "source.gguf")
    plans = {name: plan_preset(model, name) for name in PRESETS if name not in UNKNOWN}
    plans = {name: plan for name, plan in plans.items() if not needs_importance(plan, model)}
    numbers = json.dumps({name: plan.file_type for name, plan in plans.items()})
    subprocess.run(
        [oracle, "-c", ORACLE, directory / "source.gguf", directory, numbers], check=True, capture_output=True
    )
    for name, plan in plans.items():
        quantize(model, plan, directory / "ours.gguf", overwrite=True)
        ours, theirs = read_gguf(directory / "ours.gguf"), read_gguf(directory / f"{name}.gguf")
        assert list(ours.tensors) == list(theirs.tensors)
        for tensor in ours.tensors.values():
            other = theirs.tensors[tensor.name]
            assert tensor.block_type == other.block_type, (name, tensor.name)
            found, expected = tensor.read_bytes(0, n_rows(tensor)), other.read_bytes(0, n_rows(other))
            assert np.array_equal(found, expected), (name, tensor.name)
        assert [key for key in ours.metadata if not key.startswith("kvant.")] == list(theirs.metadata), name
