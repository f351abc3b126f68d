"""The built-in engines keep the contract of all."""

from pathlib import Path

import pytest

from kvant.recipes.convert.convert import convert
from kvant.testing.engines import EngineTests
from kvant.testing.onnx_decoders import export_tiny
from kvant.testing.tiny_models import write_tiny_model


class TestGguf(EngineTests):
    name = "gguf"

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        out = tmp_path / "model" / "tiny.gguf"
        out.parent.mkdir()
        convert(write_tiny_model("llama", tmp_path / "hf"), out, to="gguf", type="Q8_0")
        return out


@pytest.mark.slow  # MLX compiles its kernels anew for every process
class TestMlx(EngineTests):
    name = "mlx"

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        pytest.importorskip("mlx_lm")
        convert(write_tiny_model("llama", tmp_path / "hf"), tmp_path / "mlx", to="mlx", type="F16")
        return tmp_path / "mlx"


class TestOnnx(EngineTests):
    name = "onnx"

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        pytest.importorskip("onnxruntime")
        source = write_tiny_model("llama", tmp_path / "hf")
        out = export_tiny(source, tmp_path / "onnx")
        (out / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
        return out

    @pytest.fixture(autouse=True)
    def genai(self, request: pytest.FixtureRequest) -> None:
        if "tokenizer" in request.node.name:
            pytest.importorskip("onnxruntime_genai")
