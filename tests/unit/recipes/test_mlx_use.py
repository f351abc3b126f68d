"""What is given to weigh errors with is used by an MLX type, or refused before anything is measured."""

from pathlib import Path

import numpy as np
import pytest

from kvant.errors import PlanError, UnsupportedFormatError
from kvant.quant.importance import Entry, Importance
from kvant.recipes.targets.mlx.write import to_mlx
from kvant.testing.tiny_models import write_tiny_model


def importance(*names: str) -> Importance:
    entry = Entry(sums=np.ones((1, 256), np.float32), counts=np.ones(1, np.float32))
    return Importance(entries=dict.fromkeys(names, entry), source="i.dat")


def test_importance_that_a_type_does_not_use_is_refused(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "llama", num_hidden_layers=1)
    known = importance("blk.0.attn_q.weight")
    with pytest.raises(UnsupportedFormatError, match="mxfp4: no layer of it is encoded by importance"):
        to_mlx(source, tmp_path / "a", type="mxfp4", importance=known)
    with pytest.raises(UnsupportedFormatError, match="mxfp4: no layer of it is encoded by importance or Hessians"):
        to_mlx(source, tmp_path / "a", type="mxfp4", calibrate="bundled")
    with pytest.raises(PlanError, match=r"i\.dat names no matrix"):
        to_mlx(source, tmp_path / "a", type="4bit", importance=importance("model.layers.0.mlp"))
    made = to_mlx(source, tmp_path / "a", type="4bit", importance=known)
    assert "for 6 of 8 tensors (first blk.0.attn_k.weight)" in made.remarks[0]
