"""The built-in formats keep the contract of all."""

from pathlib import Path

import pytest

from kvant.evaluate.base import identity
from kvant.files import cache_dir
from kvant.formats.open import open_model
from kvant.testing import TargetTests
from kvant.testing.onnx_decoders import export_tiny

pytestmark = pytest.mark.heavy


class TestGguf(TargetTests):
    target = "gguf"


class TestMlx(TargetTests):
    target = "mlx"

    @pytest.fixture(autouse=True)
    def engine(self) -> None:
        pytest.importorskip("mlx_lm", reason="there is no wheel of mlx for this system")


class TestOnnx(TargetTests):
    target = "onnx"

    @pytest.fixture(autouse=True)
    def engine(self) -> None:
        pytest.importorskip("onnxruntime")

    @classmethod
    def prepare(cls, source: Path) -> None:
        export_tiny(source, cache_dir("onnx") / identity(open_model(source).files)[:32])
