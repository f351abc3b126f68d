"""mlx-lm as the oracle: the directories that its converter writes, and logits of what kvant writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import EngineError
from kvant.formats.safetensors.reader import read_sharded
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.evaluate import evaluate
from kvant.recipes.targets.mlx.write import to_mlx
from kvant.runtime.mlx import MLXProcess
from kvant.tensors import n_rows
from kvant.testing.tiny_models import write_tiny_model

pytest.importorskip("mlx.core", reason="there is no wheel of mlx for this system")

OPTIONS = {
    "4bit-g32": ("--q-bits", "4", "--q-group-size", "32"),
    "mxfp4": ("--q-mode", "mxfp4"),
    "mixed_3_6": ("--quant-predicate", "mixed_3_6", "--q-group-size", "64"),
}


@pytest.mark.parametrize(("family", "name"), [("llama", "mixed_3_6"), ("qwen2", "mxfp4"), ("gemma3", "4bit-g32")])
def test_the_directory_that_mlx_lm_writes(family: str, name: str, tmp_path: Path) -> None:
    source = write_tiny_model(family, tmp_path / "source")
    subprocess.run(
        [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(source), "--mlx-path", str(tmp_path / "theirs"),
         "-q", *OPTIONS[name]],
        check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    to_mlx(source, tmp_path / "ours", type=name)
    theirs, ours = (read_sharded(tmp_path / directory) for directory in ("theirs", "ours"))
    assert set(ours) == set(theirs)
    for tensor, other in ((ours[key], theirs[key]) for key in theirs):
        assert (tensor.shape, tensor.block_type) == (other.shape, other.block_type)
        rows = n_rows(tensor)
        assert np.array_equal(tensor.read_bytes(0, rows), other.read_bytes(0, rows))
    for file in ("config.json", "model.safetensors.index.json"):
        first, second = (json.loads((tmp_path / directory / file).read_text()) for directory in ("theirs", "ours"))
        assert first == second


def test_mlx_computes_what_llama_cpp_does(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "source")
    convert(source, tmp_path / "plain", to="mlx", type="F32")
    to_mlx(source, tmp_path / "four", type="4bit-g32")
    convert(tmp_path / "four", tmp_path / "four.gguf", to="gguf", type="F32")
    variants = [tmp_path / "plain", tmp_path / "four", tmp_path / "four.gguf"]
    found = evaluate(variants, against=source, chunks=2, floors=False)
    plain, four, decoded = found.scores
    assert plain.kld_mean < 1e-6
    assert plain.top1 == 1
    assert four.kld_mean > 1e-4
    assert four.kld_mean == pytest.approx(decoded.kld_mean, rel=1e-3)
    assert four.size_bytes == (tmp_path / "four" / "model.safetensors").stat().st_size
    assert four.tg_tok_s
    assert four.rss_bytes


def test_a_directory_that_mlx_lm_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with MLXProcess() as engine, pytest.raises(EngineError, match="mlx-lm fails on it"):
        engine.open(tmp_path)


def test_a_worker_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nsleep 60\n")
    silent.chmod(0o755)
    monkeypatch.setenv("KVANT_MLX_PYTHON", str(silent))
    with MLXProcess(timeout_s=0.5) as engine, pytest.raises(EngineError, match=r"within 0\.5 s"):
        engine.open(tmp_path)
